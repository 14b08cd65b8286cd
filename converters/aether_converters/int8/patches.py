"""Pictures that a network is calibrated and tuned on: drawn by the package, and the user's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aether_converters.errors import require
from aether_converters.measuring.colour import LEVELS, flat_patches
from aether_converters.measuring.verification import structured_image
from aether_converters.runtimes.upscaler import Image

SIDE: Final = 64  # px of a patch
PART: Final = 32  # px of one that is flat, where it is not learnt from
PATCHES: Final = 16
HELD_OUT: Final = 12  # drawn patches on which nothing is tuned
SMOOTH: Final = 16  # smooth patches to learn from
AMONG_TYPICAL: Final = 4  # of them: photographs are seldom as smooth, and none has their errors
MORE: Final = 32  # drawn patches for a network that learns
BLUR: Final = 0.1  # of a px that each neighbour gets, at most
SOFTER: Final = 0.15
"""The same in patches on which colours are made even, beyond that.

Photographs are as soft as that, and what rounding does to their colours is not what it does to
those of sharp patches; ranges and weights of soft patches would be those of no drawing.
"""
ASIDE: Final = 4  # every such patch of the user's is held out, too


@dataclass(frozen=True, kw_only=True)
class Patches:
    """What a network is made int8 on; arrays (1, C, SIDE, SIDE) of 8-bit pixels in [0, 1].

    Attributes:
        seen: From which ranges and weights follow.
        held_out: On which it is measured whether that was any good.
        flat: Of one colour each, for either.
        smooth: Whose colours run into each other, on which nothing is measured.
        more: Drawn ones beside all that, from which a network may learn.
        typical: Soft and smooth ones and the user's, whose colours are made even on average.
    """

    seen: tuple[Image, ...]
    held_out: tuple[Image, ...]
    flat: tuple[Image, ...] = ()
    smooth: tuple[Image, ...] = ()
    more: tuple[Image, ...] = ()
    typical: tuple[Image, ...] = ()

    @property
    def shown(self) -> tuple[Image, ...]:
        """What is seen and a part of each that is flat, which tells as much."""
        return (*self.seen, *self._parts_of_flat)

    @property
    def learnt_from(self) -> tuple[Image, ...]:
        """What a network learns from, flat and smooth colours among it."""
        return (*self.seen, *self.flat, *self.smooth)

    @property
    def measured(self) -> tuple[Image, ...]:
        """What is held out and a part of each that is flat."""
        return (*self.held_out, *self._parts_of_flat)

    @property
    def _parts_of_flat(self) -> tuple[Image, ...]:
        return tuple(patch[:, :, :PART, :PART] for patch in self.flat)


def gathered(places: Sequence[Path], channels: int, *, more: int = 0) -> Patches:
    """Built-in patches, flat colours, and the user's own pictures among them.

    Args:
        places: Picture files and folders.
        channels: Of the pictures.
        more: How many to draw beside those that are always seen.

    Raises:
        ImageError: A picture cannot be read.
        MissingExtraError: A package is needed to read pictures.
    """
    own = _own_patches(places, channels) if places else []
    kept = [patch for index, patch in enumerate(own) if index % ASIDE < ASIDE - 1]
    aside = [patch for index, patch in enumerate(own) if index % ASIDE == ASIDE - 1]
    drawn = built_in_patches(channels, PATCHES + HELD_OUT + more)
    smooth = smooth_patches(channels)
    beside = drawn[PATCHES + HELD_OUT :]
    soft = [_softer(patch) for patch in (*drawn[:PATCHES], *beside)]
    return Patches(
        seen=tuple(_alternating(drawn[:PATCHES], kept)),
        held_out=(*drawn[PATCHES : PATCHES + HELD_OUT], *aside),
        flat=tuple(flat_patches(channels, SIDE).values()),
        smooth=tuple(smooth),
        more=tuple(beside),
        typical=(*_alternating(soft[:PATCHES], kept), *smooth[:AMONG_TYPICAL], *soft[PATCHES:]),
    )


def _alternating(*groups: Sequence[Image]) -> Iterator[Image]:
    """One of each group, then the next of each."""
    for row in itertools.zip_longest(*groups):
        yield from (patch for patch in row if patch is not None)


def _own_patches(places: Sequence[Path], channels: int) -> list[Image]:
    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.pictures.comparison import comparison_images

    return varied_patches(comparison_images(places, channels))


def built_in_patches(channels: int, count: int = PATCHES, side: int = SIDE) -> list[Image]:
    """Pictures of nothing that are to a network as photographs and drawings are, always the same.

    Three in four are like photographs: textured discs and rectangles of all sizes lie over each
    other (the "dead leaves" model of natural images: Lee, Mumford and Huang, IJCV 2001), most in
    muted colours, shaded, blurred by a lens and with noise. One in four is like a drawing or a
    screen, with lines and edges from black to white, which reach the largest values.

    Returns:
        `count` arrays (1, channels, side, side) of 8-bit pixels in [0, 1].
    """
    return [
        (_drawing if index % 4 == 3 else _dead_leaves)(index, channels, side)
        for index in range(count)
    ]


def smooth_patches(channels: int, count: int = SMOOTH, side: int = SIDE) -> list[Image]:
    """Patches in which the colours of four corners run into each other, always the same.

    Returns:
        `count` arrays (1, channels, side, side) of 8-bit pixels in [0, 1].
    """
    down = np.linspace(0, 1, side)
    along = np.stack([1 - down, down])
    corners = np.random.default_rng(20250625).random((count, channels, 2, 2))
    mixtures: NDArray[np.float64] = np.einsum("ay,ncab,bx->ncyx", along, corners, along)
    return [_in_8_bits(mixture)[None] for mixture in mixtures]


def _drawing(seed: int, channels: int, side: int) -> Image:
    """A part of `structured_image`."""
    top, left = np.random.default_rng((20250625, seed)).integers(0, 2 * side, 2)
    whole = structured_image(channels, 3 * side, 3 * side)
    return _in_8_bits(whole[:, :, top : top + side, left : left + side])


def _in_8_bits(picture: NDArray[np.float64] | Image) -> Image:
    levels = np.round(picture.clip(0, 1) * LEVELS)
    return np.divide(levels, LEVELS, dtype=np.float32)


def _dead_leaves(seed: int, channels: int, side: int, oversampling: int = 3) -> Image:
    random = np.random.default_rng((20250625, seed))
    wide = side * oversampling
    vivid = random.random() ** 2  # the channels of most photographs go along with each other
    base = 0.1 + 0.8 * ((1 - vivid) * random.random() + vivid * random.random(channels))
    canvas = np.empty((channels, wide, wide))
    canvas[:] = base[:, None, None]
    textures = [_texture(random, wide, falloff) for falloff in (0.6, 1.0, 1.4)]
    for _ in range(int(random.integers(60, 260))):
        radius = wide * min(0.5, 0.012 / max(random.random(), 0.02))
        y, x = random.random(2) * wide
        angle, flatness = random.random() * np.pi, 0.25 + 0.75 * random.random()
        rectangular = random.random() < 0.4
        hue = (0.02 + 0.08 * vivid) * random.standard_normal(channels)
        colour = np.clip(base + hue + 0.3 * random.standard_normal(), 0, 1)
        slopes = 0.1 * random.standard_normal(2)
        texture = textures[int(random.integers(len(textures)))]
        strength = 0.15 * random.random() ** 2
        top, left = (max(int(c - 1.5 * radius), 0) for c in (y, x))
        bottom, right = (min(int(c + 1.5 * radius) + 2, wide) for c in (y, x))
        rows, columns = np.mgrid[top:bottom, left:right] + 0.5
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        inside = (
            (abs(along) < radius) & (abs(across) < radius * flatness)
            if rectangular
            else along**2 + (across / flatness) ** 2 < radius**2
        )
        shade = (along * slopes[0] + across * slopes[1]) / (radius + 1)
        shade += strength * texture[top:bottom, left:right]
        window = canvas[:, top:bottom, left:right]
        window[:, inside] = (colour[:, None, None] + shade)[:, inside]
    small: NDArray[np.float64] = canvas.reshape(
        channels, side, oversampling, side, oversampling
    ).mean(axis=(2, 4))
    small = _blurred(small, BLUR * random.random())
    small += 0.01 * random.random() * random.standard_normal(small.shape)
    return _in_8_bits(small)[None]


def _softer(patch: Image) -> Image:
    return _in_8_bits(_blurred(patch[0].astype(np.float64), SOFTER))[None]


def _blurred(picture: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Each px with a share of its neighbours, along both axes; (C, H, W)."""
    wide = np.pad(picture, [(0, 0), (1, 1), (1, 1)], "edge")
    wide = share * wide[:, :-2] + (1 - 2 * share) * wide[:, 1:-1] + share * wide[:, 2:]
    return share * wide[..., :-2] + (1 - 2 * share) * wide[..., 1:-1] + share * wide[..., 2:]


def _texture(random: np.random.Generator, side: int, falloff: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls with frequency, as in natural images."""
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    radius[0, 0] = 1 / side
    noise = np.fft.ifft2(np.fft.fft2(random.standard_normal((side, side))) / radius**falloff).real
    return (noise - noise.mean()) / noise.std()


def varied_patches(
    pictures: Sequence[Image], count: int = PATCHES, side: int = SIDE
) -> list[Image]:
    """The patches of some pictures that differ most from each other, the same each time.

    Each further one lies farthest from all before it in colour, contrast and detail, beginning
    with the most detailed one (Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985).

    Args:
        pictures: (1, C, H, W) in [0, 1]; smaller ones are mirrored to `side`.
        count: Of patches; fewer if there are fewer.
        side: In px.

    Returns:
        Arrays (1, C, side, side).
    """
    patches = [patch for picture in pictures for patch in _cut(picture, side)]
    features = np.stack([_features(patch) for patch in patches])
    features /= features.std(axis=0) + 1e-6
    chosen = [int(features[:, -1].argmax())]
    nearest = np.square(features - features[chosen[0]]).sum(axis=1)
    while len(chosen) < min(count, len(patches)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(axis=1))
    return [patches[index] for index in chosen]


def _cut(picture: Image, side: int) -> Iterator[Image]:
    height, width = picture.shape[2:]
    missing = [max(side - size, 0) for size in (height, width)]
    if any(missing):
        picture = np.pad(picture, [(0, 0), (0, 0), *((0, gap) for gap in missing)], "symmetric")
    for top in range(0, max(height, side) - side + 1, side):
        for left in range(0, max(width, side) - side + 1, side):
            yield picture[:, :, top : top + side, left : left + side]


def _features(patch: Image) -> NDArray[np.float64]:
    steps = [np.diff(patch, axis=axis).std() for axis in (2, 3)]
    return np.array(
        [*patch.mean(axis=(0, 2, 3)), patch.std(), patch.min(), patch.max(), *steps, sum(steps)]
    )
