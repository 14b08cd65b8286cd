"""The range of each tensor that is rounded, found by running the network on pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn

from aether_converters.int8.inputs import is_one_colour, one_by_one
from aether_converters.int8.patches import PART
from aether_converters.int8.plan import (
    FIRST,
    GATE,
    HEAD,
    LAST,
    MAIN,
    PICTURE,
    PIXELS,
    SUM,
    Grid,
    QuantisationPlan,
    Target,
    by_sign_grid,
    can_join,
    grid_for,
    has_picture_grid,
    layers_of,
    most_pieces,
    output_layers,
    shifted_layers,
    shuffled_into,
    skip_integers,
    spanning_grid,
    symmetric_grid,
)
from aether_converters.int8.weights import WEIGHT_LIMIT, quantised_weight
from aether_converters.runtimes.upscaler import Image
from aether_core import AetherNet, GatedFFN
from aether_spandrel.inference import channels_last

Method = Literal["mse", "percentile", "minmax"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

TRIED: Final = 8  # patches on which `mse` tries them, beside those of one colour
PERCENTILE: Final = 99.99
BINS: Final = 4096
SHARES: Final = (1.0, 0.84, 0.7, 0.58, 0.47, 0.38, 0.3)
"""Of the largest values met: where `mse` tries to end a range."""
LOW_SHARES: Final = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)
"""Of the lowest value met, where an activation stands behind that makes little of it."""

HOPELESS: Final = 2.0
"""Times the least error with which a range is given up, and with it all that end sooner: what they
cut off only grows, and is most of the error already."""

ROOM: Final = 0.75
"""Of 8 bits, that the skip's weights may take when they join those of the body: both still move."""

Ends = tuple[float, float]  # shares of the lowest and of the highest value met
BOTH_ENDS: Final[tuple[Ends, ...]] = tuple((share, share) for share in SHARES)
EACH_END: Final[tuple[Ends, ...]] = tuple(itertools.product(LOW_SHARES, SHARES))


@dataclass(frozen=True)
class Point:
    """A tensor within the network: what a layer takes, what it gives, or an activated gate."""

    part: str
    place: Literal["input", "output", "activation"]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a network's head is rounded where there are two ways.

    Attributes:
        joined: Whether body and skip may be added in integers: see `QuantisationPlan.joined`.
        cut: Whether what a LeakyReLU leaves of values below 0 is rounded to 0: see `Moments`.
    """

    joined: bool = True
    cut: bool = False


DEFAULT_FORM: Final = Form()

Known = Mapping[Point, Grid]
NOTHING: Final[Known] = {}


def unmoved(plan: QuantisationPlan, moved: AbstractSet[str]) -> Known:
    """The grids of a plan that a network whose channels have moved still has.

    Who takes channels that have moved makes up for it: nothing beyond is any different.

    Args:
        plan: Of the network before.
        moved: Layers whose weights are others now.
    """
    inputs = {Point(n, "input"): g for n, g in plan.inputs.items() if n not in moved}
    outputs = {Point(n, "output"): g for n, g in plan.outputs.items() if n not in moved}
    gates: Known = {Point(n, "activation"): g for n, g in plan.activations.items()}
    return {**inputs, **outputs, **gates}


@dataclass
class _Statistics:
    """What was seen of a point.

    Attributes:
        low: The smallest value.
        high: The largest.
        counts: How many values fell into each of `BINS` between them.
        ends: Where `mse` tries to end the range.
        errors: For each of `ends`, the squared error that rounding within it makes; infinite where
            it was given up.
    """

    low: float
    high: float
    counts: Tensor
    ends: tuple[Ends, ...]
    errors: Tensor


Seen = Callable[[Point, Tensor, Callable[[Tensor], Tensor]], None]
Grids = Callable[[Point, float, float], Grid]
"""The grid of a point for values from one to another."""


def calibrate(
    network: AetherNet,
    target: Target,
    layers: Sequence[str],
    patches: Sequence[Image],
    *,
    method: Method = "mse",
    trained: Mapping[str, float] | None = None,
    form: Form = DEFAULT_FORM,
    known: Known = NOTHING,
) -> QuantisationPlan:
    """Find a grid for everything that `layers` round.

    `minmax` spans all values that were met, `percentile` leaves out 0.01% at each end, `mse` takes
    the range in which rounding changes the layer's result least.

    Where layers have learnt their ranges in training, nothing is rounded that training did not
    round: what was trained is what is computed.

    Args:
        network: Fused, in float32, `recentred`.
        target: Who will run it.
        layers: Those that compute in int8.
        patches: (1, C, H, W) in [0, 1].
        method: How a range follows from the values met.
        trained: Largest absolute value by layer, from quantisation-aware training.
        form: Of the head.
        known: Grids that need not be found.
    """
    learnt = {name: amax for name, amax in (trained or {}).items() if name in layers}
    pictures = [torch.from_numpy(patch).float() for patch in patches]
    inputs = [Point(name, "input") for name in layers]
    others: list[Point] = []
    joins = form.joined and not learnt and target == "cpu" and can_join(network)
    joins = joins and {SUM, HEAD} <= {*layers}
    if target == "cpu" and not learnt:
        rounded = [name for name in output_layers(network, layers) if not (joins and name == SUM)]
        others = [Point(name, "output") for name in rounded if name != LAST]
        others += [
            Point(name.removesuffix(f".{MAIN}"), "activation")
            for name in rounded
            if name.endswith(f".{MAIN}")
        ]
    behind = [Point(name, "input") for name in shifted_layers(network.config) if name in layers]
    given = Point(HEAD, "output")
    from_zero = {given, *behind} if form.cut and not learnt else set[Point]()
    grid = _grids(network, target, joins=joins, from_zero=from_zero)
    passed_on = from_zero - {given} if given in others else set[Point]()
    sought = [point for point in (*inputs, *others) if point not in {*known, *passed_on}]
    found = _statistics(network, pictures, sought, grid, method, from_zero)
    grids = {point: grid(point, *_range(seen, method)) for point, seen in found.items()}
    grids = {**known, **grids}
    for point in passed_on:  # what is not below 0 passes a LeakyReLU as it is
        grids[point] = grids[given]
    for name, amax in learnt.items():
        grids[Point(name, "input")] = symmetric_grid(amax, signed=target == "tensorrt")
    if joins and not _skip_fits(network, grids[Point(SUM, "input")]):
        apart = replace(form, joined=False)
        return calibrate(network, target, layers, patches, method=method, form=apart, known=known)
    if FIRST not in learnt and has_picture_grid(network.config):
        grids[Point(FIRST, "input")] = PICTURE[target]
    straight = shuffled_into(network.config) if target == "cpu" else {}
    outputs = {point.part: grids[point] for point in others if point.place == "output"}
    for name, after in straight.items():
        if name in layers and after in layers:
            outputs[name] = grids[Point(after, "input")]
    if target == "cpu" and LAST in layers:
        outputs[LAST] = PIXELS
    return QuantisationPlan(
        target=target,
        inputs={name: grids[Point(name, "input")] for name in layers},
        outputs=outputs,
        activations={point.part: grids[point] for point in others if point.place == "activation"},
        trained=frozenset(learnt),
        joined=grids[Point(HEAD, "input")] if joins else None,
    )


def _grids(
    network: AetherNet, target: Target, *, joins: bool, from_zero: AbstractSet[Point]
) -> Grids:
    shifted = [Point(name, "input") for name in shifted_layers(network.config)]
    pieces = {Point(name, "output"): most for name, most in most_pieces(network).items()}
    # An odd number of channels would move the neighbours of weights that are paired.
    head_by_sign = target == "cpu" and not joins and network.config.embed_dim % 2 == 0

    def grid(point: Point, low: float, high: float) -> Grid:
        if joins and point == Point(SUM, "input"):  # the picture has its 0 in the middle
            return symmetric_grid(max(abs(low), abs(high)), signed=False)
        if point in pieces:
            return spanning_grid(low, high, signed=False, pieces=pieces[point])
        if head_by_sign and point == Point(HEAD, "input"):
            return by_sign_grid(max(abs(low), abs(high)))
        if point in from_zero:
            low = 0.0
        return grid_for(low, high, target, shifted=point in shifted)

    return grid


def _skip_fits(network: AetherNet, taken: Grid) -> bool:
    """Whether the weights of the skip are integers of 8 bits beside those of the body."""
    first, weight = (
        cast(Tensor, network.get_submodule(name).weight).detach() for name in (FIRST, SUM)
    )
    _, steps = quantised_weight(weight, paired=True)
    return float(skip_integers(first, steps, taken).abs().max()) <= ROOM * WEIGHT_LIMIT


def _range(statistics: _Statistics, method: Method) -> tuple[float, float]:
    low, high = statistics.low, statistics.high
    if method == "percentile":
        shares = statistics.counts.cumsum(0) / statistics.counts.sum()
        edges = torch.linspace(low, high, BINS + 1)
        tail = 1 - PERCENTILE / 100
        low = min(float(edges[int((shares < tail).sum())]), 0.0)
        high = max(float(edges[int((shares < 1 - tail).sum()) + 1]), 0.0)
    elif method == "mse":
        of_low, of_high = statistics.ends[int(statistics.errors.argmin())]
        low, high = low * of_low, high * of_high
    return low, high


def _statistics(
    network: AetherNet,
    pictures: Sequence[Tensor],
    points: Collection[Point],
    grids: Grids,
    method: Method,
    from_zero: AbstractSet[Point] = frozenset(),
) -> dict[Point, _Statistics]:
    """What the network's tensors are like; in two runs, for the second needs their extremes."""
    found: dict[Point, _Statistics] = {}

    def extremes(point: Point, x: Tensor, result: Callable[[Tensor], Tensor]) -> None:
        low, high = (float(end) for end in torch.aminmax(x))
        each_end = isinstance(result, nn.LeakyReLU) and point not in from_zero
        ends = EACH_END if each_end else BOTH_ENDS
        seen = found.setdefault(
            point, _Statistics(low, high, torch.zeros(BINS), ends, torch.zeros(len(ends)))
        )
        seen.low, seen.high = min(seen.low, low), max(seen.high, high)

    def distribution(point: Point, x: Tensor, _: Callable[[Tensor], Tensor]) -> None:
        seen = found[point]
        seen.counts += torch.histc(x, BINS, seen.low, seen.high)

    def errors(point: Point, x: Tensor, result: Callable[[Tensor], Tensor]) -> None:
        seen = found[point]
        exact = result(x.clamp(min=0) if point in from_zero else x)
        for index, (of_low, of_high) in enumerate(seen.ends):
            if seen.errors[index].isinf():
                break
            grid = grids(point, seen.low * of_low, seen.high * of_high)
            seen.errors[index] += (result(grid.rounded(x)) - exact).square().mean()
            narrower = seen.ends is BOTH_ENDS
            if narrower and seen.errors[index] > HOPELESS * seen.errors[: index + 1].min():
                seen.errors[index:] = torch.inf
                break

    if not points:
        return found
    each = one_by_one(pictures)
    _run(network, each, points, extremes)
    if method == "percentile":
        _run(network, each, points, distribution)
    elif method == "mse":
        _run(network, _tried(each), points, errors)
    return found


def _tried(pictures: Sequence[Tensor]) -> list[Tensor]:
    """Parts of pictures on which ranges are tried: of some of the first, and of each of one colour.

    A range that one colour needs and no other would be cut off without it, and the colour ruined.
    """
    varied = [picture for picture in pictures if not is_one_colour(picture)][:TRIED]
    flat = [picture for picture in pictures if is_one_colour(picture)]
    return [picture[:, :, :PART, :PART] for picture in (*varied, *flat)]


def _run(
    network: AetherNet, pictures: Iterable[Tensor], points: Collection[Point], seen: Seen
) -> None:
    """Run the network and show each point: its values, and what the layer makes of others."""
    with torch.inference_mode(), _shown(network, points, seen):
        for picture in pictures:
            network(channels_last(picture))


@contextmanager
def _shown(network: AetherNet, points: Collection[Point], seen: Seen) -> Generator[None]:
    wanted = set(points)
    handles: list[Any] = []

    def watch(name: str, layer: nn.Module) -> None:
        taken, given = Point(name, "input"), Point(name, "output")
        activated = Point(name.removesuffix(f".{GATE}"), "activation")

        def hook(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if taken in wanted:
                seen(taken, inputs[0], lambda x: type(layer).forward(cast(Any, layer), x))
            if given in wanted:
                seen(given, output, _behind(network, name))
            if activated in wanted and name.endswith(GATE):
                part = cast(GatedFFN, network.get_submodule(activated.part))
                seen(activated, part.activation(output), _itself)

        handles.append(layer.register_forward_hook(hook))

    for name, layer in layers_of(network).items():
        watch(name, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _behind(network: AetherNet, layer: str) -> Callable[[Tensor], Tensor]:
    """What becomes of a layer's result before it is rounded once more."""
    head = network.conv_before_upsample
    activated = layer == HEAD and network.config.head_activation
    return cast("Callable[[Tensor], Tensor]", head[1]) if activated else _itself


def _itself(x: Tensor) -> Tensor:
    return x
