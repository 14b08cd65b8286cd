"""Our graphs in a later opset than the one they are written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from aether_converters.errors import ConversionError
from aether_converters.graphs.onnx_graph import OPSET

AXES_AS_INPUT: Final[Mapping[str, int]] = {"ReduceMax": 18, "ReduceMean": 18, "ReduceProd": 18}
"""From which opset an operator takes its axes as an input, which were an attribute before."""


def newest_opset() -> int:
    """The newest that the installed onnx knows."""
    return onnx.defs.onnx_opset_version()


def refuse_opset(opset: int) -> None:
    """Raise ConversionError for an opset in which no graph can be written here."""
    if not OPSET <= opset <= newest_opset():
        raise ConversionError(
            "ONNX files are not written in this opset",
            expected=f"{OPSET} to {newest_opset()}, which onnx {onnx.__version__} knows",
            found=str(opset),
            advice="leave --opset out, or install a newer onnx",
        )


def in_opset(content: bytes, opset: int) -> bytes:
    """A graph that `build_onnx` or `quantise` has written, in another opset; checked.

    Its IR version is the lowest that may have the opset. In its own opset it stays as it is.

    Raises:
        ConversionError: There is no such opset, or none before the graph's own.
    """
    refuse_opset(opset)
    if opset == OPSET:
        return content
    model = onnx.load_from_string(content)
    for node in model.graph.node:
        if opset >= AXES_AS_INPUT.get(node.op_type, opset + 1):
            _take_axes_as_input(model, node)
    imports = [helper.make_opsetid("", opset)]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(imports))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _take_axes_as_input(model: ModelProto, node: NodeProto) -> None:
    (axes,) = (entry for entry in node.attribute if entry.name == "axes")
    values = numpy_helper.from_array(np.array(axes.ints, np.int64), f"{node.name}.axes")
    model.graph.initializer.append(values)
    node.input.append(values.name)
    node.attribute.remove(axes)
