"""ONNX files of other projects that are unusual, damaged or made to hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from aether_converters import ModelError, convert, open_upscaler
from aether_converters.command_line.main import main
from aether_converters.errors import EngineError
from aether_converters.pictures.tiling import plan_tiles, upscale_image
from aether_converters.runtimes.interruption import interruptible
from aether_converters.runtimes.memory import available_memory
from aether_converters.tensorrt.sidecar import parse_sidecar, read_sidecar
from tests.support.foreign import function, graph, loop_body, node, saved, twice_as_large, weight
from tests.support.tiny import tiny

UINT8, INT64 = TensorProto.UINT8, TensorProto.INT64


def filling(nodes: list[Any], constants: dict[str, Any]) -> Any:
    """A graph that adds the largest number of "z" to the picture."""
    ends = [node("ReduceMax", ["z"], ["m"], keepdims=0), node("Add", ["x", "m"], ["a"])]
    return graph([*nodes, *ends, twice_as_large("a")], constants)


def looping(turns: str, before: list[Any], constants: dict[str, Any]) -> Any:
    loop = node("Loop", [turns, "true", "x"], ["a"], body=loop_body([node("Relu", ["v"], ["v2"])]))
    return graph([*before, loop, twice_as_large("a")], {"true": True, **constants})


def calling(depth: int) -> list[Any]:
    """Functions that each call the one before twice."""
    made = [function("F0", [node("Relu", ["i"], ["o"])], "i")]
    for level in range(1, depth):
        calls = [
            node(f"F{level - 1}", ["i"], ["m"], domain="block"),
            node(f"F{level - 1}", ["m"], ["o"], domain="block"),
        ]
        made.append(function(f"F{level}", calls, "i"))
    return made


MEMORY = "the graph needs more memory than any network"
WORK = "the graph runs more operators than any network"
UNTOLD = "the file does not say how much there is to compute"
HURTFUL: dict[str, tuple[Any, str]] = {
    "a_constant_of_5_gb": (
        filling([node("ConstantOfShape", ["s"], ["z"])], {"s": [1_250_000_000]}),
        MEMORY,
    ),
    "one_number_expanded": (
        filling([node("Expand", ["k", "s"], ["z"])], {"k": np.float32(1), "s": [40_000, 40_000]}),
        MEMORY,
    ),
    "doubled_again_and_again": (
        filling(
            [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(32)]
            + [node("Identity", ["c32"], ["z"])],
            {"c0": np.ones(1, np.float32)},
        ),
        MEMORY,
    ),
    "an_outer_product": (
        filling(
            [
                node("ConstantOfShape", ["s"], ["p"]),
                node("Transpose", ["p"], ["q"]),
                node("MatMul", ["p", "q"], ["z"]),
            ],
            {"s": [100_000, 1]},
        ),
        MEMORY,
    ),
    "random_numbers": (filling([node("RandomNormal", [], ["z"], shape=[40_000] * 2)], {}), MEMORY),
    "padding": (
        filling(
            [node("Pad", ["k", "p"], ["z"])], {"k": np.ones(1, np.float32), "p": [0, 2 * 10**9]}
        ),
        MEMORY,
    ),
    "a_range": (
        filling(
            [node("Range", ["r0", "r1", "r2"], ["r"]), node("Cast", ["r"], ["z"], to=1)],
            {"r0": 0, "r1": 10**9, "r2": 1},
        ),
        MEMORY,
    ),
    "the_picture_a_million_times": (
        graph(
            [
                node("Tile", ["x", "t"], ["b"]),
                node("ReduceMax", ["b"], ["a"], axes=[1]),
                twice_as_large("a"),
            ],
            {"t": [1, 10**6, 1, 1]},
            channels=(3, 1),
        ),
        MEMORY,
    ),
    "a_loop_of_2_to_the_62": (looping("turns", [], {"turns": 2**62}), WORK),
    "a_computed_number_of_turns": (
        looping("turns", [node("Mul", ["k", "k"], ["turns"])], {"k": 2**30}),
        WORK,
    ),
    "a_loop_without_end": (looping("", [], {}), UNTOLD),
    "as_many_turns_as_the_colours_say": (
        looping(
            "turns",
            [
                node("ReduceMax", ["x"], ["r"], keepdims=0),
                node("Mul", ["r", "k"], ["f"]),
                node("Cast", ["f"], ["turns"], to=INT64),
            ],
            {"k": np.float32(1e18)},
        ),
        UNTOLD,
    ),
    "functions_that_call_twice": (
        graph(
            [node("F29", ["x"], ["a"], domain="block"), twice_as_large("a")],
            functions=calling(30),
        ),
        WORK,
    ),
    "a_function_that_calls_itself": (
        graph(
            [node("R", ["x"], ["a"], domain="block"), twice_as_large("a")],
            functions=[function("R", [node("R", ["i"], ["o"], domain="block")], "i")],
        ),
        "functions or graphs within the graph lie too deep",
    ),
}


@pytest.mark.parametrize("name", HURTFUL)
def test_what_would_fill_memory_or_never_end_is_refused_unrun(name: str, tmp_path: Path):
    model, message = HURTFUL[name]
    started = time.process_time()
    with pytest.raises(ModelError, match=message) as refusal:
        open_upscaler(saved(model, tmp_path / "m.onnx"))
    assert refusal.value.advice
    assert time.process_time() - started < 5


def test_few_turns_and_calls_are_run(tmp_path: Path):
    small = graph(
        [node("F5", ["x"], ["a"], domain="block"), twice_as_large("a")], functions=calling(6)
    )
    image = np.random.default_rng(0).random((1, 3, 9, 11), np.float32)
    for model in (small, looping("turns", [], {"turns": 40})):
        enlarged = open_upscaler(saved(model, tmp_path / "m.onnx")).run(image)
        np.testing.assert_array_equal(enlarged[:, :, ::2, ::2], image)


def through(to: int, pixels: tuple[Any, Any], factor: float = 1) -> Any:
    """The picture twice as large, its numbers times a factor and of another type."""
    nodes = [
        node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "k"], ["g"]),
        node("Resize", ["g", "", "doubled"], ["h"], mode="nearest"),
        node("Cast", ["h"], ["y"], to=to),
    ]
    return graph(nodes, {"k": np.float32(factor)}, pixels=pixels)


def test_a_network_of_bytes_takes_and_gives_pictures_in_0_to_1(tmp_path: Path):
    upscaler = open_upscaler(saved(through(UINT8, (UINT8, UINT8)), tmp_path / "m.onnx"))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 7)) / 255
    enlarged = upscaler.run(image.astype(np.float32))
    np.testing.assert_allclose(enlarged[:, :, ::2, ::2], image, atol=1e-6)


@pytest.mark.parametrize(
    ("to", "pixels"),
    [
        (UINT8, (TensorProto.FLOAT, UINT8)),
        (INT64, (TensorProto.FLOAT, INT64)),
        (TensorProto.INT32, (TensorProto.FLOAT, TensorProto.INT32)),
        (TensorProto.FLOAT, (UINT8, TensorProto.FLOAT)),
        (TensorProto.BOOL, (TensorProto.FLOAT, TensorProto.BOOL)),
    ],
)
def test_other_pixels_out_than_in_are_refused(to: int, pixels: tuple[Any, Any], tmp_path: Path):
    with pytest.raises(ModelError, match="the model gives other pixels than it takes"):
        open_upscaler(saved(through(to, pixels, 255), tmp_path / "m.onnx"))


def test_the_domain_may_be_written_out(tmp_path: Path):
    model = graph([node("Relu", ["x"], ["a"]), twice_as_large("a")])
    model.opset_import[0].domain = "ai.onnx"
    assert open_upscaler(saved(model, tmp_path / "m.onnx")).details["opset"] == 17


def with_type(number: int) -> Any:
    model = graph([node("Relu", ["x"], ["a"]), twice_as_large("a")])
    model.graph.input[0].type.tensor_type.elem_type = number
    return model


STRANGE: dict[str, Any] = {
    "a type that does not exist": with_type(99),
    "a negative type": with_type(-3),
    "texts": with_type(TensorProto.STRING),
    "two outputs": None,
    "smaller": graph([node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]),
    "wider alone": graph(
        [node("Concat", ["x", "x"], ["y"], axis=3)],
    ),
    "turned on its side": graph(
        [node("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2]), twice_as_large("a")]
    ),
    "a row less": graph([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 1])]),
}
STRANGE["two outputs"] = graph([twice_as_large("x")])
STRANGE["two outputs"].graph.output.append(
    helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
)


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_network_for_pictures_is_told_with_a_next_step(name: str, tmp_path: Path):
    with pytest.raises(ModelError, match="this is no ") as refusal:
        open_upscaler(saved(STRANGE[name], tmp_path / "m.onnx"))
    assert refusal.value.advice
    assert refusal.value.file == tmp_path / "m.onnx"


@pytest.mark.parametrize(
    "attributes",
    [{"strides": [0, 0]}, {"kernel_shape": [0, 0]}, {"pads": [-(2**62)] * 4}, {"dilations": [1]}],
)
def test_operators_that_make_no_sense_are_left_to_onnxruntime(
    attributes: dict[str, Any], tmp_path: Path
):
    nodes = [node("Conv", ["x", "w"], ["a"], **attributes), twice_as_large("a")]
    with pytest.raises(ModelError):
        open_upscaler(saved(graph(nodes, {"w": weight(3, 3, 3, 3)}), tmp_path / "m.onnx"))


@pytest.mark.parametrize("scale", [-2, float("nan"), float("inf"), -1e30])
def test_a_size_that_makes_no_sense_is_left_to_onnxruntime(scale: float, tmp_path: Path):
    nodes = [node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    model = graph(nodes, {"scales": np.array([1, 1, scale, scale], np.float32)})
    with pytest.raises(ModelError):
        open_upscaler(saved(model, tmp_path / "m.onnx"))


def test_a_picture_of_another_size_than_promised_is_told(tmp_path: Path):
    nodes = [
        node("ReduceMax", ["x"], ["most"], keepdims=0),
        node("Mul", ["most", "hundred"], ["high"]),
        node("Sub", ["side", "high"], ["left"]),
        node("Cast", ["left"], ["count"], to=INT64),
        node("Reshape", ["count", "one"], ["end"]),
        node("Slice", ["x", "zero", "end", "axis"], ["a"]),
        twice_as_large("a"),
    ]
    numbers = {"hundred": np.float32(100), "side": np.float32(64)}
    constants = {**numbers, "one": [1], "zero": [0], "axis": [2]}
    upscaler = open_upscaler(saved(graph(nodes, constants), tmp_path / "m.onnx"))
    image = np.full((3, 40, 50), 0.5, np.float32)
    with pytest.raises(ModelError, match="another size than it promises") as refusal:
        upscale_image(upscaler, image, plan_tiles(upscaler, 40, 50))
    assert refusal.value.found == "100 x 28 px"


HEADS = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a HEIC picture": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "a zip archive": b"PK\x03\x04" + bytes(40),
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "a JSON text": b'{"error": "gated repository"}',
    "nothing": b"",
    "zeros alone": bytes(600),
}


@pytest.mark.parametrize("name", HEADS)
def test_another_file_named_onnx_is_told_as_what_it_is(name: str, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(HEADS[name])
    with pytest.raises(ModelError, match="is no ONNX model") as refusal:
        open_upscaler(path)
    assert str(refusal.value.found).startswith(name)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros_without_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.mkdir()


def the_terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@pytest.mark.parametrize("make", [a_pipe, zeros_without_end, a_folder, the_terminal])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path):
    make(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"not a regular file|is a folder"):
        open_upscaler(tmp_path / "m.onnx")
    (tmp_path / "m.engine").write_bytes(b"plan")
    make(tmp_path / "m.engine.json")
    with pytest.raises(EngineError, match=r"not a regular file|is a folder"):
        read_sidecar(tmp_path / "m.engine")


def test_weights_come_from_files_beside_the_model_alone(tmp_path: Path):
    model = graph([node("Conv", ["x", "w"], ["a"], pads=[1] * 4), twice_as_large("a")])
    stored = model.graph.initializer.add(name="w", dims=[3, 3, 3, 3], data_type=1)
    stored.data_location = TensorProto.EXTERNAL
    entry = stored.external_data.add(key="location", value="m.data")
    with pytest.raises(ModelError, match="there is no such file"):
        open_upscaler(saved(model, tmp_path / "m.onnx"))
    (tmp_path / "circle").symlink_to("circle")
    for elsewhere in ("../m.data", "m\0.data", "circle/m.data"):
        entry.value = elsewhere
        with pytest.raises(ModelError, match="the file asks for weights from another folder"):
            open_upscaler(saved(model, tmp_path / "m.onnx"))


@pytest.mark.parametrize("text", ['{"kind": 1, "kind": 2}', '{"a": {"b": 1, "b": 1}}'])
def test_a_key_that_occurs_twice_in_a_sidecar_is_refused(text: str):
    with pytest.raises(EngineError, match="a key of the engine's JSON file occurs twice"):
        parse_sidecar(text.encode(), Path("m.engine.json"))


def test_a_provider_is_refused_for_what_onnxruntime_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    for command in (
        ["upscale", str(tmp_path / "m.pth"), "p.png"],
        ["bench", str(tmp_path / "m.pth")],
    ):
        assert main([*command, "--provider", "coreml"]) == 1
        assert "--provider is for ONNX files" in capsys.readouterr().err


@pytest.mark.skipif(available_memory() is None, reason="the system does not tell")
def test_sizes_beyond_memory_are_refused_with_what_they_would_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    for size in ("60000", "50000x65000"):
        assert main(["bench", str(tmp_path / "m.pth"), "--size", size]) == 1
        assert "there is not the memory for this" in capsys.readouterr().err
    with pytest.raises(ModelError, match="there is not the memory for this"):
        convert(tmp_path / "m.pth", to=["onnx"], shape=(1, 3, 99_999_999, 9))
    fixed = graph([twice_as_large("x")], size=(200_000, 200_000))
    upscaler = open_upscaler(saved(fixed, tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="there is not the memory for this"):
        plan_tiles(upscaler, 10, 10)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_an_interruption_ends_a_run_at_its_next_operator(tmp_path: Path):
    many = [node("Conv", [f"c{i}", "w"], [f"c{i + 1}"], pads=[15] * 4) for i in range(400)]
    model = graph(
        [node("Identity", ["x"], ["c0"]), *many, twice_as_large("c400")],
        {"w": weight(3, 3, 31, 31)},
    )
    path = saved(model, tmp_path / "m.onnx")
    code = (
        "import signal, sys, numpy as np\n"
        # A shell lets what it starts in the background ignore interruptions.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from aether_converters import open_upscaler\n"
        f"run = open_upscaler({str(path)!r}).run\n"
        "print('running', flush=True)\n"
        "try:\n"
        "    run(np.zeros((1, 3, 600, 600), np.float32))\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(0.5)
        started = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 130
    assert time.monotonic() - started < 10


def test_what_interruptible_work_raises_is_raised():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interruptible(fail, lambda: None)
    assert interruptible(lambda: 7, lambda: None) == 7
