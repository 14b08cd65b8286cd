"""Channels of like size for layers in int8, by moving scales along between neighbours.

One step rounds all channels of a layer's input, so that a small channel beside a large one is left
with few of the 256 values. What gives the channel can give it larger and the layer's weights can be
smaller for it, without any change of the result, where nothing but an operator that keeps scales
stands between the two: a pixel shuffle, a LeakyReLU, the product with a gate.

The ideas: Nagel et al., arXiv:1906.04721 (equalisation), Xiao et al., arXiv:2211.10438 (norms).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from aether_converters.int8.plan import LAST, MAIN
from aether_core import AetherConfig, AetherNet

SMALLEST: Final = 1e-3
"""Of the largest channel: one that is smaller stays smaller, for nobody sees its rounding."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Where channels pass from what gives them to the layers that take them, and to nobody else.

    Attributes:
        giver: A norm, convolution or linear map.
        takers: Layers with these channels as their input.
        repeats: Rows of the giver that make one channel, one after the other.
    """

    giver: str
    takers: tuple[str, ...]
    repeats: int = 1


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
    names = ["conv_before_upsample.0"]
    repeats = [1]
    for index, (factor, _) in enumerate(config.upsampler):
        names.append(f"upsample.{2 * index}")
        repeats.append(factor**2)
    for (giver, taker), rows in zip(itertools.pairwise([*names, LAST]), repeats, strict=True):
        yield Passage(giver=giver, takers=(taker,), repeats=rows)


@torch.no_grad()
def migrated(network: AetherNet, largest: Mapping[str, Tensor], strength: float) -> AetherNet:
    """A copy that computes the same, with channels of more equal size at each passage.

    Args:
        network: Fused, in float32.
        largest: By layer in int8, the largest absolute value (C) of each channel of its input.
        strength: From 0 (nothing moves) to 1 (channels become equally large).
    """
    moved = copy.deepcopy(network)
    for passage in passages(moved):
        known = [largest[name] for name in passage.takers if name in largest]
        if known:
            _move(moved, passage, _factors(torch.stack(known).amax(dim=0), strength))
    return moved


def _factors(largest: Tensor, strength: float) -> Tensor:
    """By how much each channel becomes smaller; their geometric mean is 1."""
    sizes = largest.clamp(min=float(largest.max()) * SMALLEST).clamp(min=1e-12).double().log()
    return (strength * (sizes - sizes.mean())).exp().float()


def _move(network: AetherNet, passage: Passage, factors: Tensor) -> None:
    giver = cast(nn.Conv2d, network.get_submodule(passage.giver))
    rows = factors.repeat_interleave(passage.repeats)
    giver.weight.div_(rows.reshape(-1, *[1] * (giver.weight.dim() - 1)))
    cast(Tensor, giver.bias).div_(rows)
    for name in passage.takers:
        weight = cast(nn.Conv2d, network.get_submodule(name)).weight
        weight.mul_(factors.reshape(1, -1, *[1] * (weight.dim() - 2)))
