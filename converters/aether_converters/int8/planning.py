"""From a network to a quantisation plan: pictures, ranges, and which layers stay float."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from aether_converters.errors import ConversionError, require
from aether_converters.int8.calibration import Method, built_in_patches, calibrate, varied_patches
from aether_converters.int8.plan import (
    FIRST,
    QuantisationPlan,
    Target,
    chosen_layers,
    recentred,
)
from aether_converters.int8.sensitivity import (
    Cost,
    error_of_loss,
    layer_costs,
    macs_per_pixel,
    plan_error,
    within_budget,
    without_costly_products,
)
from aether_converters.runtimes.upscaler import Image
from aether_core import AetherNet
from aether_spandrel.inference import build_network
from aether_spandrel.network import Network, float_weights, fuse

MEASURED: Final = 4  # patches on which costs are measured
MISFIT: Final = 4.0  # times the error of calibrated ranges: those of the training are wrong then
ALLOWED: Final = 0.05  # dB; below that, it does not matter
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a network becomes int8.

    Attributes:
        targets: Who will run it, a file for each: `tensorrt` (symmetric int8) or `cpu` (uint8
            activations).
        calibration: Picture files and folders whose values give the ranges; built-in ones if none.
        method: How a range follows from values; see `calibrate`.
        keep_float: Layers that stay float; `*` stands for any text.
        everything: Every convolution and linear map becomes int8, whatever it costs.
        sensitivity: Whether to measure what each layer costs.
        max_loss: Loss of PSNR in dB that is allowed, of a network that lies 30 dB from the truth;
            the layers that cost most stay float. None: as `chosen_layers` says.
    """

    targets: tuple[Target, ...] = ("tensorrt",)
    calibration: tuple[Path, ...] = ()
    method: Method = "mse"
    keep_float: tuple[str, ...] = ()
    everything: bool = False
    sensitivity: bool = False
    max_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A network ready to be written in int8.

    Attributes:
        network: Fused, in float32; computes what its source computes.
        plan: What of it is rounded, and how.
        costs: What each layer costs by itself, where that was measured; in order of the network.
        share: Of the multiply-accumulates that the plan puts in int8, from 0 to 1.
        notes: Where the ranges come from, in words.
    """

    network: AetherNet
    plan: QuantisationPlan
    costs: tuple[Cost, ...]
    share: float
    notes: tuple[str, ...]


def quantise_network(
    source: Network, target: Target, options: Int8Options, progress: Progress | None = None
) -> Quantised:
    """Plan which tensors of a network are rounded to which grid.

    Ranges come from quantisation-aware training where the checkpoint has them, otherwise from
    pictures. A network that `aether_core.prepare_qat` has trained has the layers in int8 that were
    trained so.

    Args:
        source: As read from its checkpoint.
        target: Who will run it.
        options: See `Int8Options`.
        progress: Called with a few words before each step.

    Raises:
        ConversionError: No layer is called as `keep_float` says, or none is left for int8.
        ImageError: A calibration picture cannot be read.
    """
    say = progress or _silent
    fused = fuse(source)
    network = build_network(fused.config, float_weights(fused))
    layers = _layers(network, source, target, options)
    measured = options.sensitivity or options.max_loss is not None
    if FIRST not in source.ranges.usable and (FIRST in layers or measured):
        network = recentred(network)
    say("calibrating")
    patches = _patches(options.calibration, network.config.in_chans)

    def planned(layers: Sequence[str], trained: Mapping[str, float]) -> QuantisationPlan:
        plan = calibrate(network, target, layers, patches, method=options.method, trained=trained)
        return without_costly_products(network, plan, patches[:MEASURED])

    plan, notes = planned(layers, source.ranges.usable), list[str]()
    if plan.trained and not source.ranges.of_inputs:
        calibrated = planned(layers, {})
        lost, least = (plan_error(network, p, patches[:MEASURED]) for p in (plan, calibrated))
        if lost > max(MISFIT * least, error_of_loss(ALLOWED)):
            notes.append("the ranges of its training do not fit its values, and are not used")
            plan = calibrated
    costs: dict[str, Cost] = {}
    if measured:
        every = chosen_layers(network, target, everything=True)
        costs = layer_costs(network, planned(every, source.ranges.usable), patches[:MEASURED], say)
    if options.max_loss is not None:
        say("choosing layers")
        layers = within_budget(network, plan, costs, patches[:MEASURED], options.max_loss)
        if not layers:
            raise ConversionError(
                "every layer costs more than the allowed loss",
                expected=f"at most {options.max_loss:g} dB",
                found=f"{min(cost.loss for cost in costs.values()):.2g} dB for the cheapest",
                advice="allow more with --max-loss, or convert to fp16",
            )
        plan = plan.only(set(layers))
    macs = macs_per_pixel(network)
    return Quantised(
        network=network,
        plan=plan,
        costs=tuple(replace(cost, quantised=name in plan.inputs) for name, cost in costs.items()),
        share=sum(macs[name] for name in plan.inputs) / sum(macs.values()),
        notes=(*notes, *_notes(source, plan, options)),
    )


def _layers(network: AetherNet, source: Network, target: Target, options: Int8Options) -> list[str]:
    """The layers that compute in int8."""
    trained: Mapping[str, float] = source.ranges.usable if source.ranges.of_inputs else {}
    allowed = chosen_layers(
        network,
        target,
        everything=options.everything or bool(trained),
        keep_float=options.keep_float,
    )
    if trained and not options.everything:
        allowed = [name for name in allowed if name in trained]
    if not allowed:
        raise ConversionError(
            "no layer is left to compute in int8", advice="keep fewer with --keep-float"
        )
    return allowed


def _notes(source: Network, plan: QuantisationPlan, options: Int8Options) -> Iterator[str]:
    given = "your pictures" if options.calibration else "built-in pictures"
    trained, all_layers = len(plan.trained), len(plan.inputs)
    if source.ranges.unusable:
        yield (
            f"{len(source.ranges.unusable)} ranges of its training cannot be used; `aethernet "
            "inspect` says why"
        )
    if trained == all_layers:
        yield f"the ranges of all {trained} layers come from its training"
    elif trained:
        yield (
            f"the ranges of {trained} of {all_layers} layers come from its training, the others "
            f"from {given}"
        )
    else:
        yield f"ranges come from {given} ({options.method})"


def _silent(_step: str) -> None:
    pass


def _patches(places: Sequence[Path], channels: int) -> list[Image]:
    if not places:
        return built_in_patches(channels)
    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.pictures.comparison import comparison_images

    return varied_patches(comparison_images(places, channels))
