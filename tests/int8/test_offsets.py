"""Flat colours come out as the float network's, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from aether_converters.int8.calibration import Form, calibrate
from aether_converters.int8.offsets import (
    Colours,
    can_move_last,
    with_offsets_of_head,
    with_offsets_of_last,
)
from aether_converters.int8.patches import built_in_patches
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


Made = tuple[AetherNet, AetherNet, QuantisationPlan]


def rounded(target: Target, *, joined: bool = False, of: tuple[str, ...] = (SUM, HEAD)) -> Made:
    """A float network, the same with rounded weights, and what else is rounded."""
    made = tiny()
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
    exact = recentred(made.fuse_model().requires_grad_(False))
    seen = built_in_patches(3, 4, 32)
    plan = calibrate(exact, target, chosen_layers(exact, target), seen, form=Form(joined=joined))
    # What offsets can do something about:
    outputs = {name: grid for name, grid in plan.outputs.items() if name in of and name != HEAD}
    plan = replace(plan.only(of), outputs=outputs)
    return exact, rounded_weights(exact, plan, torch.from_numpy(np.concatenate(seen))), plan


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


def untold(_done: int, _total: int) -> None:
    """Tell nobody."""


def shift_of_flat(found: AetherNet, exact: AetherNet) -> float:
    """Fourth powers of how far the colours of flat patches move."""
    moved = run(found, flat()) - run(exact, flat())
    return float(moved.mean(dim=(2, 3)).double().pow(4).sum())


def shift_of_others(found: AetherNet, exact: AetherNet) -> float:
    """How far a colour moves on average over all other patches, in levels."""
    moved = run(found, drawn()) - run(exact, drawn())
    return LEVELS * float(moved[:, :, 16:-16, 16:-16].mean(dim=(0, 2, 3)).abs().max())


def changed(before: AetherNet, after: AetherNet) -> set[str]:
    return {
        key for key, tensor in after.state_dict().items() if not tensor.equal(kept(before, key))
    }


def kept(network: AetherNet, key: str) -> Tensor:
    return cast(Tensor, network.state_dict()[key])


@pytest.mark.parametrize(
    ("target", "joined"),
    [("tensorrt", False), ("cpu", False), ("cpu", True)],
    ids=["TensorRT", "CPU, two sums", "CPU, one sum"],
)
def test_flat_colours_move_less_and_nothing_else_changes(target: Target, joined: bool):
    exact, network, plan = rounded(target, joined=joined)
    told: list[tuple[int, int]] = []
    moved = with_offsets_of_head(
        network, plan, colours_of(exact), TRIES, lambda done, total: told.append((done, total))
    )
    assert told == [(done + 1, TRIES) for done in range(TRIES)]
    before, after = (simulate(made, plan) for made in (network, moved))
    assert shift_of_flat(after, exact) < 0.7 * shift_of_flat(before, exact)
    assert shift_of_others(after, exact) < max(shift_of_others(before, exact), 0.05)
    assert_same_picture(network, moved)
    assert changed(network, moved) == {f"{SUM}.bias", f"{HEAD}.bias"}


def assert_same_picture(network: AetherNet, moved: AetherNet, up_to: float = 1e-5) -> None:
    """Unrounded they compute the same, but for part of a step at the border."""
    picture = torch.from_numpy(built_in_patches(3, 1, 48)[0])
    before, after = run(network, picture), run(moved, picture)
    inside = slice(8, -8)
    torch.testing.assert_close(
        after[:, :, inside, inside], before[:, :, inside, inside], atol=up_to, rtol=0
    )
    assert (after - before).abs().max() < 1 / LEVELS


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_what_the_last_layer_takes_is_moved_too(target: Target):
    exact, network, plan = rounded(target, of=("upsample.0", LAST))
    assert can_move_last(network, plan)
    moved = with_offsets_of_last(network, plan, colours_of(exact), 20 * TRIES, untold)
    before, after = (simulate(made, plan) for made in (network, moved))
    assert shift_of_flat(after, exact) < 0.3 * shift_of_flat(before, exact)
    assert shift_of_others(after, exact) < 0.1
    # The picture's own colours are moved by a part of a level, where all others were off.
    assert_same_picture(network, moved, 0.5 / LEVELS)
    assert changed(network, moved) == {"upsample.0.bias", f"{LAST}.bias"}


def test_what_the_last_layer_takes_is_known_before_it_is_rounded():
    """Offsets found are those of what a file computes: no more is found in a second search."""
    exact, network, plan = rounded("cpu", of=("upsample.0", LAST))
    colours = colours_of(exact)
    moved = with_offsets_of_last(network, plan, colours, 10 * TRIES, untold)
    again = with_offsets_of_last(moved, plan, colours, 1, untold)
    torch.testing.assert_close(
        kept(again, f"{LAST}.bias"), kept(moved, f"{LAST}.bias"), atol=0.1 / LEVELS, rtol=0
    )
    first, second = (shift_of_flat(simulate(made, plan), exact) for made in (moved, again))
    assert second <= first * 1.05


def test_behind_an_activation_nothing_is_moved():
    """What it takes would be moved by more than an offset, or by less."""
    made = tiny(scale=1).fuse_model()
    plan = QuantisationPlan(target="cpu", inputs={LAST: spanning_grid(0, 1, signed=False)})
    assert not can_move_last(made, plan)


@pytest.mark.parametrize("search", [with_offsets_of_head, with_offsets_of_last])
def test_the_same_offsets_are_found_each_time(search: Any):
    exact, network, plan = rounded("tensorrt", of=(SUM, HEAD, LAST))
    first, second = (search(network, plan, colours_of(exact), TRIES, untold) for _ in range(2))
    assert changed(network, first)
    assert not changed(first, second)
