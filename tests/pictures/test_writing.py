"""Pixels, there and back, and what a format cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.picture import Picture, to_float
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    GREY_PROFILE,
    HEIGHT,
    LOSSLESS,
    RGB_PROFILE,
    WIDTH,
    exif,
    picture,
    same_pixels,
    samples,
    unit,
    write_error,
)


@pytest.mark.parametrize("image_format", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_bit(
    tmp_path: Path, image_format: ImageFormat, bits: Literal[8, 16], alpha: bool, channels: int
) -> None:
    if image_format == "bmp" and (alpha or bits == 16):
        pytest.skip("BMP has neither transparency nor 16 bits")
    image = picture(channels, alpha=alpha, bits=bits)

    assert write_picture(image, tmp_path / "file.tmp", image_format) == ()
    found = read_picture(tmp_path / "file.tmp")

    assert found.bits == bits
    assert found.color.dtype == (np.uint8 if found.bits == 8 else np.uint16)
    assert (found.alpha is None) == (not alpha)
    assert same_pixels(found, samples(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff", "bmp"])
def test_a_single_pixel_is_a_picture(
    tmp_path: Path, image_format: ImageFormat, size: tuple[int, int]
) -> None:
    color = np.full((3, *size), 7, np.uint8)
    write_picture(Picture(color=color), tmp_path / "a", image_format, quality=100)
    assert same_pixels(read_picture(tmp_path / "a"), np.moveaxis(color, 0, -1))


@pytest.mark.parametrize("image_format", ["png", "tiff"])
def test_all_65536_values_survive(tmp_path: Path, image_format: ImageFormat) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_picture(Picture(color=unit(values[None]), bits=16), tmp_path / "a", image_format)
    assert same_pixels(read_picture(tmp_path / "a"), values)


@pytest.mark.parametrize("alpha", [False, True])
def test_webp_at_quality_100_is_lossless_even_where_transparent(
    tmp_path: Path, alpha: bool
) -> None:
    image = picture(alpha=alpha)
    assert write_picture(image, tmp_path / "a", "webp", quality=100) == ()
    assert same_pixels(read_picture(tmp_path / "a"), samples(image))


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_changes_what_lossy_formats_write(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    for quality in (10, 95):
        write_picture(picture(), tmp_path / f"{quality}", image_format, quality=quality)
    assert (tmp_path / "10").stat().st_size < (tmp_path / "95").stat().st_size


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_grey_grey_and_colours_close(tmp_path: Path, channels: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32), (channels, 32, 32))
    write_picture(Picture(color=ramp), tmp_path / "a", "jpeg")
    found = read_picture(tmp_path / "a")
    assert found.color.shape == ramp.shape
    assert np.abs(to_float(found.color) - ramp).max() < 0.02


def test_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    color = np.array([[[-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]]], np.float32)
    write_picture(Picture(color=color), tmp_path / "a", "png")
    assert samples(read_picture(tmp_path / "a")).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_writing_leaves_the_picture_unchanged(tmp_path: Path) -> None:
    image = picture(alpha=True)
    before = samples(image)
    write_picture(image, tmp_path / "a", "png")
    assert np.array_equal(samples(image), before)


def test_opaque_alpha_is_written(tmp_path: Path) -> None:
    image = replace(picture(), alpha=np.ones((HEIGHT, WIDTH), np.float32))
    write_picture(image, tmp_path / "a", "png")
    found = read_picture(tmp_path / "a")
    assert found.alpha is not None
    assert to_float(found.alpha).min() == 1


def test_a_picture_of_one_pixel_survives(tmp_path: Path) -> None:
    for image_format in LOSSLESS:
        write_picture(Picture(color=np.ones((3, 1, 1), np.float32)), tmp_path / "a", image_format)
        assert samples(read_picture(tmp_path / "a")).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("image_format", "name"), [("jpeg", "JPEG"), ("webp", "WebP"), ("bmp", "BMP")]
)
def test_8_bit_formats_say_that_16_bits_are_lost(
    tmp_path: Path, image_format: ImageFormat, name: str
) -> None:
    notes = write_picture(picture(bits=16), tmp_path / "a", image_format)
    assert notes == (f"{name} holds 8 bits per channel: written with 8 of 16",)
    assert read_picture(tmp_path / "a").bits == 8


def test_webp_says_that_grey_becomes_rgb_and_drops_the_grey_profile(tmp_path: Path) -> None:
    image = replace(picture(1, alpha=True), icc_profile=GREY_PROFILE)
    assert write_picture(image, tmp_path / "a", "webp", quality=100) == (
        "WebP has no grey: written as RGB",
        "the colour profile is not one for RGB: left out",
    )
    assert same_pixels(read_picture(tmp_path / "a"), samples(image)[..., [0, 0, 0, 1]])


def test_bmp_says_that_profile_and_exif_are_lost(tmp_path: Path) -> None:
    block = exif().tobytes()
    image = replace(picture(), icc_profile=RGB_PROFILE, exif=block)
    assert write_picture(image, tmp_path / "a", "bmp") == (
        "BMP holds no colour profile here: left out",
        "BMP with 8 bits per channel holds 0 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )


def test_16_bit_tiff_says_that_exif_is_lost(tmp_path: Path) -> None:
    block = exif().tobytes()
    image = replace(picture(bits=16), exif=block)
    assert write_picture(image, tmp_path / "a", "tiff") == (
        "TIFF with 16 bits per channel holds 0 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )


def test_jpeg_says_that_long_exif_is_lost(tmp_path: Path) -> None:
    long = exif()
    long[270] = 70000 * "a"
    block = long.tobytes()
    assert write_picture(replace(picture(), exif=block), tmp_path / "a", "jpeg") == (
        "JPEG with 8 bits per channel holds 65533 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )
    assert read_picture(tmp_path / "a").exif is None


@pytest.mark.parametrize(("image_format", "name"), [("jpeg", "JPEG"), ("bmp", "BMP")])
def test_transparency_is_refused_where_it_would_be_lost(
    tmp_path: Path, image_format: ImageFormat, name: str
) -> None:
    file = tmp_path / "a"
    assert write_error(picture(alpha=True), file, image_format) == (
        f"{file}: {name} holds no transparency, and this picture has some\n"
        "  next      use png, webp or tiff"
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("image_format", "name", "limit"), [("webp", "WebP", 16383), ("jpeg", "JPEG", 65500)]
)
def test_side_too_long_for_the_format_is_refused(
    tmp_path: Path, image_format: ImageFormat, name: str, limit: int
) -> None:
    file = tmp_path / "a"
    at_limit = Picture(color=np.zeros((3, 1, limit), np.float32))
    assert write_picture(at_limit, file, image_format) == ()
    above = Picture(color=np.zeros((3, limit + 1, 1), np.float32))
    assert write_error(above, file, image_format) == (
        f"{file}: the picture is too large for {name}\n"
        f"  expected  at most {limit} px on each side\n"
        f"  found     1 x {limit + 1} px\n"
        "  next      use png or tiff"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("in_alpha", [False, True])
def test_invalid_numbers_from_the_model_are_refused(
    tmp_path: Path, bad: float, image_format: ImageFormat, in_alpha: bool
) -> None:
    if in_alpha and image_format == "jpeg":
        pytest.skip("JPEG has no transparency")
    file = tmp_path / "a"
    image = picture(alpha=in_alpha)
    (image.color[2] if image.alpha is None else image.alpha)[3, 4] = bad
    assert write_error(image, file, image_format) == (
        f"{file}: the model produced invalid numbers\n"
        "  expected  pixels from 0 to 1\n"
        "  found     NaN or infinity, as when half precision (fp16) overflows\n"
        "  next      use the fp32 file of the model; if this is it, see `aethernet inspect`"
    )
    assert not file.exists()


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_quality_out_of_range_is_refused(tmp_path: Path, quality: int) -> None:
    file = tmp_path / "a"
    assert write_error(picture(), file, "jpeg", quality) == (
        f"{file}: the quality is out of range\n  expected  1 to 100\n  found     {quality}"
    )


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "webp", "bmp"])
def test_writing_into_a_missing_folder_is_explained(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    file = tmp_path / "none" / "a"
    assert write_error(picture(), file, image_format).splitlines() == [
        f"{file}: the folder does not exist",
        f"  found     [Errno 2] No such file or directory: {str(file)!r}",
        "  next      create it, or choose another one",
    ]


def test_writing_over_a_folder_is_explained(tmp_path: Path) -> None:
    lines = write_error(picture(), tmp_path, "png").splitlines()
    assert lines[0] == f"{tmp_path}: this is a folder"
    assert lines[-1] == "  next      choose a file name inside it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_explained() -> None:
    assert write_error(picture(), Path("/dev/full"), "png") == (
        "/dev/full: the picture cannot be written\n"
        "  found     [Errno 28] No space left on device\n"
        "  next      check the free space on the disk, or choose another format"
    )
