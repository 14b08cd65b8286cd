"""Weights as integers of 8 bits that every kernel can add."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from aether_converters.graphs.onnx_graph import build_onnx
from aether_converters.int8.calibration import Form, calibrate
from aether_converters.int8.graph import quantise
from aether_converters.int8.keeping import kept_plan, plan_text
from aether_converters.int8.patches import built_in_patches
from aether_converters.int8.plan import (
    FIRST,
    HEAD,
    SUM,
    Grid,
    QuantisationPlan,
    by_sign,
    chosen_layers,
    layers_of,
    recentred,
    simulate,
)
from aether_converters.int8.rounding import rounded_rows
from aether_converters.int8.weights import PAIR_LIMIT, neighbours, quantised_weight
from aether_converters.runtimes.pytorch import TUNED
from aether_converters.source import read_source
from aether_core import AetherNet
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights
from tests.support.published import draw
from tests.support.tiny import tiny

SHAPES = [(8, 6), (8, 6, 1, 1), (8, 6, 3, 3), (8, 5, 3, 3), (8, 3), (3, 64, 3, 3)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def in_order_of_kernels(weight: Tensor) -> Tensor:
    """Rows (C_out, K) as they are multiplied: all channels of a place, then all of the next."""
    return weight.flatten(2).transpose(1, 2).flatten(1) if weight.dim() > 2 else weight


def most_of_two(rows: Tensor) -> float:
    """The most that two integers make together that are added in 16 bits."""
    even = rows[:, : rows.shape[1] // 2 * 2].int().reshape(len(rows), -1, 2)
    together = torch.stack([even.clamp(min=0).sum(dim=2), -even.clamp(max=0).sum(dim=2)])
    return float(together.max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_two_neighbours_are_more_than_16_bits_hold(shape: tuple[int, ...]):
    weight = drawn(shape)
    plain, _ = quantised_weight(weight, paired=False)
    integers, steps = quantised_weight(weight, paired=True)
    assert most_of_two(in_order_of_kernels(plain)) > PAIR_LIMIT  # or there is nothing to do
    assert most_of_two(in_order_of_kernels(integers)) <= PAIR_LIMIT
    rounded = integers * steps.reshape(-1, *[1] * (weight.dim() - 1))
    # One step where what is missing to a row's length is added, half a step elsewhere.
    assert float(((rounded - weight).flatten(1).abs().amax(dim=1) / steps).max()) <= 1.51


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers_are_found_again_from_what_they_stand_for(shape: tuple[int, ...], paired: bool):
    integers, steps = quantised_weight(drawn(shape), paired=paired)
    rounded = integers * steps.reshape(-1, *[1] * (len(shape) - 1))
    again, steps_again = quantised_weight(rounded, paired=paired)
    assert torch.equal(again, integers)
    torch.testing.assert_close(steps_again, steps)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_rows_of_one_value_and_none(value: float):
    integers, steps = quantised_weight(torch.full((2, 4), value), paired=True)
    torch.testing.assert_close(integers * steps[:, None], torch.full((2, 4), value))


@pytest.mark.parametrize("channels", [4, 5])
def test_neighbours_are_channels_of_one_place(channels: int):
    beside = neighbours((1, channels, 3, 3))
    assert torch.equal(beside[beside], torch.arange(9 * channels))
    if channels % 2 == 0:
        assert torch.equal(beside // 9, (torch.arange(9 * channels) // 9) ^ 1)
        assert torch.equal(beside % 9, torch.arange(9 * channels) % 9)


def test_weights_rounded_together_are_paired_too():
    shape = (8, 6, 3, 3)
    weight = drawn(shape).reshape(1, 8, 54)
    inputs = torch.randn(400, 54, generator=torch.Generator().manual_seed(3))
    found = rounded_rows(weight, (inputs.t() @ inputs / 400)[None], neighbours(shape))
    integers, steps = quantised_weight(found.reshape(shape), paired=True)
    torch.testing.assert_close(integers.flatten(1) * steps[:, None], found[0])


# What a file for CPUs holds


def planned(scale: int, *, everything: bool = False) -> tuple[AetherNet, QuantisationPlan]:
    made = tiny(scale=scale)
    with torch.no_grad():
        made.conv_last.weight.mul_(0.3)
        # As in a trained network: what the body gives is larger than the skip.
        made.conv_after_body.weight.mul_(2)
    network = recentred(made.fuse_model().requires_grad_(False))
    layers = chosen_layers(network, "cpu", everything=everything)
    return network, calibrate(network, "cpu", layers, built_in_patches(3, 4, 32))


def written(network: AetherNet, plan: QuantisationPlan) -> onnx.ModelProto:
    config = network.config
    channels = (config.in_chans, config.out_chans)
    model = build_onnx(network, channels=channels, scale=config.scale, layer_by_layer=True)
    return quantise(model, plan)


def run(
    model: onnx.ModelProto, image: Tensor, *, optimised: bool = True, **settings: str
) -> Tensor:
    runtime = cast(Any, onnxruntime)
    options = runtime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in settings.items():
        options.add_session_config_entry(f"session.{key}", value)
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return torch.from_numpy(session.run(None, {"input": image.numpy()})[0])


@pytest.mark.parametrize("everything", [False, True], ids=["default", "every layer"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_file_for_cpus_holds_nothing_that_16_bits_do_not(scale: int, everything: bool):
    network, plan = planned(scale, everything=everything)
    weights: dict[str, Tensor] = {
        tensor.name: torch.tensor(cast(Any, numpy_helper.to_array(tensor)))
        for tensor in written(network, plan).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    }
    layers = layers_of(network)
    depthwise = {name for name in plan.inputs if layers[name].weight.shape[1] == 1}
    for name in plan.inputs.keys() - depthwise:
        integers = weights[f"{name}.weight"]
        # Products of matrices have their weights as (C_in, C_out).
        rows = integers.t() if integers.dim() == 2 else in_order_of_kernels(integers)
        assert most_of_two(rows) <= PAIR_LIMIT, name


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_kernels_that_add_in_16_bits_compute_the_same(joined: bool):
    network, plan = planned(2) if joined else apart(2)
    levels = np.random.default_rng(0).choice([0, 255], (1, 3, 24, 24))
    picture = torch.from_numpy(levels / 255).float()
    model = written(network, plan)
    # onnxruntime has other kernels for those who ask, which add in 32 bits on every processor.
    assert torch.equal(run(model, picture), run(model, picture, x64quantprecision="1"))


# Body and skip in one sum


def test_the_head_takes_a_sum_that_is_rounded_once():
    network, plan = planned(2)
    assert plan.joined == plan.inputs[HEAD]
    assert SUM not in plan.outputs
    model = written(network, plan)
    taken = next(node for node in model.graph.node if node.name == HEAD)
    added = [node for node in model.graph.node if node.op_type == "Add"]
    assert not any(f"{SUM}.out" in node.input for node in added)
    makers = {name: node for node in model.graph.node for name in node.output}
    path = [makers[taken.input[0]]]
    while path[-1].name != SUM:
        path.append(makers[path[-1].input[0]])
    operators = [node.op_type for node in path]
    assert operators == ["DequantizeLinear", "QuantizeLinear", "Conv"]


def test_the_joined_skip_is_simulated_as_it_is_written():
    network, plan = planned(2)
    assert plan.joined
    assert_written_as_simulated(network, plan)


def assert_written_as_simulated(network: AetherNet, plan: QuantisationPlan) -> None:
    picture = torch.from_numpy(built_in_patches(3, 1, 40)[0])
    with torch.inference_mode():
        expected, exact = simulate(network, plan)(picture), network(picture).clamp(0, 1)
    found = run(written(network, plan), picture, optimised=False)
    # A sum that is rounded the other way moves one value by one step.
    assert (found - expected).abs().mean() < 0.1 * (expected - exact).abs().mean()


def test_a_skip_added_in_float_is_simulated_as_it_is_written():
    network, plan = apart(2)
    assert plan.joined is None
    assert_written_as_simulated(network, plan)


@pytest.mark.parametrize("layer", [SUM, FIRST, "layers.0.0.conv.fused_conv"])
def test_what_is_rounded_once_more_is_given_in_parts_of_steps(layer: str):
    network, plan = apart(2, everything=True)
    assert_written_as_simulated(network, plan.only({layer}))
    fine = plan.outputs[layer]
    steps = Grid(fine.pieces * fine.scale, round(fine.zero_point / fine.pieces), signed=False)
    errors = [noise(network, replace(plan, outputs={layer: grid})) for grid in (fine, steps)]
    assert errors[0] < 1.2 / fine.pieces * errors[1]


def test_what_a_depthwise_convolution_gives_is_rounded_once_where_no_norm_follows(tmp_path: Path):
    torch.save(draw("G2d", fused=True), tmp_path / "a.pth")
    fused = read_source(tmp_path / "a.pth").fused
    network = build_network(fused.config, float_weights(fused))
    layers = chosen_layers(network, "cpu", everything=True)
    patches = built_in_patches(network.config.in_chans, 2, 32)
    plan = calibrate(network, "cpu", layers, patches)
    depthwise = [name for name in layers if name.endswith("fused_conv")]
    assert [plan.outputs[name].pieces for name in depthwise] == [1] * network.config.blocks


def test_a_sum_that_is_not_joined_is_taken_with_its_sign_apart():
    network, plan = apart(2)
    signs = plan.inputs[HEAD]
    assert by_sign(signs)
    assert_written_as_simulated(network, plan.only({HEAD}))
    *_, weight = (t for t in written(network, plan).graph.initializer if t.name == f"{HEAD}.weight")
    above, below = np.split(numpy_helper.to_array(weight).astype(int), 2, axis=1)
    assert np.array_equal(above, -below)
    _, joined = planned(2)
    assert signs.scale < 0.65 * joined.inputs[HEAD].scale


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_a_plan_is_kept_as_it_is(joined: bool):
    network, plan = planned(2) if joined else apart(2)
    assert kept_plan({TUNED: plan_text(plan)}, network) == plan


@pytest.mark.parametrize(("width", "signs_apart"), [(12, True), (15, False)])
def test_an_odd_number_of_channels_keeps_its_neighbours(width: int, signs_apart: bool):
    network = recentred(tiny(embed_dim=width).fuse_model().requires_grad_(False))
    layers = chosen_layers(network, "cpu")
    plan = calibrate(network, "cpu", layers, built_in_patches(3, 2, 32), form=Form(joined=False))
    assert by_sign(plan.inputs[HEAD]) == signs_apart


def apart(scale: int, *, everything: bool = False) -> tuple[AetherNet, QuantisationPlan]:
    """As `planned`, with body and skip added in float."""
    network, plan = planned(scale, everything=everything)
    form = Form(joined=False)
    pictures = built_in_patches(3, 4, 32)
    return network, calibrate(network, "cpu", [*plan.inputs], pictures, form=form)


def noise(network: AetherNet, plan: QuantisationPlan) -> float:
    """What rounding the results of layers alone does to a picture."""
    picture = torch.from_numpy(built_in_patches(3, 1, 40)[0])
    with torch.inference_mode():
        found = simulate(network, replace(plan, inputs={}, activations={}))(picture)
        return float((found - network(picture)).abs().mean())


def test_a_skip_too_large_for_the_body_s_steps_is_added_in_float():
    made = tiny()
    with torch.no_grad():
        made.conv_first.weight.mul_(100)
    network = recentred(made.fuse_model().requires_grad_(False))
    layers = chosen_layers(network, "cpu")
    plan = calibrate(network, "cpu", layers, built_in_patches(3, 2, 32))
    assert plan.joined is None
    assert SUM in plan.outputs


@pytest.mark.parametrize("left", [(SUM,), (HEAD,), (SUM, HEAD)], ids=str)
def test_a_sum_is_joined_without_the_head_and_not_without_its_layer(left: tuple[str, ...]):
    network, plan = planned(2)
    some = plan.only(left)
    assert (some.joined is None) == (SUM not in left)
    picture = torch.from_numpy(built_in_patches(3, 1, 24)[0])
    with torch.inference_mode():
        expected, exact = simulate(network, some)(picture), network(picture)
    found = run(written(network, some), picture, optimised=False)
    noise = (expected - exact).abs().mean()
    assert (found - expected).abs().mean() < 0.1 * noise


# Nothing below 0 behind the head's activation


def test_an_activation_that_does_nothing_more_is_not_written():
    network, plan = planned(2)
    cut = calibrate(network, "cpu", [*plan.inputs], built_in_patches(3, 4, 32), form=Form(cut=True))
    operators = [
        {node.op_type for node in written(network, each).graph.node} for each in (plan, cut)
    ]
    assert operators[0] - operators[1] == {"LeakyRelu"}
    picture = torch.from_numpy(built_in_patches(3, 1, 40)[0])
    with torch.inference_mode():
        expected, exact = simulate(network, cut)(picture), network(picture).clamp(0, 1)
    found = run(written(network, cut), picture, optimised=False)
    assert (found - expected).abs().mean() < 0.1 * (expected - exact).abs().mean()
