"""What goes wrong while pictures are read and written, in words that users can act on."""

from __future__ import annotations

import logging
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Final, TypeAlias

import tifffile
from PIL import Image

from aether_converters.errors import ImageError
from aether_spandrel.errors import reason

# Both log what ends up in an ImageError here, and Python prints what no handler takes. An
# application that configures logging still receives it.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

Faults: TypeAlias = "tuple[type[Exception], ...]"

DECODER_FAULTS: Final[Faults] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tifffile.TiffFileError,
    zlib.error,
)
"""What Pillow, tifffile and imagecodecs raise on damaged bytes."""

SIZE_FAULTS: Final[Faults] = (MemoryError, Image.DecompressionBombError)

Troubles: TypeAlias = "tuple[tuple[Faults, str, str], ...]"

READ_TROUBLES: Final[Troubles] = (
    (
        SIZE_FAULTS,
        "the picture is too large for this computer",
        "cut it into parts and upscale them one by one",
    ),
    (
        DECODER_FAULTS,
        "the picture cannot be decoded",
        "it is damaged, cut off or of a rare kind: "
        "open it in a picture editor and save it again as PNG",
    ),
)
"""What a fault means, and the next step; the first row that fits a fault explains it."""

WRITE_TROUBLES: Final[Troubles] = (
    ((FileNotFoundError,), "the folder does not exist", "create it, or choose another one"),
    ((IsADirectoryError,), "this is a folder", "choose a file name inside it"),
    ((PermissionError,), "this file may not be written", "choose a folder of your own"),
    (SIZE_FAULTS, "the picture is too large for this computer", "use a smaller scale"),
    (
        DECODER_FAULTS,
        "the picture cannot be written",
        "check the free space on the disk, or choose another format",
    ),
)


class _IgnoredWarnings:
    """No warning while any thread is inside; `catch_warnings` alone serves one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


WARNINGS_IGNORED: Final = _IgnoredWarnings()


def explained(error: Exception, troubles: Troubles, file: Path) -> ImageError:
    """The fault in plain words, by the first row of `troubles` that fits it."""
    # Windows reports a folder opened as a file as a lack of permission.
    is_folder = isinstance(error, PermissionError) and file.is_dir()
    fault = IsADirectoryError if is_folder else type(error)
    problem, advice = next(words for faults, *words in troubles if issubclass(fault, faults))
    return ImageError(problem, file=file, found=reason(error), advice=advice)


def unreadable_folder(folder: Path) -> ImageError:
    """The error for a folder whose pictures cannot be known."""
    return ImageError(
        "this folder may not be read",
        file=folder,
        advice="ask its owner for access, or name the pictures that you may read",
    )
