"""A network becomes better in int8 by learning from itself, and never worse."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image
from torch import Tensor, nn

from aether_converters import convert, verify
from aether_converters.int8 import rounding
from aether_converters.int8.calibration import Form, calibrate, unmoved
from aether_converters.int8.distillation import (
    Lessons,
    Rounded,
    distilled,
    of_head,
    picture_error,
    whole,
)
from aether_converters.int8.migration import (
    STRENGTHS,
    channels_of_inputs,
    migrated,
    passages,
)
from aether_converters.int8.patches import AMONG_TYPICAL, Patches, built_in_patches, gathered
from aether_converters.int8.plan import (
    HEAD,
    TARGETS,
    Grid,
    QuantisationPlan,
    Target,
    chosen_layers,
    recentred,
    shifted_layers,
    simulate,
    spanning_grid,
)
from aether_converters.int8.planning import Int8Options, quantise_network
from aether_converters.int8.rounding import rounded_rows, rounded_weights
from aether_converters.int8.tuning import (
    STEPS,
    Told,
    Workbench,
    tune,
    untold,
    without_costly_layers,
)
from aether_converters.int8.weights import quantised_weight
from aether_converters.measuring.figures import loss_of
from aether_converters.runtimes.upscaler import Image as Picture
from aether_converters.source import read_source
from aether_core import AetherConfig, AetherNet
from aether_spandrel.errors import CheckpointError
from tests.support.published import draw
from tests.support.tiny import tiny

UNTUNED = Int8Options(tune=0)


def network(**changes: Any) -> AetherNet:
    """A small fused network whose pictures lie between black and white."""
    made = tiny(**changes)
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
    return recentred(made.fuse_model().requires_grad_(False))


def checkpoint(folder: Path, **changes: Any) -> Path:
    path = folder / f"{changes.get('scale', 2)}x_tiny.pth"
    torch.save(network(**changes).state_dict(), path)
    return path


def patches(channels: int = 3, side: int = 32) -> Patches:
    drawn = built_in_patches(channels, 6, side)
    return Patches(seen=tuple(drawn[:4]), held_out=tuple(drawn[4:]))


def planned(made: AetherNet, target: Target, *, cut: bool = False) -> QuantisationPlan:
    layers = chosen_layers(made, target)
    return calibrate(made, target, layers, patches(made.config.in_chans).seen, form=Form(cut=cut))


def batch(pictures: Any) -> Tensor:
    return torch.from_numpy(np.concatenate(pictures))


def run(made: AetherNet, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        return made(pictures).clone()


# Even channels


@pytest.mark.parametrize(
    "changes",
    [{}, {"scale": 4}, {"scale": 3}, {"scale": 1}, {"in_chans": 1}],
    ids=["2x", "4x", "3x", "1x", "grey"],
)
def test_channels_of_like_size_give_the_same_picture(changes: dict[str, Any]):
    made = network(**changes)
    seen = batch(patches(made.config.in_chans).seen)
    layers = chosen_layers(made, "tensorrt")
    moved = migrated(made, channels_of_inputs(made, layers, seen), "tensorrt", [1.0])
    torch.testing.assert_close(run(moved, seen), run(made, seen), atol=2e-5, rtol=1e-5)
    before, after = (channels_of_inputs(n, layers, seen) for n in (made, moved))
    for passage in passages(made):
        for taker in set(passage.takers) & set(layers):
            sizes = [channels[taker].largest for channels in (before, after)]
            spread = [float(size.max() / size.min()) for size in sizes]
            assert spread[1] < min(spread[0], 1.01), taker


@pytest.mark.parametrize("target", TARGETS)
def test_grids_that_a_move_leaves_alone_are_those_that_would_be_found_anew(target: Target):
    made, seen = network(), patches().seen
    layers = chosen_layers(made, target)
    plan = calibrate(made, target, layers, seen)
    inputs = channels_of_inputs(made, layers, batch(seen))
    moved = migrated(
        made, inputs, target, [1.0], wanted=lambda passage: passage.giver.endswith("fc1_main")
    )
    others = {name for name in layers if name.endswith((".fc1_main", ".fc2"))}
    known = unmoved(plan, others)
    assert known
    found = calibrate(moved, target, layers, seen, known=known)
    anew = calibrate(moved, target, layers, seen)
    for grids, expected in zip(
        (found.inputs, found.outputs, found.activations),
        (anew.inputs, anew.outputs, anew.activations),
        strict=True,
    ):
        assert grids.keys() == expected.keys()
        for name, grid in grids.items():
            assert grid.scale == pytest.approx(expected[name].scale, rel=1e-4), name
    assert any(grid != plan.inputs[name] for name, grid in found.inputs.items())


@pytest.mark.parametrize("revision", ["G5f", "G4", "G3"])
def test_channels_of_other_revisions_move_too(revision: str, tmp_path: Path):
    torch.save(draw(revision, fused=True), tmp_path / "a.pth")
    source = read_source(tmp_path / "a.pth")
    made = quantise_network(source.network, "tensorrt", UNTUNED).network
    seen = batch(patches(made.config.in_chans).seen)
    layers = chosen_layers(made, "tensorrt")
    moved = migrated(made, channels_of_inputs(made, layers, seen), "tensorrt", [1.0])
    torch.testing.assert_close(run(moved, seen), run(made, seen), atol=1e-4, rtol=1e-4)


def uneven(head: float = 1.0) -> AetherNet:
    """A network whose channels before the last layer differ, and whose weights make up for it."""
    made = network()
    with torch.no_grad():
        giver = cast(nn.Conv2d, cast(Any, made.upsample)[0])
        factors = torch.logspace(-1, 1, 64) * head
        rows = factors.repeat_interleave(4)
        giver.weight.mul_(rows[:, None, None, None])
        cast(Tensor, giver.bias).mul_(rows)
        made.conv_last.weight.div_(factors[:, None, None])
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make", [network, uneven])
def test_channels_move_as_far_as_it_pays(target: Target, make: Callable[[], AetherNet]):
    made = make()
    layers = chosen_layers(made, target)
    seen, unseen = batch(patches().seen), batch(patches().held_out)
    inputs = channels_of_inputs(made, layers, seen)

    def error(*strengths: float) -> float:
        moved = migrated(made, inputs, target, strengths or STRENGTHS)
        plan = calibrate(moved, target, layers, patches().seen)
        rounded = simulate(moved, plan)
        return float((run(rounded, unseen) - run(made, unseen)).square().mean())

    assert error() < 1.2 * min(error(0.0), error(1.0))


# Ranges


def test_what_an_activation_makes_little_of_takes_little_room_of_a_range():
    made = network()
    found: list[Tensor] = []
    made.get_submodule(HEAD).register_forward_hook(
        lambda _layer, _inputs, given: found.append(cast(Tensor, given))
    )
    run(made, batch(patches().seen))
    low, high = (float(end) for end in torch.aminmax(found[0]))

    def error(grid: Grid) -> float:
        left = F.leaky_relu(grid.rounded(found[0]), 0.01) - F.leaky_relu(found[0], 0.01)
        return float(left.square().mean())

    assert error(planned(made, "cpu").outputs[HEAD]) < 0.5 * error(
        spanning_grid(low, high, signed=False)
    )


def test_a_range_that_one_colour_alone_needs_is_not_cut_off():
    made = network()
    with torch.no_grad():
        made.conv_first.weight[0] = 0.3  # a channel that grows with the light
    dark = [0.2 * patch for patch in built_in_patches(3, 10, 32)]
    white = np.ones_like(dark[0])

    def error(*seen: Picture) -> float:
        plan = calibrate(made, "tensorrt", chosen_layers(made, "tensorrt"), seen)
        found, exact = (run(each, batch([white])) for each in (simulate(made, plan), made))
        return float((found - exact).square().mean())

    assert error(*dark, white) < 1.5 * error(white, *dark)


# Weights rounded together


def alike(size: int, count: int = 4000) -> Tensor:
    """Inputs of a weight as neighbouring pixels are: one like the other."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(count, 1, generator=generator)
    return common + 0.2 * torch.randn(count, size, generator=generator)


def test_errors_of_rounded_weights_cancel_where_inputs_are_alike():
    weight = torch.randn(1, 8, 36, generator=torch.Generator().manual_seed(2))
    inputs = alike(36)
    inputs -= inputs.mean(dim=0)
    found = rounded_rows(weight, (inputs.t() @ inputs / len(inputs))[None])
    integers, steps = quantised_weight(weight[0], paired=False)
    nearest = integers * steps[:, None]

    def error(rounded: Tensor) -> float:
        return float((inputs @ (rounded - weight[0]).t()).square().mean())

    assert error(found[0]) < 0.1 * error(nearest)


@pytest.mark.parametrize("everything", [False, True], ids=["default", "every layer"])
def test_rounded_weights_are_found_again_from_themselves(everything: bool):
    made = network()
    layers = chosen_layers(made, "cpu", everything=everything)
    plan = calibrate(made, "cpu", layers, patches().seen)
    rounded = rounded_weights(made, plan, batch(patches().seen))
    for name in plan.inputs:
        weight = cast(nn.Conv2d, rounded.get_submodule(name)).weight
        integers, steps = quantised_weight(weight, paired=plan.pairs(name, weight))
        again = integers * steps.reshape(-1, *[1] * (weight.dim() - 1))
        torch.testing.assert_close(again, weight, atol=0, rtol=1e-6)


# What lies below 0


def dark() -> AetherNet:
    """A network of whose head's first results most lie below 0, as those of trained ones do."""
    made = network()
    first = cast(nn.Conv2d, made.get_submodule(HEAD))
    given: list[Tensor] = []
    hook = first.register_forward_hook(lambda _layer, _inputs, x: given.append(cast(Tensor, x)))
    run(made, batch(patches().seen))
    hook.remove()
    with torch.no_grad():
        by_channel = given[0].transpose(0, 1).flatten(1)
        cast(Tensor, first.bias).sub_(by_channel.quantile(0.85, dim=1))
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_cut_off_below_0_others_stand_for(target: Target, monkeypatch: pytest.MonkeyPatch):
    made, (behind,) = dark(), shifted_layers(network().config)
    plan = planned(made, target, cut=True).only([behind])
    assert plan.inputs[behind].zero_point == plan.inputs[behind].limits[0]
    seen, unseen = batch(patches().seen), batch(patches().held_out)

    def error() -> float:
        rounded = simulate(rounded_weights(made, plan, seen), plan)
        return float((run(rounded, unseen) - run(made, unseen)).square().mean())

    def none(_config: AetherConfig) -> tuple[str, ...]:
        return ()

    compensated = error()
    monkeypatch.setattr(rounding, "shifted_layers", none)  # nothing to stand for
    assert compensated < 0.8 * error()


def test_what_is_not_below_0_is_rounded_once_for_a_cpu():
    plan = planned(dark(), "cpu", cut=True)
    (behind,) = shifted_layers(network().config)
    assert plan.outputs[HEAD] == plan.inputs[behind]
    assert plan.outputs[HEAD].zero_point == 0
    assert HEAD in plan.only([HEAD, behind]).outputs
    assert HEAD not in plan.only([HEAD]).outputs  # nothing would make up for it


def test_the_cut_is_kept_when_channels_move_and_for_the_other_target(tmp_path: Path):
    model = tmp_path / "dark.pth"
    torch.save(dark().state_dict(), model)
    options = Int8Options(targets=("cpu",), tune=0.1)
    (made,) = convert(model, tmp_path, to=["pth"], precision=["int8"], int8=options).artefacts
    assert "activation cut at 0" in str(made.details["tuning"])
    kept = read_source(made.path)
    for target in TARGETS:
        found = quantise_network(kept.network, target, UNTUNED, metadata=kept.checkpoint.metadata)
        assert found.plan.cuts(found.network.config), target


# Learning from the float network


def lessons(made: AetherNet, count: int, batches: int) -> Lessons:
    pictures = batch(built_in_patches(made.config.in_chans, count, 32))
    return Lessons(
        taken=pictures,
        run=whole,
        expected=run(made, pictures),
        batches=batches,
        batch=2,
        rate=1.0,
        until=time.monotonic() + 1e6,
    )


def unused(*_: object) -> QuantisationPlan:
    raise AssertionError("nothing is calibrated here")


def quiet(_done: int, _total: int, _error: float) -> None:
    pass


def test_an_error_that_places_share_counts_more_than_one_that_averages_out():
    signs = torch.ones(2, 1, 3, 64, 64)
    grains, halves = signs
    grains[..., ::2] = -1
    halves[..., :32] = -1  # over the whole patch this averages out, too
    assert float(picture_error(halves)) == 11 * float(picture_error(grains))


@pytest.mark.parametrize("target", TARGETS)
def test_a_network_learns_what_its_rounding_has_lost(target: Target):
    made = network()
    spoilt = copy.deepcopy(made)
    with torch.no_grad():
        cast(Tensor, spoilt.conv_last.bias).add_(0.01)
    plan = planned(made, target)
    start = Rounded(network=spoilt, plan=plan, exact=spoilt)
    *_, end = distilled(start, lessons(made, 8, 60), quiet)
    unseen = batch(built_in_patches(3, 12, 32)[8:])

    def error(state: Rounded) -> float:
        found = run(simulate(state.network, state.plan), unseen)
        return float((found - run(made, unseen)).square().mean())

    assert error(end) < 0.3 * error(start)


@pytest.mark.parametrize(("seconds", "every"), [(20.0, True), (1.0, False)])
def test_a_slow_first_batch_takes_no_other_where_there_is_time(seconds: float, every: bool):
    made = network()
    shown: list[int] = []

    def slow_at_first(rounded: AetherNet, pictures: Tensor) -> Tensor:
        if not shown:
            time.sleep(1)
        return whole(rounded, pictures)

    def note(done: int, _total: int, _error: float) -> None:
        shown.append(done)

    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
    taught = replace(lessons(made, 8, 40), run=slow_at_first, until=time.monotonic() + seconds)
    assert list(distilled(start, taught, note))
    assert (len(shown) == 40) == every


def test_how_large_a_layer_is_scaled_has_no_say_in_how_it_learns():
    left: list[float] = []
    for scale in (1.0, 1000.0):
        made = uneven(scale)
        start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
        *_, end = distilled(start, lessons(made, 8, 30), quiet)
        unseen = batch(built_in_patches(3, 12, 32)[8:])
        found = run(simulate(end.network, end.plan), unseen)
        left.append(float((found - run(made, unseen)).square().mean()))
    assert 0.5 < left[1] / left[0] < 2


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_learnt_from_what_lies_beyond_white(target: Target):
    made = network()
    with torch.no_grad():
        cast(Tensor, made.conv_last.bias).add_(2.0)
    start = Rounded(network=made, plan=planned(made, target), exact=made)
    errors: list[float] = []
    assert float(run(made, batch(patches().seen)).min()) > 1
    list(distilled(start, lessons(made, 4, 2), lambda _done, _of, error: errors.append(error)))
    assert errors == [0, 0]


def test_learning_twice_gives_the_same():
    made = network()
    start = Rounded(network=made, plan=planned(made, "cpu"), exact=made)
    first, again = (list(distilled(start, lessons(made, 4, 6), quiet))[-1] for _ in range(2))
    assert first.plan == again.plan
    for one, other in zip(
        first.network.state_dict().values(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_time_that_is_over_ends_the_learning_with_what_was_learnt():
    made = network()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
    done: list[int] = []
    few = lessons(made, 4, 10_000)
    few = replace(few, until=time.monotonic() + 0.5)
    states = list(distilled(start, few, lambda count, _total, _error: done.append(count)))
    assert states
    assert len(done) < 10_000


def test_a_step_has_its_share_of_what_was_asked_for_and_of_what_is_left():
    made = network()

    def granted(spent: float) -> float:
        began = time.monotonic() - spent
        bench = Workbench(
            exact=made, patches=patches(), calibrated=unused, seconds=180, began=began
        )
        return bench.granted(0.5, 0.5)

    assert granted(0) == 90
    assert granted(140) == pytest.approx(60, abs=1)  # half of 80 + 180 - 140
    assert granted(1000) == 30  # a third, however late it is


def test_the_float_network_is_run_once_on_each_picture():
    made, runs = network(), list[object]()

    def note(_network: nn.Module, _inputs: object, output: object) -> None:
        runs.append(output)

    made.register_forward_hook(note)
    shown = gathered([], 3)
    bench = Workbench(exact=made, patches=shown, calibrated=unused)
    runs.clear()
    found = bench.made_of(shown.seen)
    assert torch.equal(bench.made_of(shown.learnt_from)[: len(shown.seen)], found)
    assert len(runs) == len(shown.learnt_from)
    assert torch.allclose(found, run(made, batch(shown.seen)), atol=1e-5)


# Step after step


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("changes", [{}, {"in_chans": 1, "scale": 3}], ids=["RGB", "grey"])
def test_no_step_makes_it_worse(target: Target, changes: dict[str, Any]):
    made = network(**changes)
    start = Rounded(network=made, plan=planned(made, target), exact=made)
    bench = bench_of(made, target)
    best, gains = tune(start, bench)
    assert [gain.step for gain in gains] == ["calibrated", *(step.name for step in STEPS)]
    assert bench.measured(best)[0] < bench.measured(start)[0]


def bench_of(
    made: AetherNet,
    target: Target,
    told: Told = untold,
    *,
    everything: bool = False,
    may_lose: float = 1.0,
) -> Workbench:
    return Workbench(
        everything=everything,
        may_lose=may_lose,
        exact=made,
        patches=patches(made.config.in_chans),
        calibrated=lambda before, made, _moved: planned(made, target, cut=before.cuts(made.config)),
        seconds=1.0,
        told=told,
    )


def test_whoever_interrupts_gets_the_best_so_far():
    made = network()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)

    def interrupt(step: str, _done: int, _total: int) -> None:
        if "left" in step:
            raise KeyboardInterrupt

    bench = bench_of(made, "tensorrt", told=interrupt)
    best, gains = tune(start, bench)
    assert "interrupted" in gains[-1].in_words
    assert bench.measured(best)[0] < bench.measured(start)[0]


def test_whoever_is_asked_to_end_altogether_ends():
    class Terminated(KeyboardInterrupt):
        pass

    def terminate(step: str, _done: int, _total: int) -> None:
        if "left" in step:
            raise Terminated

    made = network()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
    with pytest.raises(Terminated):
        tune(start, bench_of(made, "tensorrt", told=terminate))


# Pictures


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_icon_is_mixed_in_and_does_not_replace_what_is_built_in(mode: str, tmp_path: Path):
    Image.new(mode, (20, 20), 77 if mode == "L" else (200, 10, 10)).save(tmp_path / "icon.png")
    own, built_in = gathered([tmp_path / "icon.png"], 3), gathered([], 3)
    assert len(own.seen) == len(built_in.seen) + 1
    assert len(own.held_out) == len(built_in.held_out)


def test_patches_on_which_a_network_is_measured_are_not_those_it_learns_from():
    found = gathered([], 3)
    assert found.held_out
    seen = (*found.seen, *found.more)
    assert not any(np.array_equal(a, b) for a in found.held_out for b in seen)


def test_colours_are_made_even_on_soft_patches_and_on_the_user_s_as_they_are(tmp_path: Path):
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "own.png")
    found = gathered([tmp_path], 3, more=4)
    drawn = (*gathered([], 3).seen, *found.more)
    smooth = found.smooth[:AMONG_TYPICAL]
    assert len(found.typical) == len(drawn) + len(smooth) + 1
    assert sum(np.array_equal(a, found.seen[1]) for a in found.typical) == 1

    def detail(shown: Sequence[Picture]) -> float:
        return float(np.mean([np.abs(np.diff(patch)).mean() for patch in shown]))

    soft = [patch for patch in found.typical if not np.array_equal(patch, found.seen[1])]
    assert 0.5 < detail(soft) / detail((*drawn, *smooth)) < 0.95


def test_every_flat_colour_is_shown_and_measured():
    found = gathered([], 3)
    for patches_of in (found.shown, found.measured):
        colours = {
            tuple(patch[0, :, 0, 0]) for patch in patches_of if patch.std(axis=(2, 3)).max() == 0
        }
        assert colours == {tuple(patch[0, :, 0, 0]) for patch in found.flat}
        assert len(colours) == 11


# Layers that cost too much


def costly() -> AetherNet:
    """A network with a channel before the last layer that no step of 8 bits can hold."""
    made = network()
    with torch.no_grad():
        head, last = cast(Any, made.upsample)[0], made.conv_last
        head.weight[:4].mul_(300.0)
        cast(Tensor, head.bias)[:4].mul_(300.0)
        last.weight[:, 0].div_(300.0)
    return made


def saved_costly(folder: Path) -> Path:
    torch.save(costly().state_dict(), folder / "2x_costly.pth")
    return folder / "2x_costly.pth"


def test_a_layer_that_costs_too_much_stays_float_by_itself_and_is_named(tmp_path: Path):
    report = convert(
        saved_costly(tmp_path), tmp_path / "a", to=["onnx"], precision=["int8"], int8=UNTUNED
    )
    (artefact,) = report.artefacts
    assert artefact.passed, artefact.problem
    assert "conv_last stays float" in str(artefact.details["ranges"])


def test_as_many_layers_stay_float_as_a_network_may_not_lose():
    made = network()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)

    def left(may_lose: float) -> tuple[Rounded, list[str]]:
        return without_costly_layers(start, bench_of(made, "tensorrt", may_lose=may_lose))

    lost = loss_of(10 ** (-bench_of(made, "tensorrt").measured(start)[1] / 10))
    whole, named = left(1.01 * lost)
    assert (whole, named) == (start, [])
    half, of_half = left(lost / 2)
    tenth, of_tenth = left(lost / 10)
    assert len(start.plan.inputs) > len(half.plan.inputs) > len(tenth.plan.inputs)
    assert 0 < len(of_half) < len(of_tenth)
    for state, share in ((half, 2), (tenth, 10)):
        psnr = bench_of(made, "tensorrt").measured(state)[1]
        assert loss_of(10 ** (-psnr / 10)) <= lost / share


def test_whoever_wants_every_layer_gets_every_layer(tmp_path: Path):
    source = read_source(saved_costly(tmp_path))
    made = quantise_network(source.network, "tensorrt", Int8Options(tune=0, everything=True))
    assert "conv_last" in made.plan.inputs


def test_what_a_layer_costs_because_of_one_channel_tuning_mends(tmp_path: Path):
    source = read_source(saved_costly(tmp_path))
    made = quantise_network(source.network, "tensorrt", Int8Options(tune=0.5))
    assert not any("stays float" in note for note in made.notes)


# Which layers


def test_the_last_layer_in_float_costs_nothing_more():
    made = costly()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
    bench = bench_of(made, "tensorrt")
    (step,) = (step for step in STEPS if step.name == "last layer in float")
    (state,) = step.states(start, bench)
    assert set(start.plan.inputs) - set(state.plan.inputs) == {"conv_last"}
    assert bench.measured(state)[0] < step.worth * bench.measured(start)[0]


def test_whoever_wants_every_layer_keeps_the_last_one_too():
    made = network()
    start = Rounded(network=made, plan=planned(made, "tensorrt"), exact=made)
    best, gains = tune(start, bench_of(made, "tensorrt", everything=True))
    assert "conv_last" in best.plan.inputs
    assert [gain.kept for gain in gains if gain.step == "last layer in float"] == [False]


# The head alone


def test_the_head_of_a_network_makes_its_picture_of_what_its_body_gives():
    made = network(scale=4)
    pictures = batch(patches().seen)
    features: list[Tensor] = []
    made.conv_before_upsample.register_forward_pre_hook(
        lambda _head, inputs: features.append(inputs[0])
    )
    pictured = run(made, pictures)
    with torch.inference_mode():
        torch.testing.assert_close(of_head(made, features[0]), pictured, atol=1e-6, rtol=1e-5)


# What was learnt is kept


@pytest.mark.parametrize("target", TARGETS)
def test_a_tuned_checkpoint_is_converted_again_without_tuning(target: Target, tmp_path: Path):
    options = Int8Options(targets=(target,), tune=0.5)
    model = checkpoint(tmp_path, scale=1)
    first = convert(model, tmp_path / "a", to=["pth", "onnx"], precision=["int8"], int8=options)
    assert first.passed, [artefact.problem for artefact in first.artefacts]
    kept, graph = (artefact.path for artefact in first.artefacts)
    (again,) = convert(
        kept, tmp_path / "b", to=["onnx"], precision=["int8"], int8=options
    ).artefacts
    assert "tuned before" in str(again.details["ranges"])
    assert "tuning" not in again.details
    before, after = (numbers(path) for path in (graph, again.path))
    for one, other in zip(before, after, strict=True):
        if one.dtype == np.int8:
            assert np.array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-5)


def numbers(path: Path) -> list[Any]:
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]


def test_a_tuned_checkpoint_serves_the_other_target_and_one_size(tmp_path: Path):
    model = checkpoint(tmp_path, scale=1)
    convert(model, tmp_path / "a", to=["pth"], precision=["int8"], int8=Int8Options(tune=0.5))
    report = convert(
        tmp_path / "a" / "1x_tiny_int8.pth",
        tmp_path / "b",
        to=["onnx"],
        precision=["int8"],
        shape=(1, 3, 24, 32),
        int8=Int8Options(targets=TARGETS),
    )
    assert report.passed, [artefact.problem for artefact in report.artefacts]
    again = verify(model, [artefact.path for artefact in report.artefacts])
    assert all(artefact.passed for artefact in again.artefacts)


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        '{"target": "gpu", "inputs": {}, "outputs": {}, "activations": {}}',
        '{"target": "cpu", "inputs": {"x": [1, 0, true]}, "outputs": {}, "activations": {}}',
        '{"target": "cpu", "inputs": {"conv_after_body": [1, 128, false]}, "outputs": {}, '
        '"activations": {}, "joined": [1, 300, false, 2]}',
        '{"target": "tensorrt", "inputs": {"conv_after_body": [1, 0, true]}, "outputs": {}, '
        '"activations": {}, "joined": [1, 0, true, 1]}',
        '{"target": "cpu", "inputs": {"conv_last": [-1, 0, true]}, "outputs": {}, '
        '"activations": {}}',
        '{"target": "cpu", "inputs": {"conv_last": [1, 900, true]}, "outputs": {}, '
        '"activations": {}}',
        '{"target": "cpu", "inputs": {"conv_last": [1, 0, false, 2]}, "outputs": {}, '
        '"activations": {}}',
        '{"target": "cpu", "inputs": {"conv_last": [1, 0, false]}, "outputs": {"conv_last": '
        '[1, 0, false, 1000000]}, "activations": {}}',
        '{"target": "cpu", "inputs": {"conv_last": [1, 0, false]}, "outputs": {"conv_last": '
        '[1, 0, true, 2]}, "activations": {}}',
        '{"target": "cpu", "inputs": {"conv_last": [1, 0, false]}, "outputs": {"upsample.0": '
        '[1, 0, false, 2]}, "activations": {}}',
        '{"target": "cpu", "inputs": {"conv_before_upsample.0": [1, 128, false, 2]}, '
        '"outputs": {}, "activations": {}}',
        '{"target": "tensorrt", "inputs": {"conv_before_upsample.0": [1, 255, false, 2]}, '
        '"outputs": {}, "activations": {}}',
    ],
)
def test_a_damaged_plan_is_refused(damage: str, tmp_path: Path):
    content = {"state_dict": network().state_dict(), "metadata": {"int8_plan": damage}}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="what int8 tuning left"):
        convert(tmp_path / "a.pth", tmp_path / "b", to=["onnx"], precision=["int8"])
