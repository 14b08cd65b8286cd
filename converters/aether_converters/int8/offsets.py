"""Offsets of what the head takes, with which flat colours are rounded to where they belong.

Where a whole patch is of one colour all its pixels are rounded alike, and what that moves does not
average out. An offset of a part of a step, which the next bias takes away again, changes nothing
but how values are rounded: of many, those are kept with which flat colours move least.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from aether_converters.int8.distillation import SEED, of_head
from aether_converters.int8.inputs import one_by_one
from aether_converters.int8.plan import HEAD, SUM, QuantisationPlan, simulate
from aether_core import AetherNet
from aether_spandrel.inference import channels_last

MOST: Final = 200  # offsets that are tried
WHOLE: Final = 20  # of them for all channels, the others for a part
PART: Final = 8  # one channel in so many
CORNER: Final = 32  # px of a patch that are looked at: its borders are a part of it as of the whole
TYPICAL: Final = 4.0  # times the shift of a flat patch that the mean one of all others counts
MARGIN: Final = 4  # px around them that the head sees, too
SEEN: Final = CORNER + MARGIN


@torch.no_grad()
def with_offsets(
    network: AetherNet,
    plan: QuantisationPlan,
    flat: Tensor,
    typical: Tensor,
    exact: AetherNet,
    tries: int,
    progress: Callable[[int, int], None],
) -> AetherNet:
    """A copy that computes the same, and of which flat colours move less when it is rounded.

    At the border, which is padded with zeros, it computes the same but for a part of a step.

    Args:
        network: Fused, its weights on their grids.
        plan: What is rounded; the layer `HEAD` is among it.
        flat: Patches (N, C, H, W) of one colour each.
        typical: Others (N, C, H, W), whose colours should not move on average.
        exact: The float network.
        tries: How many offsets to try.
        progress: Called with offsets tried and to try.
    """
    head = _Head(network, plan, torch.cat([flat, typical]), exact)
    random = torch.Generator().manual_seed(SEED)
    best = torch.zeros(head.channels)
    least = _error(head.shifts(best), len(flat))
    for number in range(tries):
        count = head.channels if number < WHOLE else max(head.channels // PART, 1)
        changed = torch.randperm(head.channels, generator=random)[:count]
        offsets = best.clone()
        offsets[changed] = (torch.rand(count, generator=random) - 0.5) * head.step
        error = _error(head.shifts(offsets), len(flat))
        if error < least:
            best, least = offsets, error
        progress(number + 1, tries)
    moved = copy.deepcopy(network)
    _bias(moved, SUM).add_(best)
    _bias(moved, HEAD).sub_(head.taken_of(best))
    return moved


def _error(shifts: Tensor, flat: int) -> float:
    """How far colours move, of fourth powers, for which the worst counts most."""
    others = TYPICAL * shifts[flat:].mean(dim=0, keepdim=True)
    return float(torch.cat([shifts[:flat], others]).pow(4).sum())


class _Head:
    """What the head makes of patches, their sum of body and skip moved by offsets."""

    def __init__(
        self, network: AetherNet, plan: QuantisationPlan, patches: Tensor, exact: AetherNet
    ) -> None:
        self._rounding = plan.outputs.get(SUM)
        others = {name: grid for name, grid in plan.outputs.items() if name != SUM}
        self._network = simulate(network, replace(plan, outputs=others))
        given, added = _before_head(self._network, patches)
        self._given, self._rest = given, added - given
        self._bias = _bias(self._network, HEAD).clone()
        # Each offset is met at every place of the kernel.
        self._weight = cast(Tensor, self._network.get_submodule(HEAD).weight).sum(dim=(2, 3))
        pictures = [exact(channels_last(patch)) for patch in one_by_one(patches)]
        self._expected = torch.cat([_corner(picture, exact.config.scale) for picture in pictures])
        grids = [plan.inputs[HEAD], *([self._rounding] if self._rounding else [])]
        self.step = max(grid.scale for grid in grids)
        self.channels = given.shape[1]

    def taken_of(self, offsets: Tensor) -> Tensor:
        """What the head's first layer makes of offsets (C): one value for each of its channels."""
        return self._weight @ offsets

    def shifts(self, offsets: Tensor) -> Tensor:
        """How far the mean of each channel moves, (N, C)."""
        given = self._given + offsets[:, None, None]
        if self._rounding is not None:
            given = self._rounding.rounded(given)
        _bias(self._network, HEAD).copy_(self._bias - self.taken_of(offsets))
        found = of_head(self._network, given + self._rest)
        found = found[:, :, : self._expected.shape[2], : self._expected.shape[3]]
        return (found.clamp(0, 1) - self._expected.clamp(0, 1)).double().mean(dim=(2, 3))


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


def _corner(x: Tensor, scale: int, margin: int = 0) -> Tensor:
    side = (CORNER + margin) * scale
    return x[:, :, :side, :side].contiguous(memory_format=torch.channels_last)


def _bias(network: AetherNet, layer: str) -> Tensor:
    return cast(Tensor, network.get_submodule(layer).bias)
