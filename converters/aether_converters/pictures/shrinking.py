"""Pictures made smaller by a whole factor, as papers make what networks are to enlarge again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aether_converters.pictures.picture import Planes, white

Float = NDArray[np.float64]


def shrunk_by_area(planes: Planes, factor: int) -> Planes:
    """The mean of each square of `factor` px."""
    channels, height, width = planes.shape
    blocks = planes.reshape(channels, height // factor, factor, width // factor, factor)
    return _rounded(blocks.mean(axis=(2, 4), dtype=np.float64), planes)


def shrunk_as_matlab(planes: Planes, factor: int) -> Planes:
    """As MATLAB's `imresize`: bicubic (a = -0.5) over 4 * factor px, mirrored at the borders.

    Most published low-resolution pictures were made so. Sums are rounded once, in the end.
    """
    offsets, weights = _taps(factor)
    small = np.empty(
        (len(planes), planes.shape[1] // factor, planes.shape[2] // factor), planes.dtype
    )
    for channel, target in enumerate(small):
        rows = _weighted(np.asarray(planes[channel], np.float64), offsets, weights, factor)
        columns = _weighted(np.swapaxes(rows, 0, 1), offsets, weights, factor)
        target[...] = _rounded(np.swapaxes(columns, 0, 1), planes)
    return small


def shrunk_as_pillow(planes: Planes, factor: int) -> Planes:
    """As Pillow's `Image.resize` with BICUBIC, which leaves out what lies beyond the borders."""
    _, height, width = planes.shape
    size = (width // factor, height // factor)
    small: list[NDArray[np.float64]] = []
    for plane in planes:
        # Pillow rounds 8 bits after each axis, and resizes no others but floats.
        image = Image.fromarray(plane if planes.dtype == np.uint8 else plane.astype(np.float32))
        small.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float64))
    return _rounded(np.stack(small), planes)


SHRINKING: Final[Mapping[str, Callable[[Planes, int], Planes]]] = {
    "bicubic-matlab": shrunk_as_matlab,
    "bicubic-pillow": shrunk_as_pillow,
    "area": shrunk_by_area,
}
"""By name: (C, H, W) planes of integers, H and W multiples of the factor, to planes as these."""


def _taps(factor: int) -> tuple[NDArray[np.int64], Float]:
    """Which px the first one of the result is made of, from its place, and their weights."""
    centre = (factor - 1) / 2
    reach = 2 * factor
    offsets = np.arange(math.ceil(centre - reach), math.floor(centre + reach) + 1)
    x = np.abs(offsets - centre) / factor
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return offsets, weights / weights.sum()


def _weighted(plane: Float, offsets: NDArray[np.int64], weights: Float, factor: int) -> Float:
    """One row for each `factor` rows."""
    before, after = -int(offsets[0]), int(offsets[-1])
    padded = np.pad(plane, ((before, after), (0, 0)), mode="symmetric")
    count = len(plane) // factor
    total = np.zeros((count, plane.shape[1]))
    for offset, weight in zip(offsets + before, weights, strict=True):
        total += weight * padded[offset : offset + factor * (count - 1) + 1 : factor]
    return total


def _rounded(values: Float, like: Planes) -> Planes:
    """Values over the full range of a dtype in that dtype."""
    if like.dtype == np.float32:
        return values.astype(np.float32)
    return np.clip(np.rint(values), 0, white(like.dtype)).astype(like.dtype)
