"""What can go wrong while converting, verifying and upscaling."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from aether_converters.installation import install_line
from aether_spandrel.errors import AetherError, reason


class ConversionError(AetherError):
    """An artefact cannot be written, or was written and differs from its source."""


class ExistsError(ConversionError):
    """A file is there already, and must not be replaced."""


class ModelError(AetherError):
    """A model file cannot be run."""


class EngineError(ConversionError, ModelError):
    """TensorRT cannot build an engine, or run it."""


class ImageError(AetherError):
    """A picture cannot be read or written."""


class MissingExtraError(AetherError):
    """An optional package is needed that is not installed."""


class OutputError(AetherError):
    """What a command says cannot be printed."""


@contextmanager
def fault_of(file: Path) -> Generator[None]:
    """Raise whatever goes wrong with one file of many as an AetherError that names a file.

    Who catches AetherError around it can go on with the next file, whatever happened to this one.
    """
    try:
        yield
    except AetherError as error:
        if error.file is not None:
            raise
        raise error.in_file(file) from error.__cause__
    except MemoryError as error:
        raise AetherError(
            "memory ran out", file=file, advice="close other programs, or try a smaller --tile"
        ) from error
    except Exception as error:
        # Without a number it is no word of the operating system: a library that cannot be loaded.
        if isinstance(error, OSError) and error.errno is not None:
            raise AetherError(
                f"the file cannot be used: {error.strerror or error}",
                file=file,
                advice="check its name, its folder and its permissions",
            ) from error
        raise AetherError(
            f"unexpected {type(error).__name__}: {reason(error)}",
            file=file,
            advice="run it again with --debug in front, and report the output",
        ) from error


EXTRAS: Final = {
    "onnx": "convert",
    "onnxruntime": "convert",
    "PIL": "convert",
    "tifffile": "convert",
    "imagecodecs": "convert",
    "numpy": "convert",
    "rich": "convert",
    "matplotlib": "bench",
    "ncnn": "ncnn",
    "lpips": "lpips",
}
"""The extra that brings each optional module."""


def require(module: str) -> ModuleType:
    """Import an optional module.

    Raises:
        MissingExtraError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[module.split(".")[0]]
        raise MissingExtraError(
            f"this needs the Python package {module}, which cannot be imported",
            found=reason(error),
            advice=install_line(extra),
        ) from error
