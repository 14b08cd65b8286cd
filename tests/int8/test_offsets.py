"""Flat colours come out as the float network's, and nothing else changes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from aether_converters.int8.calibration import Form, calibrate
from aether_converters.int8.distillation import Rounded
from aether_converters.int8.offsets import (
    Colours,
    Search,
    can_move_last,
    with_offsets_of_head,
    with_offsets_of_last,
)
from aether_converters.int8.patches import built_in_patches, smooth_patches
from aether_converters.int8.plan import (
    HEAD,
    LAST,
    SUM,
    QuantisationPlan,
    Target,
    chosen_layers,
    recentred,
    simulate,
    spanning_grid,
)
from aether_converters.int8.rounding import rounded_weights
from aether_converters.measuring.colour import LEVELS, flat_patches
from aether_core import AetherNet
from tests.support.tiny import tiny

TRIES = 60

Told = Callable[[int, int], None]


def rounded(
    target: Target,
    *,
    joined: bool = False,
    of: tuple[str, ...] = (SUM, HEAD),
) -> Rounded:
    """A network with rounded weights."""
    made = tiny()
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
    exact = recentred(made.fuse_model().requires_grad_(False))
    seen = built_in_patches(3, 4, 32)
    plan = calibrate(exact, target, chosen_layers(exact, target), seen, form=Form(joined=joined))
    # What offsets can do something about:
    outputs = {name: grid for name, grid in plan.outputs.items() if name in of and name != HEAD}
    plan = replace(plan.only(of), outputs=outputs)
    network = rounded_weights(exact, plan, torch.from_numpy(np.concatenate(seen)))
    return Rounded(network=network, plan=plan, exact=exact)


def flat() -> Tensor:
    return torch.from_numpy(np.concatenate(list(flat_patches(3).values())[::3]))


def drawn() -> Tensor:
    return torch.from_numpy(np.concatenate(built_in_patches(3, 3, 64)))


def run(network: AetherNet, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(pictures).clamp(0, 1)


def colours_of(exact: AetherNet) -> Colours:
    return Colours(
        flat=flat(), typical=drawn(), of_flat=run(exact, flat()), of_typical=run(exact, drawn())
    )


def search(tries: int = TRIES, until: float = math.inf, told: Told | None = None) -> Search:
    return Search(most=tries, until=until, progress=told or (lambda _done, _total: None))


def shift_of_flat(found: Rounded, exact: AetherNet) -> float:
    """Fourth powers of how far the colours of flat patches move."""
    moved = run(simulate(found.network, found.plan), flat()) - run(exact, flat())
    return float(moved.mean(dim=(2, 3)).double().pow(4).sum())


def shift_of_others(found: Rounded, exact: AetherNet) -> float:
    """How far a colour moves on average over all other patches, in levels."""
    moved = run(simulate(found.network, found.plan), drawn()) - run(exact, drawn())
    return LEVELS * float(moved[:, :, 16:-16, 16:-16].mean(dim=(0, 2, 3)).abs().max())


def changed(before: Rounded, after: Rounded) -> set[str]:
    state = before.network.state_dict()
    return {
        key for key, tensor in after.network.state_dict().items() if not tensor.equal(state[key])
    }


def assert_same_picture(before: AetherNet, after: AetherNet, up_to: float = 1e-5) -> None:
    """Unrounded they compute the same, but for part of a step at the border."""
    picture = torch.from_numpy(built_in_patches(3, 1, 48)[0])
    found, expected = run(after, picture), run(before, picture)
    inside = slice(8, -8)
    torch.testing.assert_close(
        found[:, :, inside, inside], expected[:, :, inside, inside], atol=up_to, rtol=0
    )
    assert (found - expected).abs().max() < 1 / LEVELS


@pytest.mark.parametrize(
    ("target", "joined"),
    [("tensorrt", False), ("cpu", False), ("cpu", True)],
    ids=["TensorRT", "CPU, two sums", "CPU, one sum"],
)
def test_flat_colours_move_less_and_nothing_else_changes(target: Target, joined: bool):
    before = rounded(target, joined=joined)
    told: list[tuple[int, int]] = []
    after = with_offsets_of_head(
        before,
        colours_of(before.exact),
        search(told=lambda done, total: told.append((done, total))),
    )
    assert told == [(done + 1, TRIES) for done in range(TRIES)]
    assert shift_of_flat(after, before.exact) < 0.7 * shift_of_flat(before, before.exact)
    others = shift_of_others(before, before.exact)
    assert shift_of_others(after, before.exact) < max(others, 0.05)
    assert_same_picture(before.network, after.network)
    assert changed(before, after) == {f"{SUM}.bias", f"{HEAD}.bias"}


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_the_last_layer_takes_is_moved_too(target: Target):
    before = rounded(target, of=("upsample.0", LAST))
    assert can_move_last(before)
    after = with_offsets_of_last(before, colours_of(before.exact), search(20 * TRIES))
    assert shift_of_flat(after, before.exact) < 0.3 * shift_of_flat(before, before.exact)
    assert shift_of_others(after, before.exact) < 0.1
    # The picture's own colours are moved by a part of a level, where all others were off.
    assert_same_picture(before.network, after.network, 0.5 / LEVELS)
    assert changed(before, after) == {"upsample.0.bias", f"{LAST}.bias", f"{LAST}.weight"}


def test_offsets_found_are_of_what_a_file_computes():
    """A second search, which begins where the first ended, finds nothing worse there."""
    before = rounded("cpu", of=("upsample.0", LAST))
    colours = colours_of(before.exact)
    once = with_offsets_of_last(before, colours, search(10 * TRIES))
    twice = with_offsets_of_last(once, colours, search(10 * TRIES))
    assert shift_of_flat(twice, before.exact) <= 1.05 * shift_of_flat(once, before.exact)


def test_a_layer_may_go_back_to_float_afterwards():
    """The weights it had are of a network that has the offsets, too."""
    before = rounded("cpu", of=(SUM, HEAD, "upsample.0", LAST))
    colours = colours_of(before.exact)
    after = with_offsets_of_head(before, colours, search())
    after = with_offsets_of_last(after, colours, search())
    biases = {f"{name}.bias" for name in (SUM, HEAD, "upsample.0", LAST)}
    assert changed(before, after) == {*biases, f"{LAST}.weight"}
    assert_same_picture(before.exact, after.exact, 0.1 / LEVELS)


def test_behind_an_activation_nothing_is_moved():
    """What it takes would be moved by more than an offset, or by less."""
    made = tiny(scale=1).fuse_model()
    plan = QuantisationPlan(target="cpu", inputs={LAST: spanning_grid(0, 1, signed=False)})
    assert not can_move_last(Rounded(network=made, plan=plan, exact=made))


@pytest.mark.parametrize("move", [with_offsets_of_head, with_offsets_of_last])
def test_the_same_offsets_are_found_each_time(
    move: Callable[[Rounded, Colours, Search], Rounded],
):
    before = rounded("tensorrt", of=(SUM, HEAD, LAST))
    first, second = (move(before, colours_of(before.exact), search()) for _ in range(2))
    assert changed(before, first)
    assert not changed(first, second)


def test_when_the_time_is_over_the_best_so_far_counts():
    before = rounded("tensorrt", of=(LAST,))
    told: list[tuple[int, int]] = []
    over = search(until=time.monotonic() - 1, told=lambda done, total: told.append((done, total)))
    after = with_offsets_of_last(before, colours_of(before.exact), over)
    assert not told
    assert not changed(before, after)


# Colours that are too strong


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_colours_that_are_too_strong_are_mended(target: Target):
    before = rounded(target, of=("upsample.0", LAST))
    stronger = copy.deepcopy(before.network)
    with torch.no_grad():
        stronger.conv_last.weight.mul_(torch.tensor([1.002, 1.0, 0.998])[:, None, None, None])
        cast(Tensor, stronger.conv_last.bias).add_(torch.tensor([0.001, -0.001, 0.001]))
    worse = replace(before, network=stronger)
    mended = with_offsets_of_last(worse, colours_of(before.exact), search(20 * TRIES))
    assert shift_of_others(worse, before.exact) > 0.25
    assert shift_of_others(mended, before.exact) < 0.1
    given, made = (state.network.conv_last.weight for state in (worse, mended))
    gains = (given * made).sum(dim=(1, 2, 3)) / given.square().sum(dim=(1, 2, 3))
    assert (gains != 1).all()
    # The steps of the weights are others, and the integers the same.
    torch.testing.assert_close(made, gains[:, None, None, None] * given, atol=1e-6, rtol=1e-5)


def test_what_ends_at_black_and_white_tells_nothing():
    before = rounded("tensorrt", of=(LAST,))
    black = flat()[:1] * 0
    colours = replace(colours_of(before.exact), typical=black, of_typical=black.repeat(1, 1, 2, 2))
    after = with_offsets_of_last(before, colours, search())
    assert shift_of_flat(after, before.exact) <= shift_of_flat(before, before.exact)
    assert_same_picture(before.network, after.network, 0.5 / LEVELS)


def test_smooth_patches_hold_all_colours_and_no_edges():
    patches = np.concatenate(smooth_patches(3, 16))
    assert patches.shape == (16, 3, 64, 64)
    assert np.abs(np.diff(patches, axis=2)).max() < 8 / LEVELS
    assert patches.min() < 0.05
    assert patches.max() > 0.95
