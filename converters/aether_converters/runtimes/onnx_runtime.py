"""ONNX files, ours and other people's, run by onnxruntime."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from aether_converters.errors import ModelError
from aether_converters.graphs.onnx_shapes import Shape, activation_shapes
from aether_converters.runtimes.providers import (
    RECORD_ASSIGNMENT,
    ProviderOptions,
    refuse_fall_back,
    refuse_missing_provider,
)
from aether_converters.runtimes.upscaler import Image, Upscaler

DTYPES: Final[Mapping[int, tuple[str, type[np.generic]]]] = {
    TensorProto.FLOAT: ("fp32", np.float32),
    TensorProto.FLOAT16: ("fp16", np.float16),
}
INTEGER_OPERATORS: Final = frozenset(
    ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger", "ConvInteger")
)
PROBE_SIDE: Final = 64  # px; where a dynamic file is asked for its shapes
LIVE_TENSORS: Final = 3  # an operator's input and output, and a residual kept for later
_STATE: Final = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    getattr(_STATE, name)
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)
"""What onnxruntime raises; its own module names them nowhere public."""


def open_onnx(path: Path, *, threads: int = 0, provider: ProviderOptions | None = None) -> Upscaler:
    """Open an ONNX super-resolution model, exported by us or by anyone.

    `threads` compute one run; 0 leaves the number to onnxruntime. `provider` is the CPU by default.

    Raises:
        ModelError: It cannot be read or run, or is no model with one image in and one out; the
            provider is not there or computes nothing.
    """
    provider = provider or ProviderOptions()
    refuse_missing_provider(provider, onnxruntime)
    model = read_onnx(path)
    interface = _interface(path, model)
    session = cast(Any, _session(path, threads, provider))
    try:
        computed_by = refuse_fall_back(provider, session)
    except ModelError as error:
        raise error.in_file(path) from None

    def run(image: Image) -> Image:
        count = image.shape[0]
        if interface.batch:  # a fixed batch takes no fewer images: repeat those that there are
            image = np.resize(image, (interface.batch, *image.shape[1:]))
        try:
            results = session.run(
                None, {interface.input: image.astype(interface.dtype, copy=False)}
            )
        except RUNTIME_ERRORS as error:
            raise ModelError(
                "onnxruntime cannot run the model on this image",
                file=path,
                found=_first_line(error),
                advice="if memory ran out, try a smaller --tile",
            ) from error
        output: NDArray[np.generic] = results[0][:count]
        return output.astype(np.float32, copy=False)

    size = interface.fixed_size or (PROBE_SIDE, PROBE_SIDE)
    shapes = activation_shapes(model, (interface.batch or 1, interface.channels, *size))
    channels_out, scale = _output(path, model, interface, shapes)
    return Upscaler(
        path=path,
        format="onnx",
        precision=interface.precision,
        channels=(interface.channels, channels_out),
        scale=scale,
        receptive_radius=_receptive_radius(model),
        global_context=_pools_the_image(model),
        fixed_size=interface.fixed_size,
        bytes_per_pixel=_activation_bytes(interface, shapes),
        details={
            "opset": max(entry.version for entry in model.opset_import if not entry.domain),
            "ir_version": model.ir_version,
            "nodes": len(model.graph.node),
            **({"provider": computed_by} if computed_by else {}),
        },
        run=run,
    )


@dataclass(frozen=True, kw_only=True)
class _Interface:
    """What the graph takes."""

    input: str
    batch: int | None
    channels: int
    fixed_size: tuple[int, int] | None
    precision: str
    dtype: type[np.generic]


def read_onnx(path: Path) -> ModelProto:
    """A model file with its weights; raises ModelError if it cannot be read or is none."""
    try:
        return onnx.load(str(path))
    except OSError as error:
        raise ModelError(
            f"the file cannot be read: {error.strerror or error}",
            file=path,
            advice="check the path and the permissions",
        ) from error
    except Exception as error:
        # protobuf's DecodeError, and onnx's ValidationError about weights in a second file.
        raise ModelError(
            "the file is damaged or is no ONNX model",
            file=path,
            found=_first_line(error),
            advice="download or copy the file again, with its .data file if it has one",
        ) from error


def _session(path: Path, threads: int, provider: ProviderOptions) -> onnxruntime.InferenceSession:
    options = cast(Any, onnxruntime).SessionOptions()  # untyped
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors come back as exceptions, warnings help no user
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path),
            sess_options=options,
            providers=[provider.as_onnxruntime()],
            enable_fallback=0,
        )
    except RUNTIME_ERRORS as error:
        raise ModelError(
            "onnxruntime refuses the model",
            file=path,
            found=_first_line(error),
            advice="convert it again from its checkpoint with aethernet convert",
        ) from error
    # A run that fails would be tried again on the CPU, unseen.
    session.disable_fallback()
    return session


def _interface(path: Path, model: ModelProto) -> _Interface:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            "this is no image-to-image model",
            file=path,
            expected="one input and one output",
            found=f"{len(inputs)} inputs and {len(model.graph.output)} outputs",
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value or None for dim in tensor.shape.dim]
    known = DTYPES.get(tensor.elem_type)
    integers = any(node.op_type in INTEGER_OPERATORS for node in model.graph.node)
    if known is None or len(dims) != 4 or dims[1] is None:
        raise ModelError(
            "this is no image-to-image model",
            file=path,
            expected="a float32 or float16 input (batch, channels, height, width) with a fixed "
            "number of channels",
            found=f"type {TensorProto.DataType.Name(tensor.elem_type).lower()}, "
            f"shape ({', '.join(str(dim or '?') for dim in dims)})",
        )
    precision, dtype = known
    precision = "int8" if integers else precision
    batch, channels, height, width = dims
    fixed = (height, width) if height and width else None
    return _Interface(
        input=inputs[0].name,
        batch=batch,
        channels=cast(int, channels),
        fixed_size=fixed,
        precision=precision,
        dtype=dtype,
    )


def _output(
    path: Path, model: ModelProto, interface: _Interface, shapes: Mapping[str, Shape]
) -> tuple[int, int]:
    """Channels of the output, and the scale."""
    height, width = interface.fixed_size or (PROBE_SIDE, PROBE_SIDE)
    shape = shapes.get(model.graph.output[0].name, ())
    scale = shape[2] // height if len(shape) == 4 else 0
    if scale < 1 or shape[2:] != (scale * height, scale * width):
        raise ModelError(
            "this is no model that enlarges by a whole factor",
            file=path,
            expected=f"an output of n * {height} x n * {width} px",
            found="x".join(map(str, shape)) or "an output whose size cannot be inferred",
        )
    return shape[1], scale


def _activation_bytes(interface: _Interface, shapes: Mapping[str, Shape]) -> int:
    """Memory of the largest operator with what is kept beside it, in bytes per input px."""
    height, width = interface.fixed_size or (PROBE_SIDE, PROBE_SIDE)
    largest = max(math.prod(shape) for shape in shapes.values())
    pixels = (interface.batch or 1) * height * width
    # onnxruntime computes fp16 in float32 where the CPU cannot.
    return LIVE_TENSORS * 4 * largest // pixels


def _receptive_radius(model: ModelProto) -> int:
    """Input px in each direction that the output depends on: the longest path of convolutions.

    Those behind an upsampling count as whole input px, which errs on the safe side.
    """
    radius: dict[str, int] = {}
    for node in model.graph.node:
        reach = max((radius.get(name, 0) for name in node.input), default=0)
        if node.op_type == "Conv":
            attributes = {a.name: list(a.ints) for a in node.attribute}
            kernel = attributes.get("kernel_shape", [])
            dilation = attributes.get("dilations") or [1] * len(kernel)
            reach += max(((k - 1) * d + 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        for name in node.output:
            radius[name] = reach
    return radius[model.graph.output[0].name]


def _pools_the_image(model: ModelProto) -> bool:
    """Whether some value depends on the whole image, as in channel attention."""
    for node in model.graph.node:
        if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
            return True
        axes = [axis for a in node.attribute if a.name == "axes" for axis in a.ints]
        if node.op_type.startswith("Reduce") and any(axis in (2, 3, -1, -2) for axis in axes):
            return True
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
