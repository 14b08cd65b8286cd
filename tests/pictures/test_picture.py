"""A picture in memory."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aether_converters.errors import ImageError
from aether_converters.pictures.images import (
    MAX_PIXELS,
    ImageFormat,
    Picture,
    is_picture,
    read_picture,
    to_float,
    write_picture,
from tests.support.pictures import (
    HEIGHT,
    WIDTH,
    LOSSLESS,
    EXIF_FORMATS,
    RGB_PROFILE,
    GREY_PROFILE,
    DECODE_ADVICE,
    noise,
    unit,
    picture,
    samples,
    same_pixels,
    chunk,
    png,
    exif,
    exif_tags,
    cmyk_profile,
    read_error,
    write_error,
    declare,
    SEEDS,
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
