"""A picture in memory."""

from __future__ import annotations

import numpy as np
import pytest

from aether_converters.errors import ImageError
from aether_converters.pictures.picture import Picture
from tests.support.pictures import (
    picture,
)


@pytest.mark.parametrize(
    ("color", "alpha"), [((4, 5), None), ((2, 4, 5), None), ((3, 0, 5), None), ((3, 4, 5), (5, 4))]
)
def test_arrays_that_do_not_fit_make_no_picture(
    color: tuple[int, ...], alpha: tuple[int, ...] | None
) -> None:
    with pytest.raises(ImageError):
        Picture(
            color=np.zeros(color, np.float32),
            alpha=None if alpha is None else np.zeros(alpha, np.float32),
        )


def test_picture_prints_its_size_and_kind_only() -> None:
    assert repr(picture(alpha=True, bits=16)) == (
        "<Picture: 17 x 13 px, RGB with transparency, 16 bits per channel>"
    )
