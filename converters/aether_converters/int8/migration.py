"""Channels of like size for layers in int8, by moving scales along between neighbours.

One step rounds all channels of a layer's input, so that a small channel beside a large one is left
with few of the 256 values. What gives the channel can give it larger and the layer's weights can be
smaller for it, without any change of the result, where nothing but an operator that keeps scales
stands between the two: a pixel shuffle, a LeakyReLU, the product with a gate.

How far they become equal differs: channels of one size are rounded best, but weights of a row, one
step for all of them, less well. What either costs is known before anything is rounded.

The ideas: Nagel et al., arXiv:1906.04721 (equalisation), Xiao et al., arXiv:2211.10438 (norms).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from aether_converters.int8.inputs import Pictures, one_by_one, watch_inputs
from aether_converters.int8.plan import HEAD, LAST, MAIN, Target, grid_for, shifted_layers
from aether_core import AetherConfig, AetherNet, weight_scales

STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""From nothing that moves to channels that are equally large."""

SMALLEST: Final = 1e-3
"""Of the largest channel: one that is smaller stays smaller, for nobody sees its rounding."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Where channels pass from what gives them to the layers that take them, and to nobody else.

    Attributes:
        giver: A norm, convolution or linear map.
        takers: Layers with these channels as their input.
        repeats: Rows of the giver that make one channel, one after the other.
        linear: Whether nothing but a pixel shuffle stands between.
    """

    giver: str
    takers: tuple[str, ...]
    repeats: int = 1
    linear: bool = False


def passages(network: AetherNet) -> Iterator[Passage]:
    """Every passage of a fused network, in its order."""
    config = network.config
    for stage, depth in enumerate(config.depths):
        for block in (f"layers.{stage}.{index}" for index in range(depth)):
            normed = cast(Any, network.get_submodule(block)).norm is not None
            giver = f"{block}.norm" if normed else f"{block}.conv.fused_conv"
            yield Passage(giver=giver, takers=(f"{block}.ffn.fc1_gate", f"{block}.ffn.fc1_main"))
            yield Passage(giver=f"{block}.ffn.{MAIN}", takers=(f"{block}.ffn.fc2",))
    if network.norm is not None and config.body_order != "norm-add-conv":
        yield Passage(giver="norm", takers=("conv_after_body",))
    yield from _of_head(config)


def _of_head(config: AetherConfig) -> Iterator[Passage]:
    names = [HEAD]
    repeats = [1]
    for index, (factor, _) in enumerate(config.upsampler):
        names.append(f"upsample.{2 * index}")
        repeats.append(factor**2)
    for (giver, taker), rows in zip(itertools.pairwise([*names, LAST]), repeats, strict=True):
        linear = giver != HEAD or not config.head_activation
        yield Passage(giver=giver, takers=(taker,), repeats=rows, linear=linear)


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What the channels (C) of a layer's input are like.

    Attributes:
        low: The smallest value of each.
        high: The largest.
        power: The mean square.
    """

    low: Tensor
    high: Tensor
    power: Tensor

    @property
    def largest(self) -> Tensor:
        """The largest absolute value of each."""
        return torch.maximum(self.high, -self.low)


@torch.no_grad()
def migrated(
    network: AetherNet,
    inputs: Mapping[str, Channels],
    target: Target,
    strengths: Sequence[float] = STRENGTHS,
    *,
    wanted: Callable[[Passage], bool] = lambda _passage: True,
) -> AetherNet:
    """A copy that computes the same, with channels of more equal size at each passage.

    Args:
        network: Fused, in float32.
        inputs: By layer in int8, what its input is like; see `channels_of_inputs`.
        target: On whose grids they are rounded.
        strengths: Of which each passage has the one that costs least.
        wanted: Whether anything may move at a passage.
    """
    moved = copy.deepcopy(network)
    for passage in filter(wanted, passages(moved)):
        taken = {name: inputs[name] for name in passage.takers if name in inputs}
        if taken:
            largest = torch.stack([channels.largest for channels in taken.values()]).amax(dim=0)
            tried = [_factors(largest, strength) for strength in strengths]
            costs = [_cost(moved, taken, target, factors) for factors in tried]
            _move(moved, passage, tried[costs.index(min(costs))])
    return moved


def _factors(largest: Tensor, strength: float) -> Tensor:
    """By how much each channel becomes smaller; their geometric mean is 1."""
    sizes = largest.clamp(min=float(largest.max()) * SMALLEST).clamp(min=1e-12).double().log()
    return (strength * (sizes - sizes.mean())).exp().float()


def _cost(
    network: AetherNet, taken: Mapping[str, Channels], target: Target, factors: Tensor
) -> float:
    """What rounding adds to the results of these layers, in twelfths of a mean square.

    An error that is spread evenly over a step has a twelfth of its square as its mean square. That
    of an input meets all weights of its channel, that of a weight all values of its channel.
    """
    cost = 0.0
    for name, channels in taken.items():
        weight = cast(Tensor, network.get_submodule(name).weight).detach()
        rows = weight.reshape(*weight.shape[:2], -1) * factors[:, None]
        low, high = (channels.low / factors).min(), (channels.high / factors).max()
        shifted = name in shifted_layers(network.config)
        step = grid_for(float(low), float(high), target, shifted=shifted).scale
        of_input = step**2 * rows.square().sum()
        power = (channels.power / factors.square()).sum() * rows.shape[2]
        of_weights = weight_scales(rows).square().sum() * power
        cost += float(of_input + of_weights)
    return cost


def _move(network: AetherNet, passage: Passage, factors: Tensor) -> None:
    giver = cast(nn.Conv2d, network.get_submodule(passage.giver))
    rows = factors.repeat_interleave(passage.repeats)
    giver.weight.div_(rows.reshape(-1, *[1] * (giver.weight.dim() - 1)))
    cast(Tensor, giver.bias).div_(rows)
    for name in passage.takers:
        weight = cast(nn.Conv2d, network.get_submodule(name)).weight
        weight.mul_(factors.reshape(1, -1, *[1] * (weight.dim() - 2)))


def channels_of_inputs(
    network: AetherNet, layers: Iterable[str], pictures: Pictures
) -> dict[str, Channels]:
    """By layer, what its input is like on pictures."""
    found: dict[str, Channels] = {}
    each = one_by_one(pictures)

    def watch(name: str) -> Callable[[nn.Module, Tensor], None]:
        def noted(_layer: nn.Module, x: Tensor) -> None:
            low, high = torch.aminmax(x.transpose(0, 1).flatten(1), dim=1)
            power = x.square().mean(dim=(0, 2, 3)) / len(each)
            if name in found:
                seen = found[name]
                low, high = torch.minimum(seen.low, low), torch.maximum(seen.high, high)
                power = seen.power + power
            found[name] = Channels(low=low, high=high, power=power)

        return noted

    watch_inputs(network, each, {name: watch(name) for name in layers})
    return found
