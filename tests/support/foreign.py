"""ONNX files as other projects export them: small graphs, an operator after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

node: Any = helper.make_node
FLOAT: Any = TensorProto.FLOAT
DOUBLED = np.array([1, 1, 2, 2], np.float32)
"""Scales that `twice_as_large` needs under the name `doubled`."""


def twice_as_large(name: str) -> Any:
    """The value of a name as the output, in 2 x 2 equal px each."""
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
    return node("Resize", [name, "", "doubled"], ["y"], nearest_mode="floor", **how)


def weight(*shape: int) -> Any:
    """Random weights that keep values of their size."""
    drawn = np.random.default_rng(sum(shape)).standard_normal(shape)
    return (drawn / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def graph(
    nodes: Sequence[Any],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 17,
    functions: Sequence[Any] = (),
    pixels: tuple[Any, Any] = (FLOAT, FLOAT),
    size: tuple[Any, Any] = ("h", "w"),
    channels: tuple[int, int] = (3, 3),
) -> Any:
    """A model from "x" to "y"; `doubled` is there for all."""
    there = {"doubled": DOUBLED, **(constants or {})}
    batch = 1 if isinstance(size[0], int) else "n"
    made: Any = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("x", pixels[0], [batch, channels[0], *size])],
        [helper.make_tensor_value_info("y", pixels[1], [batch, channels[1], "H", "W"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in there.items()],
    )
    domains = {"": opset, "com.microsoft": 1, **{f.domain: 1 for f in functions}}
    opsets = [helper.make_opsetid(name, version) for name, version in domains.items()]
    return helper.make_model(made, opset_imports=opsets, functions=list(functions), ir_version=8)


def function(name: str, nodes: Sequence[Any], inputs: Sequence[str]) -> Any:
    """A function of the domain "block" that gives "o"."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("block", 1)]
    return helper.make_function("block", name, list(inputs), ["o"], list(nodes), opsets)


def loop_body(nodes: Sequence[Any]) -> Any:
    """The body of a loop that makes "v2" of "v", and goes on."""
    return helper.make_graph(
        [*nodes, node("Identity", ["on"], ["goes_on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", FLOAT, None),
        ],
    )


def branch(nodes: Sequence[Any], output: str) -> Any:
    """A branch of an If."""
    made = helper.make_tensor_value_info(output, FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [made])


def saved(model: Any, path: Path) -> Path:
    """The file of a model."""
    onnx.save(model, path)
    return path
