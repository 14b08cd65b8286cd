"""A network becomes int8: on which grids, at what cost, and in integers where it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

from aether_converters import ConversionError, convert, open_upscaler, verify
from aether_converters.graphs.onnx_graph import build_onnx
from aether_converters.int8.calibration import calibrate
from aether_converters.int8.check import cpu_integer_share, tensorrt_findings
from aether_converters.int8.graph import before_shuffle, quantise
from aether_converters.int8.patches import built_in_patches, varied_patches
from aether_converters.int8.plan import (
    TARGETS,
    Grid,
    QuantisationPlan,
    Target,
    chosen_layers,
    layers_of,
    recentred,
    simulate,
    symmetric_grid,
)
from aether_converters.int8.planning import Int8Options, quantise_network
from aether_converters.int8.sensitivity import layer_costs, within_budget
from aether_converters.source import read_source
from aether_core import (
    AetherNet,
    freeze_ranges,
    input_scale,
    prepare_qat,
    quantised_layers,
)
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights, fuse
from tests.support import golden_cases
from tests.support.named_shapes import true_shapes
from tests.support.tiny import tiny


def fused_tiny(**changes: Any) -> AetherNet:
    """A small fused network whose pictures lie between black and white."""
    network = tiny(**changes)
    with torch.no_grad():
        cast(Any, network.conv_last).weight.mul_(0.3)
    return network.fuse_model().requires_grad_(False)


def planned(network: AetherNet, target: Target, **options: Any) -> QuantisationPlan:
    layers = chosen_layers(network, target, **options)
    return calibrate(network, target, layers, built_in_patches(network.config.in_chans, 8, 32))


def exported(network: AetherNet, plan: QuantisationPlan) -> onnx.ModelProto:
    config = network.config
    model = build_onnx(
        network,
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        layer_by_layer=True,
    )
    return quantise(model, plan)


def run(model: onnx.ModelProto, image: Tensor, *, optimised: bool = False) -> Tensor:
    options = cast(Any, onnxruntime).SessionOptions()
    if not optimised:
        runtime = cast(Any, onnxruntime)
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return torch.from_numpy(session.run(None, {"input": image.numpy()})[0])


def picture(channels: int = 3, height: int = 40, width: int = 33) -> Tensor:
    """8-bit pixels."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(1, channels, height // 4, width // 4, generator=generator)
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
    return (large.clamp(0, 1) * 255).round() / 255


def psnr(found: Tensor, expected: Tensor) -> float:
    return float(-10 * (found.clamp(0, 1) - expected.clamp(0, 1)).square().mean().log10())


# What is rounded, and how


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_file_computes_what_the_plan_says(target: Target, everything: bool, scale: int):
    network = recentred(fused_tiny(scale=scale))
    plan = planned(network, target, everything=everything)
    with torch.inference_mode():
        expected, exact = simulate(network, plan)(picture()), network(picture()).clamp(0, 1)
    found = run(exported(network, plan), picture())
    # A sum that is rounded the other way moves one value by one step.
    assert float(((found - expected).abs() > 1 / 255).float().mean()) < 1e-3
    noise = float((expected.clamp(0, 1) - exact).abs().mean())
    assert 1e-4 < noise < 0.01
    assert float((found - expected).abs().mean()) < 0.25 * noise


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [name for name, c in golden_cases.CASES.items() if c["fused"]])
def test_every_revision_can_be_written(case: str, target: Target, tmp_path: Path):
    path = tmp_path / "model.pth"
    torch.save(golden_cases.checkpoint(golden_cases.CASES[case]), path)
    fused = read_source(path).fused
    network = build_network(fused.config, float_weights(fused))
    plan = planned(network, target, everything=True)
    image = picture(network.config.in_chans)
    with torch.inference_mode():
        expected, exact = simulate(network, plan)(image), network(image)
    model = exported(network, plan)
    found = run(model, image)
    if target == "cpu":
        exact = exact.clamp(0, 1)
    else:
        assert tensorrt_findings(model) == ()
    assert found.shape == expected.shape
    # Both round the same, but for sums that end in the middle between two integers.
    noise = float((expected - exact).abs().mean())
    assert float((found - expected).abs().mean()) < 0.5 * noise


def test_the_default_leaves_depthwise_kernels_and_attention_float():
    network = fused_tiny()
    for target in TARGETS:
        chosen = chosen_layers(network, target)
        assert not any("fused_conv" in name for name in chosen)
        assert {"conv_last", "layers.0.0.ffn.fc2"} <= set(chosen)
        assert chosen_layers(network, target, everything=True) == list(layers_of(network))


def test_layers_can_be_kept_float_by_name_and_pattern():
    network = fused_tiny()
    chosen = chosen_layers(network, "cpu", keep_float=["conv_last", "layers.0.*"])
    assert chosen
    assert not any(name == "conv_last" or name.startswith("layers.0.") for name in chosen)
    with pytest.raises(ConversionError, match=r"no layer is called layer\.7"):
        chosen_layers(network, "cpu", keep_float=["layer.7"])


def test_8_bit_pixels_lie_on_the_first_layer_s_grid_exactly():
    network = fused_tiny()
    moved = recentred(network)
    margin = network.config.scale * network.config.receptive_radius
    inside = (..., slice(margin, -margin), slice(margin, -margin))
    image = picture(3, 40, 40)
    with torch.inference_mode():
        expected, found = network(image), moved(image)
    assert expected[inside].numel() > 0
    assert torch.allclose(found[inside], expected[inside], atol=1e-5)
    for target in TARGETS:
        grid = planned(moved, target, everything=True).inputs["conv_first"]
        levels = torch.arange(256) / 255 - 128 / 255
        assert torch.allclose(grid.rounded(levels), levels, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("zero_point", [0, 100, 255])
def test_values_are_rounded_as_torch_rounds_them_bit_for_bit(signed: bool, zero_point: int):
    grid = Grid(float(torch.tensor(0.0123)), zero_point - 128 * signed, signed)
    low, high = grid.limits
    generator = torch.Generator().manual_seed(0)
    between = (torch.arange(-300, 300) + 0.5) * grid.scale
    values = torch.cat([torch.randn(100_000, generator=generator), between, 1e6 * between])
    with torch.inference_mode():
        expected = torch.fake_quantize_per_tensor_affine(
            values, grid.scale, grid.zero_point, low, high
        )
        assert torch.equal(grid.rounded(values), expected)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_convolution_behind_a_shuffle_can_stand_before_it(factor: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 5 * factor**2, 6, 7, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 5, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.rand(3, generator=generator, dtype=torch.float64)
    by_channel = x.reshape(1, factor**2, 5, 6, 7).transpose(1, 2).flatten(1, 2)
    shuffled = torch.nn.functional.pixel_shuffle(by_channel, factor)
    expected = torch.nn.functional.conv2d(shuffled, weight, bias, padding=1)
    moved, biases = before_shuffle(weight, bias, factor)
    found = torch.nn.functional.conv2d(x, moved, biases, padding=1)
    assert torch.allclose(torch.nn.functional.pixel_shuffle(found, factor), expected)


# In integers where it runs


def test_onnxruntime_computes_the_cpu_target_in_integers(tmp_path: Path):
    network = fused_tiny()
    plan = planned(network, "cpu")
    options = cast(Any, onnxruntime).SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    model = exported(network, plan)
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    optimised = onnx.load(str(tmp_path / "optimised.onnx"))
    weights = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    taken = {
        name
        for node in optimised.graph.node
        if node.op_type in ("QLinearConv", "MatMulIntegerToFloat")
        for name in node.input
    }
    for layer in plan.inputs:
        assert f"{layer}.weight" in weights
        assert f"{layer}.weight" in taken, layer
    assert "DepthToSpace" in {node.op_type for node in optimised.graph.node}
    products = [node.op_type for node in optimised.graph.node].count("QLinearMul")
    assert products == len(plan.activations) == network.config.blocks


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shapes_inside_an_int8_file_are_named_and_true(target: Target, scale: int):
    network = recentred(fused_tiny(scale=scale))
    model = exported(network, planned(network, target))
    results = (name for node in model.graph.node for name in node.output)
    layers = {name for name in results if re.search(r"\.fc\w+(\.biased)?\.out$", name)}
    assert len(layers) >= 3 * network.config.blocks
    assert layers <= set(true_shapes(model))


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_cpu_target_gives_pixels_in_half_levels(scale: int):
    network = fused_tiny(scale=scale)
    found = run(exported(network, planned(network, "cpu")), picture(), optimised=True)
    halves = found * 510
    assert torch.allclose(halves, halves.round(), atol=2e-4)
    assert bool((halves.round() % 2 == 1).any())
    assert 0 <= float(found.min()) < 0.5
    assert 0.5 < float(found.max()) <= 1  # both halves of the range are there


def test_tensorrt_runs_every_int8_layer_in_int8():
    pytest.importorskip("tensorrt_rtx")
    from aether_converters.tensorrt.build import engine_layers
    from aether_converters.tensorrt.layers import declared_int8, running_in_float

    network = recentred(fused_tiny(embed_dim=32))
    plan = planned(network, "tensorrt")
    model = exported(network, plan)
    declared = declared_int8(model)
    assert set(declared) == set(plan.inputs)
    layers = engine_layers(model.SerializeToString(), ("8.0", "8.6", "8.9", "12.0"))
    assert running_in_float(declared, layers) == ()


def test_a_zero_point_behind_an_activation_costs_tensorrt_no_kernel():
    """The border and the shift are part of what activates and rounds anyway."""
    pytest.importorskip("tensorrt_rtx")
    from aether_converters.tensorrt.build import engine_layers

    network = recentred(fused_tiny(embed_dim=32))
    plan = planned(network, "tensorrt")
    shifted = plan.inputs["upsample.0"]
    assert shifted.zero_point < -100
    middle = symmetric_grid(255 * shifted.scale, signed=True)
    plans = (plan, replace(plan, inputs={**plan.inputs, "upsample.0": middle}))
    kernels = [
        len(engine_layers(exported(network, each).SerializeToString(), ("8.9",))) for each in plans
    ]
    assert kernels[0] == kernels[1]


# Ranges


def test_the_built_in_pictures_are_the_same_each_time_and_of_8_bits():
    first, again = built_in_patches(3, 4), built_in_patches(3, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    levels = torch.from_numpy(np.stack(first)) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def test_the_channels_of_most_built_in_pictures_go_along_with_each_other_as_in_photographs():
    like_photographs = [p for n, p in enumerate(built_in_patches(3, 40)) if n % 4 != 3]
    flat = [torch.from_numpy(patch).reshape(3, -1) for patch in like_photographs]
    alike = [float(torch.corrcoef(patch).min()) for patch in flat]
    colours = [np.ptp(patch.mean(axis=(0, 2, 3))) for patch in like_photographs]
    assert np.median(alike) > 0.9
    assert np.median(colours) < 0.15
    assert max(colours) > 0.4  # and some are vivid


def test_varied_patches_are_those_that_differ():
    flat = np.full((1, 3, 64, 256), 0.5, np.float32)
    flat[:, :, :, 64:128] = np.random.default_rng(0).random((1, 3, 64, 64))
    flat[:, 0, :, 192:] = 1.0
    chosen = varied_patches([flat], count=3)
    assert {round(float(patch[:, 0].mean()), 1) for patch in chosen} == {0.5, 1.0}
    assert max(float(patch.std()) for patch in chosen) > 0.2
    assert len(varied_patches([flat[:, :, :40, :40]], count=5)) == 1  # mirrored to a whole patch


def test_every_method_gives_a_picture_and_mse_the_best():
    network = fused_tiny()
    layers = chosen_layers(network, "tensorrt")
    patches = built_in_patches(3, 8, 32)
    with torch.inference_mode():
        exact = network(picture())
        found = {
            method: psnr(
                simulate(network, calibrate(network, "tensorrt", layers, patches, method=method))(
                    picture()
                ),
                exact,
            )
            for method in ("mse", "percentile", "minmax")
        }
    assert min(found.values()) > 35
    assert found["mse"] > found["minmax"] - 0.5


# Costs


def test_costs_add_up_and_a_budget_is_kept():
    network = fused_tiny()
    patches = built_in_patches(3, 2, 32)
    plan = planned(network, "tensorrt", everything=True)
    costs = layer_costs(network, plan, patches)
    assert list(costs) == list(layers_of(network))
    worst = max(costs.values(), key=lambda cost: cost.error / cost.macs)
    budget = sum(cost.loss for cost in costs.values()) / 2
    chosen = within_budget(network, plan, costs, patches, budget)
    assert worst.layer not in chosen
    assert 0 < len(chosen) < len(costs)
    assert within_budget(network, plan, costs, patches, 10.0) == list(costs)
    assert within_budget(network, plan, costs, patches, 1e-9) == []


# Trained ranges


def trained() -> AetherNet:
    """A network that was trained for int8 for a moment, its ranges frozen."""
    torch.manual_seed(0)
    network = prepare_qat(
        fused_tiny().requires_grad_(True).train(), skip=["layers.*.conv"], warmup=4
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-5)
    for patch in built_in_patches(3, 8, 32):
        loss = (network(torch.from_numpy(patch)) - 0.5).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network(torch.from_numpy(built_in_patches(3, 1, 32)[0]))
    freeze_ranges(network)
    return network.eval().requires_grad_(False)


def scales(model: onnx.ModelProto) -> Mapping[str, Tensor]:
    """By layer of a file for TensorRT, the step of its input."""
    constants = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, Tensor] = {}
    for node in model.graph.node:
        maker = makers.get(node.input[0])
        if node.op_type == "Conv" and maker is not None and maker.op_type == "DequantizeLinear":
            found[node.name] = constants[maker.input[1]]
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_trained_is_what_is_written(target: Target, tmp_path: Path):
    network = trained()
    path = tmp_path / "qat.pth"
    torch.save(network.state_dict(), path)
    report = convert(
        path, tmp_path, to=["onnx"], precision=["int8"], int8=Int8Options(targets=(target,), tune=0)
    )
    (artefact,) = report.artefacts
    assert artefact.passed, artefact.problem
    assert artefact.details["ranges"] == "the ranges of all 14 layers come from its training"
    (again,) = verify(path, [artefact.path]).artefacts
    assert again.psnr == pytest.approx(artefact.psnr)
    model = onnx.load(str(artefact.path))
    if target == "tensorrt":
        written = scales(model)
        for name, layer in quantised_layers(network).items():
            names = [f"{name}.fc1_gate", f"{name}.fc1_main"] if name.endswith("ffn") else [name]
            for each in names:
                assert torch.equal(written[each], input_scale(layer.amax)), each
    else:
        share = cpu_integer_share(artefact.path, (1, 3, 32, 32))
        assert share is not None
        assert share > 0.9
    image = picture()
    with torch.inference_mode():
        expected = network(image)
    found = run(model, image, optimised=True)
    difference = (found - expected.clamp(0, 1) if target == "cpu" else found - expected).abs()
    # Where the CPU's file rounds its pixels, half a step is no difference.
    assert float((difference > 1.01 / 255).float().mean()) < 1e-3


@pytest.mark.parametrize(
    "case", [name for name, c in golden_cases.CASES.items() if c["qat"] and "int8" not in name]
)
def test_published_files_export_with_their_own_ranges_or_say_why_not(case: str, tmp_path: Path):
    path = tmp_path / "qat.pth"
    torch.save(golden_cases.checkpoint(golden_cases.CASES[case]), path)
    source = read_source(path)
    for target in TARGETS:
        made = quantise_network(source.network, target, Int8Options(tune=0))
        if made.plan.trained:
            usable = source.network.ranges.usable
            assert made.plan.trained <= set(usable)
            for name in made.plan.trained:
                step = float(input_scale(torch.tensor(usable[name])))
                assert made.plan.inputs[name].scale == step
            assert "come from its training" in made.notes[-1]
        else:
            assert (
                any("its training" in note for note in made.notes)
                or not fuse(source.network).ranges.usable
            )


# The command


def test_int8_goes_where_it_fits_and_other_precisions_everywhere(tmp_path: Path):
    path = tmp_path / "2x_tiny.pth"
    torch.save(fused_tiny().state_dict(), path)
    report = convert(
        path,
        tmp_path / "out",
        to=["pth", "onnx"],
        precision=["fp32", "int8"],
        int8=Int8Options(targets=TARGETS, tune=0),
    )
    assert report.passed, [artefact.problem for artefact in report.artefacts]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "2x_tiny_fp32.onnx",
        "2x_tiny_fp32.pth",
        "2x_tiny_int8.onnx",
        "2x_tiny_int8.pth",
        "2x_tiny_int8_cpu.onnx",
        "2x_tiny_int8_cpu.pth",
    ]
    for name in ("2x_tiny_int8.onnx", "2x_tiny_int8_cpu.onnx"):
        assert open_upscaler(tmp_path / "out" / name).precision == "int8"


def test_an_engine_takes_the_file_for_tensorrt(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "2x_tiny.pth"
    torch.save(fused_tiny(embed_dim=32).state_dict(), path)
    report = convert(
        path,
        tmp_path / "out",
        to=["trt"],
        precision=["int8"],
        int8=Int8Options(targets=("cpu",), method="minmax", tune=0),
    )
    (artefact,) = report.artefacts
    assert not artefact.problem
    assert artefact.details["int8_target"] == "tensorrt"
    assert artefact.path.name == "2x_tiny_int8_rtx.engine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": ["safetensors"], "precision": ["int8"]}, "none of the chosen formats holds int8"),
        ({"int8": Int8Options(everything=True)}, "options for int8 were given"),
        (
            {
                "to": ["onnx"],
                "precision": ["int8"],
                "int8": Int8Options(max_loss=1e-9, tune=0),
            },
            "every layer costs more than the allowed loss",
        ),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str, tmp_path: Path):
    path = tmp_path / "2x_tiny.pth"
    torch.save(fused_tiny().state_dict(), path)
    with pytest.raises(ConversionError, match=message):
        convert(path, tmp_path / "out", **options)
