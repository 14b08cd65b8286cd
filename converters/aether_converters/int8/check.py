"""What of a quantised ONNX file really runs in int8: with TensorRT, and with onnxruntime on a CPU.

TensorRT takes int8 as pairs of QuantizeLinear and DequantizeLinear, and of those only some. Others
it rejects, reads as something else, or builds in float without a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from aether_converters.errors import ModelError, require
from aether_converters.graphs.macs import node_macs
from aether_converters.graphs.onnx_shapes import Shape
from aether_converters.runtimes.upscaler import Upscaler
from aether_converters.tensorrt.layers import LAYOUT, QUANTISABLE
from aether_spandrel.errors import reason

Verdict = Literal["rejected", "saturates", "float"]

QUANTIZE: Final = "QuantizeLinear"
DEQUANTIZE: Final = "DequantizeLinear"
PAIR: Final = (QUANTIZE, DEQUANTIZE)
JUDGED: Final = (*PAIR, *QUANTISABLE)
ARITHMETIC: Final = ("Add", "Div", "Mul", "Sub")
MOVES: Final = (*LAYOUT, "Concat", "DepthToSpace", "MaxPool", "Pad", "Slice")
"""Operators whose results are values of their input, which TensorRT may exchange with a pair."""

INTEGER_OPERATORS: Final = (
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
)
"""Convolutions and products of integers, of ONNX and of onnxruntime."""

FLOATS: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A part of a graph that TensorRT does not run in int8 as it is written.

    Attributes:
        rule: Name of the row of `RULES`.
        node: Name of the ONNX node, or of its first output if it has none. Where a layer runs in
            float it is the layer, otherwise what TensorRT takes offence at.
        verdict: "rejected" if TensorRT refuses the whole file, "saturates" if it computes something
            else, "float" if it builds and the layer runs in float.
        text: Expected and found.
    """

    rule: str
    node: str
    verdict: Verdict
    text: str


def tensorrt_findings(model: ModelProto) -> tuple[Finding, ...]:
    """Everything in a graph that TensorRT would not run in int8 as it is written, rule by rule.

    Layers that are not quantised at all are none. The rules were tried with TensorRT-RTX 1.7; for
    a graph that it builds, `tensorrt_layers.running_in_float` tells what it did. Nodes inside the
    branches of an If or Loop are not looked at.
    """
    return tuple(finding for _, finding in _findings(_Graph(model)))


def integer_share(model: ModelProto, shape: Shape) -> float | None:
    """Share of the multiply-accumulates, 0 to 1, that TensorRT runs in int8.

    A layer counts if both its inputs come straight from a DequantizeLinear, and neither it nor what
    dequantises its inputs or its bias has a finding. A finding "rejected" elsewhere does not matter
    here, though without its repair nothing runs at all.

    Args:
        model: With its weights.
        shape: Of the input, (N, C, H, W).

    Returns:
        None where the shapes inside do not follow from it; 0 for a graph without layers.
    """
    graph = _Graph(model)
    faulty = {node.output[0] for node, _ in _findings(graph)}

    def integer(layer: NodeProto) -> bool:
        taken = [graph.origins.get(name) for name in layer.input]
        parts = [
            layer,
            *(part for o in taken if o is not None for part in graph.pair(o.dequantize)),
        ]
        return (
            layer.op_type in QUANTISABLE
            and all(origin is not None and not origin.operator for origin in taken[:2])
            and faulty.isdisjoint(part.output[0] for part in parts)
        )

    return _share(model, shape, integer)


def cpu_integer_share(path: Path, shape: Shape) -> float | None:
    """Share of the multiply-accumulates, 0 to 1, that onnxruntime runs in int8 on this CPU.

    A layer counts if, in the graph that onnxruntime makes of the file, an integer operator takes
    its int8 or uint8 weights. Products of two activations count as float.

    Args:
        path: The ONNX file.
        shape: Of the input, (N, C, H, W).

    Returns:
        None where the shapes inside do not follow from it; 0 for a graph without layers.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: The file cannot be read, or onnxruntime refuses it.
    """
    require("onnxruntime")
    from aether_converters.runtimes.onnx_runtime import read_onnx

    graph = _Graph(read_onnx(path))
    takers: dict[str, set[str]] = {}
    for node in _optimised(path).graph.node:
        for name in node.input:
            takers.setdefault(name, set()).add(node.op_type)

    def integer(layer: NodeProto) -> bool:
        operators = {
            taker for name in graph.integer_weights(layer) for taker in takers.get(name, ())
        }
        return bool(operators & {*INTEGER_OPERATORS}) and DEQUANTIZE not in operators

    return _share(graph.model, shape, integer)


def _share(model: ModelProto, shape: Shape, integer: Callable[[NodeProto], bool]) -> float | None:
    counts = node_macs(model, shape)
    if counts is None:
        return None
    return sum(count for node, count in counts if integer(node)) / max(
        sum(count for _, count in counts), 1
    )


def _optimised(path: Path) -> ModelProto:
    """What onnxruntime runs on this CPU instead of a file."""
    from aether_converters.runtimes.onnx_runtime import RUNTIME_ERRORS

    runtime: Any = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns that the file is for this machine only
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(optimised)
        try:
            runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except RUNTIME_ERRORS as error:
            raise ModelError(
                "onnxruntime refuses the model",
                file=path,
                found=reason(error),
                advice="convert it again from its checkpoint with aethernet convert",
            ) from error
        return onnx.load(str(optimised))


@dataclass(frozen=True)
class _Origin:
    """Where a tensor of floats was int8 last.

    Attributes:
        dequantize: The DequantizeLinear that it comes from.
        operator: What stands between, if anything does: the first that computes, else the last.
        computes: Whether one of those that stand between makes new values.
    """

    dequantize: NodeProto
    operator: str = ""
    computes: bool = False


class _Graph:
    """A graph with what the rules ask of it."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        # One with fewer inputs is no valid node, which is for whoever reads the file to say.
        self.nodes = [
            node
            for node in model.graph.node
            if node.output and (node.op_type not in JUDGED or len(node.input) > 1)
        ]
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.constants: dict[str, TensorProto] = {t.name: t for t in model.graph.initializer}
        for node in self.nodes:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
        self.origins: dict[str, _Origin] = {}
        for node in self.nodes:
            origin = self._origin(node)
            if origin is not None:
                self.origins.update(dict.fromkeys(node.output, origin))

    def _origin(self, node: NodeProto) -> _Origin | None:
        if node.op_type == DEQUANTIZE:
            return _Origin(node)
        before = self.origins.get(node.input[0]) if node.input else None
        if before is None or node.op_type in QUANTISABLE:
            return None
        operator = before.operator if before.computes else node.op_type
        return _Origin(before.dequantize, operator, before.computes or node.op_type not in MOVES)

    @cached_property
    def types(self) -> Mapping[str, int]:
        """The element type of each tensor, as far as onnx can infer it."""
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except onnx.shape_inference.InferenceError:
            graph = self.model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        return {
            **{value.name: value.type.tensor_type.elem_type for value in values},
            **{name: tensor.data_type for name, tensor in self.constants.items()},
        }

    def pair(self, node: NodeProto) -> tuple[NodeProto, ...]:
        """A DequantizeLinear and the QuantizeLinear before it, if there is one."""
        maker = self.makers.get(node.input[0])
        return (node,) if maker is None or maker.op_type != QUANTIZE else (maker, node)

    def repeats(self, node: NodeProto) -> bool:
        """Whether a DequantizeLinear has the parameters of the QuantizeLinear before it."""
        first = self.pair(node)[0]
        return (
            node.op_type == DEQUANTIZE and first is not node and first.input[1:] == node.input[1:]
        )

    def of_constant(self, node: NodeProto) -> bool:
        """Whether a DequantizeLinear or QuantizeLinear has weights before it, not activations."""
        return self.pair(node)[0].input[0] in self.constants

    def integer_type(self, node: NodeProto) -> int:
        """Of the integers of a QuantizeLinear or DequantizeLinear; 0 where it is unknown."""
        zero_point = self.zero_point(node)
        if zero_point is not None:
            return zero_point.data_type
        if node.op_type == DEQUANTIZE:
            return self.types.get(node.input[0], 0)
        given = _attribute(node, "output_dtype", 0)
        return given or self.types.get(node.output[0], TensorProto.UINT8)

    def zero_point(self, node: NodeProto) -> TensorProto | None:
        """Of a QuantizeLinear or DequantizeLinear, if it is constant."""
        return self.constants.get(node.input[2]) if len(node.input) > 2 else None

    def scale_shape(self, node: NodeProto) -> tuple[int, ...]:
        """Of a QuantizeLinear or DequantizeLinear; that of a scalar where it is unknown."""
        scale = self.constants.get(node.input[1])
        return () if scale is None else tuple(scale.dims)

    def quantised(self, layer: NodeProto) -> bool:
        """Whether an input of a layer is meant to be int8."""
        origins = [self.origins.get(name) for name in layer.input[:2]]
        return any(origin is not None and not origin.computes for origin in origins)

    def dequantised(self, layer: NodeProto) -> Iterator[NodeProto]:
        """Each DequantizeLinear that the inputs of a layer come from, without its bias."""
        for name in layer.input[:2]:
            if name in self.origins and not self.origins[name].computes:
                yield self.origins[name].dequantize

    def integer_weights(self, layer: NodeProto) -> Iterator[str]:
        """Names of the constant matrices of 8-bit integers that a layer takes."""
        for name in layer.input:
            origin = self.origins.get(name)
            source = name if origin is None else origin.dequantize.input[0]
            tensor = self.constants.get(source)
            if tensor is not None and tensor.data_type in EIGHT_BITS and len(tensor.dims) > 1:
                yield source


EIGHT_BITS: Final = (TensorProto.INT8, TensorProto.UINT8)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((entry.i for entry in node.attribute if entry.name == name), default)


def _name(node: NodeProto) -> str:
    return node.name or node.output[0]


def _type(number: int) -> str:
    return helper.tensor_dtype_to_string(number).removeprefix("TensorProto.").lower()


def _zero_point(graph: _Graph, node: NodeProto) -> str | None:
    tensor = graph.zero_point(node)
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    values: Any = np.atleast_1d(numpy_helper.to_array(tensor))
    found = values[values != 0]
    return f"expected zero-point 0, found {found[0]}" if found.size else None


def _uint8(graph: _Graph, node: NodeProto) -> str | None:
    if graph.of_constant(node) or graph.integer_type(node) != TensorProto.UINT8:
        return None
    if _zero_point(graph, node):
        return None  # rejected
    given = "uint8" if graph.zero_point(node) is not None else "no zero-point, which means uint8"
    return f"expected int8, found {given}: TensorRT reads int8, and values above 127 become 127"


def _uint8_weights(graph: _Graph, node: NodeProto) -> str | None:
    if graph.of_constant(node) and graph.integer_type(node) == TensorProto.UINT8:
        return "expected int8 weights, found uint8"
    return None


def _wide_integers(*types: int) -> Callable[[_Graph, NodeProto], str | None]:
    def check(graph: _Graph, node: NodeProto) -> str | None:
        found = graph.integer_type(node)
        return f"expected int8, found {_type(found)}" if found in types else None

    return check


def _unsupported(_: _Graph, node: NodeProto) -> str:
    return (
        f"expected QuantizeLinear and DequantizeLinear on the inputs of a float operator, "
        f"found {node.op_type}"
    )


def _scale_type(graph: _Graph, node: NodeProto) -> str | None:
    types = [FLOATS[t] for t in map(graph.types.get, node.input) if t in FLOATS]
    if len({*types}) < 2 or not graph.origins:
        return None
    return f"expected scales and tensors of one dtype, found {' and '.join(sorted({*types}))}"


def _scale_shape(graph: _Graph, layer: NodeProto) -> str | None:
    for shape in _activation_scales(graph, layer):
        if shape and {*shape} == {1}:
            return f"expected a scalar as the activations' scale, found shape {[*shape]}"
    return None


def _per_channel(graph: _Graph, layer: NodeProto) -> str | None:
    for shape in _activation_scales(graph, layer):
        if {*shape} - {1}:
            return f"expected one scale for all activations, found {max(shape)}"
    return None


def _activation_scales(graph: _Graph, layer: NodeProto) -> list[tuple[int, ...]]:
    return [
        graph.scale_shape(part)
        for node in graph.dequantised(layer)
        if not graph.of_constant(node)
        for part in graph.pair(node)
    ]


def _weight_axis(graph: _Graph, layer: NodeProto) -> str | None:
    origin = graph.origins.get(layer.input[1])
    if origin is None or origin.operator or not graph.of_constant(origin.dequantize):
        return None
    node = origin.dequantize
    integers = graph.constants[graph.pair(node)[0].input[0]]
    axis = _attribute(node, "axis", 1)
    axis += len(integers.dims) if axis < 0 else 0
    expected = OUTPUT_AXES[layer.op_type](layer, len(integers.dims))
    if not {*graph.scale_shape(node)} - {1} or axis == expected:
        return None
    return f"expected scales of the weights along axis {expected}, found axis {axis}"


OUTPUT_AXES: Final[Mapping[str, Callable[[NodeProto, int], int]]] = {
    "Conv": lambda _layer, _rank: 0,
    "Gemm": lambda layer, _rank: 0 if _attribute(layer, "transB", 0) else 1,
    "MatMul": lambda _layer, rank: rank - 1,
}
"""Along which axis of its weights a layer's output channels lie."""


def _between(*, computes: bool) -> Callable[[_Graph, NodeProto], str | None]:
    def check(graph: _Graph, layer: NodeProto) -> str | None:
        if not graph.quantised(layer):
            return None
        for name in layer.input[:2]:
            origin = graph.origins.get(name)
            if origin is not None and origin.operator and origin.computes == computes:
                return f"expected DequantizeLinear at the layer's input, found {origin.operator}"
        return None

    return check


def _one_input(graph: _Graph, layer: NodeProto) -> str | None:
    floats = [name for name in layer.input[:2] if name not in graph.origins]
    if not graph.quantised(layer) or not floats:
        return None
    return f"expected DequantizeLinear at both inputs, found {floats[0]} in float"


def _transposed(graph: _Graph, layer: NodeProto) -> str | None:
    if not graph.quantised(layer):
        return None
    return "expected a Conv, Gemm or MatMul, found ConvTranspose, which has no int8 kernel"


@dataclass(frozen=True)
class Rule:
    """A row of `RULES`.

    Attributes:
        name: Of the rule.
        verdict: On the nodes that it finds.
        operators: The types of the nodes that it looks at.
        check: Tells what is wrong with one of them, if anything is.
    """

    name: str
    verdict: Verdict
    operators: tuple[str, ...]
    check: Callable[[_Graph, NodeProto], str | None]


RULES: Final = (
    Rule("zero-point", "rejected", PAIR, _zero_point),
    Rule("uint8", "saturates", PAIR, _uint8),
    Rule("uint8-weights", "rejected", PAIR, _uint8_weights),
    Rule("int16", "rejected", PAIR, _wide_integers(TensorProto.INT16, TensorProto.UINT16)),
    Rule("int32", "rejected", PAIR, _wide_integers(TensorProto.INT32)),
    Rule(
        "integer-operator", "rejected", (*INTEGER_OPERATORS, "DynamicQuantizeLinear"), _unsupported
    ),
    Rule("scale-type", "rejected", (*QUANTISABLE, *ARITHMETIC), _scale_type),
    # A product takes a scale of shape [1]: TensorRT-RTX 1.7 runs it in int8.
    Rule("scale-shape", "float", ("Conv",), _scale_shape),
    Rule("per-channel-activations", "float", ("Conv", "Gemm", "MatMul"), _per_channel),
    Rule("weight-axis", "float", tuple(OUTPUT_AXES), _weight_axis),
    Rule("operator-between", "float", QUANTISABLE, _between(computes=True)),
    # TensorRT-RTX 1.7 exchanges these with the pair and runs the layer in int8. Other versions were
    # not tried, so the layer is taken for one that may run in float.
    Rule("layout-between", "float", QUANTISABLE, _between(computes=False)),
    Rule("one-input", "float", QUANTISABLE, _one_input),
    Rule("transposed-convolution", "float", ("ConvTranspose",), _transposed),
)
"""What TensorRT rejects, misreads or runs in float."""


def _findings(graph: _Graph) -> Iterator[tuple[NodeProto, Finding]]:
    for rule in RULES:
        for node in graph.nodes:
            if node.op_type in rule.operators and not graph.repeats(node):
                text = rule.check(graph, node)
                if text:
                    yield (
                        node,
                        Finding(rule=rule.name, node=_name(node), verdict=rule.verdict, text=text),
                    )


CHECKED_SIDE: Final = 64  # px, of the input for which multiply-accumulates are counted


def first_finding(content: bytes) -> str:
    """What TensorRT would not run in int8 as it is written, in words; empty if it runs all."""
    findings = tensorrt_findings(onnx.load_from_string(content))
    for finding in findings:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        return f"TensorRT: {finding.node}: {finding.text} ({finding.verdict}){more}"
    return ""


def checked_integers(upscaler: Upscaler) -> dict[str, int | str]:
    """What of an int8 ONNX file runs in int8, with whom it is meant for: both, if it says neither.

    For TensorRT what it would not take, too, which of a file for CPUs nobody has to know.
    """
    content = upscaler.path.read_bytes()
    model = onnx.load_from_string(content)
    target = next((p.value for p in model.metadata_props if p.key == "int8_target"), "")
    height, width = upscaler.fixed_size or (CHECKED_SIDE, CHECKED_SIDE)
    shape = (1, upscaler.channels[0], height, width)
    found: dict[str, int | str] = {"int8_target": target} if target else {}
    if target != "tensorrt":
        found["int8_share_cpu"] = _percent(cpu_integer_share(upscaler.path, shape))
    if target != "cpu":
        found["int8_share_tensorrt"] = _percent(integer_share(model, shape))
        found["tensorrt"] = first_finding(content) or "takes every int8 layer as it is"
    return found


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
