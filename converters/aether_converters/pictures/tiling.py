"""Large images in pieces that fit into memory, with the result of the whole."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from aether_converters.errors import ModelError
from aether_converters.pictures.picture import Planes, from_float, to_float
from aether_converters.runtimes.memory import refuse_beyond_memory
from aether_converters.runtimes.upscaler import Image, Streamer, Upscaler

MEMORY: Final = 2**30  # bytes of activations per tile, unless the caller says otherwise
SMALLEST_CORE: Final = 32  # px that a tile must add, so that its overlap is worth computing
WHOLE_PIXELS: Final = 2**18  # up to which bands gain nothing
MOST_COLUMNS: Final = 16  # that are considered where fewer fit into memory


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
        bands: Rows that the model takes at a time of tiles as high as the image; 0: all.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    overlap: int
    bands: int = 0

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def band_count(self) -> int:
        """Number of bands in which the only tile is computed; 1 at once, or with several tiles."""
        if len(self) > 1 or not self.bands:
            return 1
        return -(-self.rows[0].stop // self.bands)

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


def split_in_steps(length: int, tile: int, overlap: int, step: int) -> tuple[Span, ...]:
    """As `split_axis`, with tiles that start at multiples of `step` px and end there or at the end.

    >>> [(s.start, s.stop, s.keep_start, s.keep_stop) for s in split_in_steps(11, 7, 1, 2)]
    [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 8), (6, 11, 8, 11)]

    Raises:
        ValueError: The tile is not larger than twice the overlap, both in whole steps.
    """
    if length <= tile or step == 1:
        return split_axis(length, tile, overlap)
    spans = split_axis(-(-length // step), max(tile // step, 1), -(-overlap // step))
    return tuple(
        Span(
            start=step * span.start,
            stop=min(step * span.stop, length),
            keep_start=step * span.keep_start,
            keep_stop=min(step * span.keep_stop, length),
        )
        for span in spans
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
        ModelError: The tile is too small for the overlap, or of a size that the model does not
            accept.
    """
    margin = upscaler.receptive_radius if overlap is None else overlap
    if upscaler.streamer is not None and tile is None and height * width > WHOLE_PIXELS:
        return _plan_columns(upscaler.streamer, height, width, margin, memory)
    if upscaler.fixed_size is not None:
        tile_height, tile_width = upscaler.fixed_size
        needed = upscaler.bytes_per_pixel * tile_height * tile_width
        if upscaler.format == "onnx":
            what = f"{upscaler.path.name} takes {tile_height} x {tile_width} px at a time"
            refuse_beyond_memory(what, needed, "an export for smaller pictures")
    elif tile is not None:
        tile_height = tile_width = tile
    else:
        step = max(upscaler.steps)
        least = 2 * margin + max(margin, SMALLEST_CORE) + 3 * (step - 1)
        area = max(memory // upscaler.bytes_per_pixel, least**2)
        tile_height = min(height, math.isqrt(area))
        tile_width = min(width, area // tile_height)
        tile_height = min(height, area // tile_width)
    if upscaler.size_ranges:
        tile_height, tile_width = _within_ranges(upscaler, tile_height, tile_width, tile)
    if overlap is None and upscaler.fixed_size is not None:
        # A fixed tile may be too small for exactness; half of it is still kept.
        margin = min(margin, min(upscaler.fixed_size) // 4)
    try:
        return TilePlan(
            rows=split_in_steps(height, tile_height, margin, upscaler.steps[0]),
            columns=split_in_steps(width, tile_width, margin, upscaler.steps[1]),
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


def _within_ranges(
    upscaler: Upscaler, height: int, width: int, wanted: int | None
) -> tuple[int, int]:
    """The largest tile of at most (height, width) px that the model accepts."""
    largest = max((limits.most for limits in upscaler.size_ranges), key=math.prod)
    if wanted is not None and upscaler.accepted_size(wanted, wanted) is None:
        raise ModelError(
            "the model was not built for tiles of this size",
            file=upscaler.path,
            expected=f"at most {min(largest)} px",
            found=f"--tile {wanted}",
            advice="leave --tile away, or build the engine with a larger --max",
        )
    if upscaler.accepted_size(height, width) is not None:
        return height, width
    return min(height, largest[0]), min(width, largest[1])


def _plan_columns(
    streamer: Streamer, height: int, width: int, margin: int, memory: int
) -> TilePlan:
    """Columns of the whole height that fit into memory, as many as take the least time.

    Narrow columns compute more overlap, and wide ones may take longer for each px.
    """
    least = min(2 * margin + max(margin, SMALLEST_CORE), width)
    fitting = bisect_right(range(least, width + 1), memory, key=streamer.memory)
    widest = least + max(fitting - 1, 0)

    def work(column: int) -> float:
        seen = sum(span.stop - span.start for span in split_axis(width, column, margin))
        return seen * streamer.time(column)

    # (width - 2 * margin) / count px are new in each of so many columns.
    columns = [math.ceil((width - 2 * margin) / n) + 2 * margin for n in range(1, MOST_COLUMNS + 1)]
    column = min([widest, *(c for c in columns if least <= c < widest)], key=work)
    return TilePlan(
        rows=split_axis(height, height, margin),
        columns=split_axis(width, column, margin),
        overlap=margin,
        bands=streamer.rows(column),
    )


def upscale_image(
    upscaler: Upscaler,
    image: Planes,
    plan: TilePlan,
    *,
    finish: Callable[[Image], Image] = lambda output: output,
    on_pixels: Callable[[int], None] = lambda _: None,
) -> Planes:
    """Upscale an image tile by tile.

    Args:
        upscaler: The model.
        image: (C_in, H, W), float32 in [0, 1] or integers over their full range.
        plan: From `plan_tiles` for this image.
        finish: What is kept of the model's output: (C_out, h, w) float32 to (C, h, w).
        on_pixels: Told how many more px of the result are done.

    Returns:
        (C, scale * H, scale * W) of the image's dtype, interleaved in memory; integers are
        clipped and rounded, floats are not.

    Raises:
        ImageError: The model gives NaN or infinity, which integers cannot hold.
    """
    _, height, width = image.shape
    scale = upscaler.scale
    channels = len(finish(np.zeros((upscaler.channels[1], 1, 1), np.float32)))
    pixels = np.empty((scale * height, scale * width, channels), image.dtype)
    result = np.moveaxis(pixels, -1, 0)
    for top, left, output in _outputs(upscaler, image, plan):
        kept = finish(output)
        _, rows, columns = kept.shape
        result[:, top : top + rows, left : left + columns] = from_float(kept, image.dtype)
        on_pixels(rows * columns)
    return result


def _outputs(upscaler: Upscaler, image: Planes, plan: TilePlan) -> Iterator[tuple[int, int, Image]]:
    """Top, left and pixels of each part of the upscaled image."""
    scale = upscaler.scale
    for row, column in plan:
        left = scale * (column.keep_start - column.start)
        right = scale * (column.keep_stop - column.start)
        seen = image[None, :, row.start : row.stop, column.start : column.stop]
        if plan.bands and upscaler.streamer is not None:
            bands = (
                to_float(seen[:, :, start : start + plan.bands])
                for start in range(0, seen.shape[2], plan.bands)
            )
            top = 0
            for output in upscaler.streamer.run(bands):
                yield top, scale * column.keep_start, output[0, :, :, left:right]
                top += output.shape[2]
        else:
            size = upscaler.accepted_size(*seen.shape[2:])
            output = _enlarged(upscaler, _padded(to_float(seen), size))
            top, bottom = (scale * (y - row.start) for y in (row.keep_start, row.keep_stop))
            yield (
                scale * row.keep_start,
                scale * column.keep_start,
                output[:, top:bottom, left:right],
            )


def _enlarged(upscaler: Upscaler, image: Image) -> Image:
    """The model's output for one image, (C_out, scale * H, scale * W)."""
    output = upscaler.run(image)[0]
    expected = tuple(upscaler.scale * side for side in image.shape[2:])
    if output.shape[1:] != expected:
        raise ModelError(
            "the model gives a picture of another size than it promises",
            file=upscaler.path,
            expected=" x ".join(map(str, expected[::-1])) + " px",
            found=" x ".join(map(str, output.shape[:0:-1])) + " px",
            advice="export the network again for pictures of any size",
        )
    return output


def _padded(image: Image, size: tuple[int, int] | None) -> Image:
    """The image filled up to an accepted size by repeating its last row and column."""
    if size is None:
        return image
    missing = [size[axis] - image.shape[axis + 2] for axis in (0, 1)]
    return np.pad(image, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), mode="edge")
