"""Declared sizes cost nothing."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import tifffile
from PIL import Image

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.limits import MAX_PIXELS, check_cost
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    HEIGHT,
    WIDTH,
    chunk,
    declare,
    noise,
    picture,
    read_error,
)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_declared_size_beyond_the_limit_is_refused_before_decoding(
    tmp_path: Path, image_format: ImageFormat, bits: Literal[8, 16]
) -> None:
    path = tmp_path / "a"
    write_picture(picture(bits=bits), path, image_format)
    side = 65000
    path.write_bytes(declare(path.read_bytes(), side, side))
    assert read_error(path) == (
        f"{path}: the picture is too large\n"
        f"  expected  at most {MAX_PIXELS} px in all\n"
        f"  found     {side} x {side} px\n"
        "  next      cut it into parts and upscale them one by one"
    )


def test_webp_canvas_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    canvas = bytes((16, 0, 0, 0)) + 2 * (60000 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    (tmp_path / "a").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert read_error(tmp_path / "a").startswith(f"{tmp_path / 'a'}: the picture ")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "bmp"])
def test_picture_without_pixels_is_refused(tmp_path: Path, image_format: ImageFormat) -> None:
    path = tmp_path / "a"
    write_picture(picture(), path, image_format)
    path.write_bytes(declare(path.read_bytes(), 0, 5))
    assert read_error(path).splitlines()[0] in (
        f"{path}: the picture has no pixels",
        f"{path}: the picture cannot be decoded",
    )


def test_pillows_lower_limit_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for image_format in ("png", "jpeg", "tiff", "bmp"):
        write_picture(picture(), tmp_path / "a", image_format)
        assert read_picture(tmp_path / "a").color.shape == (3, HEIGHT, WIDTH)
    assert Image.MAX_IMAGE_PIXELS == 10


# Small files that would become large, or take long.


def tiff_of(values: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def retagged(content: bytes, **tags: Any) -> bytes:
    """A TIFF with other values of tags that have one value."""
    names = {"width": 256, "height": 257, "rows": 278, "tile_width": 322, "tile_height": 323}
    page = cast("tifffile.TiffPage", tifffile.TiffFile(io.BytesIO(content)).pages[0])
    changed = bytearray(content)
    for name, value in tags.items():
        tag = page.tags[names[name]]
        changed[tag.valueoffset : tag.valueoffset + 4] = struct.pack("<I", value)
        changed[tag.offset + 2 : tag.offset + 4] = struct.pack("<H", 4)
    return bytes(changed)


def jpeg_of(width: int, height: int, scans: int = 1, mode: str = "RGB", **options: Any) -> bytes:
    """A JPEG whose header declares another size, with its scans again and again."""
    stream = io.BytesIO()
    Image.new(mode, (16, 16)).save(stream, "JPEG", **options)
    content = stream.getvalue()
    marker = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    start = content.index(b"\xff\xda")
    sized = content[: marker + 5] + struct.pack(">HH", height, width) + content[marker + 9 : start]
    return sized + scans * content[start:-2] + b"\xff\xd9"


def tiff_with_a_jpeg_tile() -> bytes:
    tile = jpeg_of(30000, 30000)
    content = tiff_of(noise(16, 16, 3), photometric="rgb", tile=(16, 16), compression="jpeg")
    page = cast("tifffile.TiffPage", tifffile.TiffFile(io.BytesIO(content)).pages[0])
    changed = bytearray(content + tile)
    for tag, value in ((324, len(content)), (325, len(tile))):
        place = page.tags[tag].valueoffset
        changed[place : place + 4] = struct.pack("<I", value)
    return bytes(changed)


def tiff_of_the_same_strips() -> bytes:
    return tiff_of_offsets(20000, 20000, 16)


def tiff_of_offsets(width: int, height: int, samples: int) -> bytes:
    """A TIFF of 16 bits each whose strips are all the same bytes."""
    strips, data = 1000, zlib.compress(bytes(2 * width * samples * 20))
    count = 12
    start = 8 + 2 + 12 * count + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 8)]
    entries += [(262, 3, 1, 1), (277, 3, 1, samples), (278, 4, 1, height // strips)]
    entries += [(273, 4, strips, start), (279, 4, strips, start + 4 * strips)]
    entries += [(284, 3, 1, 1), (338, 3, 1, 0), (339, 3, 1, 1)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    place = start + 8 * strips
    table = strips * struct.pack("<I", place) + strips * struct.pack("<I", len(data))
    head = b"II*\0" + struct.pack("<IH", 8, count)
    return head + directory + bytes(4) + table + data


def webp(kind: bytes, body: bytes) -> bytes:
    chunk_of = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk_of)) + b"WEBP" + chunk_of


def gif_of(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("P", (8, 8)).save(stream, "GIF")
    content = bytearray(stream.getvalue())
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def zeros_png(side: int, bits: int = 8, color_type: int = 2) -> bytes:
    packer = zlib.compressobj()
    row = bytes(side * bits * (3 if color_type == 2 else 1) // 8 + 1)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, color_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a TIFF with a huge JPEG as a tile": tiff_with_a_jpeg_tile,
    "a TIFF whose strips are the same": tiff_of_the_same_strips,
    "a TIFF of one huge strip": lambda: retagged(
        tiff_of(noise(64, 64), compression="lzw", photometric="minisblack", rowsperstrip=64),
        width=20000,
        height=20000,
        rows=20000,
    ),
    "a TIFF with huge tiles": lambda: retagged(
        tiff_of(noise(16, 16), compression="zstd", photometric="minisblack", tile=(16, 16)),
        tile_width=2**14,
        tile_height=2**14,
    ),
    "a progressive JPEG": lambda: jpeg_of(65500, 8000, progressive=True),
    "a baseline JPEG": lambda: jpeg_of(30000, 15000),
    "a JPEG of many scans": lambda: jpeg_of(8000, 3000, scans=2000, progressive=True),
    "an empty WebP": lambda: webp(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(20)),
    "a WebP canvas": lambda: webp(
        b"VP8X", bytes(4) + 2 * (16000).to_bytes(3, "little") + bytes(20)
    ),
    "a GIF": lambda: gif_of(20000, 20000),
    "a PNG of zeros": lambda: zeros_png(9000),
    "a bilevel PNG": lambda: zeros_png(11000, 1, 0),
    "a grey JPEG": lambda: jpeg_of(11000, 11000, mode="L"),
    "a bitmap": lambda: b"P4 20000 20000\n" + bytes(100),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_does_not_become_large(tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(BOMBS[bomb]())
    started = time.process_time()
    tracemalloc.start()
    try:
        error = read_error(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "cannot be decoded" not in error
    assert peak < 2**26
    assert time.process_time() - started < 5


def test_what_cameras_and_scanners_write_is_within_the_budget() -> None:
    megapixels = 10**6
    for pixels, samples, file_size in (
        (24 * megapixels, 3, 2 * 10**6),  # a photograph, compressed well
        (200 * megapixels, 3, 20 * 10**6),  # of a phone
        (70 * megapixels, 1, 50_000),  # a page with a line on it
        (40 * megapixels, 3, 40_000),  # a sheet of one colour
    ):
        check_cost(pixels * samples, file_size, pixels=pixels)
