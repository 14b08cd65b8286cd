"""What each layer's rounding costs, and which layers stay float for a given budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from aether_converters.int8.plan import MAIN, QuantisationPlan, layers_of, simulate
from aether_converters.measuring.figures import TYPICAL_ERROR, loss_of
from aether_converters.runtimes.upscaler import Image
from aether_core import AetherNet
from aether_spandrel.inference import channels_last

NEGLIGIBLE: Final = 0.001  # dB


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What rounding one layer costs by itself.

    Attributes:
        layer: Its name.
        macs: Multiply-accumulates for each input px.
        error: Mean squared error that it adds to the picture, where white is 1.
        loss: The same as a loss of PSNR, in dB, of a network that lies 30 dB from the truth.
        quantised: Whether it computes in int8 in the end.
    """

    layer: str
    macs: float
    error: float
    loss: float
    quantised: bool

    def as_dict(self) -> dict[str, object]:
        """The figures as JSON-ready values."""
        return dict(vars(self))


def error_of_loss(loss: float) -> float:
    """The inverse of `loss_of`."""
    return TYPICAL_ERROR * (10 ** (loss / 10) - 1)


def layer_costs(
    network: AetherNet,
    plan: QuantisationPlan,
    patches: Sequence[Image],
    progress: Callable[[str], None] | None = None,
) -> dict[str, Cost]:
    """Round each layer of a plan alone and measure the picture.

    Args:
        network: As for `calibrate`.
        plan: With every layer that is asked about.
        patches: (1, C, H, W) in [0, 1], all of one size.
        progress: Called with the name of each layer before it is measured.
    """
    batch = torch.from_numpy(np.concatenate(patches))
    exact = _run(network, batch)
    macs = macs_per_pixel(network)
    costs: dict[str, Cost] = {}
    for name in plan.inputs:
        if progress is not None:
            progress(name)
        error = _error(_run(simulate(network, plan.only({name})), batch), exact)
        costs[name] = Cost(
            layer=name, macs=macs[name], error=error, loss=loss_of(error), quantised=True
        )
    return costs


def plan_error(network: AetherNet, plan: QuantisationPlan, patches: Sequence[Image]) -> float:
    """The mean squared error that a whole plan adds to pictures, where white is 1."""
    batch = torch.from_numpy(np.concatenate(patches))
    return _error(_run(simulate(network, plan), batch), _run(network, batch))


def within_budget(
    network: AetherNet,
    plan: QuantisationPlan,
    costs: Mapping[str, Cost],
    patches: Sequence[Image],
    budget: float,
) -> list[str]:
    """The layers that may be rounded for a loss of at most `budget` dB, in order of the network.

    Those that cost most for each of their multiply-accumulates stay float first. Errors of layers
    add up; what remains is measured as a whole, and goes on until it fits.
    """
    batch = torch.from_numpy(np.concatenate(patches))
    exact = _run(network, batch)
    allowed = error_of_loss(budget)
    order = sorted(plan.inputs, key=lambda name: costs[name].error / costs[name].macs)
    total = sum(costs[name].error for name in order)
    while order:
        while order and total > allowed:
            total -= costs[order.pop()].error
        measured = _error(_run(simulate(network, plan.only(set(order))), batch), exact)
        if measured <= allowed:
            break
        total = measured
    return [name for name in plan.inputs if name in set(order)]


def without_costly_products(
    network: AetherNet, plan: QuantisationPlan, patches: Sequence[Image]
) -> QuantisationPlan:
    """The same plan without the products of integers that cost more than `NEGLIGIBLE` dB each.

    An activated gate has most of its values just below zero, where few steps of its grid lie; in
    most blocks that does not matter, and in some it does. There the product is one of floats.
    """
    if not plan.activations:
        return plan
    batch = torch.from_numpy(np.concatenate(patches))
    exact = _run(network, batch)
    costly: set[str] = set()
    for part, grid in plan.activations.items():
        main = f"{part}.{MAIN}"
        alone = replace(plan.only(()), outputs={main: plan.outputs[main]}, activations={part: grid})
        if loss_of(_error(_run(simulate(network, alone), batch), exact)) > NEGLIGIBLE:
            costly.add(part)
    return plan.with_products(plan.activations.keys() - costly)


def macs_per_pixel(network: AetherNet) -> dict[str, float]:
    """By layer of a fused network: multiply-accumulates for each px of a large input."""
    side = 32
    counts: dict[str, float] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(layer: Any, _inputs: object, output: Tensor) -> None:
            counts[name] = output.numel() * math.prod(layer.weight.shape[1:]) / side**2

        return hook

    handles = [
        layer.register_forward_hook(count(name)) for name, layer in layers_of(network).items()
    ]
    # On the device `meta` nothing would be computed, but torch would load 140 MB of Python for it.
    _run(network, torch.zeros(1, network.config.in_chans, side, side))
    for handle in handles:
        handle.remove()
    return counts


def _run(network: AetherNet, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(channels_last(batch))


def _error(found: Tensor, exact: Tensor) -> float:
    """Of pictures, which end at black and white."""
    difference = found.clamp(0, 1) - exact.clamp(0, 1)
    return float(difference.double().square().mean())
