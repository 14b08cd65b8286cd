"""Exported graphs as text, node by node, so that a review shows what a change does to them.

`python -m tests.graphs.drawing` writes them anew into `tests/graphs/reference`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from aether_converters.artefacts import WRITERS, integer_graph_bytes
from aether_converters.int8.plan import Target
from aether_converters.int8.planning import Int8Options, quantise_network
from aether_converters.source import Source, read_source
from tests.support import golden_cases
from tests.support.checkpoint_files import saved

STEP: Final = re.compile(r"\bscale_[0-9.e-]+")
FOLDER: Final = Path(__file__).parent / "reference"


@cache
def source(name: str) -> Source:
    """A golden checkpoint of this name."""
    content = golden_cases.checkpoint(golden_cases.CASES[name])
    with tempfile.TemporaryDirectory() as folder:
        return read_source(saved(content, Path(folder, f"{name}.pth")))


def float_graph(name: str) -> bytes:
    """In fp32, of any size."""
    (content,) = WRITERS["onnx"](source(name), "fp32", None)
    return content


def int8_graph(name: str, target: Target) -> bytes:
    """In int8, with the built-in pictures."""
    quantised = quantise_network(source(name).network, target, Int8Options(method="minmax", tune=0))
    return integer_graph_bytes(source(name), quantised, None)


GRAPHS: Final[Mapping[str, Callable[[], bytes]]] = {
    "g1_fp32": lambda: float_graph("g1-train-2x"),
    "g1_int8_tensorrt": lambda: int8_graph("g1-train-2x", "tensorrt"),
    "g1_int8_cpu": lambda: int8_graph("g1-train-2x", "cpu"),
    "g5f_fp32": lambda: float_graph("g5f-train-2x"),
    "g5f_int8_tensorrt": lambda: int8_graph("g5f-train-2x", "tensorrt"),
    "g5f_int8_cpu": lambda: int8_graph("g5f-train-2x", "cpu"),
}


def drawn(name: str) -> str:
    """The text of one of `GRAPHS`."""
    torch.set_num_threads(1)  # sums in one order, so that ranges fall alike
    text = "".join(f"{line}\n" for line in lines(onnx.load_from_string(GRAPHS[name]())))
    # Numbers of ranges vary with what computes them; which of them are the same does not.
    steps = list(dict.fromkeys(STEP.findall(text)))
    return STEP.sub(lambda found: f"scale_{steps.index(found[0]) + 1}", text)


def lines(model: ModelProto) -> Iterator[str]:
    """Versions, inputs, outputs, what is stored, then a node a line."""
    versions = ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)
    yield f"IR {model.ir_version}; {versions}"
    graph = model.graph
    shapes = {value.name: words(value) for value in (*graph.value_info, *graph.output)}
    yield from (f"input {value.name} {words(value)}" for value in graph.input)
    for stored in graph.initializer:
        yield f"stored {stored.name} {type_name(stored.data_type)}{list(stored.dims)}"
    for node in graph.node:
        results = ", ".join(f"{name} {shapes.get(name, '')}".strip() for name in node.output)
        yield f"{results} = {called(node)}({', '.join(node.input)})"
    yield from (f"output {value.name}" for value in graph.output)


def words(value: onnx.ValueInfoProto) -> str:
    """Type and dimensions of a tensor."""
    tensor = value.type.tensor_type
    dims = ", ".join(str(dim.dim_param or dim.dim_value) for dim in tensor.shape.dim)
    return f"{type_name(tensor.elem_type)}[{dims}]"


def type_name(number: int) -> str:
    return TensorProto.DataType.Name(number).lower()


def called(node: NodeProto) -> str:
    """The operator with its attributes."""
    said = ", ".join(f"{a.name}={said_of(a)}" for a in sorted(node.attribute, key=lambda a: a.name))
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{name}<{said}>" if said else name


def said_of(attribute: AttributeProto) -> str:
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if attribute.type == AttributeProto.INTS else str(value)


if __name__ == "__main__":
    for name in GRAPHS:
        (FOLDER / f"{name}.txt").write_text(drawn(name), "utf-8")
