"""A picture from a file, whatever its format."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
import PIL
from PIL import Image, ImageFile, JpegImagePlugin

from aether_converters.errors import ImageError
from aether_converters.pictures.color import to_srgb
from aether_converters.pictures.faults import (
    DECODER_FAULTS,
    READ_TROUBLES,
    SIZE_FAULTS,
    WARNINGS_IGNORED,
    explained,
    unreadable_folder,
)
from aether_converters.pictures.formats import READABLE
from aether_converters.pictures.jpeg import (
    COMMENT,
    DAMAGED,
    EXIF_OR_XMP,
    WatchedJpeg,
    check_jpeg,
    is_damaged,
    parse_jpeg,
)
from aether_converters.pictures.limits import check_cost, check_single, check_size
from aether_converters.pictures.metadata import (
    XMP_PREFIX,
    Chunk,
    Marks,
    plausible,
    read_exif,
    text_chunk,
    true_xmp,
)
from aether_converters.pictures.picture import Picture, Samples, upright
from aether_converters.pictures.png import decode_png
from aether_converters.pictures.tiff import decode_tiff
from aether_converters.pictures.webp import webp_size
from aether_spandrel.file_kinds import HEAD_BYTES, describe_head, kind_of
from aether_spandrel.opening import open_file

GREY_MODES: Final = frozenset(("1", "L"))
DEEP_GREY_MODES: Final = ("I", "I;")
PILLOW_BYTES: Final = 4  # that Pillow needs for a px of most modes

PHOTOSHOP, FLASHPIX = 0xED, 0xE2  # markers of a JPEG


def read_picture(path: Path, *, strict: bool = False) -> Picture:
    """The picture in a file of any of `READABLE`, told by its content, not its suffix.

    CMYK, YCbCr and LAB become 8-bit sRGB without a profile; CMYK goes through its profile where
    that is sound. Palettes become RGB. More than 8 bits count as 16. Alpha that is multiplied
    into the colours is divided out. EXIF that cannot be parsed is left behind.

    Args:
        path: The file.
        strict: Whether a picture with `doubts` is refused.

    Raises:
        ImageError: No such file, none of these formats, damaged, more than `MAX_PIXELS`, larger
            than `decoding_budget`, several frames or pages, or samples other than unsigned
            integers of up to 16 bits.
    """
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise unreadable_folder(path)
    try:
        with open_file(path, ImageError) as stream, WARNINGS_IGNORED:
            picture = _decode(stream, path.suffix.lower())
    except ImageError as error:
        raise error.in_file(path) from error
    except (*DECODER_FAULTS, *SIZE_FAULTS) as error:
        raise explained(error, READ_TROUBLES, path) from error
    if strict and picture.doubts:
        raise ImageError(
            "the picture is damaged, and --strict refuses it",
            file=path,
            found="; ".join(picture.doubts),
            advice="copy or download it again, or leave --strict out",
        )
    return picture


def _decode(stream: BinaryIO, suffix: str) -> Picture:
    """The picture in an open file, by the first bytes; by its name if they say nothing.

    Raises:
        ImageError: See `read_picture`; here without the name of the file.
    """
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    for signature, decode in DECODERS.items():
        if re.match(signature, head, re.DOTALL):
            return decode(stream)
    kind = kind_of(head)
    if kind is None and head and suffix in WITHOUT_SIGNATURE:
        return WITHOUT_SIGNATURE[suffix](stream)
    raise ImageError(
        "this is not a picture that can be read",
        expected=", ".join(READABLE),
        found=describe_head(head) if head else "an empty file",
        advice=(kind and kind.advice)
        or "if it is the picture that was meant, open it in a picture editor and save it as PNG",
    )


def _decode_jpeg(stream: BinaryIO) -> Picture:
    """The picture in a JPEG, with a doubt if it is damaged; previews behind it do not count."""
    content = stream.read()
    jpeg = parse_jpeg(content)
    check_jpeg(jpeg, len(content))
    watched = WatchedJpeg(content, jpeg)
    # The class, not Image.open, which takes a phone's JPEG with a preview for several pictures.
    image = JpegImagePlugin.JpegImageFile(cast("BinaryIO", watched))
    orientation, exif, of_exif = read_exif(image.getexif)
    samples, profile = _pillow_samples(image)
    xmp: bytes | None = None
    texts: list[Chunk] = []
    dropped: list[str] = []
    for marker, body in jpeg.segments:
        if marker == COMMENT and body.strip(b"\0 "):
            texts.append(text_chunk("Comment", body.rstrip(b"\0")))
        elif marker == EXIF_OR_XMP and body.startswith(XMP_PREFIX):
            xmp = body.removeprefix(XMP_PREFIX)
        elif marker == EXIF_OR_XMP and body.startswith(b"http://ns.adobe.com/xmp/extension/"):
            dropped.append("the second part of long XMP: left out")
        elif marker == PHOTOSHOP and body.startswith(b"Photoshop 3.0"):
            dropped.append("IPTC captions and Photoshop's settings: left out")
        elif marker == FLASHPIX and body.startswith(b"MPF\0"):
            dropped.append("further pictures behind it: left out")
    marks = Marks(
        icc_profile=profile,
        exif=exif,
        xmp=true_xmp(xmp),
        resolution=_stored_resolution(image) or of_exif,
        texts=tuple(texts),
        dropped=tuple(dict.fromkeys(dropped)),
    )
    doubts = (DAMAGED,) if is_damaged(content, jpeg, watched) else ()
    return replace(upright(samples, orientation, marks), doubts=doubts)


def _decode_webp(stream: BinaryIO) -> Picture:
    """The picture in a WebP, whose canvas Pillow makes room for when it opens it."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    size = webp_size(head)
    check_size(*size)
    check_cost(2 * PILLOW_BYTES * size[0] * size[1], _size_of(stream))
    return _decode_with_pillow("WebPImagePlugin", "WebPImageFile", stream)


def _decode_with_pillow(module: str, name: str, stream: BinaryIO) -> Picture:
    """The picture in a format that Pillow alone reads.

    Raises:
        ImageError: The size, several frames, or a Pillow that does not read the format.
    """
    # A class, not Image.open, whose size limit only the whole process can lift.
    try:
        image_class = getattr(importlib.import_module(f"PIL.{module}"), name)
    except ImportError as error:
        raise ImageError(
            "this Pillow cannot read such pictures",
            found=f"Pillow {PIL.__version__} without {module}",
            advice="pip install --upgrade Pillow",
        ) from error
    image: ImageFile.ImageFile = image_class(stream)
    check_size(*image.size)
    check_cost(PILLOW_BYTES * image.width * image.height, _size_of(stream))
    if getattr(image, "is_animated", False):
        check_single(getattr(image, "n_frames", 2), "frames")
    return picture_in(image)


def picture_in(image: Image.Image) -> Picture:
    """The picture that Pillow has opened, upright.

    Raises:
        ImageError: Grey of more than 16 bits.
    """
    orientation, exif, of_exif = read_exif(image.getexif)
    samples, profile = _pillow_samples(image)
    comment = image.info.get("comment")
    xmp = image.info.get("xmp")
    marks = Marks(
        icc_profile=profile,
        exif=exif,
        xmp=true_xmp(xmp) if isinstance(xmp, bytes) else None,
        resolution=_stored_resolution(image) or of_exif,
        texts=(text_chunk("Comment", comment),) if isinstance(comment, bytes) and comment else (),
    )
    return upright(samples, orientation, marks)


def _size_of(stream: BinaryIO) -> int:
    place = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(place)
    return size


def _pillow_samples(image: Image.Image) -> tuple[Samples, bytes | None]:
    """The pixels of an opened file, and the profile that is theirs.

    Raises:
        ImageError: Grey of more than 16 bits.
    """
    profile: bytes | None = image.info.get("icc_profile") or None
    if image.mode == "CMYK":
        return to_srgb(image, profile), None
    if image.mode.startswith(DEEP_GREY_MODES):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() >= 2**16:
            raise ImageError(
                "the pixels of this picture are no numbers from black to white",
                expected="unsigned integers of up to 16 bits",
                found=f"{values.min()} to {values.max()}",
                advice="open it in a picture editor and save it with 16 bits per channel",
            )
        return values.astype(np.uint16), profile
    if image.mode in GREY_MODES and "transparency" not in image.info:
        return np.asarray(image.convert("L")), profile
    if image.mode in ("LA", "La"):
        return np.asarray(image.convert("LA")), profile
    transparent = image.mode in ("RGBA", "PA", "RGBa", "La") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if transparent else "RGB")), profile


def _stored_resolution(image: Image.Image) -> tuple[float, float] | None:
    """What the format itself says, beside EXIF."""
    found = image.info.get("dpi")
    # JPEG's density without a unit, which Pillow leaves out, says nothing of the size.
    return plausible(float(found[0]), float(found[1])) if found else None


DECODERS: Final[Mapping[bytes, Callable[[BinaryIO], Picture]]] = {
    rb"\x89PNG\r\n\x1a\n": decode_png,
    rb"\xff\xd8\xff": _decode_jpeg,
    rb"RIFF....WEBP": _decode_webp,
    rb"BM": partial(_decode_with_pillow, "BmpImagePlugin", "BmpImageFile"),
    rb"II[*+]\0|MM\0[*+]": decode_tiff,
    rb"GIF8[79]a": partial(_decode_with_pillow, "GifImagePlugin", "GifImageFile"),
    rb"....ftypavi[fs]": partial(_decode_with_pillow, "AvifImagePlugin", "AvifImageFile"),
    rb"P[1-6]\s": partial(_decode_with_pillow, "PpmImagePlugin", "PpmImageFile"),
    rb"qoif": partial(_decode_with_pillow, "QoiImagePlugin", "QoiImageFile"),
}
"""The decoder for files that begin with this pattern."""

WITHOUT_SIGNATURE: Final[Mapping[str, Callable[[BinaryIO], Picture]]] = {
    ".tga": partial(_decode_with_pillow, "TgaImagePlugin", "TgaImageFile"),
}
"""The decoder for files whose name alone says what they are."""
