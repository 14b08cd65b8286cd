"""Large images in pieces that fit into memory, with the result of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from aether_converters.errors import ModelError
from aether_converters.upscalers import Image, Upscaler

MEMORY: Final = 2**30  # bytes of activations per tile, unless the caller says otherwise
SMALLEST_CORE: Final = 32  # px that a tile must add, so that its overlap is worth computing


@dataclass(frozen=True, kw_only=True)
class Span:
    """One tile along one axis, in input px: what it sees, and the part of it that is kept."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How an image is cut.

    Attributes:
        rows: Tiles from top to bottom.
        columns: Tiles from left to right.
        overlap: Px that a tile sees beyond what is kept of it, at least.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    overlap: int

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of each tile, in reading order."""
        return ((row, column) for row in self.rows for column in self.columns)


def split_axis(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    """Cover `length` px with tiles of one size that overlap.

    Each tile sees `tile` px, or all if there are no more; each kept part ends at least `overlap`
    px inside its tile, except at the border of the image.

    >>> [(s.start, s.stop, s.keep_start, s.keep_stop) for s in split_axis(10, 6, 1)]
    [(0, 6, 0, 5), (4, 10, 5, 10)]

    Raises:
        ValueError: The tile is not larger than twice the overlap, so none would be kept.
    """
    if length <= tile:
        return (Span(start=0, stop=length, keep_start=0, keep_stop=length),)
    core = tile - 2 * overlap
    if core < 1:
        raise ValueError(f"a tile of {tile} px leaves nothing between overlaps of {overlap} px")
    count = math.ceil((length - 2 * overlap) / core)
    starts = [i * (length - tile) // (count - 1) for i in range(count)]
    # Neighbours share at least 2 * overlap px; they meet in the middle of them.
    seams = [
        0,
        *((left + tile + right) // 2 for left, right in pairwise(starts)),
        length,
    ]
    return tuple(
        Span(start=start, stop=start + tile, keep_start=seams[i], keep_stop=seams[i + 1])
        for i, start in enumerate(starts)
    )


def plan_tiles(
    upscaler: Upscaler,
    height: int,
    width: int,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    memory: int = MEMORY,
) -> TilePlan:
    """Cut an image of (height, width) px so that the pieces give the result of the whole.

    Args:
        upscaler: The model; a fixed input size of its own decides the tile.
        height: Of the image, in px.
        width: Of the image, in px.
        tile: Side of a tile in px; by default the largest that `memory` holds.
        overlap: Px beyond what is kept; by default the receptive radius, with which no kept
            pixel can tell that it was computed in a tile.
        memory: Bytes that the activations of a tile may take. It is exceeded where less than
            the overlap would fit.

    Raises:
        ModelError: The tile is too small for the overlap.
    """
    margin = upscaler.receptive_radius if overlap is None else overlap
    if upscaler.fixed_size is not None:
        tile_height, tile_width = upscaler.fixed_size
    elif tile is not None:
        tile_height = tile_width = tile
    else:
        least = 2 * margin + max(margin, SMALLEST_CORE)
        area = max(memory // upscaler.bytes_per_pixel, least**2)
        tile_height = min(height, math.isqrt(area))
        tile_width = min(width, area // tile_height)
        tile_height = min(height, area // tile_width)
    if overlap is None and upscaler.fixed_size is not None:
        # A fixed tile may be too small for exactness; half of it is still kept.
        margin = min(margin, min(upscaler.fixed_size) // 4)
    try:
        return TilePlan(
            rows=split_axis(height, tile_height, margin),
            columns=split_axis(width, tile_width, margin),
            overlap=margin,
        )
    except ValueError as error:
        raise ModelError(
            f"the tiles are too small: {error}",
            file=upscaler.path,
            expected=f"tiles of more than {2 * margin} px",
            advice=f"try --tile {3 * margin}, or accept faint seams with "
            f"--overlap {min(tile_height, tile_width) // 4}",
        ) from None


def upscale_image(
    upscaler: Upscaler,
    image: Image,
    plan: TilePlan,
    on_tile: Callable[[], None] = lambda: None,
) -> Image:
    """Upscale an image tile by tile.

    Args:
        upscaler: The model.
        image: (C_in, H, W) in [0, 1].
        plan: From `plan_tiles` for this image.
        on_tile: Called after each tile.

    Returns:
        (C_out, scale * H, scale * W), not clipped.
    """
    _, height, width = image.shape
    scale = upscaler.scale
    result = np.empty((upscaler.channels[1], scale * height, scale * width), np.float32)
    for row, column in plan:
        seen = image[None, :, row.start : row.stop, column.start : column.stop]
        output = upscaler.run(_padded(seen, upscaler.fixed_size))[0]
        result[
            :,
            scale * row.keep_start : scale * row.keep_stop,
            scale * column.keep_start : scale * column.keep_stop,
        ] = output[
            :,
            scale * (row.keep_start - row.start) : scale * (row.keep_stop - row.start),
            scale * (column.keep_start - column.start) : scale * (column.keep_stop - column.start),
        ]
        on_tile()
    return result


def _padded(image: Image, size: tuple[int, int] | None) -> Image:
    """The image filled up to a fixed size by repeating its last row and column."""
    if size is None:
        return image
    missing = [size[axis] - image.shape[axis + 2] for axis in (0, 1)]
    return np.pad(image, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
