"""From a network to a quantisation plan: pictures, ranges, and which layers stay float."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from aether_converters.errors import ConversionError
from aether_converters.int8.calibration import Form, Method, calibrate, unmoved
from aether_converters.int8.distillation import Rounded
from aether_converters.int8.keeping import kept_plan
from aether_converters.int8.patches import MORE, PART, Patches, gathered
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
from aether_converters.int8.tuning import (
    SECONDS,
    UNTUNED,
    Device,
    Gain,
    Told,
    Workbench,
    tune,
    untold,
    without_costly_layers,
)
from aether_converters.runtimes.upscaler import Image
from aether_core import AetherNet
from aether_spandrel.inference import build_network
from aether_spandrel.network import Network, float_weights, fuse

MEASURED: Final = 2  # patches of either kind on which costs are measured
MISFIT: Final = 4.0  # times the error of calibrated ranges: those of the training are wrong then
UNFIT: Final = "the ranges of its training do not fit its values, and are not used"
ALLOWED: Final = 0.05  # dB; below that, it does not matter
NOTHING: Final[Mapping[str, object]] = {}
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a network becomes int8.

    Attributes:
        targets: Who will run it, a file for each: `tensorrt` (symmetric int8) or `cpu` (uint8
            activations).
        calibration: Picture files and folders that it is calibrated and tuned on, beside built-in
            ones.
        method: How a range follows from values; see `calibrate`.
        keep_float: Layers that stay float; `*` stands for any text.
        everything: Every convolution and linear map becomes int8, whatever it costs.
        sensitivity: Whether to measure what each layer costs.
        max_loss: Loss of PSNR in dB that is allowed, of a network that lies 30 dB from the truth;
            the layers that cost most stay float. None: as `chosen_layers` says.
        tune: Seconds in which the rounded network may learn from the float one; 0 for not at all.
        device: On which it learns: `cpu` or `cuda`.
    """

    targets: tuple[Target, ...] = ("tensorrt",)
    calibration: tuple[Path, ...] = ()
    method: Method = "mse"
    keep_float: tuple[str, ...] = ()
    everything: bool = False
    sensitivity: bool = False
    max_loss: float | None = None
    tune: float = SECONDS
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A network ready to be written in int8.

    Attributes:
        network: Fused, in float32; computes what its source computes, or was tuned to, rounded.
        plan: What of it is rounded, and how.
        costs: What each layer costs by itself, where that was measured; in order of the network.
        share: Of the multiply-accumulates that the plan puts in int8, from 0 to 1.
        notes: Where the ranges come from and which layers stay float, in words.
        gains: What each step of tuning has brought; empty where nothing was tuned.
    """

    network: AetherNet
    plan: QuantisationPlan
    costs: tuple[Cost, ...]
    share: float
    notes: tuple[str, ...]
    gains: tuple[Gain, ...] = ()


def quantise_network(
    source: Network,
    target: Target,
    options: Int8Options,
    progress: Progress | None = None,
    *,
    told: Told = untold,
    metadata: Mapping[str, object] = NOTHING,
) -> Quantised:
    """Plan which tensors of a network are rounded to which grid, and tune its weights to bear it.

    Ranges come from quantisation-aware training where the checkpoint has them, and nothing is
    tuned then; otherwise from pictures. A network that `aether_core.prepare_qat` has trained has
    the layers in int8 that were trained so.

    Args:
        source: As read from its checkpoint.
        target: Who will run it.
        options: See `Int8Options`.
        progress: Called with a few words before each step.
        told: Called while it is tuned with a few words, and how much is done of how much.
        metadata: Of the checkpoint: what an earlier tuning left there is not tuned again.

    Raises:
        ConversionError: No layer is called as `keep_float` says, or none is left for int8.
        CheckpointError: What an earlier tuning left is none of this network.
        ImageError: A calibration picture cannot be read.
    """
    say = progress or _silent
    fused = fuse(source)
    network = build_network(fused.config, float_weights(fused))
    kept = kept_plan(metadata, network)
    layers = _layers(network, source, target, options, kept)
    measured = options.sensitivity or options.max_loss is not None
    learnt = source.ranges.usable
    if FIRST not in learnt and (FIRST in layers or measured or not learnt):
        network = recentred(network)
    say("calibrating")
    more = MORE if options.tune else 0
    patches = gathered(options.calibration, network.config.in_chans, more=more)
    desk = _Desk(target=target, method=options.method, patches=patches)
    if kept is not None and kept.target == target:
        plan, notes = kept.only(set(layers)), []
    else:
        cut = kept is not None and kept.cuts(network.config)
        plan, notes = _planned(network, source, layers, desk, cut=cut)
    costs: dict[str, Cost] = {}
    if measured:
        every = chosen_layers(network, target, everything=True)
        trained = source.ranges.usable
        costs = layer_costs(network, desk.planned(network, every, trained), desk.measured, say)
    if options.max_loss is not None:
        say("choosing layers")
        plan = plan.only(set(_affordable(network, plan, costs, desk, options.max_loss)))
    state, gains = Rounded(network=network, plan=plan, exact=network), tuple[Gain, ...]()
    if kept is None and not plan.trained:
        say("tuning")
        state, gains, named = _tuned(state, desk, options, told)
        notes += named
    macs = macs_per_pixel(network)
    inputs = state.plan.inputs
    return Quantised(
        network=state.network,
        plan=state.plan,
        costs=tuple(replace(cost, quantised=name in inputs) for name, cost in costs.items()),
        share=sum(macs[name] for name in inputs) / sum(macs.values()),
        notes=(*notes, *_notes(source, state.plan, options, kept)),
        gains=gains,
    )


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """What plans are made from.

    Attributes:
        target: Who will run the network.
        method: How a range follows from values.
        patches: Pictures.
        began: When planning began.
    """

    target: Target
    method: Method
    patches: Patches
    began: float = field(default_factory=time.monotonic)

    @property
    def measured(self) -> tuple[Image, ...]:
        """Patches on which costs are measured."""
        return (*self.patches.seen[:MEASURED], *self.patches.flat[:MEASURED])

    def planned(
        self,
        network: AetherNet,
        layers: Sequence[str],
        trained: Mapping[str, float],
        *,
        cut: bool = False,
    ) -> QuantisationPlan:
        """The plan of a network with these layers in int8."""
        plan = calibrate(
            network,
            self.target,
            layers,
            self.patches.shown,
            method=self.method,
            trained=trained,
            form=Form(cut=cut),
        )
        parts = [patch[:, :, :PART, :PART] for patch in self.measured]
        return without_costly_products(network, plan, parts)

    def planned_as(
        self, before: QuantisationPlan, network: AetherNet, moved: AbstractSet[str]
    ) -> QuantisationPlan:
        """A plan that rounds the same tensors as another did.

        Args:
            before: The other plan.
            network: Computes the same as that which it was made for.
            moved: Layers whose weights are others.
        """
        plan = calibrate(
            network,
            self.target,
            list(before.inputs),
            self.patches.shown,
            method=self.method,
            form=Form(joined=before.joined is not None, cut=before.cuts(network.config)),
            known=unmoved(before, moved),
        )
        return plan.with_products(before.activations)


def _planned(
    network: AetherNet, source: Network, layers: Sequence[str], desk: _Desk, *, cut: bool
) -> tuple[QuantisationPlan, list[str]]:
    """The calibrated plan, with ranges of the training where they fit, and what to say of it."""
    plan = desk.planned(network, layers, source.ranges.usable, cut=cut)
    if plan.trained and not source.ranges.of_inputs:
        calibrated = desk.planned(network, layers, {})
        lost, least = (plan_error(network, p, desk.measured) for p in (plan, calibrated))
        if lost > max(MISFIT * least, error_of_loss(ALLOWED)):
            return calibrated, [UNFIT]
    return plan, []


def _affordable(
    network: AetherNet,
    plan: QuantisationPlan,
    costs: Mapping[str, Cost],
    desk: _Desk,
    max_loss: float,
) -> list[str]:
    """The layers of a plan that may be int8 for this loss."""
    layers = within_budget(network, plan, costs, desk.measured, max_loss)
    if not layers:
        raise ConversionError(
            "every layer costs more than the allowed loss",
            expected=f"at most {max_loss:g} dB",
            found=f"{min(cost.loss for cost in costs.values()):.2g} dB for the cheapest",
            advice="allow more with --max-loss, or convert to fp16",
        )
    return layers


def _tuned(
    start: Rounded, desk: _Desk, options: Int8Options, told: Told
) -> tuple[Rounded, tuple[Gain, ...], list[str]]:
    """A network tuned as far as its options allow, without the layers that cost too much still."""
    bench = Workbench(
        exact=start.network,
        patches=desk.patches,
        calibrated=desk.planned_as,
        everything=options.everything,
        may_lose=max(ALLOWED, options.max_loss or 0) if options.tune else UNTUNED,
        seconds=options.tune,
        device=options.device,
        told=told,
        began=desk.began,
    )
    state, gains = tune(start, bench) if options.tune else (start, ())
    if options.everything:
        return state, gains, []
    state, named = without_costly_layers(state, bench)
    return state, gains, named


def _layers(
    network: AetherNet,
    source: Network,
    target: Target,
    options: Int8Options,
    kept: QuantisationPlan | None,
) -> list[str]:
    """The layers that compute in int8."""
    learnt = source.ranges.usable if source.ranges.of_inputs else ()
    if kept is not None:
        learnt = kept.inputs
    allowed = chosen_layers(
        network,
        target,
        everything=options.everything or bool(learnt),
        keep_float=options.keep_float,
    )
    if learnt and not options.everything:
        allowed = [name for name in allowed if name in learnt]
    if not allowed:
        raise ConversionError(
            "no layer is left to compute in int8", advice="keep fewer with --keep-float"
        )
    return allowed


def _notes(
    source: Network, plan: QuantisationPlan, options: Int8Options, kept: QuantisationPlan | None
) -> Iterator[str]:
    given = "your pictures and built-in ones" if options.calibration else "built-in pictures"
    trained, all_layers = len(plan.trained), len(plan.inputs)
    if source.ranges.unusable:
        yield (
            f"{len(source.ranges.unusable)} ranges of its training cannot be used; `aethernet "
            "inspect` says why"
        )
    if kept is not None:
        yield f"the weights were tuned before, for {kept.target}"
    if kept is not None and kept.target == plan.target:
        yield "ranges come from that tuning"
    elif trained == all_layers:
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
