"""ONNX files, ours and other people's, run by onnxruntime."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from aether_converters.errors import ModelError
from aether_converters.graphs.budget import all_nodes
from aether_converters.graphs.reach import (
    LARGE,
    STANDARD,
    Graph,
    Sight,
    enlarged_by,
    is_turned,
    sight_of,
)
from aether_converters.graphs.values import AXES, Value
from aether_converters.runtimes.interruption import interruptible
from aether_converters.runtimes.providers import (
    RECORD_ASSIGNMENT,
    ProviderOptions,
    missing_provider,
    refuse_fall_back,
    refuse_missing_provider,
    usable_providers,
)
from aether_converters.runtimes.upscaler import Image, Upscaler
from aether_spandrel.errors import reason
from aether_spandrel.file_kinds import HEAD_BYTES, describe_head, kind_of
from aether_spandrel.opening import open_file


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """A type of numbers that pictures may have.

    Attributes:
        precision: What it is called.
        dtype: Of numpy.
        white: What stands for full intensity.
    """

    precision: str
    dtype: type[np.generic]
    white: int


PIXELS: Final[Mapping[int, Pixels]] = {
    TensorProto.FLOAT: Pixels(precision="fp32", dtype=np.float32, white=1),
    TensorProto.FLOAT16: Pixels(precision="fp16", dtype=np.float16, white=1),
    TensorProto.UINT8: Pixels(precision="uint8", dtype=np.uint8, white=255),
}
INTEGER_OPERATORS: Final = frozenset(
    ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger", "ConvInteger")
)
PROBE_SIDE: Final = 64  # px; where a dynamic file is asked for its shapes
WHOLE_SIDE: Final = 4096  # px; up to which it is looked whether memory grows faster than pixels
TILE_BYTES: Final = 2**30  # that a tile takes unless the user says otherwise
LIVE_TENSORS: Final = 3  # an operator's input and output, and a residual kept for later
_STATE: Final = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
RUNTIME_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    getattr(_STATE, name)
    for name in (
        "EPFail",
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
    try:
        interface = _interface(model)
        size = _probe_size(interface)
        graph = Graph(model, math.prod(size))
        nominal = graph.walk(interface.shape(size), charged=True)
        large = graph.walk(interface.shape(_large_size(interface)))
        if (fitting := _probe_size(interface, large.output.steps)) != size:
            size = fitting
            nominal = graph.walk(interface.shape(size), charged=True)
        session, computed_by, against = _started(path, threads, provider)
        channels_out, scale = _output(nominal.output, interface, session, size)
    except ModelError as error:
        raise error.in_file(path) from error.__cause__
    sight = sight_of(large, scale)
    return Upscaler(
        path=path,
        format="onnx",
        precision=interface.precision,
        channels=(interface.channels, channels_out),
        scale=scale,
        receptive_radius=sight.radius,
        global_context=bool(sight.whole),
        looks_at_all=sight.whole,
        fixed_size=interface.fixed_size,
        steps=sight.steps,
        takes=cache(partial(_takes, graph, interface, scale, large.output)),
        bytes_per_pixel=_activation_bytes(graph, interface, size, nominal.largest, sight),
        details={
            "opset": max(
                (entry.version for entry in model.opset_import if entry.domain in STANDARD),
                default=0,
            ),
            "ir_version": model.ir_version,
            "nodes": len(model.graph.node),
            **({"provider": computed_by} if computed_by else {}),
        },
        run=partial(_run, session, interface),
        computed_by="; ".join([f"onnxruntime on {computed_by or 'the CPU'}", *against]),
    )


def _started(
    path: Path, threads: int, wanted: ProviderOptions
) -> tuple[Session, str, tuple[str, ...]]:
    """A session, where it computes in words, and why it does not where it would be faster."""
    options = [wanted] if wanted.name != "auto" else list(usable_providers(onnxruntime))
    against: list[str] = []
    for provider in options[:-1]:
        try:
            session = Session(path, threads, provider)
            return session, refuse_fall_back(provider, session.session), tuple(against)
        except ModelError as error:
            against.append(f"{provider.name} does not start: {error.advice or error.problem}")
    session = Session(path, threads, options[-1])
    words = refuse_fall_back(options[-1], session.session)
    missing = missing_provider(onnxruntime) if wanted.name == "auto" else ""
    return session, words, tuple(filter(None, (*against, missing)))


def _run(session: Session, interface: _Interface, image: Image) -> Image:
    count = image.shape[0]
    if interface.batch:  # a fixed batch takes no fewer images: repeat those that there are
        image = np.resize(image, (interface.batch, *image.shape[1:]))
    output = session.run(interface.input, interface.given(image))[:count]
    return interface.taken(output)


def _takes(
    graph: Graph,
    interface: _Interface,
    scale: int,
    large: Value,
    size: tuple[int, int],
) -> bool:
    """Whether a graph enlarges pictures of (H, W) px as they are, and by its whole scale."""
    if interface.fixed_size is not None:
        return size == interface.fixed_size
    output = graph.walk(interface.shape(size)).output
    if output.dims is None or output.shape[2:] != tuple(scale * side for side in size):
        return False
    # Where few windows fit, windows and pieces look alike: a large picture tells them apart.
    height, width = (
        interface.sides[axis] or LARGE[axis] + size[axis] % large.steps[axis] for axis in AXES
    )
    placed = graph.walk(interface.shape((height, width))).output
    return enlarged_by(placed, scale) and placed.whole <= large.whole


@dataclass(frozen=True, kw_only=True)
class _Interface:
    """What the graph takes and gives.

    Attributes:
        input: Name of the input.
        batch: Pictures that it takes at a time, or None if any number will do.
        channels: Of the input.
        sides: Height and width in px, None where any will do.
        precision: Of the weights, in the community's words.
        pixels: Type of the input.
        output: Type of the output.
    """

    input: str
    batch: int | None
    channels: int
    sides: tuple[int | None, int | None]
    precision: str
    pixels: Pixels
    output: Pixels

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) in px of the only input that it takes, or None."""
        height, width = self.sides
        return (height, width) if height and width else None

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Of an input of (H, W) px."""
        return (self.batch or 1, self.channels, *size)

    def given(self, image: Image) -> NDArray[np.generic]:
        """Pictures in [0, 1] as the graph takes them."""
        if self.pixels.white == 1:
            return image.astype(self.pixels.dtype, copy=False)
        scaled = np.clip(np.nan_to_num(image), 0, 1) * self.pixels.white
        return np.rint(scaled).astype(self.pixels.dtype)

    def taken(self, output: NDArray[np.generic]) -> Image:
        """What the graph gives as pictures in [0, 1]."""
        found = output.astype(np.float32, copy=False)
        return found if self.output.white == 1 else (found / self.output.white).astype(np.float32)


def read_onnx(path: Path) -> ModelProto:
    """A model file; weights in files beside it are looked for, and not read.

    Raises:
        ModelError: It cannot be read or is none, or a file beside it cannot be.
    """
    with open_file(path, ModelError) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(HEAD_BYTES)
        kind = kind_of(head)
        told = kind is not None and kind.name not in UNSURE
        if not head or told or size > LARGEST:
            raise _no_model(path, head, "" if told or not head else f"{size:,} bytes")
        try:
            model = onnx.load_from_string(head + stream.read(size))
        except OSError as error:
            raise ModelError(
                f"the file cannot be read: {error.strerror or error}",
                file=path,
                advice="check the path, the permissions and that the disk is well",
            ) from error
        except Exception as error:  # protobuf's DecodeError is of no public module
            raise _no_model(path, head, reason(error)) from error
    if not model.HasField("graph"):
        raise _no_model(path, head, "no graph")
    _refuse_other_data(path, model)
    return model


UNSURE: Final = ("perhaps an ONNX file", "a text")
"""Kinds of files that ONNX files can be taken for by their first bytes."""
LARGEST: Final = 2**31  # bytes; protobuf reads no larger file


def _no_model(path: Path, head: bytes, found: str) -> ModelError:
    kind = kind_of(head)
    told = kind is not None and kind.name != UNSURE[0]
    return ModelError(
        "the file is damaged or is no ONNX model",
        file=path,
        found=describe_head(head) if told or not found else found,
        advice=(kind.advice if kind is not None else "")
        or "download or copy the file again, with its .data file if it has one",
    )


def _refuse_other_data(path: Path, model: ModelProto) -> None:
    """Raise ModelError where weights are to come from anything but a file beside the model."""
    folder = path.parent.resolve()
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        found = folder / place
        if not _is_beside(found, folder):
            raise ModelError(
                "the file asks for weights from another folder",
                file=path,
                expected="a file beside it",
                found=place[:200],
                advice="do not trust it, or move its weights beside it and export it again",
            )
        open_file(found, ModelError).close()


def _is_beside(file: Path, folder: Path) -> bool:
    try:
        return file.resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # links in a circle, or no name of a file
        return False


class Session:
    """A model file, opened by onnxruntime; an interruption ends what it computes."""

    def __init__(self, path: Path, threads: int, provider: ProviderOptions) -> None:
        """Open a file; raises ModelError if onnxruntime refuses it."""
        options = cast(Any, onnxruntime).SessionOptions()  # untyped
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors come back as exceptions, warnings help no user
        options.add_session_config_entry(RECORD_ASSIGNMENT, "1")

        def opened() -> Any:
            return onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=[provider.as_onnxruntime()],
                enable_fallback=0,
            )

        try:
            self.session = interruptible(opened, lambda: None)
        except RUNTIME_ERRORS as error:
            raise ModelError(
                "onnxruntime refuses the model",
                found=reason(error),
                advice="convert it again from its checkpoint with aethernet convert",
            ) from error
        # A run that fails would be tried again on the CPU, unseen.
        self.session.disable_fallback()
        self._path = path

    def run(self, name: str, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """The graph's output for an image; raises ModelError where onnxruntime fails."""
        options = cast(Any, onnxruntime).RunOptions()
        options.log_severity_level = 4

        def end() -> None:
            options.terminate = True

        def computed() -> NDArray[np.generic]:
            return self.session.run(None, {name: image}, options)[0]

        try:
            return interruptible(computed, end)
        except RUNTIME_ERRORS as error:
            height, width = image.shape[2:]
            raise ModelError(
                "onnxruntime cannot run the model on this image",
                file=self._path,
                found=f"{width} x {height} px: {reason(error)}",
                advice="if memory ran out, try a smaller --tile"
                if "alloc" in str(error).lower()
                else "export the network again for pictures of any size, or for this one",
            ) from error


def _probe_size(interface: _Interface, steps: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    height, width = interface.sides
    rows, columns = (-(-PROBE_SIDE // step) * step for step in steps)
    return height or rows, width or columns


def _large_size(interface: _Interface) -> tuple[int, int]:
    height, width = interface.sides
    return height or LARGE[0], width or LARGE[1]


def _interface(model: ModelProto) -> _Interface:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise ModelError(
            "this is no image-to-image model",
            expected="one input and one output",
            found=f"{len(inputs)} inputs and {len(model.graph.output)} outputs",
            advice=OTHER_MODEL,
        )
    tensor, result = (value.type.tensor_type for value in (inputs[0], model.graph.output[0]))
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    given, taken = PIXELS.get(tensor.elem_type), PIXELS.get(result.elem_type)
    if given is None or len(dims) != 4 or dims[1] is None:
        raise ModelError(
            "this is no image-to-image model",
            expected="a float32, float16 or uint8 input (batch, channels, height, width) with a "
            "fixed number of channels",
            found=f"type {_type_name(tensor.elem_type)}, "
            f"shape ({', '.join(str(dim or '?') for dim in dims)})",
            advice=OTHER_MODEL,
        )
    if taken is None or taken.white != given.white:
        raise ModelError(
            "the model gives other pixels than it takes",
            expected=f"pixels from 0 to {given.white}, as it takes them",
            found=f"an output of type {_type_name(result.elem_type)}",
            advice="export the network with a float32 input and output from 0 to 1",
        )
    integers = any(node.op_type in INTEGER_OPERATORS for node in all_nodes(model.graph.node))
    return _Interface(
        input=inputs[0].name,
        batch=dims[0],
        channels=dims[1],
        sides=(dims[2], dims[3]),
        precision="int8" if integers else given.precision,
        pixels=given,
        output=taken,
    )


OTHER_MODEL: Final = (
    "take an export of a network that enlarges pictures, of one image (batch, channels, height, "
    "width) in and one out"
)


def _type_name(element: int) -> str:
    known = {number: name.lower() for name, number in TensorProto.DataType.items()}
    return known.get(element, f"{element}, which does not exist")


def _output(
    output: Value, interface: _Interface, session: Session, size: tuple[int, int]
) -> tuple[int, int]:
    """Channels of the output, and the scale, for a picture of (H, W) px."""
    height, width = size
    if output.dims is None:  # of an operator that is not known: the run itself tells
        image = interface.given(np.zeros(interface.shape((height, width)), np.float32))
        shape = session.run(interface.input, image).shape
    else:
        shape = output.shape
    scale = shape[2] // height if len(shape) == 4 else 0
    if scale < 1 or tuple(shape[2:]) != (scale * height, scale * width):
        raise ModelError(
            "this is no model that enlarges by a whole factor",
            expected=f"an output of n * {height} x n * {width} px",
            found="x".join(map(str, shape)) or "an output without a size",
            advice=OTHER_MODEL,
        )
    if is_turned(output):
        raise ModelError(
            "this is no model that enlarges by a whole factor",
            expected="an output that lies as the picture does",
            found="one that is turned on its side",
            advice=OTHER_MODEL,
        )
    return shape[1], scale


def _activation_bytes(
    graph: Graph, interface: _Interface, size: tuple[int, int], largest: int, sight: Sight
) -> int:
    """Memory of the largest operator with what is kept beside it, in bytes per input px.

    What looks at the whole picture may take more for each px of a larger one: counted for as many
    px as fit into a tile.
    """
    height, width = size
    # onnxruntime computes fp16 in float32 where the CPU cannot.
    taken = LIVE_TENSORS * 4 * largest
    pixels = (interface.batch or 1) * height * width
    side = max(size)
    while sight.whole and not any(interface.sides) and taken < TILE_BYTES and side < WHOLE_SIDE:
        side *= 2
        more = LIVE_TENSORS * 4 * graph.walk(interface.shape((side, side))).largest
        if more > TILE_BYTES and more > 5 * taken:
            # Between the two sides it grows by a power that these two tell.
            power = math.log2(more / taken) / 2
            area = pixels * (TILE_BYTES / taken) ** (1 / power)
            return max(math.ceil(TILE_BYTES / area), 1)
        taken, pixels = more, (interface.batch or 1) * side * side
    return max(taken // pixels, 1)
