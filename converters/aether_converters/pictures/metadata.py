"""What a picture says about itself: kept where it stays true of the enlargement, or named."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from PIL import Image

from aether_converters.pictures.faults import DECODER_FAULTS

ICC_TAG: Final = 34675
XMP_TAG: Final = 700

EXIF_PREFIX: Final = b"Exif\0\0"
XMP_PREFIX: Final = b"http://ns.adobe.com/xap/1.0/\0"
ORIENTATION_TAG: Final = 274
RESOLUTION_TAGS: Final = (282, 283, 296)  # in x, in y, and the unit
EXIF_DIRECTORY: Final = 34665
GPS_DIRECTORY: Final = 34853
CAPTION_TAGS: Final = frozenset(
    (
        *(269, 270, 271, 272),  # document name, description, make and model of the camera
        *(305, 306, 315, 316, 33432),  # software, date, artist, host computer, copyright
        *(18246, 18249, 40091, 40092, 40093, 40094, 40095),  # rating and captions by Windows
        *(EXIF_DIRECTORY, GPS_DIRECTORY),
    )
)
"""The main EXIF tags kept; others tell how one file stores its pixels, untrue of the next file."""

EXIF_SIZE_TAGS: Final = (40962, 40963)  # width and height as the camera wrote them

UNTRUE_IN_XMP: Final = (
    rb"(?:tiff:(?:Orientation|ImageWidth|ImageLength|[XY]Resolution|ResolutionUnit)"
    rb"|exif:Pixel[XY]Dimension)"
)
XMP_UNTRUE: Final = re.compile(
    rb"\s" + UNTRUE_IN_XMP + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')"
    rb"|<(" + UNTRUE_IN_XMP + rb")>[^<]*</\1>"
)
"""What XMP says about one file's pixels, as attributes or as elements."""

XMP_ORIENTATION: Final = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")

PER_INCH, PER_CM = 2, 3  # units of resolution in EXIF
CM_PER_INCH: Final = 2.54
UNPACKED_BYTES: Final = 2**26  # of a compressed text or profile; some profiles have megabytes

Resolution: TypeAlias = tuple[float, float]
"""Px per inch, across and down."""
Chunk: TypeAlias = tuple[bytes, bytes]
"""A piece of a PNG: its kind and its content."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a picture says about itself.

    Attributes:
        icc_profile: The embedded colour profile.
        exif: EXIF block, from its b"Exif" and two zeros on. The orientation is applied to the
            pixels and removed; resolution, preview, stored size and layout of the file are
            removed as well.
        xmp: XMP packet, without what it says of orientation, size and resolution.
        resolution: Px per inch, across and down.
        texts: Captions and the like, as the chunks that a PNG has of them.
        color_chunks: What a PNG says about its values, such as gAMA and cICP.
        dropped: What of the file was left out, in words.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: Resolution | None = None
    texts: tuple[Chunk, ...] = ()
    color_chunks: tuple[Chunk, ...] = ()
    dropped: tuple[str, ...] = ()


def read_exif(load: Callable[[], Image.Exif]) -> tuple[int, bytes | None, Resolution | None]:
    """Orientation, 1 by default; the EXIF block left when it is applied; the resolution."""
    orientation, resolution = 1, None
    try:
        exif = load()
        orientation = exif.get(ORIENTATION_TAG, 1)
        resolution = _resolution_of(*(exif.get(tag) for tag in RESOLUTION_TAGS))
        for tag in set(exif) - CAPTION_TAGS:
            del exif[tag]
        if EXIF_DIRECTORY in exif:
            for tag in EXIF_SIZE_TAGS:
                exif.get_ifd(EXIF_DIRECTORY).pop(tag, None)
        return orientation, exif.tobytes() if len(exif) else None, resolution
    except DECODER_FAULTS:
        return orientation, None, resolution


def _resolution_of(x: object, y: object, unit: object) -> Resolution | None:
    if x is None or unit not in (None, PER_INCH, PER_CM):
        return None
    factor = CM_PER_INCH if unit == PER_CM else 1
    return plausible(float(str(x)) * factor, float(str(x if y is None else y)) * factor)


def plausible(x: float, y: float) -> Resolution | None:
    """The resolution, unless it is one that nothing has.

    >>> plausible(300, 300), plausible(0, float("nan"))
    ((300, 300), None)
    """
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def scaled(resolution: Resolution | None, scale: float) -> Resolution | None:
    """The resolution of an enlargement that is as large on paper as its source."""
    return resolution and (scale * resolution[0], scale * resolution[1])


def exif_with(
    exif: bytes | None, resolution: Resolution | None, xmp: bytes | None = None
) -> bytes | None:
    """The EXIF block with a resolution, and with XMP, which a TIFF keeps there."""
    if resolution is None and xmp is None:
        return exif
    block = Image.Exif()
    block.load(exif or b"")
    if resolution is not None:
        for tag, value in zip(RESOLUTION_TAGS, (*resolution, PER_INCH), strict=True):
            block[tag] = value
    if xmp is not None:
        block[XMP_TAG] = xmp
    return block.tobytes()


def true_xmp(xmp: bytes | None) -> bytes | None:
    """An XMP packet without what it says of one file's pixels."""
    return XMP_UNTRUE.sub(b"", xmp) if xmp else None


def orientation_in_xmp(xmp: bytes | None) -> int | None:
    """Where up is, if XMP says it."""
    found = XMP_ORIENTATION.search(xmp or b"")
    return int(found[1]) if found else None


def unpacked(packed: bytes) -> bytes | None:
    """What zlib packed; None if it is damaged, or longer than anything of use."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(packed, UNPACKED_BYTES)
    except zlib.error:
        return None
    return content if inflater.eof else None


def text_chunk(keyword: str, text: bytes) -> Chunk:
    """A text as PNG keeps it: in UTF-8 if it is that, or else in Latin-1."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return b"tEXt", keyword.encode("latin-1") + b"\0" + text
    kind, between = (b"tEXt", b"\0") if text.isascii() else (b"iTXt", b"\0\0\0\0\0")
    return kind, keyword.encode("latin-1") + between + text


def keywords(texts: Iterable[Chunk]) -> str:
    """The names of some texts, in words."""
    names = sorted({content.split(b"\0")[0].decode("latin-1")[:79] for _, content in texts})
    return ", ".join(names)
