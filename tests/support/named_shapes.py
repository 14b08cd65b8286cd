"""Whether the shapes that an ONNX file names inside are those that onnxruntime computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime

Dims = list[int | str]


def dims_of(value: onnx.ValueInfoProto) -> Dims:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def true_shapes(model: onnx.ModelProto) -> Mapping[str, Dims]:
    """The named shapes by tensor, each compared with what onnxruntime gives for two pictures."""
    named = {value.name: dims_of(value) for value in model.graph.value_info}
    model = copy.deepcopy(model)
    model.graph.output.extend(model.graph.value_info)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (picture,) = model.graph.input
    dtype = onnx.helper.tensor_dtype_to_np_dtype(picture.type.tensor_type.elem_type)
    for batch, height, width in ((2, 5, 9), (1, 1, 1)):
        image = np.zeros((batch, 3, height, width), dtype)
        results = cast("list[np.ndarray[Any, Any]]", session.run(list(named), {"input": image}))
        sizes = {"batch": batch, "height": height, "width": width}
        sizes |= {f"{name}_{k}x": k * size for name, size in sizes.items() for k in range(2, 9)}
        for dims, result in zip(named.values(), results, strict=True):
            found = list(result.shape)
            assert [sizes[dim] if isinstance(dim, str) else dim for dim in dims] == found
    return named
