"""Each rule finds its fault in a graph of one layer, with which TensorRT does what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from aether_converters.errors import EngineError, ModelError
from aether_converters.int8.check import (
    RULES,
    Verdict,
    cpu_integer_share,
    integer_share,
    tensorrt_findings,
)
from tests.support.qdq import quantised

SIDE = 8  # px, and channels, so that matrices may be transposed
SHAPE = (1, SIDE, SIDE, SIDE)
KERNEL = (SIDE, SIDE, 1, 1)
Change = Callable[[ModelProto], None]


def model(
    *nodes: onnx.NodeProto, constants: dict[str, ArrayLike] | None = None, dtype: int = 1
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, SHAPE)],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(operator: str, inputs: str, output: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=name or output, **attributes)


def random(*shape: int, dtype: type[np.floating[Any]] = np.float32) -> NDArray[np.floating[Any]]:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def convolution(*, half: bool = False, **options: Any) -> ModelProto:
    """A convolution named `layer` between pairs as TensorRT takes them."""
    dtype = np.float16 if half else np.float32
    plain = model(
        node("Conv", "x w b", "y", "layer"),
        constants={"w": random(*KERNEL, dtype=dtype), "b": random(SIDE, dtype=dtype)},
        dtype=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
    )
    made = onnx.load_from_string(quantised(plain.SerializeToString(), **options))
    del made.opset_import[:]
    made.opset_import.extend(plain.opset_import)
    made.ir_version = plain.ir_version
    return made


PAIRS = (
    node("QuantizeLinear", "x scale zero", "x.q"),
    node("DequantizeLinear", "x.q scale zero", "x.dq"),
)
SCALE = {"scale": np.float32(0.02), "zero": np.int8(0)}
MATRIX = {
    "w": np.arange(SIDE * SIDE, dtype=np.int8).reshape(SIDE, SIDE),
    "w.scale": np.full(SIDE, 0.01, np.float32),
    "w.zero": np.zeros(SIDE, np.int8),
}


def product(*, axis: int = 1, **constants: ArrayLike) -> ModelProto:
    """A product named `layer`, x by w, between pairs as TensorRT takes them."""
    return model(
        *PAIRS,
        node("DequantizeLinear", "w w.scale w.zero", "w.dq", axis=axis),
        node("MatMul", "x.dq w.dq", "y", "layer"),
        constants={**SCALE, **MATRIX, **constants},
    )


def changed(made: ModelProto, **constants: ArrayLike) -> ModelProto:
    """The same graph with other constants: x_scale is x.scale."""
    for key, value in constants.items():
        name = key.replace("_", ".")
        (tensor,) = (entry for entry in made.graph.initializer if entry.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return made


def without_zero_point() -> ModelProto:
    made = convolution()
    for entry in made.graph.node:
        if entry.name in ("x.q", "x.dq"):
            del entry.input[2]
    return made


def with_attribute(made: ModelProto, name: str, **attributes: int) -> ModelProto:
    (entry,) = (entry for entry in made.graph.node if entry.name == name)
    del entry.attribute[:]
    entry.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    return made


def bias_behind_dequantize() -> ModelProto:
    made = convolution()
    constants = {"b.int32": np.zeros(SIDE, np.int32), "b.scale": np.float32(0.001)}
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()
    )
    made.graph.node.insert(0, node("DequantizeLinear", "b.int32 b.scale", "b.dq"))
    made.graph.node[-1].input[2] = "b.dq"
    return made


def one_float_input(index: int) -> ModelProto:
    made = convolution()
    made.graph.initializer.append(numpy_helper.from_array(random(*KERNEL), "w"))
    made.graph.node[-1].input[index] = ("x", "w")[index]
    return made


def half_with_float_scales() -> ModelProto:
    made = convolution(half=True)
    return changed(made, x_scale=np.float32(0.02), w_scale=np.full(SIDE, 0.01, np.float32))


def integers(operator: str, inputs: str) -> ModelProto:
    """A layer of integers, back in float."""
    kernel = {} if "MatMul" in operator else {"w": np.ones(KERNEL, np.int8)}
    last = node("Cast", "i", "y", to=TensorProto.FLOAT)
    if operator == "QLinearConv":
        last = node("DequantizeLinear", "i scale zero", "y")
    return model(
        PAIRS[0],
        node(operator, inputs, "i", "layer"),
        last,
        constants={**SCALE, **MATRIX, **kernel},
    )


def dynamic() -> ModelProto:
    return model(
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
        node("Cast", "q", "y", to=TensorProto.FLOAT),
    )


def transposed_convolution() -> ModelProto:
    return model(
        *PAIRS,
        node("DequantizeLinear", "w w.scale w.zero", "w.dq", axis=1),
        node("ConvTranspose", "x.dq w.dq", "y", "layer"),
        constants={**SCALE, **MATRIX, "w": np.ones(KERNEL, np.int8)},
    )


def case(rule: str, at: str, verdict: Verdict, made: ModelProto, name: str = "") -> Any:
    return pytest.param(made, rule, at, verdict, id=f"{rule} {name}".strip())


CHANNELS = np.full(SIDE, 0.02, np.float32)
CASES = (
    case("zero-point", "x.q", "rejected", changed(convolution(), x_zero=np.int8(3))),
    case("zero-point", "x.q", "rejected", changed(convolution(), x_zero=np.uint8(128)), "uint8"),
    case(
        "zero-point",
        "w.dq",
        "rejected",
        changed(convolution(), w_zero=np.full(SIDE, 2, np.int8)),
        "of weights",
    ),
    case("uint8", "x.q", "saturates", changed(convolution(), x_zero=np.uint8(0))),
    case("uint8", "x.q", "saturates", without_zero_point(), "without zero-point"),
    case(
        "uint8-weights",
        "w.dq",
        "rejected",
        changed(convolution(), w_int8=np.ones(KERNEL, np.uint8), w_zero=np.zeros(SIDE, np.uint8)),
    ),
    case("int16", "x.q", "rejected", changed(convolution(), x_zero=np.int16(0))),
    case("int32", "b.dq", "rejected", bias_behind_dequantize()),
    case(
        "integer-operator",
        "layer",
        "rejected",
        integers("QLinearConv", "x.q scale zero w scale zero scale zero"),
        "QLinearConv",
    ),
    case("integer-operator", "layer", "rejected", integers("ConvInteger", "x.q w"), "ConvInteger"),
    case(
        "integer-operator", "layer", "rejected", integers("MatMulInteger", "x.q w"), "MatMulInteger"
    ),
    case("integer-operator", "dynamic", "rejected", dynamic(), "DynamicQuantizeLinear"),
    case("scale-type", "layer", "rejected", half_with_float_scales()),
    case("scale-shape", "layer", "float", convolution(shape=(1,))),
    case(
        "per-channel-activations",
        "layer",
        "float",
        changed(convolution(), x_scale=CHANNELS, x_zero=np.zeros(SIDE, np.int8)),
    ),
    case("weight-axis", "layer", "float", with_attribute(convolution(), "w.dq", axis=1)),
    case("operator-between", "layer", "float", convolution(between="LeakyRelu")),
    case("one-input", "layer", "float", one_float_input(0), "weights"),
    case("one-input", "layer", "float", one_float_input(1), "activations"),
    case("transposed-convolution", "layer", "float", transposed_convolution()),
)
LAYOUT = case("layout-between", "layer", "float", convolution(between="Transpose"))
CLEAN = (
    pytest.param(convolution(), id="convolution"),
    pytest.param(convolution(half=True), id="convolution in fp16"),
    pytest.param(changed(convolution(), w_scale=np.float32(0.01), w_zero=np.int8(0)), id="scalar"),
    pytest.param(
        with_attribute(without_zero_point(), "x.q", output_dtype=TensorProto.INT8),
        id="int8 without zero-point",
    ),
    pytest.param(product(), id="product"),
    pytest.param(product(scale=[np.float32(0.02)], zero=[np.int8(0)]), id="product, shape [1]"),
)


@pytest.mark.parametrize(("made", "rule", "at", "verdict"), [*CASES, LAYOUT])
def test_each_fault_is_found_by_name(made: ModelProto, rule: str, at: str, verdict: Verdict):
    (finding,) = tensorrt_findings(made)
    assert (finding.rule, finding.node, finding.verdict) == (rule, at, verdict)
    assert finding.text.startswith("expected ")
    assert ", found " in finding.text
    # onnx infers no shapes where dtypes are mixed.
    assert integer_share(made, SHAPE) == (None if rule == "scale-type" else 0)


@pytest.mark.parametrize("made", CLEAN)
def test_what_tensorrt_takes_has_no_finding(made: ModelProto):
    assert tensorrt_findings(made) == ()
    assert integer_share(made, SHAPE) == 1


def test_every_rule_has_a_graph_here():
    assert {rule.name for rule in RULES} == {case.values[1] for case in (*CASES, LAYOUT)}


def test_a_float_layer_is_no_finding():
    plain = model(node("Conv", "x w", "y", "layer"), constants={"w": random(*KERNEL)})
    assert tensorrt_findings(plain) == ()
    assert integer_share(plain, SHAPE) == 0


def test_a_product_takes_scales_along_its_columns():
    (finding,) = tensorrt_findings(product(axis=0))
    assert (finding.rule, finding.verdict) == ("weight-axis", "float")
    assert finding.text == "expected scales of the weights along axis 1, found axis 0"


def test_words_say_what_was_found():
    texts = {case.id: tensorrt_findings(case.values[0])[0].text for case in CASES}
    assert texts["zero-point uint8"] == "expected zero-point 0, found 128"
    assert texts["int16"] == "expected int8, found int16"
    assert texts["scale-type"] == ("expected scales and tensors of one dtype, found fp16 and fp32")
    assert texts["per-channel-activations"] == "expected one scale for all activations, found 8"


# Shares


def two_layers() -> ModelProto:
    """A convolution in int8, 1/10 of the work, and one in float."""
    made = convolution()
    made.graph.node[-1].output[0] = "between"
    made.graph.node.append(node("Conv", "between w", "y", pads=[1] * 4))
    made.graph.initializer.append(numpy_helper.from_array(random(SIDE, SIDE, 3, 3), "w"))
    return made


def written(made: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(made, path)
    return path


def test_shares_count_multiplications():
    assert integer_share(two_layers(), SHAPE) == pytest.approx(0.1)


def foreign() -> ModelProto:
    """An operator of onnxruntime alone, with its own multiplications, after a convolution."""
    made = two_layers()
    made.graph.node[-1].output[0] = "last"
    made.graph.node.append(node("FusedConv", "last w", "y", "foreign", domain="com.microsoft"))
    return made


def test_shares_are_unknown_behind_operators_of_onnxruntime_alone(tmp_path: Path):
    assert integer_share(foreign(), SHAPE) is None
    assert tensorrt_findings(foreign()) == ()
    assert cpu_integer_share(written(foreign(), tmp_path), SHAPE) is None


def back_in_uint8(made: ModelProto) -> ModelProto:
    """The result rounded, without which onnxruntime convolves in float."""
    made.graph.node[-1].output[0] = "result"
    made.graph.initializer.extend(
        [
            helper.make_tensor("y.scale", TensorProto.FLOAT, [], [0.05]),
            helper.make_tensor("y.zero", TensorProto.UINT8, [], [128]),
        ]
    )
    made.graph.node.append(node("QuantizeLinear", "result y.scale y.zero", "y.q"))
    made.graph.node.append(node("DequantizeLinear", "y.q y.scale y.zero", "y"))
    return changed(made, x_zero=np.uint8(128))


@pytest.mark.parametrize(
    ("made", "share"),
    [
        pytest.param(back_in_uint8(convolution()), 1, id="QLinearConv from Q/DQ"),
        pytest.param(convolution(), 0, id="no integers behind the convolution"),
        pytest.param(integers("MatMulInteger", "x.q w"), 1, id="MatMulInteger"),
        pytest.param(
            integers("QLinearConv", "x.q scale zero w scale zero scale zero"), 1, id="QLinearConv"
        ),
        pytest.param(product(), 1, id="MatMulIntegerToFloat from Q/DQ"),
    ],
)
def test_onnxruntime_tells_what_it_runs_in_int8(made: ModelProto, share: float, tmp_path: Path):
    assert cpu_integer_share(written(made, tmp_path), SHAPE) == share


def test_a_file_that_onnxruntime_refuses_is_named(tmp_path: Path):
    made = model(node("Unheard", "x", "y"))
    with pytest.raises(ModelError, match="onnxruntime refuses the model") as refusal:
        cpu_integer_share(written(made, tmp_path), SHAPE)
    assert refusal.value.file == tmp_path / "model.onnx"


# What TensorRT really does

builds = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx"
)


def in_int8(made: ModelProto) -> bool:
    from aether_converters.tensorrt.build import engine_layers

    layers = engine_layers(made.SerializeToString(), ("8.9",))
    assert any("layer" in layer.nodes for layer in layers)
    return any(layer.int8 for layer in layers if "layer" in layer.nodes)


@builds
@pytest.mark.parametrize(
    ("made", "verdict"),
    [pytest.param(case.values[0], case.values[3], id=case.id) for case in CASES],
)
def test_tensorrt_does_what_the_verdict_says(made: ModelProto, verdict: Verdict):
    if verdict == "rejected":
        with pytest.raises(EngineError):
            in_int8(made)
    else:
        assert in_int8(made) == (verdict == "saturates")


@builds
@pytest.mark.parametrize("made", CLEAN)
def test_tensorrt_runs_what_has_no_finding_in_int8(made: ModelProto):
    assert in_int8(made)


@builds
def test_tensorrt_rtx_is_kinder_to_layout_than_the_rule():
    """Which stays, as NVIDIA promises it for no version; it costs nothing to follow."""
    assert in_int8(LAYOUT.values[0])
