"""Channels mixed anew between linear layers, so that rounding what passes between them costs least.

Behind the head's activation nothing but pixel shuffles stands between one convolution and the next:
what passes may be any mixture of channels from which the next layer makes the same. The last one
makes 3 colours from 9 places and tells no more than 27 of 64 channels apart, so there is room to
say everything more than once, in channels that are all of one size.

Even channels (`migration`) are the case in which each is only scaled. That mixtures are rounded
better is known of language models (Ashkboos et al., arXiv:2404.00456, with rotations); that more
channels than needed average errors out, of frames (Goyal, Vetterli and Thao, 1998).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor, nn

from aether_converters.int8.inputs import Pictures, watch_inputs
from aether_converters.int8.migration import Passage, passages
from aether_converters.int8.one_thread import in_one_thread
from aether_converters.int8.plan import LEVELS, QuantisationPlan, Target
from aether_converters.int8.weights import WEIGHT_LIMIT
from aether_core import AetherNet

STEPS: Final = 400
RATE: Final = 0.02  # of the mean entry, at first
SHARPNESS: Final = (20.0, 200.0)  # of the smooth maximum, at first and in the end
SMALLEST: Final = 1e-6  # of the largest singular value: what is smaller is nothing
EVERY: Final = 7  # places of a patch that are looked at: one in so many
DIRECTIONS: Final = 1000  # in which the outermost of those are looked for
AT_A_TIME: Final = 50  # directions, which decides the memory
SEED: Final = 20261129


@dataclass(frozen=True, kw_only=True)
class Passing:
    """What passes from one linear layer to the next, and what both make of it; in float64.

    Attributes:
        rows: (C, repeats, K), the weights that give the channels.
        power: Sum of the mean squares of the K inputs that each of those rows meets.
        moments: (C, C), the mean products of the channels.
        outermost: (C, N), the channels at places where some mixture of them is largest.
        weight: (results, taps, C), what the next layer makes of the channels at each place.
    """

    rows: Tensor
    power: float
    moments: Tensor
    outermost: Tensor
    weight: Tensor

    def cost(self, mixing: Tensor, weight: Tensor, target: Target, sharpness: float) -> Tensor:
        """What rounding adds to the next layer's results, in twelfths of a mean square.

        An error that is spread evenly over a step has a twelfth of its square as its mean square.

        Args:
            mixing: (C, C), how the channels are mixed.
            weight: (results, taps, C), what the next layer makes of them then.
            target: On whose grids they are rounded.
            sharpness: Of the smooth maximum.
        """
        channels = mixing @ self.outermost
        if target == "cpu":
            step = (_most(channels, sharpness) + _most(-channels, sharpness)) / LEVELS
        else:
            step = _most(torch.cat([channels, -channels]), sharpness) / WEIGHT_LIMIT
        gains = weight.square().sum(dim=(0, 1))
        of_channels = step.square() * gains.sum()
        powers = (mixing @ self.moments * mixing).sum(dim=1)
        steps = weight.flatten(1).abs().amax(dim=1) / WEIGHT_LIMIT
        of_weights = steps.square().sum() * powers.sum() * weight.shape[1]
        rows = _mixed_rows(mixing, self.rows).abs().amax(dim=2) / WEIGHT_LIMIT
        of_rows = (rows.square().mean(dim=1) * gains).sum() * self.power
        return of_channels + of_weights + of_rows


def _most(values: Tensor, sharpness: float) -> Tensor:
    """Their largest one, or a little more; smooth, so that all large ones become smaller."""
    largest = values.detach().abs().max()
    return (sharpness * values.flatten() / largest).logsumexp(dim=0) * largest / sharpness


def mixed(network: AetherNet, plan: QuantisationPlan, pictures: Pictures) -> AetherNet:
    """A copy that computes the same, with channels mixed anew wherever that costs less.

    Args:
        network: Fused, in float32.
        plan: What is rounded.
        pictures: What it is shown.
    """
    moved = copy.deepcopy(network)
    for passage in passages(moved):
        if passage.linear and plan.inputs.keys() >= {*passage.takers}:
            _mix(moved, passage, plan, pictures)
    return moved


def _mix(network: AetherNet, passage: Passage, plan: QuantisationPlan, pictures: Pictures) -> None:
    passing = _passing(network, passage, pictures)
    if passage.giver not in plan.inputs:
        passing = replace(passing, power=0.0)  # its weights are not rounded
    giver, taker = _ends(network, passage)
    found = _best_mixing(passing, plan.target)
    if found is None:
        return
    mixing, weight = found
    with torch.no_grad():
        rows = _mixed_rows(mixing, passing.rows)
        bias = cast(Tensor, giver.bias).double().reshape(len(mixing), -1)
        giver.weight.copy_(rows.reshape(giver.weight.shape))
        cast(Tensor, giver.bias).copy_((mixing @ bias).flatten())
        taker.weight.copy_(weight.transpose(1, 2).reshape(taker.weight.shape))


def _ends(network: AetherNet, passage: Passage) -> tuple[nn.Conv2d, nn.Conv2d]:
    (taker,) = passage.takers
    giver, taker = (network.get_submodule(name) for name in (passage.giver, taker))
    return cast(nn.Conv2d, giver), cast(nn.Conv2d, taker)


def _mixed_rows(mixing: Tensor, rows: Tensor) -> Tensor:
    """Weights (C, repeats, K) that give mixed channels."""
    return (mixing @ rows.flatten(1)).reshape(rows.shape)


def _passing(network: AetherNet, passage: Passage, pictures: Pictures) -> Passing:
    """What passes on some pictures."""
    giver, taker = _ends(network, passage)
    into, given = _inputs(network, (passage.giver, *passage.takers), pictures)
    channels = len(given)
    random = torch.Generator().manual_seed(SEED)
    sizes = given.square().mean(dim=1).sqrt().clamp(min=1e-12)
    roughly, outermost = (given / sizes[:, None]).float(), set[int]()
    for _ in range(DIRECTIONS // AT_A_TIME):
        along = torch.randn(AT_A_TIME, channels, generator=random) @ roughly
        for ends in (along.argmax(dim=1), along.argmin(dim=1)):
            outermost.update(cast("list[int]", ends.tolist()))
    return Passing(
        rows=giver.weight.detach().double().reshape(channels, passage.repeats, -1),
        power=float(into.square().mean(dim=1).sum()) * math.prod(giver.kernel_size),
        moments=given @ given.T / given.shape[1],
        outermost=given[:, sorted(outermost)],
        weight=taker.weight.detach().double().flatten(2).transpose(1, 2),
    )


def _inputs(network: AetherNet, layers: Sequence[str], pictures: Pictures) -> list[Tensor]:
    """The channels of each layer's input, (C, places), at some places of pictures."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def watch(parts: list[Tensor]) -> Callable[[nn.Module, Tensor], None]:
        def noted(_layer: nn.Module, x: Tensor) -> None:
            parts.append(x.transpose(0, 1).flatten(1)[:, ::EVERY].double())

        return noted

    watch_inputs(network, pictures, {name: watch(parts) for name, parts in found.items()})
    return [torch.cat(parts, dim=1) for parts in found.values()]


def _best_mixing(passing: Passing, target: Target) -> tuple[Tensor, Tensor] | None:
    """How channels are mixed, and what the next layer's weights are then; None if as they are.

    Searched is among (C, k) matrices F behind a map A of the channels to the k numbers that the
    next layer tells apart, uncorrelated and sorted by what they weigh: mixed channels are F A x.
    """
    results, taps, channels = passing.weight.shape
    weight = passing.weight.flatten(0, 1)
    *_, into = _split(weight)
    if not into.numel() or not passing.moments.any():
        return None  # nothing passes, or nothing is made of it
    values, axes = _eigen(into @ passing.moments @ into.T)
    sizes = values.clamp(min=float(values.max()) * SMALLEST).sqrt()
    made, weighs, turned = _split(weight @ into.T @ (axes * sizes))
    told_apart = turned @ (axes / sizes).T @ into

    def unmixed(frame: Tensor) -> Tensor:
        return (made * weighs @ frame.pinverse()).reshape(results, taps, channels)

    def cost(frame: Tensor, sharpness: float) -> Tensor:
        return passing.cost(frame @ told_apart, unmixed(frame), target, sharpness)

    frame = _searched(cost, channels, weighs)
    before = passing.cost(torch.eye(channels).double(), passing.weight, target, SHARPNESS[1])
    if cost(frame, SHARPNESS[1]) < before:
        return frame @ told_apart, unmixed(frame)
    return None


def _searched(cost: Callable[[Tensor, float], Tensor], channels: int, weighs: Tensor) -> Tensor:
    """The frame (C, k) of least cost that is found from a random one; its size does not matter."""
    random = torch.Generator().manual_seed(SEED)
    start = torch.randn(channels, len(weighs), generator=random, dtype=torch.float64)
    frame = _orthogonal(start) * weighs.sqrt()
    frame.requires_grad_()
    optimiser = torch.optim.Adam([frame])
    with in_one_thread():
        for step in range(STEPS):
            falling = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimiser.param_groups[0]["lr"] = RATE * falling * float(frame.detach().abs().mean())
            sharpness = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * step / STEPS
            optimiser.zero_grad()
            cost(frame, sharpness).log().backward()
            optimiser.step()
    return frame.detach()


def _split(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition, without what is nothing."""
    svd = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", torch.linalg.svd)
    left, values, right = svd(matrix, full_matrices=False)
    rank = int((values > SMALLEST * values[0]).sum())
    return left[:, :rank], values[:rank], right[:rank]


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and, in columns, eigenvectors of a symmetric matrix."""
    return cast("Callable[..., tuple[Tensor, Tensor]]", torch.linalg.eigh)(matrix)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span what a matrix's columns span."""
    return cast("Callable[..., tuple[Tensor, Tensor]]", torch.linalg.qr)(matrix)[0]
