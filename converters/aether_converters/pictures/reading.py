"""A picture from a file, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import BmpImagePlugin, ImageFile, JpegImagePlugin, WebPImagePlugin

from aether_converters.errors import ImageError
from aether_converters.pictures.color import to_srgb
from aether_converters.pictures.faults import (
    DECODER_FAULTS,
    READ_TROUBLES,
    SIZE_FAULTS,
    WARNINGS_IGNORED,
    explained,
)
from aether_converters.pictures.limits import check_single, check_size
from aether_converters.pictures.metadata import read_exif
from aether_converters.pictures.picture import Picture, upright
from aether_converters.pictures.png import decode_png
from aether_converters.pictures.tiff import decode_tiff

PILLOW_MODES: Final = {"1": "L", "L": "L", "RGBA": "RGBA"}  # every other mode becomes RGB


def read_picture(path: Path) -> Picture:
    """The picture in a PNG, JPEG, WebP, TIFF or BMP file, told by its content, not its suffix.

    CMYK, YCbCr and LAB become 8-bit sRGB without a profile; CMYK goes through its profile where
    that is sound. Palettes become RGB. More than 8 bits count as 16. Alpha that is multiplied
    into the colours is divided out. EXIF that cannot be parsed is left behind.

    Raises:
        ImageError: No such file, none of these formats, damaged, more than `MAX_PIXELS`, several
            frames or pages, or samples other than unsigned integers of up to 16 bits.
    """
    try:
        with path.open("rb") as stream, WARNINGS_IGNORED:
            return _decode(stream)
    except ImageError as error:
        raise error.in_file(path) from error
    except (*DECODER_FAULTS, *SIZE_FAULTS) as error:
        raise explained(error, READ_TROUBLES, path) from error


def _decode(stream: BinaryIO) -> Picture:
    """The picture in an open file, by the first bytes.

    Raises:
        ImageError: See `read_picture`; here without the name of the file.
    """
    head = stream.read(16)
    stream.seek(0)
    for signature, decode in DECODERS.items():
        if re.match(signature, head, re.DOTALL):
            return decode(stream)
    raise ImageError(
        "this is not a picture that can be read",
        expected="PNG, JPEG, WebP, TIFF or BMP",
        found="another kind of file" if head else "an empty file",
        advice="open it in a picture editor and save it as PNG",
    )


def _decode_with_pillow(
    image_class: Callable[[BinaryIO], ImageFile.ImageFile], stream: BinaryIO
) -> Picture:
    """The picture in a JPEG, WebP or BMP."""
    image = image_class(stream)
    check_size(*image.size)
    check_single(getattr(image, "n_frames", 1), "frames")
    orientation, exif = read_exif(image.getexif)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return upright(to_srgb(image, profile), orientation, None, exif)
    samples = np.asarray(image.convert(PILLOW_MODES.get(image.mode, "RGB")))
    return upright(samples, orientation, profile, exif)


# Classes, not Image.open: its size limit refuses large scans, and only the whole process can
# lift it; and it takes the JPEG of a phone that appends a preview for several pictures.
DECODERS: Final[Mapping[bytes, Callable[[BinaryIO], Picture]]] = {
    rb"\x89PNG\r\n\x1a\n": decode_png,
    rb"\xff\xd8\xff": partial(_decode_with_pillow, JpegImagePlugin.JpegImageFile),
    rb"RIFF....WEBP": partial(_decode_with_pillow, WebPImagePlugin.WebPImageFile),
    rb"BM": partial(_decode_with_pillow, BmpImagePlugin.BmpImageFile),
    rb"II[*+]\0|MM\0[*+]": decode_tiff,
}
"""The decoder for files that begin with this pattern."""
