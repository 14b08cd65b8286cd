"""Declared sizes cost nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.limits import MAX_PIXELS
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    HEIGHT,
    WIDTH,
    declare,
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
