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
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".jif": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
}
"""The format that is written under each ending of a file name."""

READ_ALONE: Final = frozenset((".gif", ".avif", ".tga", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi"))
"""Endings of pictures that are read, and not written."""

NOT_READ: Final = frozenset(
    (
        *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jxr", ".svg", ".eps", ".ico"),
        *(".psd", ".psb", ".xcf", ".kra", ".exr", ".hdr", ".dds", ".pcx", ".sgi", ".wmf", ".emf"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    )
)
"""Endings of pictures that are not read: where they are asked for, that is said."""

READABLE: Final = ("PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "TGA", "PNM", "QOI")
"""What is read, in words."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a format can hold."""

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    xmp: int = 2**31 - 1  # bytes
    resolution: bool = True
    texts: frozenset[bytes] | None = frozenset()  # the names of those that it holds; None: all
    color_chunks: bool = False
    bits: Literal[8, 16] = 8
    longest_side: int = 2**31 - 1  # px
    exif: Mapping[int, int]  # bits per channel -> longest EXIF block in bytes


FORMATS: Final[Mapping[ImageFormat, Limits]] = {
    "png": Limits(
        name="PNG", bits=16, texts=None, color_chunks=True, exif={8: 2**31 - 1, 16: 2**31 - 1}
    ),
    "jpeg": Limits(
        name="JPEG",
        alpha=False,
        longest_side=65500,
        xmp=65503,
        texts=frozenset((b"Comment",)),
        exif={8: 65533},
    ),
    "webp": Limits(name="WebP", grey=False, longest_side=16383, exif={8: 2**31 - 1}),
    # Pillow cannot write 16 bits, and tifffile cannot write EXIF's nested directories.
    "tiff": Limits(name="TIFF", bits=16, exif={8: 2**31 - 1, 16: 0}),
    "bmp": Limits(name="BMP", alpha=False, icc=False, xmp=0, exif={8: 0}),
}


def is_picture(path: Path) -> bool:
    """Whether `path` is named like a picture, of whatever kind; nothing is opened."""
    # On disks of other systems macOS leaves a "._photo.jpg" without pixels beside each picture.
    known = path.suffix.lower() in (*SUFFIXES, *READ_ALONE, *NOT_READ)
    return known and not path.name.startswith("._")


def format_named(text: str) -> str:
    """The format that people mean by its name, or by an ending; else the text as it is.

    >>> format_named("JPG"), format_named(".tif"), format_named("gif")
    ('jpeg', 'tiff', 'gif')
    """
    return SUFFIXES.get(f".{text.lower().lstrip('.')}", text.lower())


def renamed(path: Path, ending: str) -> Path:
    """The path of a result: with another ending, or with one more if the source is not read.

    >>> str(renamed(Path("a.jpg"), ".png")), str(renamed(Path("a.heic"), ".png"))
    ('a.png', 'a.heic.png')
    """
    if path.suffix.lower() in NOT_READ:  # beside a.heic phones leave an a.jpg
        return path.with_name(path.name + ending)
    return path.with_suffix(ending)
