"""How a value inside a graph lies on the picture that the graph is given.

A value's dimensions are products of factors, from the outermost to the innermost. A factor is
plain, as channels are, or lies along the height or width of the picture at some ratio: index i of
it stands at px i / ratio. Reshaping regroups factors and transposing moves them, so that pixel
shuffling and windows need no rule of their own.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

HEIGHT: Final = 0
WIDTH: Final = 1
AXES: Final = (HEIGHT, WIDTH)


@dataclass(frozen=True)
class Factor:
    """A part of a dimension: plain, or `axis` of the picture at `ratio` indices a px.

    What is the `same` at every index of a plain factor was repeated along it. Of a strip of few
    rows, `border` says at which end of the picture it lies: "start", or "end", from which its
    place is counted then.
    """

    size: int
    axis: int | None = None
    ratio: Fraction = Fraction(1)
    same: bool = False
    border: str = ""


Dim = tuple[Factor, ...]


@dataclass(frozen=True, eq=False)
class View:
    """How a value sees the picture along a side of it, through the values that it is made of.

    Attributes:
        ratio: Of its indices; index i stands at px i / ratio.
        through: Views that it is made of, with the px between which it sees each: index i sees the
            indices of the other one from i / ratio + low to i / ratio + high.
        depth: Larger than that of any view within.
        excess: Indices more than there would be from the first px to the last, of a value that was
            cut out: what is put in the place of the others later is no part of the picture.
    """

    ratio: Fraction
    through: tuple[tuple[View, Fraction, Fraction], ...] = ()
    depth: int = 0
    excess: Fraction | None = None

    def within(self, first: int, last: int) -> tuple[int, int]:
        """The px that must be there for indices from `first` to `last`, the outermost two."""
        needed: dict[View, tuple[int, int]] = {self: (first, last)}
        waiting: list[tuple[int, int, View]] = [(-self.depth, 0, self)]
        count = 0
        found: tuple[int, int] | None = None
        while waiting:
            _, _, view = heapq.heappop(waiting)
            first, last = needed[view]
            if view.excess is not None or not view.through:
                ends = (
                    math.floor(first / view.ratio),
                    math.ceil((last + 1 - (view.excess or 0)) / view.ratio) - 1,
                )
                found = ends if found is None else (min(found[0], ends[0]), max(found[1], ends[1]))
            for inner, low, high in view.through:
                # Indices are whole: the first at or behind the one end, the last before the other.
                ends = (
                    math.ceil((first / view.ratio + low) * inner.ratio),
                    math.floor((last / view.ratio + high) * inner.ratio),
                )
                before = needed.get(inner)
                if before is None:
                    count += 1
                    heapq.heappush(waiting, (-inner.depth, count, inner))
                else:
                    ends = min(before[0], ends[0]), max(before[1], ends[1])
                needed[inner] = ends
        return found or (first, last)


PICTURE: Final = View(Fraction(1))


@dataclass(frozen=True, kw_only=True)
class Value:
    """What is known of a value in a graph.

    Attributes:
        dims: Its dimensions; None where they do not follow from the graph and the picture's size.
        pixels: Whether it depends on the picture's colours.
        views: How it sees along height and width.
        steps: (height, width) in px, of which tiles must start at multiples.
        whole: Operators for which it depends on the whole picture.
        sized: Whether it depends on the picture's size.
        numbers: What it holds, for small values that do not depend on the picture's colours.
    """

    dims: tuple[Dim, ...] | None
    pixels: bool = False
    views: tuple[View, View] = (PICTURE, PICTURE)
    steps: tuple[int, int] = (1, 1)
    whole: frozenset[str] = frozenset()
    sized: bool = False
    numbers: NDArray[Any] | None = None

    @property
    def known(self) -> tuple[Dim, ...]:
        """Its dimensions; raises ValueError where they are unknown."""
        if self.dims is None:
            raise ValueError("a shape that is not known")
        return self.dims

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions; raises ValueError where they are unknown."""
        return tuple(map(length, self.known))

    @property
    def elements(self) -> int:
        """How many numbers it holds; 0 where that is unknown."""
        return 0 if self.dims is None else math.prod(self.shape)


def length(dim: Dim) -> int:
    """Indices along a dimension.

    >>> length((Factor(5, HEIGHT), Factor(2)))
    10
    """
    return math.prod(factor.size for factor in dim)


def plain(size: int, *, same: bool = False) -> Dim:
    """A dimension that lies along no side of the picture."""
    if size < 0:
        raise ValueError(f"a dimension of {size}")
    return () if size == 1 else (Factor(size, same=same),)


def repeats(dim: Dim) -> bool:
    """Whether a value is the same at every index of a dimension."""
    return all(factor.same for factor in dim)


def is_plain(dim: Dim) -> bool:
    """Whether a dimension lies along no side of the picture."""
    return all(factor.axis is None for factor in dim)


def constant(shape: Iterable[int], numbers: NDArray[Any] | None = None) -> Value:
    """A value that the file holds."""
    return Value(dims=tuple(map(plain, shape)), numbers=numbers)


def joined(values: Iterable[Value], dims: tuple[Dim, ...] | None) -> Value:
    """What depends on several values, with dimensions of its own."""
    there = list(values)
    seeing = [value for value in there if value.pixels]
    return Value(
        dims=dims,
        pixels=bool(seeing),
        views=(_both(seeing, HEIGHT), _both(seeing, WIDTH)),
        steps=(
            math.lcm(1, *(value.steps[HEIGHT] for value in there)),
            math.lcm(1, *(value.steps[WIDTH] for value in there)),
        ),
        whole=frozenset[str]().union(*(value.whole for value in there)),
        sized=any(value.sized for value in there),
    )


def _both(values: Sequence[Value], axis: int) -> View:
    """What is seen through any of several values."""
    views = {value.views[axis]: value for value in values}
    if len(views) < 2:
        return next(iter(views), PICTURE)
    lying = [view for view, value in views.items() if axis in sides(value.dims or ())]
    return View(
        (lying or list(views))[0].ratio,
        tuple((view, Fraction(0), Fraction(0)) for view in views),
        1 + max(view.depth for view in views),
    )


def of_the_whole(value: Value, operator: str) -> Value:
    """A value that depends on the whole picture, if it depends on it at all."""
    if not (value.pixels or value.sized):
        return value
    return replace(value, whole=value.whole | {operator})


def seen_through(value: Value, axis: int, low: Fraction, high: Fraction, ratio: Fraction) -> Value:
    """A value that sees further along an axis, from `low` to `high` px more, at a new ratio."""
    views, steps = list(value.views), list(value.steps)
    before = views[axis]
    views[axis] = View(ratio, ((before, low, high),), before.depth + 1)
    steps[axis] = math.lcm(steps[axis], ratio.denominator)  # an index stands where tiles start
    return replace(value, views=(views[HEIGHT], views[WIDTH]), steps=(steps[HEIGHT], steps[WIDTH]))


def cut_out(value: Value, axis: int, excess: Fraction) -> Value:
    """A value whose indices, as they were just seen, begin behind the first px or end before."""
    views = list(value.views)
    views[axis] = replace(views[axis], excess=excess)
    return replace(value, views=(views[HEIGHT], views[WIDTH]))


def shifted(factor: Factor, begin: int, size: int) -> Fraction:
    """Px by which places move where `begin` indices are put before them, in a new size."""
    lag = size - factor.size - begin if factor.border == "end" else -begin
    return lag / factor.ratio


def regrouped(value: Value, shape: Sequence[int], operator: str) -> Value:
    """The same numbers in the same order, in another shape.

    Raises:
        ValueError: It holds another number of elements, or none of a dimension.
    """
    if any(is_strip(dim) and length(dim) == 1 for dim in value.known):
        value = of_the_whole(value, operator)  # its place is lost with its dimension
    waiting = [factor for dim in value.known for factor in dim if factor.size != 1]
    if math.prod(shape) != value.elements or 0 in shape:
        raise ValueError("another number of elements")
    dims: list[Dim] = []
    for size in shape:
        taken: list[Factor] = []
        missing = size
        while missing > 1:
            factor = waiting.pop(0)
            if missing % factor.size == 0:
                missing //= factor.size
                taken.append(factor)
                continue
            inner, rest = divmod(factor.size, missing)
            if rest:
                return _scattered(value, shape, operator)
            if factor.axis is None:
                outer = Factor(missing, same=factor.same)
            elif missing < inner and not factor.border:  # pieces of it, not places in it
                return _scattered(value, shape, operator)
            else:
                outer = replace(factor, size=missing, ratio=factor.ratio / inner)
                high = (inner - 1) / factor.ratio
                value = seen_through(value, factor.axis, Fraction(0), high, outer.ratio)
            taken.append(outer)
            waiting.insert(0, Factor(inner, same=factor.same))
            missing = 1
        dims.append(tuple(taken))
    return merged(replace(value, dims=tuple(dims), numbers=None))


def _scattered(value: Value, shape: Sequence[int], operator: str) -> Value:
    dims = tuple(map(plain, shape))
    return of_the_whole(replace(value, dims=dims, numbers=None), operator)


def merged(value: Value) -> Value:
    """The value with each plain factor taken into the side of the picture that it divides."""
    dims: list[Dim] = []
    for dim in value.known:
        factors: list[Factor] = []
        for factor in dim:
            last = factors[-1] if factors else None
            if last is None or factor.axis is not None:
                factors.append(factor)
            elif last.axis is None:
                both = last.same and factor.same
                factors[-1] = Factor(last.size * factor.size, same=both)
            else:
                size, ratio = last.size * factor.size, last.ratio * factor.size
                finer = replace(last, size=size, ratio=ratio)
                within = (factor.size - 1) / finer.ratio
                value = seen_through(value, last.axis, -within, Fraction(0), ratio)
                factors[-1] = finer
        dims.append(tuple(factors))
    return replace(value, dims=tuple(dims))


def is_strip(dim: Dim) -> bool:
    """Whether a dimension lies at one end of the picture, perhaps with one index alone."""
    return any(factor.border for factor in dim)


def sides(dims: Iterable[Dim]) -> list[int]:
    """Sides of the picture along which dimensions lie, each as often as it occurs."""
    return [factor.axis for dim in dims for factor in dim if factor.axis is not None]


def small(numbers: Any) -> NDArray[Any] | None:
    """Numbers that are few enough to be computed with here."""
    found = np.asarray(numbers)
    return found if found.size <= SMALL else None


SMALL: Final = 64  # elements; a longer value describes no shape
