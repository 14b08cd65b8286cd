"""What becomes of colours: patches of one colour, and how far their channels move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from aether_converters.runtimes.upscaler import Image

LEVELS: Final = 255  # of an 8-bit picture
GREYS: Final = (64, 128, 191)
FLAT_SIDE: Final = 64  # px


def flat_patches(channels: int, side: int = FLAT_SIDE) -> dict[str, Image]:
    """Patches (1, channels, side, side) of one colour each, by its levels, such as `0/255/0`.

    Black and white, each channel alone and each left out, and greys. No photograph stands for
    these: a network that loses nothing there may ruin a green screen.
    """
    alone = LEVELS * np.eye(channels, dtype=int)
    rows = [*alone, *(LEVELS - alone), *(np.full(channels, v) for v in (0, LEVELS, *GREYS))]
    colours = dict.fromkeys(tuple(int(level) for level in row) for row in rows)
    return {"/".join(map(str, colour)): _flat(colour, side) for colour in colours}


def _flat(colour: tuple[int, ...], side: int) -> Image:
    picture = np.empty((1, len(colour), side, side), np.float32)
    picture[:] = np.divide(colour, LEVELS, dtype=np.float32)[None, :, None, None]
    return picture


def furthest_colour(
    found: Callable[[Image], Image], exact: Callable[[Image], Image], channels: int
) -> tuple[float, str]:
    """The flat patch whose colour moves furthest: by how many levels, and which it is."""
    shifts = {
        name: LEVELS * mean_shift(found(patch), exact(patch))
        for name, patch in flat_patches(channels).items()
    }
    name = max(shifts, key=lambda name: shifts[name])
    return shifts[name], name


def mean_shift(found: Image, exact: Image) -> float:
    """The largest difference of a channel's mean of (N, C, H, W), black being 0 and white 1."""
    difference = np.clip(found.astype(np.float64), 0, 1) - np.clip(exact, 0, 1)
    return float(np.abs(difference.mean(axis=(0, 2, 3))).max())
