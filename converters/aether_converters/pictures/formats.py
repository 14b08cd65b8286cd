"""The formats that pictures are kept in: their names, and what each can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

ImageFormat = Literal["png", "jpeg", "webp", "tiff", "bmp"]

SUFFIXES: Final[Mapping[str, ImageFormat]] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
}
"""The format that each ending of a file name stands for."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a format can hold."""

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    bits: Literal[8, 16] = 8
    longest_side: int = 2**31 - 1  # px
    exif: Mapping[int, int]  # bits per channel -> longest EXIF block in bytes


FORMATS: Final[Mapping[ImageFormat, Limits]] = {
    "png": Limits(name="PNG", bits=16, exif={8: 2**31 - 1, 16: 2**31 - 1}),
    "jpeg": Limits(name="JPEG", alpha=False, longest_side=65500, exif={8: 65533}),
    "webp": Limits(name="WebP", grey=False, longest_side=16383, exif={8: 2**31 - 1}),
    # Pillow cannot write 16 bits, and tifffile cannot write EXIF's nested directories.
    "tiff": Limits(name="TIFF", bits=16, exif={8: 2**31 - 1, 16: 0}),
    "bmp": Limits(name="BMP", alpha=False, icc=False, exif={8: 0}),
}


def is_picture(path: Path) -> bool:
    """Whether `path` is named like a picture; nothing is opened."""
    # On disks of other systems macOS leaves a "._photo.jpg" without pixels beside each picture.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
