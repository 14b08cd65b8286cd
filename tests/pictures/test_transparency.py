"""Cut-outs keep their outline, and transparency that hides nothing is in nobody's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.picture import Picture
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.transparency import with_hidden_filled
from aether_converters.pictures.upscaling import upscale_picture
from aether_converters.pictures.writing import write_picture
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.sample import MODEL
from tests.support.pictures import noise, picture, write_error

SIZE = 40


def disc(radius: float = 14) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    return np.hypot(rows, columns) < radius


def cut_out(color: NDArray[Any], hidden: NDArray[Any] | int, dtype: Any = np.uint8) -> Picture:
    """A disc of `color` (C, H, W), beyond which `hidden` is not seen; levels are of 255."""
    seen = disc()
    peak = np.iinfo(dtype).max
    values = np.where(seen, color, hidden).astype(np.float64) / 255 * peak
    alpha = np.where(seen, peak, 0).astype(dtype)
    return Picture(
        color=np.rint(values).astype(dtype), alpha=alpha, bits=16 if dtype == np.uint16 else 8
    )


def plain(*levels: int) -> NDArray[Any]:
    return np.broadcast_to(np.array(levels)[:, None, None], (len(levels), SIZE, SIZE))


def outline_error(large: Picture, own: NDArray[Any]) -> float:
    """Largest difference to a background of the cut-out's own colour, in levels of 255."""
    assert large.alpha is not None
    peak = 2**large.bits - 1
    alpha = large.alpha / peak
    shown = large.color / peak * 255 * alpha + own * (1 - alpha)
    return float(np.abs(shown - own).max())


@pytest.mark.parametrize("hidden", [0, 255, 128])
@pytest.mark.parametrize("levels", [(250, 230, 210), (20, 40, 10), (200,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hidden_colours_leave_no_outline(hidden: int, levels: tuple[int, ...], dtype: Any) -> None:
    upscaler = open_upscaler(MODEL)
    large = upscale_picture(upscaler, cut_out(plain(*levels), hidden, dtype))
    assert outline_error(large, np.array(levels)[:, None, None]) < 12


def test_noise_under_transparency_leaves_no_outline() -> None:
    own = plain(250, 230, 210)
    large = upscale_picture(open_upscaler(MODEL), cut_out(own, noise(3, SIZE, SIZE)))
    assert outline_error(large, own[:, :1, :1]) < 12


def test_visible_colours_stay_as_they_are() -> None:
    source = cut_out(noise(3, SIZE, SIZE), 0)
    assert source.alpha is not None
    filled = with_hidden_filled(source.color, source.alpha)
    assert np.array_equal(filled[:, disc()], source.color[:, disc()])
    assert filled.dtype == source.color.dtype


def test_hidden_colours_become_those_beside_them() -> None:
    halves = np.where(np.arange(SIZE) < SIZE // 2, 240, 40)
    source = cut_out(np.broadcast_to(halves, (3, SIZE, SIZE)), 0)
    assert source.alpha is not None
    filled = with_hidden_filled(source.color, source.alpha)
    assert filled[0, SIZE // 2, 0] > 200
    assert filled[0, SIZE // 2, -1] < 80


def test_content_under_an_alpha_that_is_no_transparency_is_kept() -> None:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    texture = np.stack([3 * rows, 4 * columns, 2 * rows + 2 * columns]).astype(np.uint8)
    alpha = np.where(disc(), 255, 0).astype(np.uint8)
    assert with_hidden_filled(texture, alpha) is texture


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_constant_transparency_changes_no_colour(alpha: int) -> None:
    color = noise(3, 8, 9)
    assert with_hidden_filled(color, np.full((8, 9), alpha, np.uint8)) is color


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 3), (31, 33)])
def test_one_visible_pixel_fills_any_size(shape: tuple[int, int]) -> None:
    color, alpha = np.zeros((3, *shape), np.uint8), np.zeros(shape, np.uint8)
    color[:, -1, -1], alpha[-1, -1] = (10, 20, 30), 255
    filled = with_hidden_filled(color, alpha)
    assert (filled == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize("image_format", ["jpeg", "bmp"])
@pytest.mark.parametrize("source_format", ["png", "tiff", "webp"])
def test_opaque_alpha_is_dropped_where_there_is_no_place_for_it(
    tmp_path: Path, image_format: ImageFormat, source_format: ImageFormat
) -> None:
    image = Picture(color=noise(3, 8, 9), alpha=np.full((8, 9), 255, np.uint8))
    write_picture(image, tmp_path / "a", source_format)
    assert write_picture(read_picture(tmp_path / "a"), tmp_path / "b", image_format) == ()
    assert read_picture(tmp_path / "b").alpha is None


def test_one_pixel_that_is_nearly_opaque_still_counts(tmp_path: Path) -> None:
    alpha = np.full((8, 9), 255, np.uint8)
    alpha[3, 4] = 254
    error = write_error(Picture(color=noise(3, 8, 9), alpha=alpha), tmp_path / "a", "jpeg")
    assert "holds no transparency" in error


def test_opaque_alpha_of_16_bits_and_of_floats_is_dropped_too(tmp_path: Path) -> None:
    deep = Picture(color=noise(3, 8, 9, bits=16), alpha=np.full((8, 9), 65535, np.uint16), bits=16)
    real = Picture(color=picture().color, alpha=np.ones(picture().color.shape[1:], np.float32))
    for image in (deep, real):
        write_picture(image, tmp_path / "a", "jpeg")
        assert read_picture(tmp_path / "a").alpha is None
