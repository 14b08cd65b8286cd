"""Engines are really built, by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from aether_converters import convert
from aether_converters.command_line.main import main
from aether_converters.errors import ConversionError, EngineError
from aether_converters.tensorrt.build import (
    CAPABILITIES,
    EngineOptions,
    Plan,
    Profile,
    build_plan,
    engine_layers,
    refuse_float,
)
from aether_converters.tensorrt.layers import Layer, declared_int8, running_in_float
from aether_converters.tensorrt.sidecar import read_sidecar
from tests.support import golden_cases
from tests.support.qdq import quantised
from tests.support.tiny import tiny

pytest.importorskip("tensorrt_rtx")

CASES = ("g1-train-2x", "g2c-train-3x", "g4-train-2x", "g5f-train-2x")
SIZE = (24, 40)  # (H, W) in px of static graphs
SMALL = Profile(min=(1, 3, 16, 16), opt=(1, 3, 64, 64), max=(1, 3, 128, 192))
GREY = Profile(min=(1, 1, 8, 8), opt=(1, 1, 8, 8), max=(1, 1, 8, 8))
RTX = EngineOptions(backend="tensorrt-rtx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@functools.cache
def golden_graphs(name: str, folder: Path) -> dict[str, bytes]:
    """The golden case in ONNX: fp32, fp16, int8, and each with `_static` behind it."""
    case = golden_cases.CASES[name]
    source = folder / f"{name}.pth"
    torch.save(golden_cases.checkpoint(case), source)
    channels = case["input_shape"][1]
    found: dict[str, bytes] = {}
    for suffix, shape in (("", None), ("_static", (1, channels, *SIZE))):
        report = convert(source, folder, to=["onnx"], shape=shape, name=f"{name}{suffix}")
        for artefact in report.artefacts:
            found[f"{artefact.precision}{suffix}"] = artefact.path.read_bytes()
        found[f"int8{suffix}"] = quantised(found[f"fp32{suffix}"])
    return found


def convolutions(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.kind == "correlation"]


def needless(layers: Sequence[Layer]) -> list[Layer]:
    """Layers that only move values, but for the pixel shuffle, which is one, and the output."""
    return [
        layer
        for layer in layers
        if layer.reformats
        and "output" not in layer.writes
        and not any(node.startswith("pixel_shuffle") for node in layer.nodes)
    ]


@pytest.mark.parametrize(
    ("suffix", "capabilities"),
    [("", ("8.9",)), ("", CAPABILITIES), ("_static", CAPABILITIES)],
    ids=["dynamic, one GPU", "dynamic, several GPUs", "static, several GPUs"],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_a_golden_network_runs_in_the_dtypes_of_its_onnx_file_and_reorders_nothing(
    name: str,
    precision: Literal["fp32", "fp16", "int8"],
    suffix: str,
    capabilities: tuple[str, ...],
    folder: Path,
):
    graph = golden_graphs(name, folder)[f"{precision}{suffix}"]
    options = EngineOptions(
        backend="tensorrt-rtx",
        compute_capabilities=capabilities,
        profiles=() if suffix else (SMALL,),
    )
    plan = build_plan(graph, options)
    dtype = "fp16" if precision == "fp16" else "fp32"
    assert len(plan.content) > 10_000
    assert (plan.input.name, plan.input.dtype) == ("input", dtype)
    assert (plan.output.name, plan.output.dtype) == ("output", dtype)
    assert plan.input.shape == ((1, 3, *SIZE) if suffix else (-1, 3, -1, -1))
    assert plan.profiles == (() if suffix else (SMALL,))
    assert plan.compute_capabilities == capabilities
    assert not needless(plan.layers)
    if precision == "int8":
        assert len(plan.declared_int8) > 10
        assert not plan.running_in_float
        integer = {node for layer in plan.layers if layer.int8 for node in layer.nodes}
        assert integer >= set(plan.declared_int8)
    else:
        assert plan.declared_int8 == ()
        assert len(convolutions(plan.layers)) >= 10
        for layer in convolutions(plan.layers):
            assert {*layer.inputs, *layer.outputs} == {dtype}


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_layers_that_are_declared_int8_run_in_int8_on_each_gpu(capability: str, folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["int8"]
    layers = engine_layers(graph, (capability,), profiles=(SMALL,))
    declared = declared_int8(onnx.load_from_string(graph))
    assert "conv_first" in declared
    assert not running_in_float(declared, layers)


def test_an_int8_layer_may_be_part_of_an_fp16_network(folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["fp16"]
    plan = build_plan(quantised(graph), RTX)
    refuse_float(plan)
    assert {plan.input.dtype, plan.output.dtype} == {"fp16"}
    assert {dtype for layer in plan.layers for dtype in layer.outputs} <= {"fp16", "fp32", "int8"}


# What cannot be built says why


def test_int8_that_would_silently_run_in_float_is_refused_by_name(folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["fp32"]
    plan = build_plan(quantised(graph, shape=(1,)), RTX)  # onnxruntime takes such scales
    assert set(plan.running_in_float) == set(plan.declared_int8)
    with pytest.raises(EngineError) as refusal:
        refuse_float(plan, file=Path("model.engine"))
    error = refusal.value
    assert str(error).startswith(
        "model.engine: layers that are INT8 in the ONNX file would silently run in float\n"
        "  key       conv_first, "
    )
    assert error.expected == f"{len(plan.declared_int8)} layers in INT8"
    assert error.found == "0"


def test_an_operator_before_an_int8_layer_is_noticed_too(folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["fp32"]
    plan = build_plan(quantised(graph, between="LeakyRelu"), RTX)
    assert "conv_first" in plan.running_in_float
    with pytest.raises(EngineError, match="would silently run in float"):
        refuse_float(plan)


def model(*nodes: onnx.NodeProto, dtype: int = TensorProto.FLOAT, rank: int = 4) -> bytes:
    dims = ["batch", 3, "height", "width"][:rank]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", dtype, dims)],
        [helper.make_tensor_value_info("output", dtype, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("private", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


RELU = helper.make_node("Relu", ["input"], ["output"], name="relu")
DYNAMIC = (
    helper.make_node("DynamicQuantizeLinear", ["input"], ["q", "scale", "zero"], name="rounds"),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["output"], name="back"),
)
PRIVATE = helper.make_node("Wobble", ["input"], ["output"], name="wobbles", domain="private")


@pytest.mark.parametrize(
    ("graph", "options", "text"),
    [
        (
            model(*DYNAMIC),
            RTX,
            "model.onnx: TensorRT does not support the operator DynamicQuantizeLinear as it is "
            "used here\n"
            "  key       ONNX node rounds\n",
        ),
        (
            model(PRIVATE),
            RTX,
            "model.onnx: TensorRT does not support the operator Wobble as it is used here\n"
            "  key       ONNX node wobbles\n"
            '  found     creator && "Plugin not found',
        ),
        (b"no model", RTX, "model.onnx: TensorRT cannot read the ONNX file\n  found     Assertion"),
        (
            model(RELU, rank=3),
            RTX,
            "model.onnx: this is no image-to-image model\n  key       input\n"
            "  expected  fp32 or fp16, (batch, channels, height, width)\n"
            "  found     fp32, -1x3x-1",
        ),
        (
            model(helper.make_node("Cast", ["input"], ["output"], to=TensorProto.FLOAT16)),
            RTX,
            "model.onnx: programs that run engines expect input and output of one dtype\n"
            "  expected  fp32, as of input\n"
            "  found     fp16 of output",
        ),
        (
            model(RELU),
            replace(RTX, profiles=(Profile(min=SMALL.max, opt=SMALL.opt, max=SMALL.min),)),
            "model.onnx: the profile is in disorder\n"
            "  expected  min <= opt <= max in each dimension\n"
            "  found     1x3x128x192 / 1x3x64x64 / 1x3x16x16\n",
        ),
        (
            model(RELU),
            replace(RTX, profiles=(GREY,)),
            "model.onnx: the profile does not fit the model's input\n"
            "  expected  ?x3x?x?\n"
            "  found     1x1x8x8\n",
        ),
        (
            model(RELU),
            replace(RTX, compute_capabilities=("6.1",)),
            "model.onnx: TensorRT-RTX does not build for this compute capability\n"
            "  expected  of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1\n"
            "  found     6.1\n",
        ),
        (
            model(RELU),
            replace(RTX, version_compatible=True),
            "model.onnx: tensorrt-rtx has no --version-compatible, which is an option of "
            "tensorrt\n",
        ),
    ],
    ids=[
        "an operator that TensorRT lacks",
        "an operator of nobody",
        "no model",
        "no batch",
        "two dtypes",
        "a profile in disorder",
        "a profile of a grey network",
        "a GPU that is too old",
        "an option of the other backend",
    ],
)
def test_what_cannot_be_built_says_why(graph: bytes, options: EngineOptions, text: str):
    with pytest.raises(EngineError) as refusal:
        build_plan(graph, options, file=Path("model.onnx"))
    assert str(refusal.value).startswith(text)


def test_an_error_holds_nothing_of_the_library(folder: Path):
    """It would be freed at any time, also when the library cannot bear it."""
    graph = golden_graphs("g1-train-2x", folder)["fp16"]
    for content, options in ((b"no model", RTX), (graph, replace(RTX, workspace=2**20))):
        with pytest.raises(EngineError) as refusal:
            build_plan(content, options)
        frames = [frame for frame, _ in traceback.walk_tb(refusal.value.__traceback__)]
        assert len(frames) > 2
        assert not any("builder" in frame.f_locals for frame in frames)


def test_a_profile_for_which_memory_does_not_suffice_names_the_options(folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["fp16"]
    options = EngineOptions(backend="tensorrt-rtx", workspace=2**20)
    with pytest.raises(EngineError, match="the largest input needs more memory") as refusal:
        build_plan(graph, options)
    assert refusal.value.advice == "try a smaller --max, or a larger --workspace or none"
    assert build_plan(graph, EngineOptions(backend="tensorrt-rtx", workspace=2**34)).content


def test_a_static_graph_takes_no_profile_of_another_size(folder: Path):
    graph = golden_graphs("g1-train-2x", folder)["fp16_static"]
    with pytest.raises(EngineError, match="the ONNX file is made for one size"):
        build_plan(graph, EngineOptions(backend="tensorrt-rtx", profiles=(SMALL,)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal for one process")
def test_progress_is_told_and_an_interruption_ends_the_build_at_once(folder: Path):
    graph = folder / "graph.onnx"
    graph.write_bytes(golden_graphs("g5f-train-2x", folder)["fp32"])
    script = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        # Shells start what runs in the background with interruptions ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from aether_converters.tensorrt.build import EngineOptions, build_plan\n"
        "told = lambda *step: print(*step, flush=True)\n"
        "options = EngineOptions(backend='tensorrt-rtx', compute_capabilities=('8.6', '8.9'))\n"
        "build_plan(Path(sys.argv[1]).read_bytes(), options, progress=told)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(graph)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline().split()
    assert first[-1].isdecimal()
    process.send_signal(signal.SIGINT)
    started = time.perf_counter()
    _, errors = process.communicate(timeout=60)
    assert errors.endswith("KeyboardInterrupt\n")  # not a crash of the library
    assert time.perf_counter() - started < 30


# From a checkpoint to an engine with its JSON file


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    path = folder / "model.pth"
    torch.save(tiny().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Path:
    options = EngineOptions(backend="tensorrt-rtx", profiles=(SMALL,))
    out = checkpoint.parent / "engine"
    report = convert(checkpoint, out, to=["trt"], precision=["fp16"], engine=options)
    assert not report.failed
    return report.artefacts[0].path


def test_an_engine_that_was_not_run_has_neither_passed_nor_failed(checkpoint: Path, tmp_path: Path):
    report = convert(checkpoint, tmp_path, to=["trt"], precision=["fp16"], engine=RTX)
    (artefact,) = report.artefacts
    if artefact.not_run:  # there is no GPU
        assert (report.passed, report.failed) == (False, False)
        assert json.loads(json.dumps(report.as_dict()))["artefacts"][0]["max_difference"] is None
        assert float(str(artefact.details["onnx_psnr"]).split()[0]) > 60
    assert artefact.path.name == "2x_model_fp16_rtx.engine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "2x_model_fp16_rtx.engine",
        "2x_model_fp16_rtx.engine.json",
    ]


def test_the_json_file_has_all_that_is_needed_to_run_the_engine(checkpoint: Path, engine: Path):
    sidecar = read_sidecar(engine)
    assert sidecar.backend == "tensorrt-rtx"
    assert (sidecar.input.name, sidecar.input.dtype) == ("input", "fp16")
    assert (sidecar.input.shape, sidecar.output.shape) == ((-1, 3, -1, -1),) * 2
    assert sidecar.profiles == (SMALL,)
    assert sidecar.compute_capabilities == CAPABILITIES
    assert sidecar.precision == "fp16"
    network = sidecar.network
    assert (network.scale, network.receptive_radius) == (2, 14)
    assert network.macs_per_pixel > 10_000
    assert sidecar.layers > 10
    assert sidecar.model["revision"] == "G1"
    assert sidecar.versions["onnx"] == onnx.__version__
    assert checkpoint.stat().st_size > sidecar.engine_bytes // 10


def test_the_command_line_builds_and_inspects(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["convert", checkpoint, "--to", "trt", "--precision", "fp32", "--out", tmp_path]
    command += ["--trt-backend", "tensorrt-rtx", "--compute-capability", "8.6,12.0"]
    for size in (64, 128):
        command += ["--min", "1x3x16x16", "--opt", f"1x3x{size}x{size}", "--max", "1x3x256x256"]
    assert main([str(part) for part in command]) == 0
    assert "2x_model_fp32_rtx.engine" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "2x_model_fp32_rtx.engine")]) == 0
    shown = capsys.readouterr().out
    assert "  profile    1x3x16x16 to 1x3x256x256, fastest at 1x3x128x128\n" in shown
    assert "  GPUs       compute capability 8.6, 12.0\n" in shown
    assert "  precision  fp32; input and output fp32\n" in shown


def test_a_static_engine_is_named_after_its_size(checkpoint: Path, tmp_path: Path):
    report = convert(
        checkpoint, tmp_path, to=["trt"], precision=["fp16"], shape=(1, 3, 24, 40), engine=RTX
    )
    (artefact,) = report.artefacts
    assert artefact.path.name == "2x_model_fp16_24x40_rtx.engine"
    sidecar = read_sidecar(artefact.path)
    assert sidecar.fixed_size == (24, 40)
    assert sidecar.output.shape == (1, 3, 48, 80)


def test_nothing_is_left_where_a_build_fails(checkpoint: Path, tmp_path: Path):
    options = EngineOptions(backend="tensorrt-rtx", workspace=2**20)
    with pytest.raises(EngineError):
        convert(checkpoint, tmp_path, to=["trt"], engine=options)
    assert not list(tmp_path.iterdir())


def test_options_for_engines_need_an_engine(checkpoint: Path, tmp_path: Path):
    with pytest.raises(ConversionError, match="no engine is to be written"):
        convert(checkpoint, tmp_path, to=["onnx"], engine=RTX)


def test_the_trained_network_builds_in_three_precisions(
    request: pytest.FixtureRequest, tmp_path: Path
):
    trained = request.config.getoption("trained")
    if trained is None:
        pytest.skip("no trained file was named with --trained")
    report = convert(trained, tmp_path, to=["onnx", "trt"], engine=RTX)
    assert not report.failed
    graph = next(a.path for a in report.artefacts if a.path.name.endswith("_fp32.onnx"))
    plan: Plan = build_plan(quantised(graph.read_bytes()), RTX)
    refuse_float(plan)
    assert len(plan.declared_int8) == 53
    assert not needless(plan.layers)
