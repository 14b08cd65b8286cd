"""Colours that transparency hides, which an enlargement would mix into those that are seen."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aether_converters.pictures.picture import Planes, white

STEP: Final = 2.0  # times; a step at the edge of what is hidden that others do not have
LEAST_STEP: Final = 8 / 255  # of white, that can be seen

Mask = NDArray[np.bool_]


def with_hidden_filled(color: Planes, alpha: Planes) -> Planes:
    """The colours, with those that `alpha` hides entirely filled from what is seen beside them.

    Cut-outs mostly hide black, which an enlargement would mix into their outline. Hidden colours
    that go on where the visible ones end are content, as in textures whose alpha is no
    transparency, and stay.

    Args:
        color: (C, H, W).
        alpha: (H, W), of the same dtype; 0 hides.

    Returns:
        (C, H, W); `color` itself where nothing is to be filled.
    """
    hidden: Mask = alpha == 0
    if not hidden.any() or hidden.all() or not _is_foreign(color, hidden):
        return color
    filled = np.empty_like(color)
    for plane, target in zip(color, filled, strict=True):
        spread = _spread(plane, hidden)
        target[...] = np.where(hidden, spread, plane)
    return filled


def _is_foreign(color: Planes, hidden: Mask) -> bool:
    """Whether the hidden colours are one, or do not continue those that are seen."""
    if all((plane[hidden] == plane[hidden][0]).all() for plane in color):
        return True
    across, within = _steps(color, hidden)
    return across > max(STEP * within, LEAST_STEP * white(color.dtype))


def _steps(color: Planes, hidden: Mask) -> tuple[float, float]:
    """Mean steps between neighbours: from what is seen to what is hidden, and within the former."""
    sums, counts = np.zeros(2), np.zeros(2)
    for axis in (0, 1):
        size = hidden.shape[axis]
        before, after = (np.take(hidden, range(*span), axis) for span in ((0, size - 1), (1, size)))
        masks = (before != after, ~before & ~after)
        for plane in color:
            step = np.abs(np.diff(plane.astype(np.float32), axis=axis))
            for index, mask in enumerate(masks):
                sums[index] += step[mask].sum()
                counts[index] += mask.sum()
    across, within = sums / np.maximum(counts, 1)
    return float(across), float(within)


def _spread(plane: NDArray[Any], hidden: Mask) -> NDArray[Any]:
    """The plane with what is hidden taken from ever coarser means of what is seen.

    Each level halves height and width, so that all of them cost a third more than the first.
    """
    weights = (~hidden).astype(np.float32)
    return _filled(plane.astype(np.float32) * weights, weights)


def _filled(sums: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted means (H, W), those without weight from the level above."""
    means = np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)
    if weights.all() or max(weights.shape) == 1:
        return means
    above = _filled(_halved(means * (weights > 0)), _halved((weights > 0).astype(np.float32)))
    height, width = weights.shape
    large = above.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
    return np.where(weights > 0, means, large)


def _halved(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of two by two px; a last odd row or column stays by itself."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
