"""Results of a model are brought to another size without a change of colour or place."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import DTypeLike

from aether_converters.errors import ImageError
from aether_converters.pictures.picture import Picture, white
from aether_converters.pictures.resizing import resized


def ramp(dtype: DTypeLike, height: int = 40, width: int = 60) -> Picture:
    top = white(np.dtype(dtype))
    plane = np.broadcast_to(np.linspace(0.2, 0.8, width) * top, (height, width)).astype(dtype)
    return Picture(color=plane[None].repeat(3, 0), alpha=plane, resolution=(300, 300))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("factor", ["1/2", "3/4", "3/2"])
def test_a_ramp_stays_the_same_ramp(dtype: DTypeLike, factor: str):
    found = resized(ramp(dtype), Fraction(factor))
    expected = ramp(dtype, found.color.shape[1], found.color.shape[2])
    assert found.color.shape == (3, 40 * Fraction(factor), 60 * Fraction(factor))
    assert found.color.dtype == dtype
    assert found.resolution == (300 * float(Fraction(factor)),) * 2
    top = white(np.dtype(dtype))
    for got, wanted in ((found.color[0], expected.color[0]), (found.alpha, expected.alpha)):
        assert got is not None
        assert wanted is not None
        inner = np.s_[:, 4:-4]
        # Both grids cover the same area: their first px have different centres.
        np.testing.assert_allclose(got[inner] / top, wanted[inner] / top, atol=0.006 + 0.5 / top)


def test_what_swings_over_white_is_cut_there():
    edge = np.zeros((1, 16, 16), np.uint8)
    edge[..., 8:] = 255
    found = resized(Picture(color=edge), Fraction(3, 2)).color
    assert found[0, :, :6].max() <= 16
    assert found[0, :, -6:].min() >= 239


def test_a_result_that_nothing_reads_again_is_refused():
    with pytest.raises(ImageError, match="the picture is too large"):
        resized(Picture(color=np.zeros((1, 1, 2**20), np.uint8)), Fraction(32))
