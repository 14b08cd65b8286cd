"""Small pictures, files of them byte by byte, and what came of them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from aether_converters.errors import ImageError
from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.picture import Picture, to_float
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture

HEIGHT, WIDTH = 13, 17
LOSSLESS: tuple[ImageFormat, ...] = ("png", "tiff", "bmp")
EXIF_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp", "tiff")
RGB_PROFILE = imagecodecs.cms_profile("srgb")
GREY_PROFILE = imagecodecs.cms_profile("gray", gamma=2.2)
DECODE_ADVICE = (
    "it is damaged, cut off or of a rare kind: open it in a picture editor and save it again as PNG"
)


def noise(*shape: int, bits: int = 8) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 2**bits, shape)
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Integers of 8 or 16 bits as [0, 1]."""
    return np.divide(values, np.iinfo(values.dtype).max, dtype=np.float32)


def picture(channels: int = 3, *, alpha: bool = False, bits: Literal[8, 16] = 8) -> Picture:
    values = unit(noise(channels + 1, HEIGHT, WIDTH, bits=bits))
    return Picture(color=values[:-1], alpha=values[-1] if alpha else None, bits=bits)


def samples(image: Picture) -> NDArray[np.int64]:
    """The pixels as a file holds them, (H, W, channels)."""
    planes = [*image.color] if image.alpha is None else [*image.color, image.alpha]
    values = to_float(np.stack(planes, axis=-1))
    return np.rint(values * (2**image.bits - 1)).astype(np.int64)


def same_pixels(found: Picture, expected: NDArray[Any]) -> bool:
    """Whether `found` has exactly these (H, W) or (H, W, channels) samples."""
    return np.array_equal(samples(found), np.atleast_3d(expected))


def chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join(
        (
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(kind + content)),
        )
    )


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from raw scan lines, each without its filter byte, with chunks before the pixels."""
    step = len(rows) // max(height, 1)
    lines = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *more, pixels, chunk(b"IEND", b""))
    )


ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


def png_of(
    values: NDArray[Any],
    depth: int,
    color_type: int,
    *more: bytes,
    interlaced: bool = False,
    cut: int = 0,
) -> bytes:
    """A PNG of (H, W, channels), interlaced or not, without the last `cut` bytes of its pixels."""
    rows = b""
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        for row in values[top::down, left::right]:
            if row.size:
                bits = "".join(f"{value:0{depth}b}" for value in row.ravel())
                bits += "0" * (-len(bits) % 8)
                rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(rows[: len(rows) - cut]))
    parts = (chunk(b"IHDR", header), *more, pixels, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: int | None = None) -> Image.Exif:
    """EXIF with a camera, an exposure time, a place, and the size of the photograph."""
    block = Image.Exif()
    block[271] = "Acme"
    block[34665] = {33434: 0.5, 40962: 4000, 40963: 3000}
    block[34853] = {1: "N"}
    if orientation is not None:
        block[274] = orientation
    return block


def exif_tags(block: bytes | None) -> Mapping[int, Any]:
    """All tags of an EXIF block, those of its nested directories under theirs."""
    parsed = Image.Exif()
    parsed.load(block or b"")
    return {**parsed, 34665: parsed.get_ifd(34665), 34853: parsed.get_ifd(34853)}


def cmyk_profile() -> bytes:
    """A colour profile for a press whose black ink alone prints anything."""
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    table += 4 * ramp + 2**3 * bytes((255, 128, 128, 0, 128, 128)) + 3 * ramp
    body = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def read_error(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    return str(caught.value)


def write_error(image: Picture, file: Path, image_format: ImageFormat, quality: int = 95) -> str:
    with pytest.raises(ImageError) as caught:
        write_picture(image, file, image_format, quality=quality)
    return str(caught.value)


def seeds() -> list[bytes]:
    """One small file of each kind, with profile and EXIF, for the mutations below."""
    files: list[bytes] = []
    compressed: dict[str, Any] = {"compression": "lzw", "predictor": True}
    for bits, options in ((8, {}), (16, compressed)):
        for photometric, channels in (("rgb", 3), ("minisblack", 1), ("separated", 4)):
            stream = io.BytesIO()
            values = noise(6, 5, channels, bits=bits).squeeze()
            tifffile.imwrite(stream, values, photometric=photometric, **options)
            files.append(stream.getvalue())
        files.append(bytes(imagecodecs.png_encode(noise(6, 5, 3, bits=bits))))
    for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(noise(6, 5, 3)).save(
            stream, name, exif=exif(6).tobytes(), icc_profile=RGB_PROFILE
        )
        files.append(stream.getvalue())
    return files


SEEDS = seeds()


def declare(content: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header: a decompression bomb, or nothing."""
    if content.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + content[24:29]
        return content[:8] + chunk(b"IHDR", header) + content[33:]
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<ii", width, height) + content[26:]
    if content.startswith(b"II"):
        tags = cast("tifffile.TiffPage", tifffile.TiffFile(io.BytesIO(content)).pages[0]).tags
        places = {tags[256].valueoffset: width, tags[257].valueoffset: height}
        changed = bytearray(content)
        for place, value in places.items():
            changed[place : place + 4] = struct.pack("<I", value)
        return bytes(changed)
    marker = content.index(b"\xff\xc0")
    return content[: marker + 5] + struct.pack(">HH", height, width) + content[marker + 9 :]
