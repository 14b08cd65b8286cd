"""What each kind of operator makes of the values that it is given: a row each.

A row says what the result's dimensions are and how far it sees. An operator without a row, or one
whose row cannot make sense of it, counts as one that looks at the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aether_converters.graphs.values import (
    SMALL,
    Dim,
    Factor,
    Value,
    constant,
    cut_out,
    is_plain,
    is_strip,
    joined,
    length,
    merged,
    of_the_whole,
    plain,
    regrouped,
    repeats,
    seen_through,
    shifted,
    sides,
    small,
)

CLOSE: Final = 2**14  # px; what lies further away is no border of the picture
FINEST: Final = 2**10  # denominator of a scale


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator with what it is given.

    Attributes:
        operator: Its kind.
        opset: Version of its domain.
        attributes: By name.
        inputs: None for those left out.
        outputs: How many values it gives.
        picture: (height, width) in px.
    """

    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: Sequence[Value | None]
    outputs: int
    picture: tuple[int, int]

    @property
    def first(self) -> Value:
        """The first input."""
        return self.given(0)

    @property
    def there(self) -> list[Value]:
        """Inputs that are not left out."""
        return [value for value in self.inputs if value is not None]

    def given(self, index: int) -> Value:
        """An input; raises ValueError where it is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise ValueError("an input that is not there")
        return found

    def integer(self, name: str, otherwise: int) -> int:
        """An attribute that is one number."""
        return int(self.attributes.get(name, otherwise))

    def text(self, name: str, otherwise: str) -> str:
        """An attribute that is a text."""
        found = self.attributes.get(name, otherwise)
        return found.decode("ascii") if isinstance(found, bytes) else str(found)

    def integers(self, name: str, index: int | None = None) -> list[int] | None:
        """Numbers from an attribute or, in newer versions, from an input; None if not given."""
        if name in self.attributes:
            return [int(number) for number in np.atleast_1d(self.attributes[name])]
        if index is None or index >= len(self.inputs) or self.inputs[index] is None:
            return None
        numbers = self.given(index).numbers
        if numbers is None:
            raise ValueError(f"{name} that are only known when it runs")
        return [int(number) for number in numbers.reshape(-1)]


Row = Callable[[Call], "Value | list[Value]"]


def outermost(dim: Dim) -> Factor:
    """The first factor of a dimension; raises ValueError where there is none."""
    for factor in dim:
        return factor
    raise ValueError("a dimension of one index")


def _counted(axis: int, rank: int) -> int:
    """An axis from the front; raises ValueError where there is none."""
    if not -rank <= axis < rank:
        raise ValueError("an axis that is not there")
    return axis % rank


# Values of one shape


def broadcast(call: Call) -> Value:
    """Each element from the same place of every input."""
    return together(call, call.there)


def together(call: Call, values: Sequence[Value]) -> Value:
    """Values in one shape, as numpy would broadcast them."""
    rank = max(len(value.known) for value in values)
    found = joined(values, None)
    dims: list[Dim] = []
    for place in range(-rank, 0):
        level = [v.known[place] for v in values if len(v.known) >= -place]
        there = [dim for dim in level if length(dim) > 1]
        if there and any(length(dim) == 1 and is_strip(dim) for dim in level):
            found = of_the_whole(found, call.operator)  # one end of the picture, at every place
        if len(set(map(length, there))) > 1:
            raise ValueError("shapes that do not fit each other")
        found_dims = set(there)
        told = {dim for dim in found_dims if not repeats(dim)} or found_dims
        if len(told) > 1:  # what stands at a place of the picture, beside what the file holds
            found = of_the_whole(found, call.operator)
        dims.append(next((d for d in sorted(told, key=is_plain)), ()))
    found = replace(found, dims=tuple(dims))
    if found.pixels and any(value.sized and not value.pixels for value in values):
        found = of_the_whole(found, call.operator)
    twice = sides(found.known)
    return of_the_whole(found, call.operator) if len(twice) > len(set(twice)) else found


def in_place(call: Call) -> Value:
    """Each element from its own place in the first input."""
    return joined(call.there, call.first.known)


def once_trained(call: Call) -> Value:
    """As in place, unless it is in training still: by ranges of this picture, or by chance."""
    found = in_place(call)
    told = call.inputs[2] if call.operator == "Dropout" and len(call.inputs) > 2 else None
    training = call.integer("training_mode", 0) or (
        told is not None and (told.numbers is None or bool(told.numbers.any()))
    )
    return of_the_whole(found, call.operator) if training else found


# Values that mix what lies along a dimension


def _mixing(call: Call, axes: Sequence[int]) -> Value:
    value = call.first
    mixed = [value.known[_counted(axis, len(value.known))] for axis in axes]
    found = in_place(call)
    return found if all(map(is_plain, mixed)) else of_the_whole(found, call.operator)


def along_axis(call: Call) -> Value:
    """Normalised or summed up along one dimension."""
    axis = call.integers("axis", 1) or [call.integer("axis", -1)]
    return _mixing(call, axis)


def accumulated(call: Call) -> Value:
    """Sums of all that lies before; even equal numbers are no longer equal then."""
    found = along_axis(call)
    (axis,) = call.integers("axis", 1) or [0]
    place = _counted(axis, len(found.known))
    dims = list(found.known)
    dims[place] = tuple(replace(factor, same=False) for factor in dims[place])
    return replace(found, dims=tuple(dims))


def softmax(call: Call) -> Value:
    """Along one dimension; before version 13 along that and all that follow."""
    rank = len(call.first.known)
    if call.opset >= 13:
        return _mixing(call, [call.integer("axis", -1)])
    return _mixing(call, range(_counted(call.integer("axis", 1), rank), rank))


def from_axis(call: Call) -> Value:
    """Normalised over a dimension and all that follow."""
    rank = len(call.first.known)
    return _mixing(call, range(_counted(call.integer("axis", -1), rank), rank))


def over_places(call: Call) -> Value:
    """Normalised over all but the batch and perhaps the channels."""
    return _mixing(call, range(2, len(call.first.known)))


def over_listed(call: Call) -> Value:
    """Normalised over listed dimensions."""
    return _mixing(call, call.integers("axes") or [0, 2, 3])


def reduced(call: Call) -> Value:
    """One number for all that lies along dimensions."""
    value = call.first
    rank = len(value.known)
    axes = call.integers("axes", 1)
    if not axes and call.integer("noop_with_empty_axes", 0):
        return in_place(call)
    return _without(call, axes or range(rank))


def reduced_axis(call: Call) -> Value:
    """A place along one dimension."""
    return _without(call, [call.integer("axis", 0)])


def pooled(call: Call) -> Value:
    """One number for all places of a channel."""
    return _without(call, range(2, len(call.first.known)))


def _without(call: Call, axes: Sequence[int]) -> Value:
    found = _mixing(call, axes)
    gone = {_counted(axis, len(found.known)) for axis in axes}
    kept = call.integer("keepdims", 1)
    dims = [() if i in gone else dim for i, dim in enumerate(found.known) if kept or i not in gone]
    return replace(found, dims=tuple(dims))


# Windows that slide over places


@dataclass(frozen=True, kw_only=True)
class Window:
    """What slides along one dimension: `extent` indices from the first it sees to the last."""

    extent: int
    stride: int
    begin: int
    end: int


def _windows(call: Call, kernel: Sequence[int]) -> list[Window]:
    rank = len(kernel)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    pads = call.integers("pads") or [0] * 2 * rank
    if not len(strides) == len(dilations) == len(pads) / 2 == rank:
        raise ValueError("sizes of several ranks")
    if min(*kernel, *strides, *dilations, 1) < 1:
        raise ValueError("sizes below 1")
    return [
        Window(extent=(k - 1) * d + 1, stride=s, begin=pads[axis], end=pads[axis + rank])
        for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True))
    ]


def _kernel(call: Call, weight: int | None) -> list[int]:
    """Sides of the kernel: as told, or those of the weight."""
    told = call.integers("kernel_shape")
    if told is not None:
        return told
    if weight is None:
        raise ValueError("a kernel of no size")
    return list(call.given(weight).shape[2:])


def _slid(call: Call, value: Value, windows: Sequence[Window], channels: Dim) -> Value:
    """Windows over all dimensions from the third on."""
    automatic = call.text("auto_pad", "NOTSET")
    dims = [value.known[0], channels]
    for place, window in zip(value.known[2:], windows, strict=True):
        size = length(place)
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            count = math.ceil(size / window.stride)
            lacking = max((count - 1) * window.stride + window.extent - size, 0)
            upper = automatic == "SAME_UPPER"
            begin = lacking // 2 if upper else lacking - lacking // 2
        else:
            begin, end = (0, 0) if automatic == "VALID" else (window.begin, window.end)
            count = _count(call, size + begin + end - window.extent, window.stride) + 1
        dims.append(_slid_dim(place, count, window))
        if is_plain(place):
            continue
        if len(place) > 1 and (window.extent, window.stride, begin) != (1, 1, 0):
            value = of_the_whole(value, call.operator)
        elif len(place) == 1 and (axis := outermost(place).axis) is not None:
            factor = outermost(place)
            if factor.border and window.stride > 1:
                value = of_the_whole(value, call.operator)
            shift = shifted(factor, begin, count)
            low, high = shift, shift + (window.extent - 1) / factor.ratio
            if factor.ratio > 1:  # behind an upsampling px count as whole, as of checkpoints
                low, high = Fraction(math.floor(low)), Fraction(math.ceil(high))
            value = seen_through(value, axis, low, high, factor.ratio / window.stride)
    return replace(value, dims=tuple(dims), numbers=None)


def _count(call: Call, room: int, stride: int) -> int:
    if room < 0:
        raise ValueError("a picture that is smaller than the kernel")
    return -(-room // stride) if call.integer("ceil_mode", 0) else room // stride


def _slid_dim(place: Dim, count: int, window: Window) -> Dim:
    if is_plain(place):
        return plain(count)
    if len(place) > 1:
        return place if count == length(place) else plain(count)
    return (replace(outermost(place), size=count, ratio=outermost(place).ratio / window.stride),)


def convolved(call: Call, weight: int = 1) -> Value:
    """A convolution; all channels are mixed."""
    found = joined(call.there, call.first.known)
    if not all(map(is_plain, (found.known[1], *call.given(weight).known))):
        found = of_the_whole(found, call.operator)
    channels = plain(call.given(weight).shape[0])
    return _slid(call, found, _windows(call, _kernel(call, weight)), channels)


def convolved_integers(call: Call) -> Value:
    """A convolution of quantised values with their scales beside them."""
    return convolved(call, weight=3)


def windowed(call: Call) -> Value:
    """A pool: each channel by itself."""
    return _slid(call, call.first, _windows(call, _kernel(call, None)), call.first.known[1])


def transposed_convolution(call: Call) -> Value:
    """Each index spreads over a window of the result."""
    found = joined(call.there, call.first.known)
    if not all(map(is_plain, (found.known[1], *call.given(1).known))):
        found = of_the_whole(found, call.operator)
    windows = _windows(call, _kernel(call, 1))
    more = call.integers("output_padding") or [0] * len(windows)
    wanted = call.integers("output_shape") or [None] * len(windows)
    automatic = call.text("auto_pad", "NOTSET")
    channels = call.given(1).shape[1] * call.integer("group", 1)
    dims = [found.known[0], plain(channels)]
    for axis, (place, window) in enumerate(zip(found.known[2:], windows, strict=True)):
        full = window.stride * (length(place) - 1) + more[axis] + window.extent
        size, begin = wanted[-len(windows) :][axis], window.begin
        if automatic in ("SAME_UPPER", "SAME_LOWER") and size is None:
            size = length(place) * window.stride
        if size is None:
            size = full - begin - window.end
        else:
            lacking = full - size
            upper = automatic == "SAME_UPPER"
            begin = lacking // 2 if upper else lacking - lacking // 2
        if is_plain(place) or len(place) > 1 or outermost(place).border:
            found = found if is_plain(place) else of_the_whole(found, call.operator)
            dims.append(plain(size))
            continue
        factor = outermost(place)
        ratio = factor.ratio * window.stride
        dims.append((Factor(size, factor.axis, ratio),))
        found = seen_through(
            found,
            factor.axis or 0,
            (begin - (window.extent - 1)) / ratio,
            begin / ratio,
            ratio,
        )
    return replace(found, dims=tuple(dims))


# Resolution


def depth_to_space(call: Call) -> Value:
    """Channels that become places."""
    block = call.integer("blocksize", 1)
    value = joined(call.there, call.first.known)
    batch, channels, *places = value.known
    if len(places) != 2 or block < 1 or not is_plain(channels):
        raise ValueError("no picture")
    finer = tuple((*place, Factor(block)) if block > 1 else place for place in places)
    inner, rest = divmod(length(channels), block**2)
    if rest:
        raise ValueError("too few channels")
    return merged(replace(value, dims=(batch, plain(inner), *finer)))


def space_to_depth(call: Call) -> Value:
    """Places that become channels."""
    block = call.integer("blocksize", 1)
    value = joined(call.there, call.first.known)
    batch, channels, height, width = (length(dim) for dim in value.known)
    if block < 1 or height % block or width % block:
        raise ValueError("a size that the block does not divide")
    split = (batch, channels, height // block, block, width // block, block)
    cut = regrouped(value, split, call.operator)
    n, c, h, _, w, _ = cut.known
    return replace(cut, dims=(n, plain(length(c) * block**2), h, w))


def resized(call: Call) -> Value:
    """Another resolution, with the window that the interpolation sees."""
    value = call.first
    rank = len(value.known)
    axes = [_counted(a, rank) for a in call.integers("axes") or range(rank)]
    scales, sizes = _scales(call, axes, rank)
    mode = call.text(
        "coordinate_transformation_mode", "half_pixel" if call.opset > 10 else "asymmetric"
    )
    dims: list[Dim] = []
    found = joined(call.there[:1], value.known)
    for place, scale, size in zip(value.known, scales, sizes, strict=True):
        if scale == 1 and size == length(place):
            dims.append(place)
        elif is_plain(place):
            dims.append(plain(size))
        elif len(place) > 1 or outermost(place).border or scale.denominator > FINEST:
            found = of_the_whole(found, call.operator)
            dims.append(plain(size))
        else:
            factor = outermost(place)
            low, high = _interpolated(call, scale)
            if mode != "asymmetric":  # index i lies at (i + 1/2) / scale - 1/2
                shift = (1 / scale - 1) / 2
                low, high = low + shift, high + shift
            finer = Factor(size, factor.axis, factor.ratio * scale)
            dims.append((finer,))
            low, high = low / factor.ratio, high / factor.ratio
            found = seen_through(found, factor.axis or 0, low, high, finer.ratio)
    found = replace(found, dims=tuple(dims))
    resized_here = any(scale != 1 for scale in scales) and mode not in CENTRES
    return of_the_whole(found, call.operator) if resized_here else found


CENTRES: Final = ("asymmetric", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")


def _scales(call: Call, axes: Sequence[int], rank: int) -> tuple[list[Fraction], list[int]]:
    """How many times as long each dimension becomes, and its length."""
    before = call.first.shape
    scales, sizes = [Fraction(1)] * rank, list(before)
    given = call.inputs[3] if len(call.inputs) > 3 else None
    if given is not None:
        if given.numbers is None or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise ValueError("sizes that are only known when it runs")
        for axis, size in zip(axes, given.numbers.reshape(-1), strict=True):
            scales[axis], sizes[axis] = Fraction(int(size), before[axis]), int(size)
        return scales, sizes
    place = 2 if call.operator == "Resize" and call.opset > 10 else 1
    told: Any = call.attributes.get("scales")
    if told is None:
        told = call.given(place).numbers
    if told is None:
        raise ValueError("scales that are only known when it runs")
    for axis, scale in zip(axes, np.asarray(told, np.float64).reshape(-1), strict=True):
        scales[axis] = Fraction(float(scale)).limit_denominator(FINEST)
        if abs(scales[axis] - Fraction(float(scale))) > 1e-6 * scales[axis]:
            raise ValueError("a scale that is no ratio")
        sizes[axis] = math.floor(before[axis] * scales[axis])
    return scales, sizes


def _interpolated(call: Call, scale: Fraction) -> tuple[Fraction, Fraction]:
    mode = call.text("mode", "nearest")
    half = Fraction(1, 2)
    if mode == "nearest":
        rounding = call.text("nearest_mode", "round_prefer_floor" if call.opset > 10 else "floor")
        most = 1 - Fraction(1, scale.numerator)  # places lie at multiples of this fraction
        return {"floor": (-most, Fraction(0)), "ceil": (Fraction(0), most)}.get(
            rounding, (-half, half)
        )
    wide = Fraction(2 if mode == "cubic" else 1)
    if call.integer("antialias", 0) and scale < 1:
        wide = wide / scale + 1
    return -wide, wide


# Parts of a value


def padded(call: Call) -> Value:
    """More at the borders, or less."""
    value = joined(call.there[:1], call.first.known)
    rank = len(value.known)
    pads = call.integers("pads", 1) or call.integers("paddings") or []
    axes = [_counted(a, rank) for a in call.integers("axes", 3) or range(rank)]
    mode = call.text("mode", "constant")
    begins, ends = [0] * rank, [0] * rank
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        begins[axis], ends[axis] = begin, end
    dims: list[Dim] = []
    for place, begin, end in zip(value.known, begins, ends, strict=True):
        size = length(place) + begin + end
        if not begin and not end:
            dims.append(place)
        elif is_plain(place):
            dims.append(plain(size))
        elif len(place) > 1 or mode == "wrap" or max(abs(begin), abs(end)) > CLOSE:
            value = of_the_whole(value, call.operator)
            dims.append(plain(size))
        else:
            factor = outermost(place)
            dims.append((replace(factor, size=size),))
            shift = shifted(factor, begin, size)
            axis = factor.axis or 0
            value = seen_through(value, axis, shift, shift, factor.ratio)
            if min(begin, end) < 0 and not factor.border:
                value = cut_out(value, axis, size - factor.ratio * call.picture[axis])
    return replace(value, dims=tuple(dims))


def sliced(call: Call) -> Value:
    """From some index to another, perhaps every second."""
    value = joined(call.there[:1], call.first.known)
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    rank = len(value.known)
    axes = call.integers("axes", 3) or list(range(len(starts)))
    strides = call.integers("steps", 4) or [1] * len(starts)
    dims = list(value.known)
    for axis, start, end, stride in zip(axes, starts, ends, strides, strict=True):
        place = dims[_counted(axis, rank)]
        there = range(*slice(start, end, stride).indices(length(place)))
        if there == range(length(place)):
            continue
        dims[_counted(axis, rank)] = plain(len(there))
        if is_plain(place):
            continue
        value, dims[_counted(axis, rank)] = _cut_off(call, value, place, there)
    return replace(value, dims=tuple(dims))


def _cut_off(call: Call, value: Value, place: Dim, there: range) -> tuple[Value, Dim]:
    """What is left along the picture: nearly all of it, or a strip at one of its ends."""
    count, factor = len(there), outermost(place)
    near = min(CLOSE, length(place) // 2)
    if len(place) > 1 or there.step < 1 or factor.axis is None or not count:
        return of_the_whole(value, call.operator), plain(count)
    ratio, border, begin = factor.ratio / there.step, factor.border, -there.start
    if not border and length(place) - count * there.step > near:
        if there.step > 1 or count > near:
            return of_the_whole(value, call.operator), plain(count)
        border = "start" if there.start <= near else "end"
        if border == "end":  # counted from the last px now
            end = (there.start + count) / factor.ratio - call.picture[factor.axis]
            value = seen_through(value, factor.axis, end, end, factor.ratio)
            return value, (replace(factor, size=count, border=border),)
    elif border and there.step > 1:
        return of_the_whole(value, call.operator), plain(count)
    shift = shifted(factor, begin, count)
    value = seen_through(value, factor.axis, shift, shift, ratio)
    if not border:
        value = cut_out(value, factor.axis, count - ratio * call.picture[factor.axis])
    return value, (replace(factor, size=count, ratio=ratio, border=border),)


def gathered(call: Call) -> Value:
    """Parts that indices name, which may depend on the picture themselves."""
    table, indices = call.given(0), call.given(1)
    axis = _counted(call.integer("axis", 0), len(table.known))
    dims = (*table.known[:axis], *indices.known, *table.known[axis + 1 :])
    found = joined(call.there, dims)
    torn = not is_plain(table.known[axis]) or (indices.sized and not indices.pixels)
    return of_the_whole(found, call.operator) if torn else found


def concatenated(call: Call) -> Value:
    """Values one after the other along a dimension."""
    values = call.there
    rank = len(values[0].known)
    axis = _counted(call.integer("axis", 0), rank)
    if any(len(value.known) != rank for value in values):
        raise ValueError("values of several ranks")
    places = [value.known[axis] for value in values]
    total = sum(map(length, places))
    place, torn = plain(total), not all(map(is_plain, places))
    if torn and (laid := _laid(call, axis)) is not None:
        values, main = laid
        place, torn = (replace(main, size=total),), False
    # Whatever their lengths along this dimension.
    level = [
        replace(v, dims=(*v.known[:axis], (), *v.known[axis + 1 :])) if v.known else v
        for v in values
    ]
    found = together(call, level)
    dims = list(found.known)
    dims[axis] = place
    found = replace(found, dims=tuple(dims))
    return of_the_whole(found, call.operator) if torn else found


def _laid(call: Call, axis: int) -> tuple[list[Value], Factor] | None:
    """Strips before and behind a picture, each seeing from its new place; None if it is not so."""
    places = [value.known[axis] for value in call.there]
    mains = [
        i for i, dim in enumerate(places) if dim and dim[0].axis is not None and not dim[0].border
    ]
    if len(mains) != 1 or any(len(dim) > 1 for dim in places):
        return None
    (middle,) = mains
    main = places[middle][0]
    side, ratio = main.axis or 0, main.ratio
    laid: list[Value] = []
    offset = 0
    for index, (value, dim) in enumerate(zip(call.there, places, strict=True)):
        border = "start" if index < middle else "end" if index > middle else ""
        before, offset = offset, offset + length(dim)
        if is_plain(dim):
            laid.append(value)
            continue
        if (dim[0].axis, dim[0].ratio, dim[0].border) != (side, ratio, border):
            return None
        shift = -before / ratio
        if border == "end":
            behind = sum(map(length, places[index + 1 :]))
            shift = behind / ratio
        laid.append(seen_through(value, side, shift, shift, ratio))
    # Strips lie at the ends of whatever the graph is given, of a tile too.
    ahead = sum(map(length, places[:middle]))
    behind = sum(map(length, places[middle + 1 :]))
    ends = Value(dims=(), pixels=True)
    laid.append(seen_through(ends, side, -ahead / ratio - 1, behind / ratio + 1, ratio))
    return laid, main


def split(call: Call) -> list[Value]:
    """Parts along a dimension."""
    value = joined(call.there[:1], call.first.known)
    axis = _counted(call.integer("axis", 0), len(value.known))
    parts = call.integers("split", 1)
    place = value.known[axis]
    if call.outputs == 1:
        return [value]
    if not is_plain(place):
        value = of_the_whole(value, call.operator)
    if parts is None:
        most = -(-length(place) // call.outputs)
        parts = [most] * (call.outputs - 1)
        parts.append(length(place) - sum(parts))
    return [
        replace(value, dims=(*value.known[:axis], plain(part), *value.known[axis + 1 :]))
        for part in parts
    ]


# Other shapes


def _reshaped(call: Call, shape: Sequence[int]) -> Value:
    value = call.first
    found = regrouped(value, shape, call.operator)
    same = value.numbers
    return replace(found, numbers=None if same is None else same.reshape(tuple(shape)))


def reshaped(call: Call) -> Value:
    """The same numbers in another shape."""
    shape = call.integers("shape", 1)
    if shape is None:
        raise ValueError("no shape")
    before = call.first.shape
    if not call.integer("allowzero", 0):
        shape = [before[i] if size == 0 else size for i, size in enumerate(shape)]
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = math.prod(before) // rest
    return _reshaped(call, shape)


def flattened(call: Call) -> Value:
    """Two dimensions of all."""
    shape = call.first.shape
    axis = call.integer("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _reshaped(call, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def squeezed(call: Call) -> Value:
    """Without dimensions of one index."""
    shape = call.first.shape
    axes = call.integers("axes", 1)
    gone = [i for i, size in enumerate(shape) if size == 1]
    if axes is not None:
        gone = [_counted(axis, len(shape)) for axis in axes]
    if any(shape[i] != 1 for i in gone):
        raise ValueError("a dimension that is not 1")
    return _reshaped(call, [size for i, size in enumerate(shape) if i not in gone])


def unsqueezed(call: Call) -> Value:
    """With dimensions of one index."""
    axes = call.integers("axes", 1) or []
    rank = len(call.first.known) + len(axes)
    there = {_counted(axis, rank) for axis in axes}
    sizes = iter(call.first.shape)
    return _reshaped(call, [1 if i in there else next(sizes) for i in range(rank)])


def transposed(call: Call) -> Value:
    """Dimensions in another order."""
    dims = call.first.known
    order = call.integers("perm") or list(range(len(dims)))[::-1]
    if sorted(order) != list(range(len(dims))):
        raise ValueError("no order of all dimensions")
    found = replace(call.first, dims=tuple(dims[axis] for axis in order), numbers=None)
    numbers = call.first.numbers
    return found if numbers is None else replace(found, numbers=numbers.transpose(order))


def expanded(call: Call) -> Value:
    """Repeated along dimensions of one index."""
    shape = call.integers("shape", 1) or []
    wanted = Value(dims=tuple(plain(size, same=True) for size in shape))
    return together(call, [call.first, wanted])


def tiled(call: Call) -> Value:
    """Repeated along every dimension."""
    times = call.integers("repeats", 1) or []
    if min(times, default=1) < 1:
        raise ValueError("repeated less than once")
    dims = tuple(
        (*plain(count, same=True), *dim) for count, dim in zip(times, call.first.known, strict=True)
    )
    return joined(call.there[:1], dims)


# Products


def multiplied(call: Call) -> Value:
    """A matrix product, of stacks of matrices perhaps."""
    left, right = call.given(0), call.given(1)
    return _product(call, left, right)


def multiplied_integers(call: Call) -> Value:
    """A matrix product of quantised values with their scales beside them."""
    return _product(call, call.given(0), call.given(3))


def _product(call: Call, left: Value, right: Value) -> Value:
    *rows, across = left.known  # ValueError where there is no dimension
    *stacked, last = right.known
    columns = [last] if stacked else []
    inner = (across, stacked.pop() if stacked else last)
    if length(inner[0]) != length(inner[1]):
        raise ValueError("matrices that do not fit each other")
    outer = [replace(left, dims=tuple(rows[:-1])), replace(right, dims=tuple(stacked))]
    stacks = together(call, outer)
    found = joined(call.there, (*stacks.known, *rows[-1:], *columns))
    found = replace(found, whole=found.whole | stacks.whole)
    twice = sides(found.known)
    mixed = not all(map(is_plain, inner)) or len(twice) > len(set(twice))
    return of_the_whole(found, call.operator) if mixed else found


def general_product(call: Call) -> Value:
    """A matrix product, each matrix perhaps turned."""
    left, right = call.given(0), call.given(1)
    if call.integer("transA", 0):
        left = replace(left, dims=left.known[::-1])
    if call.integer("transB", 0):
        right = replace(right, dims=right.known[::-1])
    return _product(call, left, right)


# Values from nothing


def shape_of(call: Call) -> Value:
    """The sizes of a value."""
    dims = call.first.known
    part = slice(call.integer("start", 0), call.attributes.get("end"))
    sizes = np.array([length(dim) for dim in dims[part]], np.int64)
    return replace(constant(sizes.shape, sizes), sized=not all(map(is_plain, dims)))


def size_of(call: Call) -> Value:
    """How many elements a value has."""
    sized = not all(map(is_plain, call.first.known))
    return replace(constant((), np.array(call.first.elements)), sized=sized)


def filled(call: Call) -> Value:
    """One number, everywhere."""
    shape = call.integers("shape", 0)
    if shape is None:
        raise ValueError("no shape")
    given: Any = call.attributes.get("value")
    number = np.zeros(1, np.float32) if given is None else np.asarray(given).reshape(-1)
    found = Value(dims=tuple(plain(size, same=True) for size in shape))
    if found.elements > SMALL:
        return found
    return replace(found, numbers=np.full(shape, number[0]))


def counted(call: Call) -> Value:
    """Numbers in steps."""
    parts = [value.numbers for value in call.there]
    if len(parts) != 3 or any(part is None for part in parts):
        raise ValueError("a range that is only known when it runs")
    start, limit, delta = (part.item() for part in parts if part is not None)
    count = max(math.ceil((limit - start) / delta), 0)
    sized = any(value.sized for value in call.there)
    found = replace(constant((count,)), sized=sized)
    if count > SMALL:
        return found
    return replace(found, numbers=start + delta * np.arange(count))


IN_PLACE: Final = """
    Abs Acos Acosh Affine Asin Asinh Atan Atanh BiasGelu BitwiseNot Cast CastLike Ceil Celu Clip Cos
    Cosh DequantizeLinear Elu Erf Exp FastGelu Floor Gelu HardSigmoid HardSwish Identity
    ImageScaler IsInf IsNaN LRN LeakyRelu Log Mish Neg Not ParametricSoftplus QLinearLeakyRelu
    QLinearSigmoid QuantizeLinear QuickGelu Reciprocal Relu Round ScaledTanh Selu Shrink Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
TOGETHER: Final = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
"""
REDUCED: Final = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""


def quantised_sum(call: Call) -> Value:
    """Two quantised values, each with its scale and zero point behind it."""
    return together(call, [call.given(0), call.given(3)])


OPERATORS: Final[Mapping[str, Row]] = {
    **dict.fromkeys(IN_PLACE.split(), in_place),
    **dict.fromkeys(TOGETHER.split(), broadcast),
    **dict.fromkeys(REDUCED.split(), reduced),
    "ArgMax": reduced_axis,
    "ArgMin": reduced_axis,
    "AveragePool": windowed,
    "BatchNormalization": once_trained,
    "Concat": concatenated,
    "ConstantOfShape": filled,
    "Conv": convolved,
    "ConvInteger": convolved,
    "ConvTranspose": transposed_convolution,
    "CumSum": accumulated,
    "DepthToSpace": depth_to_space,
    "Dropout": once_trained,
    "Expand": expanded,
    "Flatten": flattened,
    "FusedConv": convolved,
    "Gather": gathered,
    "Gemm": general_product,
    "GlobalAveragePool": pooled,
    "GlobalLpPool": pooled,
    "GlobalMaxPool": pooled,
    "GroupNormalization": over_places,
    "Hardmax": softmax,
    "InstanceNormalization": over_places,
    "LayerNormalization": from_axis,
    "LogSoftmax": softmax,
    "LpNormalization": along_axis,
    "LpPool": windowed,
    "MatMul": multiplied,
    "MatMulInteger": multiplied,
    "MaxPool": windowed,
    "MeanVarianceNormalization": over_listed,
    "Pad": padded,
    "QLinearAdd": quantised_sum,
    "QLinearConv": convolved_integers,
    "QLinearMatMul": multiplied_integers,
    "QLinearMul": quantised_sum,
    "RMSNormalization": from_axis,
    "Range": counted,
    "Reshape": reshaped,
    "Resize": resized,
    "Shape": shape_of,
    "Size": size_of,
    "Slice": sliced,
    "Softmax": softmax,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeezed,
    "Tile": tiled,
    "Transpose": transposed,
    "Unsqueeze": unsqueezed,
    "Upsample": resized,
}
"""How each kind of operator sees the picture."""


def _kept_parts(call: Call) -> NDArray[Any]:
    numbers = _numbers(call)
    table, indices = numbers[0], numbers[1].astype(np.int64)
    return table.take(indices, axis=call.integer("axis", 0))


def _numbers(call: Call) -> list[NDArray[Any]]:
    return [value.numbers for value in call.there if value.numbers is not None]


def _cut(call: Call) -> NDArray[Any]:
    found = _numbers(call)[0]
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = call.integers("steps", 4) or [1] * len(starts)
    parts = [slice(None)] * found.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = slice(start, end, step)
    return found[tuple(parts)]


def _divided(call: Call) -> NDArray[Any]:
    left, right = _numbers(call)
    if left.dtype.kind not in "iu":
        return left / right
    return np.where((left < 0) != (right < 0), -(abs(left) // abs(right)), abs(left) // abs(right))


def _applied(function: Callable[..., Any]) -> Callable[[Call], NDArray[Any]]:
    return lambda call: np.asarray(function(*_numbers(call)))


def _reduced(function: Callable[..., Any]) -> Callable[[Call], NDArray[Any]]:
    def compute(call: Call) -> NDArray[Any]:
        axes = call.integers("axes", 1)
        keep = bool(call.integer("keepdims", 1))
        return np.asarray(
            function(_numbers(call)[0], axis=None if axes is None else tuple(axes), keepdims=keep)
        )

    return compute


def _cast(call: Call) -> NDArray[Any]:
    kinds = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
    return _numbers(call)[0].astype(kinds[call.integer("to", 0)])


NUMBERS: Final[Mapping[str, Callable[[Call], NDArray[Any]]]] = {
    "Abs": _applied(np.abs),
    "Add": _applied(np.add),
    "And": _applied(np.logical_and),
    "Cast": _cast,
    "Ceil": _applied(np.ceil),
    "Concat": lambda call: np.concatenate(_numbers(call), axis=call.integer("axis", 0)),
    "Div": _divided,
    "Equal": _applied(np.equal),
    "Floor": _applied(np.floor),
    "Gather": _kept_parts,
    "Greater": _applied(np.greater),
    "GreaterOrEqual": _applied(np.greater_equal),
    "Identity": _applied(np.asarray),
    "Less": _applied(np.less),
    "LessOrEqual": _applied(np.less_equal),
    "Max": _applied(np.maximum),
    "Min": _applied(np.minimum),
    "Mod": _applied(np.mod),
    "Mul": _applied(np.multiply),
    "Neg": _applied(np.negative),
    "Not": _applied(np.logical_not),
    "Or": _applied(np.logical_or),
    "Pow": _applied(np.power),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "Round": _applied(np.round),
    "Slice": _cut,
    "Sqrt": _applied(np.sqrt),
    "Sub": _applied(np.subtract),
    "Where": _applied(np.where),
}
"""What small values hold, for those that shapes are computed with."""


def followed(call: Call) -> list[Value]:
    """The results of an operator, with their numbers where they are few and known.

    Raises:
        LookupError, ValueError, ArithmeticError, TypeError, AttributeError: There is no row, or
            the row makes no sense of it.
    """
    found = OPERATORS[call.operator](call)
    if isinstance(found, list):
        return found
    compute = NUMBERS.get(call.operator)
    known = all(value.numbers is not None for value in call.there)
    if compute is not None and known and found.numbers is None and found.elements <= SMALL:
        numbers = small(compute(call))
        if numbers is not None and tuple(numbers.shape) == found.shape:
            found = replace(found, numbers=numbers)
    return [found] * call.outputs
