"""Channels between linear layers may be any mixture that the next layer can tell apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from aether_converters.int8.calibration import calibrate
from aether_converters.int8.mixing import Passing, mixed
from aether_converters.int8.plan import LAST, TARGETS, Target, chosen_layers, simulate
from aether_converters.int8.planning import Int8Options, quantise_network
from aether_converters.source import read_source
from aether_core import AetherNet
from tests.int8.test_tuning import batch, network, patches, planned, run
from tests.support.published import draw


def unseen(channels: int) -> Tensor:
    """Noise, which no built-in picture resembles."""
    return torch.rand(2, channels, 24, 20, generator=torch.Generator().manual_seed(3))


def moved(before: AetherNet, after: AetherNet) -> set[str]:
    """The layers whose weights have changed."""
    weights = after.state_dict()
    changed = {key for key, tensor in before.state_dict().items() if not tensor.equal(weights[key])}
    return {key.rpartition(".")[0] for key in changed}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, {"upsample.0", LAST}),
        ({"scale": 3}, {"upsample.0", LAST}),
        ({"scale": 4}, {"upsample.0", "upsample.2", LAST}),
        ({"in_chans": 1}, {"upsample.0", LAST}),
        ({"scale": 1}, set[str]()),
    ],
    ids=["2x", "3x", "4x", "grey", "1x"],
)
def test_mixed_channels_give_the_same_picture(
    changes: dict[str, Any], layers: set[str], target: Target
):
    made = network(**changes)
    channels = made.config.in_chans
    found = mixed(made, planned(made, target), batch(patches(channels).seen))
    assert moved(made, found) == layers
    image = unseen(channels)
    torch.testing.assert_close(run(found, image), run(made, image), atol=2e-5, rtol=1e-5)


def test_nothing_is_mixed_through_an_activation():
    with_activation = network(scale=1)
    without = AetherNet(replace(with_activation.config, head_activation=False)).eval()
    without.load_state_dict(with_activation.state_dict())
    seen = batch(patches().seen)
    assert not moved(with_activation, mixed(with_activation, planned(with_activation, "cpu"), seen))
    found = mixed(without, planned(without, "cpu"), seen)
    assert moved(without, found) == {"conv_before_upsample.0", LAST}
    torch.testing.assert_close(run(found, unseen(3)), run(without, unseen(3)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("revision", ["G5f", "G4", "G3"])
def test_channels_of_other_revisions_are_mixed_too(revision: str, tmp_path: Path):
    torch.save(draw(revision, fused=True), tmp_path / "a.pth")
    source = read_source(tmp_path / "a.pth")
    made = quantise_network(source.network, "tensorrt", Int8Options(tune=0)).network
    found = mixed(made, planned(made, "tensorrt"), batch(patches().seen))
    assert LAST in moved(made, found)
    image = unseen(3)
    torch.testing.assert_close(run(found, image), run(made, image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_what_passes_mixed_is_rounded_better(target: Target):
    made = network()
    found = mixed(made, planned(made, target), batch(patches().seen))
    held_out = batch(patches().held_out)

    def error(of: AetherNet) -> float:
        plan = replace(planned(of, target).only({LAST}), outputs={})  # what passes, and no picture
        return float((run(simulate(of, plan), held_out) - run(of, held_out)).square().mean())

    assert error(found) < 0.3 * error(made)


def test_a_layer_in_float_takes_channels_as_they_are():
    made = network()
    layers = [name for name in chosen_layers(made, "cpu") if name != LAST]
    plan = calibrate(made, "cpu", layers, patches().seen)
    assert not moved(made, mixed(made, plan, batch(patches().seen)))


@pytest.mark.parametrize("target", TARGETS)
def test_the_predicted_cost_is_the_measured_one(target: Target):
    """Of random channels between two random layers of one place each."""
    random = torch.Generator().manual_seed(4)
    giver, taker = (
        torch.randn(*shape, generator=random, dtype=torch.float64) for shape in ((12, 5), (3, 12))
    )
    inputs = torch.rand(5, 20_000, generator=random, dtype=torch.float64)
    given = giver @ inputs
    passing = Passing(
        rows=giver[:, None],
        power=float(inputs.square().mean(dim=1).sum()),
        moments=given @ given.T / given.shape[1],
        outermost=given,
        weight=taker[:, None],
    )
    predicted = float(passing.cost(torch.eye(12).double(), taker[:, None], target, 1e4)) / 12

    def rounded(weight: Tensor) -> Tensor:
        steps = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / steps).round() * steps

    least, most = float(given.min()), float(given.max())
    step = (most - least) / 255 if target == "cpu" else max(most, -least) / 127
    errors = [
        taker @ ((given / step).round() * step) - taker @ given,
        rounded(taker) @ given - taker @ given,
        taker @ (rounded(giver) @ inputs) - taker @ given,
    ]
    measured = sum(float(error.square().mean(dim=1).sum()) for error in errors)
    assert predicted == pytest.approx(measured, rel=0.5)


def test_mixing_is_the_same_each_time():
    made = network()
    plan, seen = planned(made, "cpu"), batch(patches().seen)
    first, second = (mixed(made, plan, seen).state_dict() for _ in range(2))
    assert all(tensor.equal(second[key]) for key, tensor in first.items())


def test_channels_that_are_all_zero_do_no_harm():
    made = network()
    with torch.no_grad():
        last = cast(nn.Conv2d, made.conv_last)
        last.weight[:, ::2] = 0
        last.weight[1:] = 0
    found = mixed(made, planned(made, "cpu"), batch(patches().seen))
    torch.testing.assert_close(run(found, unseen(3)), run(made, unseen(3)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [LAST, "upsample.0"])
def test_where_nothing_passes_nothing_is_mixed(layer: str):
    made = network()
    for tensor in made.get_submodule(layer).parameters():
        tensor.zero_()
    assert not moved(made, mixed(made, planned(made, "cpu"), batch(patches().seen)))
