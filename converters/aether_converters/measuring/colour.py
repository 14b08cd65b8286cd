"""What becomes of colours: patches of one colour, and how far their channels move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aether_converters.measuring.figures import Patch
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


def moved_colours(
    found: Callable[[Image], Image], exact: Callable[[Image], Image], channels: int
) -> tuple[Patch, ...]:
    """What becomes of each flat patch, the one whose colour moves furthest first."""
    patches: list[Patch] = []
    for name, picture in flat_patches(channels).items():
        source, given = (_means(run(picture)) for run in (exact, found))
        patches.append(
            Patch(
                colour=name,
                shift=float(np.abs(given - source).max()),
                source=tuple(map(float, source)),
                found=tuple(map(float, given)),
            )
        )
    return tuple(sorted(patches, key=lambda patch: -patch.shift))


def _means(picture: Image) -> NDArray[np.float64]:
    """Of each channel of (1, C, H, W), in levels."""
    return LEVELS * np.clip(picture.astype(np.float64), 0, 1).mean(axis=(0, 2, 3))


def mean_shift(found: Image, exact: Image) -> float:
    """The largest difference of a channel's mean of (N, C, H, W), black being 0 and white 1."""
    difference = np.clip(found.astype(np.float64), 0, 1) - np.clip(exact, 0, 1)
    return float(np.abs(difference.mean(axis=(0, 2, 3))).max())
