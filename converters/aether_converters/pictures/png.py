"""PNG: Pillow knows its metadata, imagecodecs its pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Final, cast

import imagecodecs
from PIL import PngImagePlugin

from aether_converters.pictures.limits import check_single, check_size
from aether_converters.pictures.metadata import EXIF_PREFIX, read_exif
from aether_converters.pictures.picture import Picture, Samples, upright

PNG_LEVEL: Final = 4  # of zlib: four times as fast as 6, for files of about the same size
PNG_PIXEL_CHUNKS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
PNG_HEADER_BYTES: Final = 33  # signature and IHDR; a profile has to stand before the pixels


def decode_png(stream: BinaryIO) -> Picture:
    """The picture in a PNG of any depth; a colour declared transparent becomes alpha."""
    image = PngImagePlugin.PngImageFile(stream)
    check_size(*image.size)
    check_single(image.n_frames, "frames")
    orientation, exif = read_exif(image.getexif)
    stream.seek(0)
    samples = cast("Samples", imagecodecs.png_decode(_png_pixels(stream.read())))
    return upright(samples, orientation, image.info.get("icc_profile"), exif)


def _png_pixels(content: bytes) -> bytes:
    """The same PNG without metadata: of its many small faults libpng prints warnings."""
    view = memoryview(content)
    kept = [view[:8]]
    kind, start = b"", 8
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", view, start)
        end = start + 12 + length
        if kind in PNG_PIXEL_CHUNKS:
            kept.append(view[start:end])
        start = end
    return b"".join(kept)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk: length, kind, content and CRC."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def write_png(samples: Samples, picture: Picture, file: Path) -> None:
    """Write a PNG; imagecodecs knows pixels only, so the metadata goes in behind its header."""
    encoded = memoryview(imagecodecs.png_encode(samples, level=PNG_LEVEL))
    with file.open("wb") as stream:
        stream.write(encoded[:PNG_HEADER_BYTES])
        if picture.icc_profile:
            packed = zlib.compress(picture.icc_profile)
            stream.write(_png_chunk(b"iCCP", b"ICC profile\0\0" + packed))
        if picture.exif:
            stream.write(_png_chunk(b"eXIf", picture.exif.removeprefix(EXIF_PREFIX)))
        stream.write(encoded[PNG_HEADER_BYTES:])
