"""Flat colours come out as the float network's, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from aether_converters.int8.calibration import Form, calibrate
from aether_converters.int8.offsets import with_offsets
from aether_converters.int8.patches import built_in_patches
from aether_converters.int8.plan import (
    HEAD,
    SUM,
    QuantisationPlan,
    Target,
    chosen_layers,
    recentred,
    simulate,
)
from aether_converters.int8.rounding import rounded_weights
from aether_converters.measuring.colour import LEVELS, flat_patches
from aether_core import AetherNet
from tests.support.tiny import tiny

TRIES = 60


def rounded(target: Target, *, joined: bool) -> tuple[AetherNet, AetherNet, QuantisationPlan]:
    """A float network, the same with rounded weights, and what else is rounded."""
    made = tiny()
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
    exact = recentred(made.fuse_model().requires_grad_(False))
    seen = built_in_patches(3, 4, 32)
    plan = calibrate(exact, target, chosen_layers(exact, target), seen, form=Form(joined=joined))
    # What offsets can do something about:
    outputs = {name: grid for name, grid in plan.outputs.items() if name == SUM}
    plan = replace(plan.only([SUM, HEAD]), outputs=outputs)
    return exact, rounded_weights(exact, plan, torch.from_numpy(np.concatenate(seen))), plan


def flat() -> Tensor:
    return torch.from_numpy(np.concatenate(list(flat_patches(3).values())[::3]))


def drawn() -> Tensor:
    return torch.from_numpy(np.concatenate(built_in_patches(3, 3, 64)))


def run(network: AetherNet, pictures: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(pictures).clamp(0, 1)


@pytest.mark.parametrize(
    ("target", "joined"),
    [("tensorrt", False), ("cpu", False), ("cpu", True)],
    ids=["TensorRT", "CPU, two sums", "CPU, one sum"],
)
def test_flat_colours_move_less_and_nothing_else_changes(target: Target, joined: bool):
    exact, network, plan = rounded(target, joined=joined)
    told: list[tuple[int, int]] = []
    moved = with_offsets(
        network, plan, flat(), drawn(), exact, TRIES, lambda done, total: told.append((done, total))
    )
    assert told == [(done + 1, TRIES) for done in range(TRIES)]

    def shift(made: AetherNet) -> float:
        found = run(simulate(made, plan), flat()) - run(exact, flat())
        return float(found.mean(dim=(2, 3)).double().pow(4).sum())

    def typical(made: AetherNet) -> float:
        found = run(simulate(made, plan), drawn()) - run(exact, drawn())
        return LEVELS * float(found.mean(dim=(0, 2, 3)).abs().max())

    assert shift(moved) < 0.7 * shift(network)
    assert typical(moved) < max(typical(network), 0.05)
    picture = torch.from_numpy(built_in_patches(3, 1, 48)[0])
    before, after = run(network, picture), run(moved, picture)
    inside = slice(8, -8)
    torch.testing.assert_close(
        after[:, :, inside, inside], before[:, :, inside, inside], atol=1e-5, rtol=0
    )
    assert (after - before).abs().max() < 1 / LEVELS
    changed = {
        key for key, tensor in moved.state_dict().items() if not tensor.equal(kept(network, key))
    }
    assert changed == {f"{SUM}.bias", f"{HEAD}.bias"}


def kept(network: AetherNet, key: str) -> Tensor:
    return cast(Tensor, network.state_dict()[key])


def test_the_same_offsets_are_found_each_time():
    exact, network, plan = rounded("tensorrt", joined=False)
    first, second = (
        with_offsets(network, plan, flat(), drawn(), exact, 5, lambda _done, _total: None)
        for _ in range(2)
    )
    for key, tensor in first.state_dict().items():
        assert tensor.equal(kept(second, key)), key
