"""The layers of a TensorRT plan as the builder prints them, and what of them runs in INT8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

QUANTISABLE: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LAYOUT: Final = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
DTYPES: Final = {
    "Float": "fp32",
    "FP32": "fp32",
    "Half": "fp16",
    "FP16": "fp16",
    "BFloat16": "bf16",
    "BF16": "bf16",
    "Int8": "int8",
    "INT8": "int8",
    "Int32": "int32",
    "Int64": "int64",
    "Bool": "bool",
}
"""Our names of the dtypes, by those of TensorRT's dumps."""

_PARTS: Final = re.compile(
    r", (LayerType|Inputs|Constants|Outputs|ParameterType|TacticName|TacticValue|StreamId"
    r"|Metadata): "
)
# TensorRT 10 joins the two: "Format/Datatype: Thirty-two wide channel vectorized Int8 format".
_DTYPE: Final = re.compile(r"Datatype: ([^,}]*)")
_FORMAT: Final = re.compile(r"Format: (\([^)]*\)|[^,}]*)")
_NAME: Final = re.compile(r"\{ Name: ([^,}]*)")
_NODE: Final = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_ROUNDED_PRODUCT: Final = re.compile(r"RounCast(?:Conc|Repl|Resh)*(?:Corr|Gemm|MatMul)")
_MOVES: Final = re.compile(r"__myl_(?:Tran|Resh|Move|Cast|Copy)+_")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a plan: one or more kernels on the GPU.

    Attributes:
        name: As TensorRT calls it.
        kind: Such as "correlation" (a convolution) or "kgen" (a generated kernel).
        inputs: Dtypes of the activations that it takes: fp32, fp16, int8, ...
        constants: Dtypes of its weights.
        outputs: Dtypes of what it leaves.
        formats: Orders in memory of its inputs and outputs, as TensorRT names them.
        writes: Names of the tensors that it leaves.
        nodes: Names of the ONNX nodes that it computes, or parts of them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    formats: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def int8(self) -> bool:
        """Whether it multiplies int8 activations by int8 weights.

        Small products become part of a generated kernel, which rounds its activations itself; what
        it does is in its name.
        """
        if "int8" in self.inputs:
            return (*self.inputs, *self.constants).count("int8") >= 2
        return "int8" in self.constants and bool(_ROUNDED_PRODUCT.search(self.name))

    @property
    def reformats(self) -> bool:
        """Whether it changes nothing of its input but the order in memory or the dtype."""
        moves = "reformat" in self.kind.lower() or bool(_MOVES.match(self.name))
        return moves and bool(self.inputs)


def parse_layers(text: str) -> tuple[Layer, ...]:
    """The layers in a log of detailed verbosity, or in what an engine inspector prints.

    >>> line = (
    ...     "Name: c, LayerType: correlation, Inputs: [ { Name: x, Datatype: Int8, Format: "
    ...     "(Linear) Row major }], Constants: [ { Name: w, Datatype: Int8, Format: (NHWC) "
    ...     "Channel major }], Outputs: [ { Name: y, Datatype: Half, Format: (NHWC) Channel "
    ...     "major }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: conv]"
    ... )
    >>> (layer,) = parse_layers(line)
    >>> layer.inputs, layer.outputs, layer.nodes, layer.int8
    (('int8',), ('fp16',), ('conv',), True)
    """
    return tuple(_layer(line) for line in text.splitlines() if _is_layer(line))


def _is_layer(line: str) -> bool:
    return line.startswith("Name: ") and ", LayerType: " in line


def _layer(line: str) -> Layer:
    name, *rest = cast("list[str]", _PARTS.split(line.removeprefix("Name: ")))
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    return Layer(
        name=name,
        kind=parts["LayerType"],
        inputs=_dtypes(parts.get("Inputs", "")),
        constants=_dtypes(parts.get("Constants", "")),
        outputs=_dtypes(parts.get("Outputs", "")),
        writes=tuple(_NAME.findall(parts.get("Outputs", ""))),
        formats=tuple(_FORMAT.findall(parts.get("Inputs", "") + parts.get("Outputs", ""))),
        nodes=tuple(_NODE.findall(parts.get("Metadata", ""))),
    )


def _dtypes(tensors: str) -> tuple[str, ...]:
    return tuple(_dtype(text) for text in cast("list[str]", _DTYPE.findall(tensors)))


def _dtype(text: str) -> str:
    words = text.split()
    return next((DTYPES[word] for word in words if word in DTYPES), text.strip().lower())


def declared_int8(model: Any) -> tuple[str, ...]:
    """Names of the nodes of an `onnx.ModelProto` whose weights come out of int8."""
    makers = {name: node for node in model.graph.node for name in node.output}

    def dequantised(name: str) -> bool:
        node = makers.get(name)
        while node is not None and node.op_type in LAYOUT:
            node = makers.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in QUANTISABLE and dequantised(node.input[1])
    )


def running_in_float(declared: Iterable[str], layers: Sequence[Layer]) -> tuple[str, ...]:
    """Which of the nodes that were declared INT8 no layer multiplies in int8."""
    integer = {name for layer in layers if layer.int8 for name in layer.nodes}
    return tuple(name for name in declared if name not in integer)
