"""Colours that come out as the float network's where pictures are smooth.

Smooth places are rounded alike, and what that moves does not average out. How far each colour moves
follows its value, in part, as a straight line, which the steps and the bias of the last layer can
take back.

The rest is moved by offsets: one of a part of a step, which the next bias takes away again, changes
nothing but how values are rounded. Of many, those are kept with which flat colours move least.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aether_converters.int8.distillation import SEED, Rounded, of_head
from aether_converters.int8.inputs import one_by_one
from aether_converters.int8.one_thread import in_one_thread
from aether_converters.int8.plan import (
    HEAD,
    LAST,
    LEVELS,
    SUM,
    QuantisationPlan,
    added_mean,
    shuffled_into,
    simulate,
)
from aether_core import AetherNet
from aether_spandrel.inference import channels_last

MOST: Final = 200  # offsets before the head that are tried
WHOLE: Final = 20  # of them for all channels, the others for a part
PART: Final = 8  # one channel in so many
FASTER: Final = 20  # times as many are tried before the last layer, which take less time
AT_ONCE: Final = 3  # channels that are moved there, at most
OF_PICTURE: Final = 0.05 / LEVELS  # by how much each colour is moved and strengthened there at once
CORNER: Final = 32  # px of a patch that are looked at: its borders are a part of it as of the whole
MARGIN: Final = 4  # px around them that the head sees, too
SEEN: Final = CORNER + MARGIN
INSIDE: Final = 8  # px of the borders are left out: photographs have few of them
ENDS: Final = 0.004  # what lies nearer to black or white is cut off there, and tells no shift
TYPICAL: Final = 4.0  # times the shift of a flat patch that the mean one of all others counts


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Pictures whose colours should not move, and what the float network makes of them.

    Attributes:
        flat: (N, C, H, W), of one colour each.
        typical: (M, C, H, W), others, smooth ones among them: their colours should not move on
            average.
        of_flat: (N, K, scale * H, scale * W).
        of_typical: (M, K, scale * H, scale * W).
    """

    flat: Tensor
    typical: Tensor
    of_flat: Tensor
    of_typical: Tensor

    def with_typical(self, count: int) -> Colours:
        """The same with the first typical pictures alone."""
        return replace(self, typical=self.typical[:count], of_typical=self.of_typical[:count])


@dataclass(frozen=True, kw_only=True)
class Search:
    """How long to search.

    Attributes:
        most: Tries.
        until: There are fewer where all would end later, by `time.monotonic`.
        progress: Called with the number of tries, and how many there will be at most.
    """

    most: int
    until: float
    progress: Callable[[int, int], None]

    def tries(self) -> Iterator[int]:
        """The number of each try, from 0."""
        for number in range(self.most):
            if time.monotonic() > self.until:
                break
            yield number
            self.progress(number + 1, self.most)


@torch.no_grad()
def with_offsets_of_head(state: Rounded, colours: Colours, search: Search) -> Rounded:
    """A copy that computes the same, and of which flat colours move less when it is rounded.

    At the border, which is padded with zeros, it computes the same but for a part of a step.

    Args:
        state: Its weights on their grids; the layer `HEAD` is rounded.
        colours: That should stay.
        search: For offsets of what the head takes.
    """
    head = _Head(state, colours)
    random = torch.Generator().manual_seed(SEED)
    best = torch.zeros(head.channels)
    least = _error(*head.shifts(best))
    for number in search.tries():
        count = head.channels if number < WHOLE else max(head.channels // PART, 1)
        changed = torch.randperm(head.channels, generator=random)[:count]
        offsets = best.clone()
        offsets[changed] = (torch.rand(count, generator=random) - 0.5) * head.step
        error = _error(*head.shifts(offsets))
        if error < least:
            best, least = offsets, error
    return _moved(state, {SUM: best, HEAD: -head.taken_of(best)})


class _Head:
    """What the head makes of patches, their sum of body and skip moved by offsets."""

    def __init__(self, state: Rounded, colours: Colours) -> None:
        network, plan = state.network, state.plan
        self._rounding = plan.outputs.get(SUM)
        others = {name: grid for name, grid in plan.outputs.items() if name != SUM}
        self._network = simulate(network, replace(plan, outputs=others))
        patches = torch.cat([colours.flat, colours.typical])
        given, added = _before_head(self._network, patches)
        self._flat = len(colours.flat)
        self._given, self._rest = given, added - given
        self._bias = _bias(self._network, HEAD).clone()
        # Each offset is met at every place of the kernel.
        self._weight = _weight(self._network, HEAD).sum(dim=(2, 3))
        expected = torch.cat([colours.of_flat, colours.of_typical])
        self._expected = _corner(expected, network.config.scale)
        grids = [plan.inputs[HEAD], *([self._rounding] if self._rounding else [])]
        self.step = max(grid.scale for grid in grids)
        self.channels = given.shape[1]

    def taken_of(self, offsets: Tensor) -> Tensor:
        """What the head's first layer makes of offsets (C): one value for each of its channels."""
        return self._weight @ offsets

    def shifts(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """How far colours move: of flat patches (N, K), and of the others on average (K)."""
        given = self._given + offsets[:, None, None]
        if self._rounding is not None:
            given = self._rounding.rounded(given)
        _bias(self._network, HEAD).copy_(self._bias - self.taken_of(offsets))
        found = of_head(self._network, given + self._rest)
        found = found[:, :, : self._expected.shape[2], : self._expected.shape[3]]
        shifts = _means(found) - _means(self._expected)
        return shifts[: self._flat], shifts[self._flat :].mean(dim=0)


@torch.no_grad()
def with_offsets_of_last(state: Rounded, colours: Colours, search: Search) -> Rounded:
    """As `with_offsets_of_head`, of what the last layer takes; and its colours on a straight line.

    Nothing but a shuffle stands before it, so what a channel adds to the picture is known apart
    from all others, and a try takes little.

    Args:
        state: Its weights on their grids; see `can_move_last`.
        colours: That should stay.
        search: For offsets of what it takes.
    """
    giver = _giver_of_last(state.network)
    last = _Last(state, colours, giver)
    random = torch.Generator().manual_seed(SEED)
    gains = torch.zeros_like(last.moved)
    least = _error(*last.shifts(last.result, last.moved, gains))
    with in_one_thread():
        for _ in search.tries():
            count = int(torch.randint(1, AT_ONCE + 1, (1,), generator=random))
            changed = torch.randperm(last.channels, generator=random)[:count]
            offsets = (torch.rand(count, generator=random) - 0.5) * last.step
            of_bias, of_gain = torch.rand(2, len(gains), generator=random) - 0.5
            taken, result = last.changed(changed, offsets)
            moved, stronger = last.moved + of_bias * OF_PICTURE, gains + of_gain * OF_PICTURE
            error = _error(*last.shifts(result, moved, stronger))
            if error < least:
                least = error
                last.taken[changed], last.offsets[changed] = taken, offsets
                last.result, last.moved, gains = result, moved, stronger
    alike = len(_bias(state.network, giver)) // last.channels  # they are shuffled into one
    given = last.offsets.repeat_interleave(alike)
    made = _moved(state, {giver: given, LAST: -last.sums @ last.offsets})
    _strengthen(made.network, 1 + gains)
    _bias(made.network, LAST).add_(last.moved)
    return made


def _strengthen(network: AetherNet, gains: Tensor) -> None:
    """Colours so many times as strong: the last layer's steps change, its integers stay."""
    weight, bias = _weight(network, LAST), _bias(network, LAST)
    weight.mul_(gains[:, None, None, None])
    bias.mul_(gains).add_((gains - 1) * added_mean(network))


def _moved(state: Rounded, biases: Mapping[str, Tensor]) -> Rounded:
    """The state with something added to biases, as if it had been made of such a network."""
    network, exact = copy.deepcopy(state.network), copy.deepcopy(state.exact)
    for layer, more in biases.items():
        for made in (network, exact):
            _bias(made, layer).add_(more)
    return replace(state, network=network, exact=exact)


def can_move_last(state: Rounded) -> bool:
    """Whether what the last layer takes is rounded, with no activation right before it."""
    return LAST in state.plan.inputs and LAST in shuffled_into(state.network.config).values()


def _giver_of_last(network: AetherNet) -> str:
    takers = shuffled_into(network.config)
    return next(giver for giver, taker in takers.items() if taker == LAST)


class _Last:
    """What the last layer makes of flat patches, what it takes moved by offsets.

    Attributes:
        offsets: (C), of the channels it takes.
        moved: (K), by how much the colours of the picture are moved.
        taken: (C, N, H, W), what it takes, with offsets and rounded.
        result: (N, K, H, W), what it gives, before it is rounded and moved.
        sums: (K, C), what becomes of an offset of each channel.
        step: Of the grid of what it takes.
        channels: How many it takes.
    """

    def __init__(self, state: Rounded, colours: Colours, giver: str) -> None:
        network, plan = state.network, state.plan
        self._network, self._rounding = simulate(network, plan), plan.outputs.get(LAST)
        self._mean, self._grid = added_mean(network), plan.inputs[LAST]
        self._side = CORNER * network.config.scale
        self._expected = _means(_corner(colours.of_flat, network.config.scale))
        expected = _inside(colours.of_typical, network)
        found = _inside(_pictures(self._network, colours.typical), network)
        self._values = _by_value(found, expected)
        self._typical = self._values - _by_value(expected, expected)
        self._weight = _weight(self._network, LAST).detach()
        self.sums = self._weight.sum(dim=(2, 3))
        self._given = _before_last(network, plan, colours.flat, giver)
        self.channels, self.step = len(self._given), self._grid.scale
        self.offsets = torch.zeros(self.channels)
        self.moved = torch.zeros(len(self._weight))
        self.taken = self._grid.rounded(self._given)
        everything = torch.arange(self.channels)
        bias = _bias(self._network, LAST)[:, None, None]
        self.result = self._of_channels(self.taken, everything) + bias

    def changed(self, channels: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """What it takes and gives if some channels have other offsets."""
        taken = self._grid.rounded(self._given[channels] + offsets[:, None, None, None])
        result = self.result + self._of_channels(taken - self.taken[channels], channels)
        away = self.sums[:, channels] @ (offsets - self.offsets[channels])
        return taken, result - away[:, None, None]

    def shifts(self, result: Tensor, moved: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        """How far colours move: of flat patches (N, K), and of the others by value (3, K)."""
        found = (result + self._mean) * (1 + gains)[:, None, None] + moved[:, None, None]
        if self._rounding is not None:
            found = self._rounding.rounded(found)
        flat = _means(self._network.restored(found - self._mean)) - self._expected
        return flat, self._typical + self._values * gains + moved

    def _of_channels(self, taken: Tensor, channels: Tensor) -> Tensor:
        result = F.conv2d(taken.transpose(0, 1), self._weight[:, channels], padding=1)
        return result[:, :, : self._side, : self._side]


def _error(flat: Tensor, typical: Tensor) -> float:
    """How far colours move, of fourth powers, for which the worst counts most."""
    return float(torch.cat([flat, TYPICAL * typical.reshape(-1, flat.shape[1])]).pow(4).sum())


def _before_head(network: AetherNet, patches: Tensor) -> tuple[Tensor, Tensor]:
    """A corner of what the layer `SUM` gives for each patch, and of what the head takes."""
    given: list[Tensor] = []
    added: list[Tensor] = []

    def note_given(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
        given.append(_corner(output, 1, MARGIN))

    def note_added(_head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        added.append(_corner(inputs[0], 1, MARGIN))

    layer, head = cast(Any, network.get_submodule(SUM)), cast(Any, network.conv_before_upsample)
    hooks = [
        layer.register_forward_hook(note_given),
        head.register_forward_pre_hook(note_added),
    ]
    try:
        for patch in one_by_one(patches):
            network(channels_last(patch))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(given), torch.cat(added)


def _before_last(network: AetherNet, plan: QuantisationPlan, flat: Tensor, giver: str) -> Tensor:
    """A corner of what the last layer takes of patches before it is rounded, (C, N, H, W)."""
    inputs = {name: grid for name, grid in plan.inputs.items() if name != LAST}
    outputs = {name: grid for name, grid in plan.outputs.items() if name not in {giver, LAST}}
    unrounded = simulate(network, replace(plan, inputs=inputs, outputs=outputs))
    found: list[Tensor] = []

    def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(_corner(inputs[0], network.config.scale, 1))

    cast(Any, unrounded.get_submodule(LAST)).register_forward_pre_hook(note)
    for patch in one_by_one(flat):
        unrounded(channels_last(patch))
    return torch.cat(found).transpose(0, 1).contiguous()


def _pictures(network: AetherNet, patches: Tensor) -> Tensor:
    return torch.cat([network(channels_last(patch)) for patch in one_by_one(patches)])


def _means(pictures: Tensor) -> Tensor:
    """Of each channel of pictures (N, K, H, W), black being 0 and white 1."""
    return pictures.clamp(0, 1).double().mean(dim=(2, 3))


def _by_value(pictures: Tensor, expected: Tensor) -> Tensor:
    """The mean of each channel where it is expected to be dark, middling and bright: (3, K)."""
    pictures, expected = (x.transpose(0, 1).flatten(1).double() for x in (pictures, expected))
    within = (expected > ENDS) & (expected < 1 - ENDS)
    third = (3 * expected).long().clamp(0, 2)
    places = [within & (third == number) for number in range(3)]
    return torch.stack([(pictures * at).sum(dim=1) / at.sum(dim=1).clamp(min=1) for at in places])


def _inside(pictures: Tensor, network: AetherNet) -> Tensor:
    border = INSIDE * network.config.scale
    return pictures[:, :, border:-border, border:-border]


def _corner(x: Tensor, scale: int, margin: int = 0) -> Tensor:
    side = (CORNER + margin) * scale
    return x[:, :, :side, :side].contiguous(memory_format=torch.channels_last)


def _bias(network: AetherNet, layer: str) -> Tensor:
    return cast(Tensor, network.get_submodule(layer).bias)


def _weight(network: AetherNet, layer: str) -> Tensor:
    return cast(Tensor, network.get_submodule(layer).weight)
