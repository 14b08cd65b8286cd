"""What an int8 file with the ranges of its training is compared with."""

from __future__ import annotations

import re

from aether_converters.int8.plan import TARGETS, QuantisationPlan, Target, simulate
from aether_converters.int8.planning import Int8Options, quantise_network
from aether_converters.measuring.exhibit import Exhibit
from aether_converters.measuring.verification import Reference
from aether_converters.runtimes.upscaler import Upscaler
from aether_converters.source import Source
from aether_core import AetherNet


def trained_for(upscaler: Upscaler, origin: Source, exhibit: Exhibit | None) -> Reference | None:
    """What an int8 file of ours with the ranges of its training is compared with, as on writing."""
    if upscaler.format != "onnx" or upscaler.precision != "int8":
        return None
    import onnx

    model = onnx.load(str(upscaler.path), load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props}
    target: Target | None = next((t for t in TARGETS if t == said.get("int8_target")), None)
    layers = set(re.findall(r"[\w.]+", said.get("int8_layers", "")))
    if target is None or not origin.network.ranges.usable or not layers:
        return None
    made = quantise_network(origin.network, target, Int8Options(everything=True))
    return as_trained(origin, made.network, made.plan.only(layers), exhibit)


def as_trained(
    origin: Source, network: AetherNet, plan: QuantisationPlan, exhibit: Exhibit | None
) -> Reference | None:
    """A network that was trained for int8 is what it is with its rounding; None if it was not."""
    if not plan.trained:
        return None
    model = simulate(network, plan)
    return Reference(origin.network, path=origin.path, model=model, exhibit=exhibit)
