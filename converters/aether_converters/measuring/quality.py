"""How near an enlarged picture comes to its original, as papers measure it, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aether_converters.errors import ImageError
from aether_converters.measuring.proof import WINDOW, ssim
from aether_converters.pictures.picture import Planes, white

BAND: Final = 256  # rows that are compared at a time

LUMA: Final = (65.481 / 255, 128.553 / 255, 24.966 / 255)
"""Of R, G and B in Y, BT.601 from 16 to 235; without the 16, which no difference has."""
BLACK: Final = 16 / 255


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How near pictures come to their originals. PSNR in dB, None where equal; SSIM up to 1.

    Attributes:
        psnr: Over all channels.
        ssim: The mean of the channels.
        psnr_y: Of the luma, BT.601 from 16 to 235, not rounded.
        ssim_y: The same.
        lpips: How different they look, from 0 (not at all) on; None where it was not asked for.
    """

    psnr: float | None
    ssim: float
    psnr_y: float | None
    ssim_y: float
    lpips: float | None = None


def quality(found: Planes, original: Planes, crop: int) -> Quality:
    """Compare (C, H, W) pictures of one dtype without `crop` px at each side.

    SSIM: Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004, with Gaussian windows of 11 px.

    Raises:
        ImageError: The crop leaves nothing.
    """
    _, height, width = original.shape
    if min(height, width) <= 2 * crop:
        raise ImageError(
            "nothing of the picture is left to compare",
            expected=f"more than {2 * crop} px on each side",
            found=f"{width} x {height} px",
            advice="take a smaller --crop, or larger pictures",
        )
    inside = (slice(None), slice(crop, height - crop), slice(crop, width - crop))
    squares, similar = np.zeros(2), np.zeros(2)
    pixels = windows = 0
    for truth, ours, fresh in _bands(original[inside], found[inside]):
        error = (ours - truth)[:, :fresh] ** 2
        squares += (error[:-1].mean(axis=0).sum(), error[-1].sum())
        pixels += error[0].size
        count = max(truth.shape[1] - WINDOW + 1, 1)
        for index, channels in enumerate((slice(-1), slice(-1, None))):
            similar[index] += count * _similarity(ours[channels], truth[channels])
        windows += count
    psnr, psnr_y = (_decibels(float(total) / pixels) for total in squares)
    mean, mean_y = (float(total) / windows for total in similar)
    return Quality(psnr=psnr, ssim=mean, psnr_y=psnr_y, ssim_y=mean_y)


def mean_quality(found: Sequence[Quality]) -> Quality:
    """The mean of the figures, dB as they are, as papers give it; None where a picture is equal."""

    def mean(name: str) -> float | None:
        values: list[float | None] = [getattr(one, name) for one in found]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Quality(
        psnr=mean("psnr"),
        ssim=mean("ssim") or 0.0,
        psnr_y=mean("psnr_y"),
        ssim_y=mean("ssim_y") or 0.0,
        lpips=mean("lpips"),
    )


Values = NDArray[np.float64]


def _bands(original: Planes, found: Planes) -> Iterator[tuple[Values, Values, int]]:
    """Both as (C + 1, rows, W), luma last, and how many of the rows are in no later band.

    Bands share what a window sees beyond its first row, so that each window is in one of them.
    """
    shared = WINDOW - 1
    height = original.shape[1]
    for start in range(0, max(height - shared, 1), BAND):
        stop = min(start + BAND + shared, height)
        last = start + BAND >= height - shared
        rows = slice(start, stop)
        fresh = stop - start if last else BAND
        yield _with_luma(original[:, rows]), _with_luma(found[:, rows]), fresh


def _with_luma(planes: Planes) -> Values:
    values = planes.astype(np.float64) / white(planes.dtype)
    red, green, blue = np.broadcast_to(values, (3, *values.shape[1:]))
    luma = BLACK + LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return np.concatenate([values, luma[None]])


def _similarity(found: Values, original: Values) -> float:
    return ssim(torch.from_numpy(found[None]), torch.from_numpy(original[None]))


def _decibels(error: float) -> float | None:
    return -10 * math.log10(error) if error else None
