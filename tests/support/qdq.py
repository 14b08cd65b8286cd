"""An ONNX file with its convolutions in int8, as TensorRT takes it: symmetric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

ACTIVATION = 0.02  # qscale where none is given, and what is computed does not matter


def quantised(
    content: bytes,
    *,
    shape: Sequence[int] = (),
    depthwise: bool = False,
    scales: Mapping[str, float] | None = None,
    between: str = "",
) -> bytes:
    """The same graph with Q/DQ before every convolution, but for depthwise ones by default.

    `shape` is that of the activations' scales: TensorRT wants a scalar. `scales` has their values.
    `between` is an operator that stands between DequantizeLinear and the convolution.
    """
    model: Any = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    half = graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    dtype = np.float16 if half else np.float32
    nodes: list[NodeProto] = []
    stored = {name: tensor for name, tensor in weights.items() if name}
    done: set[str] = set()

    def add(operator: str, name: str, inputs: Sequence[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))

    for node in graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and (groups == 1 or depthwise):
            x, weight = node.input[:2]
            if x not in done:
                done.add(x)
                stored[f"{x}.scale"] = np.full(shape, (scales or {}).get(x, ACTIVATION), dtype)
                stored[f"{x}.zero"] = np.zeros(shape, np.int8)
                add("QuantizeLinear", f"{x}.q", [x, f"{x}.scale", f"{x}.zero"])
                add("DequantizeLinear", f"{x}.dq", [f"{x}.q", f"{x}.scale", f"{x}.zero"])
            if weight not in done:
                done.add(weight)
                value: Any = weights[weight].astype(np.float32)
                scale = np.maximum(np.abs(value).reshape(len(value), -1).max(1) / 127, 1e-6)
                steps: Any = (value / scale.reshape(-1, 1, 1, 1)).round().clip(-127, 127)
                stored.pop(weight, None)
                stored[f"{weight}.int8"] = steps.astype(np.int8)
                stored[f"{weight}.scale"] = scale.astype(dtype)
                stored[f"{weight}.zero"] = np.zeros(len(value), np.int8)
                parts = [f"{weight}.{part}" for part in ("int8", "scale", "zero")]
                add("DequantizeLinear", f"{weight}.dq", parts, axis=0)
            replaced = NodeProto()
            replaced.CopyFrom(node)
            replaced.input[0], replaced.input[1] = f"{x}.dq", f"{weight}.dq"
            if between:
                add(between, f"{node.name}.between", [f"{x}.dq"])
                replaced.input[0] = f"{node.name}.between"
            nodes.append(replaced)
        else:
            nodes.append(node)
    result = helper.make_graph(
        nodes,
        graph.name,
        graph.input,
        graph.output,
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(
        result, opset_imports=[helper.make_opsetid("", 19 if half else 17)], ir_version=9
    ).SerializeToString()
