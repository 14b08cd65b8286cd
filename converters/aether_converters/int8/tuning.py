"""A calibrated network made better, step after step, by the network it was made from.

No step needs pictures with originals: what the float network gives is what int8 should give. Each
is measured on patches from which nothing is learnt, and left out where it does not pay.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from aether_converters.int8.distillation import (
    Lessons,
    Rounded,
    distilled,
    of_head,
    whole,
)
from aether_converters.int8.inputs import one_by_one
from aether_converters.int8.migration import Passage, channels_of_inputs, migrated
from aether_converters.int8.mixing import mixed
from aether_converters.int8.offsets import (
    FASTER,
    MOST,
    SEEN,
    Colours,
    Search,
    can_move_last,
    with_offsets_of_head,
    with_offsets_of_last,
)
from aether_converters.int8.patches import Patches
from aether_converters.int8.plan import (
    HEAD,
    LAST,
    LEVELS,
    QuantisationPlan,
    layers_of,
    shifted_layers,
    simulate,
    spanning_grid,
)
from aether_converters.int8.rounding import rounded_weights
from aether_converters.int8.sensitivity import macs_per_pixel
from aether_converters.measuring.figures import loss_of
from aether_converters.runtimes.upscaler import Image
from aether_core import AetherNet
from aether_spandrel.inference import channels_last

Device = Literal["cpu", "cuda"]
Told = Callable[[str, int, int], None]


def untold(_step: str, _done: int, _total: int) -> None:
    """Tell nobody."""


SECONDS: Final = 180.0
"""To learn, if nothing else is said: with all else less than 5 minutes on two cores."""

BESIDE: Final = 80.0
"""Seconds for what is computed at once; what takes longer is taken off the learning, in part."""

SHARE_OF_COLOURS: Final = 0.15  # of the seconds to learn
REST_OF_COLOURS: Final = 0.5  # of what is left, for each of two searches
TYPICAL_PATCHES: Final = 8  # beside those of one colour, where a try takes long

LEAST_SHARE: Final = 1 / 3  # of the seconds asked for, in which the network learns all the same

UNTUNED: Final = 0.8  # dB, see `Workbench.may_lose`; figures.INT8 wants 35 dB of finished files
LARGEST_SHIFT: Final = 4.0  # levels of a channel's mean; figures.INT8 wants 5 of finished files

FEW: Final = 6  # one in so many patches tells which layer costs most
MOST_PICTURES: Final = 2000
SPEED: Final = 30e9
"""Multiply-accumulates a second, three for each of the network's, with which batches are counted.

How many batches are learnt from must not depend on what else the machine does, or no two files
would be the same; a slower machine meets the deadline, and says so.
"""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What a step of tuning has brought.

    Attributes:
        step: In words.
        psnr: Against the float network afterwards, on patches from which nothing was learnt, in dB.
        kept: Whether it was better than before; what was worse was left out.
        seconds: Time it took.
        note: What else there is to say, such as why it ended early.
    """

    step: str
    psnr: float
    kept: bool
    seconds: float
    note: str = ""

    @property
    def in_words(self) -> str:
        """Such as `distilled 50.1 dB`."""
        left_out = "" if self.kept else " (left out)"
        note = f" ({self.note})" if self.note else ""
        return f"{self.step} {self.psnr:.1f} dB{left_out}{note}"


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What the steps of a tuning have in common.

    Attributes:
        patches: Pictures to learn from, and others to measure on.
        calibrated: Makes a plan as another for a network that computes the same, in which the
            weights of some layers are others.
        everything: Whether all layers stay in int8, whatever they cost.
        may_lose: PSNR in dB, of a network that lies 30 dB from the truth; beyond that, layers go
            back to float.
        seconds: In which the network may learn.
        began: When making it int8 began, as `time.monotonic` has it.
        device: On which it learns.
        told: Called with a few words, and how much is done of how much.
    """

    exact: AetherNet
    patches: Patches
    calibrated: Callable[[QuantisationPlan, AetherNet, AbstractSet[str]], QuantisationPlan]
    seconds: float = SECONDS
    everything: bool = False
    may_lose: float = UNTUNED
    device: Device = "cpu"
    told: Told = untold
    began: float = field(default_factory=time.monotonic)
    shown: tuple[Tensor, ...] = field(init=False)
    measured_on: tuple[Tensor, ...] = field(init=False)
    expected: tuple[Tensor, ...] = field(init=False)
    _made: dict[int, Tensor] = field(init=False, default_factory=dict[int, Tensor])

    def __post_init__(self) -> None:
        """Run the float network on what a state is measured on."""
        measured_on = _tensors(self.patches.measured)
        object.__setattr__(self, "shown", _tensors(self.patches.shown))
        object.__setattr__(self, "measured_on", measured_on)
        object.__setattr__(self, "expected", _each(self.exact, measured_on))

    def granted(self, share: float, of_rest: float) -> float:
        """The seconds that a step has.

        Args:
            share: Of those in which the network may learn: at most.
            of_rest: Of what is left until all should be done. A third of `share` is granted even
                if nothing is.
        """
        most = share * self.seconds
        left = self.began + BESIDE + self.seconds - time.monotonic()
        return max(min(of_rest * left, most), LEAST_SHARE * most)

    def made_of(self, pictures: Sequence[Image]) -> Tensor:
        """What the float network makes of some of `patches`, (N, K, scale * H, scale * W).

        Several steps ask for that of the same pictures, and each runs the network but once.
        """
        for picture in pictures:  # `patches` keeps them, so that no other gets the same id
            if id(picture) not in self._made:
                self._made[id(picture)] = _run(self.exact, _batch([picture]))
        return torch.cat([self._made[id(picture)] for picture in pictures])

    def squares(self, state: Rounded, places: slice) -> float:
        """The mean squared error of a state on some patches, which says what PSNR it loses."""
        return _mean_square(self._differences(state, places))

    def measured(self, state: Rounded) -> tuple[float, float]:
        """The error of a state, in pixels and colours, and its PSNR to the float network in dB."""
        differences = self._differences(state)
        squares = max(_mean_square(differences), 1e-20)
        # Colours that a later step makes even must not decide whether an earlier one is kept.
        colours = _mean_square([d.mean(dim=(2, 3)) for d in differences])
        return squares + colours, -10 * math.log10(squares)

    def fit(self, state: Rounded) -> bool:
        """Whether a state is near enough to the float network to be given to anybody."""
        differences = self._differences(state)
        shift = LEVELS * max(float(d.mean(dim=(2, 3)).abs().max()) for d in differences)
        return loss_of(_mean_square(differences)) <= self.may_lose and shift <= LARGEST_SHIFT

    def _differences(self, state: Rounded, places: slice = slice(None)) -> list[Tensor]:
        found = _each(simulate(state.network, state.plan), self.measured_on[places])
        return [
            one.clamp(0, 1) - other.clamp(0, 1)
            for one, other in zip(found, self.expected[places], strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One way to make a rounded network better.

    Attributes:
        name: In words.
        states: What it makes of a network, better and better; the best of them counts.
        worth: Of the error before: what is left has to be less, or the step was not worth it. Above
            1 where it brings what the error does not tell.
    """

    name: str
    states: Callable[[Rounded, Workbench], Iterable[Rounded]]
    worth: float = 1.0


def _with_rounded_weights(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    network = rounded_weights(state.exact, state.plan, bench.shown)
    yield replace(state, network=network)


def _with_activation_cut(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    """Nothing below 0 behind a LeakyReLU: a hundredth of what was there, and most of the values."""
    behind = {name for name in shifted_layers(state.network.config) if name in state.plan.inputs}
    if behind:
        from_zero = spanning_grid(0, 1, signed=state.plan.target == "tensorrt")
        inputs = {**state.plan.inputs, **dict.fromkeys(behind, from_zero)}
        before = replace(state.plan, inputs=inputs)
        moved = behind | {HEAD} & state.plan.inputs.keys()
        plan = bench.calibrated(before, state.exact, moved)
        yield _rounded_anew(state, bench, plan, state.exact, moved)


def _with_even_channels(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    # What is rounded before an activation, too, may take up more room than it was given.
    apart = {HEAD} & state.plan.outputs.keys()
    state = _evened(state, bench, lambda passage: passage.giver not in apart)
    yield state
    if apart:
        yield _evened(state, bench, lambda passage: passage.giver in apart)


def _with_mixed_channels(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    network = mixed(state.exact, state.plan, bench.shown)
    # What the mixed channels are like has changed, and with it how far they should become equal.
    others = _moved(state.exact, network)
    if _moved(bench.exact, state.exact) & {HEAD}:
        others.add(HEAD)
    yield _evened(state, bench, lambda passage: passage.giver in others, mixed=network)


def _evened(
    state: Rounded,
    bench: Workbench,
    wanted: Callable[[Passage], bool],
    *,
    mixed: AetherNet | None = None,
) -> Rounded:
    """The state with even channels, or a network that computes the same with more even ones.

    Layers that this leaves as they were stay rounded as they were.
    """
    before = mixed or state.exact
    inputs = channels_of_inputs(before, state.plan.inputs, bench.shown)
    exact = migrated(before, inputs, state.plan.target, wanted=wanted)
    moved = _moved(state.exact, exact)
    plan = bench.calibrated(state.plan, exact, moved)
    return _rounded_anew(state, bench, plan, exact, moved)


def _rounded_anew(
    state: Rounded,
    bench: Workbench,
    plan: QuantisationPlan,
    exact: AetherNet,
    moved: AbstractSet[str],
) -> Rounded:
    """The state with another plan, the layers that have moved rounded anew."""
    if state.network is state.exact:  # nothing is rounded yet
        moved = plan.inputs.keys()
    network = rounded_weights(exact, plan.only(moved), bench.shown)
    for name in plan.inputs.keys() - moved:
        as_before = state.network.get_submodule(name).state_dict()
        network.get_submodule(name).load_state_dict(as_before)
    return Rounded(network=network, plan=plan, exact=exact)


def _moved(before: AetherNet, after: AetherNet) -> set[str]:
    """The layers whose weights or biases are others."""
    layers = layers_of(before)
    return {
        name
        for name, layer in layers_of(after).items()
        if not all(
            torch.equal(a, b)
            for a, b in zip(layer.parameters(), layers[name].parameters(), strict=True)
        )
    }


def _without_last(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    """The last layer in float: nothing follows that would average out what its rounding does."""
    others = set(state.plan.inputs) - {LAST}
    if others and LAST in state.plan.inputs and not bench.everything:
        yield _only(state, others)


@dataclass(frozen=True, kw_only=True)
class _Course:
    """How a part of a network learns.

    Attributes:
        run: What it makes of what it takes.
        learns: Whether a layer is of this part.
        share: Of the time asked for, and at most of what is left.
        of_rest: Of what is left.
        batch: Pictures at once, which decides the memory.
        rate: Relative to the rates of `distillation`.
    """

    run: Callable[[AetherNet, Tensor], Tensor]
    learns: Callable[[str], bool]
    share: float
    of_rest: float
    batch: int
    rate: float

    def lessons(self, bench: Workbench, pictures: Sequence[Image]) -> Lessons:
        """What can be learnt from pictures in its share of the time."""
        until = time.monotonic() + bench.granted(self.share, self.of_rest)
        taken, expected = _batch(pictures), bench.made_of(pictures)
        return Lessons(
            taken=taken.to(bench.device),
            run=self.run,
            expected=expected.to(bench.device),
            batches=self._batches(bench, taken.shape[-1]),
            batch=self.batch,
            rate=self.rate,
            until=until,
        )

    def _batches(self, bench: Workbench, side: int) -> int:
        """How many fit into the time, by what the layers that learn compute."""
        costs = macs_per_pixel(bench.exact)
        macs = sum(macs for name, macs in costs.items() if self.learns(name))
        macs *= side**2
        most, seconds = MOST_PICTURES // self.batch, self.share * bench.seconds
        return max(min(int(seconds * SPEED / (3 * macs * self.batch)), most), 1)


OF_HEAD: Final = _Course(
    run=of_head,
    learns=lambda layer: layer.startswith(("conv_before_upsample", "upsample", LAST)),
    share=0.5,
    of_rest=0.5,
    batch=2,
    rate=1.0,
)
"""Nearest to the picture, where rounding is seen most; without the body a batch takes little."""

OF_ALL: Final = _Course(
    run=whole, learns=lambda _layer: True, share=0.35, of_rest=0.7, batch=1, rate=0.3
)


def _head_distilled(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    pictures = (*bench.patches.learnt_from, *bench.patches.more)
    lessons = OF_HEAD.lessons(bench, pictures)
    taken = _given_by_body(simulate(state.network, state.plan), _batch(pictures))
    return _learning(state, bench, replace(lessons, taken=taken.to(bench.device)))


def _distilled(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    pictures = bench.patches.learnt_from
    return _learning(state, bench, OF_ALL.lessons(bench, pictures))


def _learning(state: Rounded, bench: Workbench, lessons: Lessons) -> Iterable[Rounded]:
    def progress(done: int, total: int, error: float) -> None:
        figure = -10 * math.log10(max(error, 1e-20))
        bench.told(
            f"{figure:.1f} dB, {max(lessons.until - time.monotonic(), 0):.0f} s left", done, total
        )

    return distilled(state, lessons, progress)


def _with_even_colours(state: Rounded, bench: Workbench) -> Iterable[Rounded]:
    if not bench.patches.flat:
        return
    flat, typical = bench.patches.flat, bench.patches.typical
    colours = Colours(
        flat=_batch(flat),
        typical=_batch(typical),
        of_flat=bench.made_of(flat),
        of_typical=bench.made_of(typical),
    )
    costs = macs_per_pixel(bench.exact)
    macs = sum(macs for name, macs in costs.items() if OF_HEAD.learns(name))
    macs *= (len(flat) + TYPICAL_PATCHES) * SEEN**2
    tries = min(int(SHARE_OF_COLOURS * bench.seconds * SPEED / macs), MOST)

    def search(most: int) -> Search:
        return Search(
            most=most,
            until=time.monotonic() + bench.granted(SHARE_OF_COLOURS, REST_OF_COLOURS),
            progress=lambda done, total: bench.told("flat colours", done, total),
        )

    if not (HEAD in state.plan.inputs or can_move_last(state)):
        return
    if HEAD in state.plan.inputs:
        state = with_offsets_of_head(state, colours.with_typical(TYPICAL_PATCHES), search(tries))
    if can_move_last(state):
        state = with_offsets_of_last(state, colours, search(tries * FASTER))
    yield state


STEPS: Final = (
    Step(name="weights rounded together", states=_with_rounded_weights),
    Step(name="activation cut at 0", states=_with_activation_cut),
    Step(name="even channels", states=_with_even_channels),
    Step(name="mixed channels", states=_with_mixed_channels),
    Step(name="last layer in float", states=_without_last, worth=10**-0.1),
    Step(name="head distilled", states=_head_distilled),
    Step(name="distilled", states=_distilled),
    # A colour that all pixels share is seen, and weighs next to nothing in the error.
    Step(name="even colours", states=_with_even_colours, worth=10**0.03),
)
"""In order; each begins with the best state so far."""


def tune(start: Rounded, bench: Workbench) -> tuple[Rounded, tuple[Gain, ...]]:
    """The best state that was met, and what each step has brought.

    Whoever interrupts (Ctrl-C) gets the best state so far, as when the time is over.
    """
    best, (least, psnr) = start, bench.measured(start)
    gains: list[Gain] = [Gain(step="calibrated", psnr=psnr, kept=True, seconds=0.0)]
    for number, step in enumerate(STEPS):
        before, began, note = best, time.monotonic(), ""
        bar = least * step.worth
        bench.told(step.name, number, len(STEPS))
        try:
            for state in step.states(before, bench):
                error, figure = bench.measured(state)
                if error < bar:
                    best, least, bar, psnr = state, error, error, figure
        except KeyboardInterrupt as stop:
            if type(stop) is not KeyboardInterrupt:  # asked to end altogether
                raise
            note = "interrupted, the best so far is kept"
        gains.append(
            Gain(
                step=step.name,
                psnr=psnr,
                kept=best is not before,
                seconds=time.monotonic() - began,
                note=note,
            )
        )
        if note:
            break
    return best, tuple(gains)


def without_costly_layers(state: Rounded, bench: Workbench) -> tuple[Rounded, list[str]]:
    """The state with as few layers in float as it takes to be fit for use, and why each is.

    Those that cost most for what they compute go back first, with the weights they had; one always
    stays in int8. Costs are measured once: measured anew after each layer they would take the
    square of the time.
    """
    said: list[str] = []
    if bench.fit(state):
        return state, said
    few = slice(None, None, FEW)
    errors = {name: bench.squares(_only(state, {name}), few) for name in state.plan.inputs}
    macs = macs_per_pixel(bench.exact)
    for name in sorted(errors, key=lambda name: -errors[name] / macs[name])[:-1]:
        said.append(f"{name} stays float: in int8 it alone costs {loss_of(errors[name]):.2f} dB")
        state = _only(state, set(state.plan.inputs) - {name})
        if bench.fit(state):
            break
    return state, said


def _only(state: Rounded, layers: set[str]) -> Rounded:
    """The state with these layers alone in int8."""
    network = copy.deepcopy(state.network)
    for name in set(state.plan.inputs) - layers:
        layer, exact = network.get_submodule(name), state.exact.get_submodule(name)
        layer.load_state_dict(exact.state_dict())
    return Rounded(network=network, plan=state.plan.only(layers), exact=state.exact)


def _mean_square(differences: Sequence[Tensor]) -> float:
    """Of pictures that count the same, whatever their size."""
    return sum(float(d.square().mean()) for d in differences) / len(differences)


def _tensors(patches: Sequence[Image]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(patch).float() for patch in patches)


def _batch(patches: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.concatenate(patches)).float()


def _run(network: AetherNet, batch: Tensor) -> Tensor:
    """What a network makes of pictures, one at a time, which decides the memory."""
    return torch.cat(_each(network, one_by_one(batch)))


def _each(network: AetherNet, pictures: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a network makes of pictures (1, C, H, W)."""
    with torch.inference_mode():
        found = [network(channels_last(picture)) for picture in pictures]
    return tuple(picture.clone() for picture in found)


def _given_by_body(network: AetherNet, batch: Tensor) -> Tensor:
    """What the head of a network takes of pictures."""
    found: list[Tensor] = []
    hook = network.conv_before_upsample.register_forward_pre_hook(
        lambda _head, inputs: found.append(inputs[0].clone())
    )
    try:
        _run(network, batch)
    finally:
        hook.remove()
    return torch.cat(found)
