"""Which files are pictures, by their names."""

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
    "name", ["a.png", "a.JPG", "a.jpeg", "a.WebP", "a.tif", "a.tiff", "a.bmp", ".hidden.png"]
)
def test_pictures_are_told_by_suffix(name: str) -> None:
    assert is_picture(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "png", "a.png.part", "a.gif", "._photo.jpg", ".png"])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not is_picture(Path("folder.png") / name)
