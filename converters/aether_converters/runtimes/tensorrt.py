"""Engines, run on an NVIDIA GPU by the TensorRT that built them, with tensors of PyTorch.

Written for a GPU and not run on one yet: `docs/tensorrt.md` lists the tests that do it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from aether_converters.errors import EngineError
from aether_converters.runtimes.devices import device_in_words
from aether_converters.runtimes.upscaler import Image, SizeRange, Upscaler
from aether_converters.tensorrt.backend import (
    COMPUTE_CAPABILITIES,
    Backend,
    installed_backends,
    load_backend,
)
from aether_converters.tensorrt.build import (
    Profile,
    Shape,
    free_library_objects,
    shape_in_words,
)
from aether_converters.tensorrt.driver import Driver
from aether_converters.tensorrt.sidecar import Sidecar, check_engine, read_sidecar

DTYPES: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "fp16": torch.float16}
SHAPES_KEPT: Final = 4  # tiles at the border of a picture are of other sizes


def why_not_here(sidecar: Sidecar, driver: Driver) -> str:
    """Why an engine cannot be run on this computer, or nothing if it can."""
    if not driver.answers:
        return driver.problem
    if sidecar.backend not in installed_backends():
        return f"{sidecar.backend} is not installed"
    if not torch.cuda.is_available():
        return "this PyTorch was built without CUDA, or cannot use the driver"
    capability = driver.gpus[0].capability
    if not runs_on(sidecar, capability):
        return f"built for {sidecar.gpus_in_words()}, and the GPU has {capability}"
    return ""


def runs_on(sidecar: Sidecar, capability: str) -> bool:
    """Whether an engine can run on a GPU of this compute capability."""
    if sidecar.hardware_compatibility == "ampere_plus":
        return tuple(map(int, capability.split("."))) >= (8, 0)
    return capability in sidecar.compute_capabilities


def open_engine(path: Path, *, device: str = "cuda", sidecar: Sidecar | None = None) -> Upscaler:
    """Open an engine that `aethernet convert --to trt` made.

    Args:
        path: The plan.
        device: The GPU, such as `cuda` or `cuda:1`.
        sidecar: What is known of it; by default read from the file beside it.

    Raises:
        MissingExtraError: The TensorRT that built it is not installed.
        EngineError: It has no sidecar or is not that which the sidecar describes, it was built for
            another GPU or by another version, or there is no GPU.
    """
    if sidecar is None:
        sidecar = read_sidecar(path)
    else:
        check_engine(path, sidecar)
    try:
        backend = load_backend(sidecar.backend, to_run=True)
        index = _device_index(device)
        refuse_mismatch(sidecar, backend, index)
        runner = _Engine.load(path, sidecar, backend, torch.device("cuda", index))
    except EngineError as error:
        free_library_objects(error)
        raise error.in_file(path) from error.__cause__
    from aether_converters.tensorrt.sidecar import engine_details

    return Upscaler(
        path=path,
        format="trt",
        precision=sidecar.precision,
        channels=sidecar.channels,
        scale=sidecar.network.scale,
        receptive_radius=sidecar.network.receptive_radius,
        global_context=sidecar.network.global_context,
        fixed_size=sidecar.fixed_size,
        bytes_per_pixel=sidecar.network.bytes_per_pixel,
        details=engine_details(sidecar),
        run=runner.run,
        size_ranges=tuple(_size_range(profile) for profile in sidecar.profiles),
        computed_by=f"TensorRT on {device_in_words(f'cuda:{index}')}",
    )


def _size_range(profile: Profile) -> SizeRange:
    return SizeRange(least=profile.min[2:], most=profile.max[2:])


def _device_index(device: str) -> int:
    if not torch.cuda.is_available():
        raise EngineError(
            "PyTorch holds the engine's tensors, and this one cannot use the GPU",
            found=f"PyTorch {torch.__version__}",
            advice="install PyTorch for CUDA, as https://pytorch.org says for your system",
        )
    wanted = torch.device("cuda" if device == "cpu" else device)
    index = wanted.index or 0
    if wanted.type != "cuda" or index >= torch.cuda.device_count():
        raise EngineError(
            "engines run on an NVIDIA GPU",
            expected=f"--device cuda, with a number below {torch.cuda.device_count()}",
            found=f"--device {device}",
        )
    return index


def refuse_mismatch(sidecar: Sidecar, backend: Backend, index: int = 0) -> None:
    """Raise EngineError for an engine of another GPU or another version of TensorRT."""
    if sidecar.version_compatible:
        major, built = (v.partition(".")[0] for v in (backend.version, sidecar.backend_version))
        same = major == built
    else:
        same = backend.version == sidecar.backend_version
    if not same:
        raise EngineError(
            "the engine was built by another version of TensorRT",
            expected=f"{sidecar.backend} {sidecar.backend_version}",
            found=f"{backend.name} {backend.version}",
            advice="build it again with aethernet convert --to trt, or install that version",
        )
    gpu = backend.driver.gpus[index]
    if not runs_on(sidecar, gpu.capability):
        raise EngineError(
            "the engine was built for another GPU",
            expected=sidecar.gpus_in_words(),
            found=f"{gpu.name}, compute capability {gpu.capability}",
            advice=_where_to_build(gpu.capability),
        )


def _where_to_build(capability: str) -> str:
    here = "build it again here with aethernet convert --to trt --trt-backend tensorrt"
    if capability not in COMPUTE_CAPABILITIES:
        return f"{here}: TensorRT-RTX does not build for this GPU"
    return f"{here}, or with --trt-backend tensorrt-rtx --compute-capability {capability}"


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """Memory for inputs of one shape, allocated once.

    Attributes:
        host: Of the input in main memory, pinned so that it is copied while the CPU goes on.
        staged: Of the input on the GPU, float32.
        source: Of the input on the GPU, in the engine's dtype.
        result: Of the output on the GPU, in the engine's dtype.
        widened: Of the output on the GPU, float32.
        received: Of the output in main memory, pinned.
    """

    host: Tensor
    staged: Tensor
    source: Tensor
    result: Tensor
    widened: Tensor
    received: Tensor


@dataclass(eq=False)
class _Engine:
    """A deserialised plan, its context, and the stream on which it runs."""

    sidecar: Sidecar
    device: torch.device
    # What TensorRT refers to must live as long as the context.
    runtime: Any = field(repr=False)
    engine: Any = field(repr=False)
    context: Any = field(repr=False)
    errors: list[str] = field(repr=False)
    stream: torch.cuda.Stream = field(repr=False)

    def __post_init__(self) -> None:
        self._kept: dict[Shape, _Buffers] = {}
        self._profile = 0
        self._turn = threading.Lock()  # a context computes one picture at a time

    @classmethod
    def load(cls, path: Path, sidecar: Sidecar, backend: Backend, device: torch.device) -> _Engine:
        trt = backend.module
        errors: list[str] = []
        failures = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

        class Log(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in failures:
                    errors.append(message)

        with torch.cuda.device(device):
            runtime = trt.Runtime(Log())
            # A plan that runs on other versions carries their library, which is code.
            runtime.engine_host_code_allowed = sidecar.version_compatible
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise EngineError(
                    "TensorRT does not accept the engine",
                    found=_said(errors),
                    advice="build it again on this computer with aethernet convert --to trt",
                )
            names = tuple(engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
            wanted = (sidecar.input.name, sidecar.output.name)
            if names != wanted:
                raise EngineError(
                    "the engine has other inputs and outputs than the file beside it says",
                    expected=", ".join(wanted),
                    found=", ".join(names),
                    advice="build the engine again with aethernet convert --to trt",
                )
            context = engine.create_execution_context()
            if context is None:
                raise EngineError(
                    "the engine does not fit into the memory of the GPU",
                    found=_said(errors),
                    advice="close other programs, or build it with a smaller --max",
                )
            return cls(
                sidecar=sidecar,
                device=device,
                runtime=runtime,
                engine=engine,
                context=context,
                errors=errors,
                stream=torch.cuda.Stream(device),
            )

    def run(self, image: Image) -> Image:
        """(N, C, H, W) float32 in [0, 1] to (N, C_out, scale * H, scale * W) float32.

        Raises:
            EngineError: No profile holds the shape, memory ran out, or TensorRT fails.
        """
        count = image.shape[0]
        index, shape = chosen_profile(self.sidecar, image.shape)
        if shape[0] != count:  # a profile for several images takes no fewer: repeat those there are
            image = np.resize(image, shape)
        try:
            with self._turn, torch.inference_mode(), torch.cuda.stream(self.stream):
                return self._computed(image, index)[:count]
        except torch.cuda.OutOfMemoryError as error:
            raise EngineError(
                f"memory ran out on the GPU with {shape_in_words(shape)}",
                file=None,
                advice="use smaller tiles, with --tile or --memory",
            ) from error

    def _computed(self, image: Image, index: int) -> Image:
        stream = self.stream.cuda_stream
        buffers = self._buffers(cast(Shape, image.shape))
        context = self.context
        if index != self._profile:
            context.set_optimization_profile_async(index, stream)
            self._profile = index
        if self.sidecar.profiles:
            context.set_input_shape(self.sidecar.input.name, image.shape)
        context.set_tensor_address(self.sidecar.input.name, buffers.source.data_ptr())
        context.set_tensor_address(self.sidecar.output.name, buffers.result.data_ptr())
        buffers.host.copy_(torch.from_numpy(np.require(image, np.float32, ["C", "W"])))
        # PyTorch converts on the CPU when it copies between dtypes, so that is done here.
        buffers.staged.copy_(buffers.host, non_blocking=True)
        buffers.source.copy_(buffers.staged)
        if not context.execute_async_v3(stream):
            raise EngineError(
                "TensorRT cannot run the engine on this image",
                found=_said(self.errors),
                advice="if memory ran out, try a smaller --tile",
            )
        buffers.widened.copy_(buffers.result)
        buffers.received.copy_(buffers.widened, non_blocking=True)
        self.stream.synchronize()
        return cast(Image, buffers.received.clone().numpy())

    def _buffers(self, shape: Shape) -> _Buffers:
        """Those for a shape; of the shapes that were used last, a few are kept."""
        found = self._kept.pop(shape, None) or self._allocated(shape)
        self._kept[shape] = found
        while len(self._kept) > SHAPES_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def _allocated(self, shape: Shape) -> _Buffers:
        batch, _, height, width = shape
        scale, channels = self.sidecar.network.scale, self.sidecar.channels[1]
        dtype = DTYPES[self.sidecar.input.dtype]
        enlarged = (batch, channels, scale * height, scale * width)
        staged = torch.empty(shape, device=self.device)
        widened = torch.empty(enlarged, device=self.device)
        return _Buffers(
            host=torch.empty(shape, pin_memory=True),
            staged=staged,
            source=staged if dtype == torch.float32 else torch.empty_like(staged, dtype=dtype),
            result=widened if dtype == torch.float32 else torch.empty_like(widened, dtype=dtype),
            widened=widened,
            received=torch.empty(enlarged, pin_memory=True),
        )


def chosen_profile(sidecar: Sidecar, shape: tuple[int, ...]) -> tuple[int, Shape]:
    """Index of the profile for images (N, C, H, W), and their shape with the least N it takes.

    The profile that is optimised for the nearest size is taken.

    Raises:
        EngineError: None holds the shape.
    """
    count, channels, height, width = shape
    if not sidecar.profiles:
        fixed = sidecar.input.shape
        batch = fixed[0]
        if fixed[1:] != (channels, height, width) or count > batch:
            raise _outside(shape_in_words(fixed), shape)
        return 0, (batch, channels, height, width)
    fitting: list[tuple[int, int, Shape]] = []
    for index, profile in enumerate(sidecar.profiles):
        batch = max(count, profile.min[0])
        wanted = (batch, channels, height, width)
        if profile.holds(wanted):
            distance = abs(profile.opt[2] * profile.opt[3] - height * width)
            fitting.append((distance, index, wanted))
    if not fitting:
        limits = " or ".join(profile.in_words() for profile in sidecar.profiles)
        raise _outside(limits, shape)
    _, index, wanted = min(fitting)
    return index, wanted


def _outside(limits: str, shape: tuple[int, ...]) -> EngineError:
    return EngineError(
        "the engine was not built for images of this size",
        expected=limits,
        found=shape_in_words(shape),
        advice="use another --tile, or build the engine with --min, --opt and --max that hold it",
    )


def _said(errors: list[str]) -> str:
    lines = [line for message in errors for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else "TensorRT gives no reason"
