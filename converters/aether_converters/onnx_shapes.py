"""Shapes of the tensors inside an ONNX graph, for an input of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from onnx import ModelProto, ValueInfoProto, shape_inference

Shape = tuple[int, ...]

LARGEST_SHAPE_CONSTANT: Final = 64  # elements; a tensor that is longer describes no shape


def image_input(model: ModelProto) -> ValueInfoProto:
    """The first input that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return next(value for value in model.graph.input if value.name not in weights)


def activation_shapes(model: ModelProto, shape: Shape) -> Mapping[str, Shape]:
    """The shape of everything that is computed, by name, for an input of `shape`, (N, C, H, W).

    Empty where the shapes do not follow from it. The model stays as it is.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    for tensor in skeleton.graph.initializer:
        if math.prod(tensor.dims) > LARGEST_SHAPE_CONSTANT:
            tensor.ClearField("raw_data")  # shapes do not depend on weights
            tensor.ClearField("float_data")
    dims = image_input(skeleton).type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    for value in (*skeleton.graph.output, *skeleton.graph.value_info):
        value.type.tensor_type.ClearField("shape")  # of another size, or none
    try:
        graph = shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError:
        return {}
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.output)
    }
