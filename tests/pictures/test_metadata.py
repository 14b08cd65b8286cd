"""Orientation, EXIF and colour profiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    EXIF_FORMATS,
    GREY_PROFILE,
    HEIGHT,
    RGB_PROFILE,
    WIDTH,
    chunk,
    exif,
    exif_tags,
    noise,
    picture,
    same_pixels,
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
def test_orientation_is_applied_and_removed(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(path, exif=exif(orientation).tobytes(), **options)

    found = read_picture(path)

    assert same_pixels(found, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert 274 not in exif_tags(found.exif)


def test_orientation_turns_16_bits_and_alpha_too(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 4, bits=16)
    block = exif(6).tobytes().removeprefix(b"Exif\0\0")
    encoded = imagecodecs.png_encode(values)
    (tmp_path / "a").write_bytes(encoded[:33] + chunk(b"eXIf", block) + encoded[33:])
    assert same_pixels(read_picture(tmp_path / "a"), np.rot90(values, -1))


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    block = exif(3).tobytes().removeprefix(b"Exif\0\0")
    encoded = imagecodecs.png_encode(values)
    (tmp_path / "a").write_bytes(encoded[:-12] + chunk(b"eXIf", block) + encoded[-12:])
    found = read_picture(tmp_path / "a")
    assert same_pixels(found, values[::-1, ::-1])
    assert exif_tags(found.exif)[271] == "Acme"


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(tmp_path: Path, orientation: int) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif(orientation))
    assert same_pixels(read_picture(tmp_path / "a.png"), values)


@pytest.mark.parametrize("image_format", EXIF_FORMATS)
def test_exif_survives_without_orientation_and_stored_sizes(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    block = exif(6)
    block[256] = 4000
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=block)
    image = read_picture(tmp_path / "a.jpg")
    assert write_picture(image, tmp_path / "b", image_format) == ()

    tags = exif_tags(read_picture(tmp_path / "b").exif)

    assert tags[271] == "Acme"
    assert tags[34665] == {33434: 0.5}
    assert tags[34853] == {1: "N"}
    assert not {256, 274} & set(tags)


def test_exif_survives_in_a_16_bit_png(tmp_path: Path) -> None:
    image = replace(picture(bits=16), exif=exif().tobytes())
    assert write_picture(image, tmp_path / "a", "png") == ()
    assert exif_tags(read_picture(tmp_path / "a").exif)[34853] == {1: "N"}


def test_exif_of_a_tiff_is_read_without_the_layout_of_its_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a", noise(4, 4, 3), photometric="rgb", software="Scanner 1")
    tags = exif_tags(read_picture(tmp_path / "a").exif)
    assert tags[305] == "Scanner 1"
    assert set(tags) <= {270, 282, 283, 296, 305, 34665, 34853}


def test_damaged_exif_is_left_behind(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    for block in (b"nonsense", b"II*\0\xff\xff\xff\xff", b""):
        encoded = imagecodecs.png_encode(values)
        (tmp_path / "a").write_bytes(encoded[:33] + chunk(b"eXIf", block) + encoded[33:])
        found = read_picture(tmp_path / "a")
        assert same_pixels(found, values)
        assert found.exif is None


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "profile"), [(1, GREY_PROFILE), (3, RGB_PROFILE)])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff"])
def test_colour_profile_survives_unchanged(
    tmp_path: Path,
    bits: Literal[8, 16],
    channels: int,
    profile: bytes,
    image_format: ImageFormat,
) -> None:
    if image_format == "webp" and channels == 1:
        pytest.skip("WebP has no grey")
    image = replace(picture(channels, bits=bits), icc_profile=profile)
    write_picture(image, tmp_path / "a", image_format)
    assert read_picture(tmp_path / "a").icc_profile == profile


@pytest.mark.parametrize(
    ("channels", "profile", "note"),
    [
        (1, RGB_PROFILE, "the colour profile is not one for grey: left out"),
        (3, GREY_PROFILE, "the colour profile is not one for RGB: left out"),
        (3, b"short", "the colour profile is not one for RGB: left out"),
    ],
)
@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff"])
def test_profile_for_other_colours_is_never_written(
    tmp_path: Path, channels: int, profile: bytes, note: str, image_format: ImageFormat
) -> None:
    image = replace(picture(channels), icc_profile=profile)
    assert write_picture(image, tmp_path / "a", image_format) == (note,)
    assert read_picture(tmp_path / "a").icc_profile is None
