"""Shapes of the tensors inside an ONNX graph, for an input of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from onnx import ModelProto, TensorProto, ValueInfoProto, helper, shape_inference

Shape = tuple[int, ...]

LARGEST_SHAPE_CONSTANT: Final = 64  # elements; a tensor that is longer describes no shape

PROBE: Final = (3, 1_000_003, 1_000_033)  # batch, height and width that no channel count equals


def image_input(model: ModelProto) -> ValueInfoProto:
    """The first input that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return next(value for value in model.graph.input if value.name not in weights)


def activation_shapes(model: ModelProto, shape: Shape) -> Mapping[str, Shape]:
    """The shape of everything that is computed, by name, for an input of `shape`, (N, C, H, W).

    Empty where the shapes do not follow from it. The model stays as it is.
    """
    return {value.name: _sizes(value) for value in _activations(model, shape)}


def _activations(model: ModelProto, shape: Shape) -> list[ValueInfoProto]:
    skeleton = without_weights(model)
    dims = image_input(skeleton).type.tensor_type.shape.dim
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    for value in skeleton.graph.output:
        value.type.tensor_type.ClearField("shape")  # of another size, or none
    try:
        graph = shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except shape_inference.InferenceError:
        return []
    return [*graph.value_info, *graph.output]


def _sizes(value: ValueInfoProto) -> Shape:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def name_shapes(model: ModelProto) -> None:
    """Write down the shape of everything that is computed for pictures, by names of its input.

    Shape inference loses the names of dynamic dimensions at each convolution. With them onnxruntime
    sees that products and sums have operands of one shape, and keeps them in the order in memory of
    its convolutions on a CPU: networks are up to 1.3 times as fast.

    Args:
        model: Takes (batch, C, height, width), all three named; a static graph stays as it is.
            What has another height or width than a whole multiple of the input's is left out.
    """
    picture = image_input(model).type.tensor_type
    batch, _, height, width = (dim.dim_param for dim in picture.shape.dim)
    if not (batch and height and width):
        return
    channels = picture.shape.dim[1].dim_value
    known = {value.name for value in model.graph.output}
    for value in _activations(model, (PROBE[0], channels, *PROBE[1:])):
        sizes = _sizes(value)
        dims = [batch, *(_named(size, height, width) for size in sizes[1:])]
        fixed = sum(isinstance(dim, int) for dim in dims)
        if value.name not in known and len(sizes) == 4 and sizes[0] == PROBE[0] and fixed == 1:
            dtype = value.type.tensor_type.elem_type
            described = helper.make_tensor_value_info(value.name, dtype, dims)
            model.graph.value_info.append(described)


def _named(size: int, *names: str) -> int | str:
    for name, probe in zip(names, PROBE[1:], strict=True):
        if size == probe:
            return name
        if size % probe == 0:
            return f"{name}_{size // probe}x"
    return size


def without_weights(model: ModelProto) -> ModelProto:
    """The graph and the few constants that shapes may depend on."""
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = skeleton.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= LARGEST_SHAPE_CONSTANT:
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(
                TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            )
    return skeleton
