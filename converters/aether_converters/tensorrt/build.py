"""ONNX to a TensorRT plan, with TensorRT 10 and 11 and with TensorRT-RTX.

Networks are strongly typed: every dtype comes from the ONNX file, and the builder has no say in it.
"""

from __future__ import annotations

import contextlib
import re
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

from aether_converters.errors import EngineError, require
from aether_converters.tensorrt.backend import (
    COMPUTE_CAPABILITIES,
    Backend,
    BackendName,
    load_backend,
)
from aether_converters.tensorrt.layers import (
    Layer,
    declared_int8,
    parse_layers,
    running_in_float,
)
from aether_spandrel.opening import read_file

Shape = tuple[int, int, int, int]
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE: Final[tuple[HardwareCompatibility, ...]] = get_args(HardwareCompatibility)
BuildProgress = Callable[[str, int, int], None]
"""Told the name of the phase, the steps that are done and how many it has."""

SMALLEST_SIDE: Final = 16  # px
USUAL_SIZE: Final = (512, 512)  # (H, W) in px, of a tile
LARGEST_SIZE: Final = (1088, 1920)  # a frame of full HD, padded to a multiple of 16
CAPABILITIES: Final = ("8.6", "8.9", "12.0")  # GeForce RTX 30, 40 and 50
MOST_READ: Final = 2**31  # bytes of an ONNX file, and of a timing cache
PATIENCE: Final = 0.1  # s; how soon an interruption is noticed
NAMED: Final = 5  # layers in a message


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes of the input, (N, C, H, W), for which an engine is optimised, and its limits."""

    min: Shape
    opt: Shape
    max: Shape

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether an input of this shape may be run."""
        return len(shape) == 4 and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def in_words(self) -> str:
        """Its limits, as `--min` and `--max` take them."""
        return f"{shape_in_words(self.min)} to {shape_in_words(self.max)}"


def shape_in_words(shape: Sequence[int | str]) -> str:
    """A shape as the command line takes it, such as 1x3x720x1280."""
    return "x".join(map(str, shape))


def usual_profile(channels: int) -> Profile:
    """One picture from 16 x 16 px to full HD, fastest at tiles of 512 x 512 px."""
    return Profile(
        min=(1, channels, SMALLEST_SIDE, SMALLEST_SIDE),
        opt=(1, channels, *USUAL_SIZE),
        max=(1, channels, *LARGEST_SIZE),
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What a plan is to be.

    Attributes:
        backend: Which TensorRT; None for what is installed and can work here.
        profiles: Sizes of the input; `usual_profile` if none is given. Static graphs need none.
        workspace: Bytes of GPU memory that a layer may use beside its tensors; None: all.
        timing_cache: File of kernel timings, read if it is there and written; `tensorrt` alone.
        hardware_compatibility: Other GPUs on which it is to run; `tensorrt` alone.
        version_compatible: Whether newer versions of the same major version can run it; `tensorrt`
            alone.
        compute_capabilities: GPUs for which it is built, such as "8.9"; `tensorrt-rtx` alone, by
            default `CAPABILITIES`.
    """

    backend: BackendName | None = None
    profiles: tuple[Profile, ...] = ()
    workspace: int | None = None
    timing_cache: Path | None = None
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()

    @property
    def ending(self) -> str:
        """Of the engine's file; TensorRT does not read what TensorRT-RTX wrote."""
        return "_rtx.engine" if self.backend == "tensorrt-rtx" else ".engine"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """The input or the output: dtype as in fp16, shape (N, C, H, W) with -1 for what may vary."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A built engine.

    Attributes:
        content: What is written to the file.
        backend: That built it.
        version: Of the backend.
        input: First binding.
        output: Second binding.
        profiles: Sizes that it takes; none for a static graph.
        compute_capabilities: GPUs that it was built for.
        layers: As the builder reports them; empty where it does not.
        declared_int8: ONNX nodes whose weights come out of int8.
    """

    content: bytes = field(repr=False)
    backend: BackendName
    version: str
    input: Binding
    output: Binding
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    layers: tuple[Layer, ...] = field(repr=False)
    declared_int8: tuple[str, ...] = field(repr=False)

    @property
    def running_in_float(self) -> tuple[str, ...]:
        """Nodes that were declared INT8 and run in float; none where no layers are reported."""
        return running_in_float(self.declared_int8, self.layers) if self.layers else ()


def engine_layers(
    onnx: str | Path | bytes,
    compute_capabilities: Sequence[str] = CAPABILITIES,
    *,
    profiles: Sequence[Profile] = (),
) -> tuple[Layer, ...]:
    """Build with TensorRT-RTX, without a GPU, and return the layers with their dtypes.

    A plan for several compute capabilities has one set of layers, which holds for all of them.
    INT8 nodes that run in float are no error here: see `tensorrt_layers.running_in_float`.

    Args:
        onnx: The model, or its file.
        compute_capabilities: Such as ("8.6", "8.9").
        profiles: Sizes of the input; `usual_profile` if none is given.

    Raises:
        MissingExtraError: TensorRT-RTX is not installed.
        EngineError: The file cannot be read, or TensorRT-RTX refuses the model.
    """
    file = None if isinstance(onnx, bytes) else Path(onnx)
    content = onnx if isinstance(onnx, bytes) else _read(Path(onnx))
    options = EngineOptions(
        backend="tensorrt-rtx",
        profiles=tuple(profiles),
        compute_capabilities=tuple(compute_capabilities),
    )
    return build_plan(content, options, file=file).layers


def _read(path: Path) -> bytes:
    return read_file(path, most=MOST_READ, kind=EngineError)


def refuse_float(plan: Plan, *, file: Path | None = None) -> None:
    """Raise EngineError if a node that was declared INT8 runs in float, which nobody would see."""
    silent = plan.running_in_float
    if silent:
        more = f" and {len(silent) - NAMED} more" if len(silent) > NAMED else ""
        raise EngineError(
            "layers that are INT8 in the ONNX file would silently run in float",
            file=file,
            key=", ".join(silent[:NAMED]) + more,
            expected=f"{len(plan.declared_int8)} layers in INT8",
            found=f"{len(plan.declared_int8) - len(silent)}",
            advice="activations need scales that are scalars, weights scales along axis 0, and "
            "DequantizeLinear must lead directly into the layer: make the file with "
            "aethernet convert --precision int8",
        )


def build_plan(
    onnx: bytes,
    options: EngineOptions,
    *,
    file: Path | None = None,
    progress: BuildProgress | None = None,
) -> Plan:
    """Build an engine; the thread that calls this can be interrupted meanwhile.

    Args:
        onnx: The model, with one input and one output of one dtype.
        options: What it is to be.
        file: To be named in errors.
        progress: Called from another thread.

    Raises:
        MissingExtraError: TensorRT is not installed.
        EngineError: TensorRT cannot be used here or refuses the model; the options do not fit it.
    """
    try:
        backend = load_backend(options.backend)
        _refuse_foreign_options(backend, options)
        return _Build(backend, options, onnx, progress).plan()
    except BaseException as error:
        free_library_objects(error)
        if file is not None and isinstance(error, EngineError):
            raise error.in_file(file) from error.__cause__
        raise


def free_library_objects(error: BaseException) -> None:
    """Let go of what the functions that an error has left still hold.

    Otherwise its traceback holds the builder until the garbage collector finds it. That may be
    while the library, under a lock, tells our logger something: freeing a builder then waits for
    the same lock for ever.
    """
    traceback.clear_frames(error.__traceback__)


FOREIGN: Final[dict[BackendName, tuple[tuple[str, str], ...]]] = {
    "tensorrt": (("compute_capabilities", "--compute-capability"),),
    "tensorrt-rtx": (
        ("timing_cache", "--timing-cache"),
        ("hardware_compatibility", "--hardware-compatibility"),
        ("version_compatible", "--version-compatible"),
    ),
}
"""Options that mean nothing to a backend, and their flags."""


def _refuse_foreign_options(backend: Backend, options: EngineOptions) -> None:
    plain = EngineOptions()
    for name, flag in FOREIGN[backend.name]:
        if getattr(options, name) != getattr(plain, name):
            other = next(known for known in FOREIGN if known != backend.name)
            raise EngineError(
                f"{backend.name} has no {flag}, which is an option of {other}",
                found=f"{flag}, and {backend.name} {backend.version}",
                advice=f"leave {flag} away, or add --trt-backend {other}",
            )
    unknown = [c for c in options.compute_capabilities if c not in COMPUTE_CAPABILITIES]
    if unknown:
        raise EngineError(
            "TensorRT-RTX does not build for this compute capability",
            expected=f"of {', '.join(COMPUTE_CAPABILITIES)}",
            found=", ".join(unknown),
            advice="NVIDIA lists each card's: https://developer.nvidia.com/cuda-gpus",
        )


class _Build:
    """One run of a builder, with everything that it says."""

    def __init__(
        self,
        backend: Backend,
        options: EngineOptions,
        onnx: bytes,
        progress: BuildProgress | None,
    ) -> None:
        self.backend = backend
        self.options = options
        self.onnx = onnx
        self.progress = progress
        self.errors: list[str] = []
        self.layers: list[str] = []
        self.cancelled = False

    def plan(self) -> Plan:
        """Build it."""
        trt = self.backend.module
        logger = self._logger(trt)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(self.onnx):
            self._refuse_model(parser)
        source, result = self._bindings(network)
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # fp32 means fp32: TensorRT would round the factors to 10 bits otherwise.
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.options.workspace)
        profiles = self._profiles(source)
        for sizes in profiles:
            shapes = builder.create_optimization_profile()
            shapes.set_shape(source.name, sizes.min, sizes.opt, sizes.max)
            config.add_optimization_profile(shapes)
        if self.backend.name == "tensorrt-rtx":
            capabilities = self._configure_tensorrt_rtx(trt, config)
        else:
            capabilities = self._configure_tensorrt(trt, config)
        config.progress_monitor = self._monitor(trt)
        plan = self._in_thread(lambda: builder.build_serialized_network(network, config))
        if plan is None:
            self._refuse_build()
        if self.options.timing_cache is not None:
            self._save_timing_cache_tensorrt(config, self.options.timing_cache)
        content = bytes(plan)
        text = "\n".join(self.layers)
        if not text and self.backend.name == "tensorrt":
            text = self._layers_tensorrt(trt, logger, content)
        return Plan(
            content=content,
            backend=self.backend.name,
            version=self.backend.version,
            input=source,
            output=result,
            profiles=profiles,
            compute_capabilities=capabilities,
            layers=parse_layers(text),
            declared_int8=self._declared_int8(),
        )

    def _declared_int8(self) -> tuple[str, ...]:
        return declared_int8(require("onnx").load_from_string(self.onnx))

    def _logger(self, trt: Any) -> Any:
        failures = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
        build = self

        class Log(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in failures:
                    build.errors.append(message)
                elif ", LayerType: " in message:
                    build.layers.append(message)

        return Log()

    def _monitor(self, trt: Any) -> Any:
        build = self

        class Monitor(trt.IProgressMonitor):
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)
                self.steps: dict[str, int] = {}

            def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
                self.steps[phase] = steps

            def phase_finish(self, phase: str) -> None:
                self.steps.pop(phase, None)

            def step_complete(self, phase: str, step: int) -> bool:
                if build.progress is not None:
                    build.progress(phase, step + 1, self.steps.get(phase, step + 1))
                return not build.cancelled

        return Monitor()

    def _in_thread(self, run: Callable[[], Any]) -> Any:
        """What `run` returns; an interruption cancels it and is raised when it has ended.

        Signals reach the main thread alone, so that no exception crosses the library's own frames.
        """
        results: list[Any] = []
        failures: list[Exception] = []
        # Not `join`: interrupted, it takes a thread for ended that is not (Python up to 3.12).
        ended = threading.Event()

        def work() -> None:
            try:
                results.append(run())
            except Exception as error:  # noqa: BLE001  raised again below
                failures.append(error)
            finally:
                ended.set()

        threading.Thread(target=work, name="aether-tensorrt-build").start()
        try:
            while not ended.wait(PATIENCE):
                pass
        except BaseException:
            self.cancelled = True
            while not ended.is_set():
                with contextlib.suppress(KeyboardInterrupt):  # it is on its way already
                    ended.wait()
            raise
        for failure in failures:
            raise failure
        return results[0]

    def _bindings(self, network: Any) -> tuple[Binding, Binding]:
        if (network.num_inputs, network.num_outputs) != (1, 1):
            raise EngineError(
                "this is no image-to-image model",
                expected="one input and one output",
                found=f"{network.num_inputs} inputs and {network.num_outputs} outputs",
            )
        source, result = _binding(network.get_input(0)), _binding(network.get_output(0))
        if source.dtype != result.dtype:
            raise EngineError(
                "programs that run engines expect input and output of one dtype",
                expected=f"{source.dtype}, as of {source.name}",
                found=f"{result.dtype} of {result.name}",
            )
        return source, result

    def _profiles(self, source: Binding) -> tuple[Profile, ...]:
        wanted = self.options.profiles
        if -1 not in source.shape:
            for profile in wanted:
                if {profile.min, profile.opt, profile.max} != {source.shape}:
                    raise EngineError(
                        "the ONNX file is made for one size, and the profile for others",
                        expected=shape_in_words(source.shape),
                        found=profile.in_words(),
                        advice="leave --min, --opt and --max away, or --shape",
                    )
            return ()
        wanted = wanted or (usual_profile(source.shape[1]),)
        for profile in wanted:
            check_profile(profile, source)
        return wanted

    def _configure_tensorrt_rtx(self, trt: Any, config: Any) -> tuple[str, ...]:
        capabilities = self.options.compute_capabilities or CAPABILITIES
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, COMPUTE_CAPABILITIES[capability])
            config.set_compute_capability(member, index)
        return capabilities

    def _configure_tensorrt(self, trt: Any, config: Any) -> tuple[str, ...]:
        options = self.options
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        levels = {
            "none": trt.HardwareCompatibilityLevel.NONE,
            "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }
        config.hardware_compatibility_level = levels[options.hardware_compatibility]
        if options.timing_cache is not None:
            known = _read(options.timing_cache) if options.timing_cache.exists() else b""
            cache = config.create_timing_cache(known)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise EngineError(
                    "the timing cache is of another GPU, another version, or damaged",
                    file=options.timing_cache,
                    advice="name another file with --timing-cache; it will be made",
                )
        return tuple(dict.fromkeys(gpu.capability for gpu in self.backend.driver.gpus[:1]))

    def _layers_tensorrt(self, trt: Any, logger: Any, content: bytes) -> str:
        """What the finished engine says of its layers, where the builder's log does not."""
        runtime = trt.Runtime(logger)
        runtime.engine_host_code_allowed = self.options.version_compatible
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            return ""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.ONELINE))

    def _save_timing_cache_tensorrt(self, config: Any, path: Path) -> None:
        from aether_converters.atomic import complete_or_nothing

        cache = config.get_timing_cache()
        content = cache.serialize()
        with complete_or_nothing(path, force=True) as partial:
            partial.path.write_bytes(bytes(content))

    def _refuse_model(self, parser: Any) -> NoReturn:
        if not parser.num_errors:
            raise EngineError("TensorRT cannot read the ONNX file", found=self._last_error())
        fault = parser.get_error(0)
        name, operator = fault.node_name(), fault.node_operator()
        reason = _condition(fault.desc())
        if not operator:
            raise EngineError(
                "TensorRT cannot read the ONNX file",
                found=reason,
                advice="convert it again from its checkpoint with aethernet convert",
            )
        raise EngineError(
            f"TensorRT does not support the operator {operator} as it is used here",
            key=f"ONNX node {name or fault.node()}",
            found=reason or self._last_error(),
            advice=UNSUPPORTED.get(
                operator, "convert the model from its checkpoint with aethernet convert"
            ),
        )

    def _refuse_build(self) -> NoReturn:
        said = "\n".join(self.errors)
        for pattern, problem, advice in FAILURES:
            match = re.search(pattern, said, re.IGNORECASE)
            if match:
                key = f"ONNX node {match['node']}" if "node" in match.groupdict() else None
                raise EngineError(problem, key=key, found=self._last_error(), advice=advice)
        raise EngineError(
            "TensorRT cannot build the engine",
            found=self._last_error(),
            advice="report this line, and the ONNX file, to the authors of aether-spandrel",
        )

    def _last_error(self) -> str:
        return _condition(self.errors[0]) if self.errors else "TensorRT gives no reason"


def _binding(tensor: Any) -> Binding:
    shape: tuple[int, ...] = tuple(tensor.shape)
    kind: str = tensor.dtype.name
    dtype = BINDING_DTYPES.get(kind, kind.lower())
    if len(shape) != 4 or dtype not in BINDING_DTYPES.values():
        raise EngineError(
            "this is no image-to-image model",
            key=tensor.name,
            expected="fp32 or fp16, (batch, channels, height, width)",
            found=f"{dtype}, {shape_in_words(shape)}",
        )
    return Binding(name=tensor.name, dtype=dtype, shape=shape)


BINDING_DTYPES: Final = {"FLOAT": "fp32", "HALF": "fp16"}
"""What programs that run engines take, by TensorRT's names."""


def check_profile(profile: Profile, source: Binding) -> None:
    """Raise EngineError if an input cannot have the sizes of a profile."""
    ordered = all(
        0 < low <= usual <= high
        for low, usual, high in zip(profile.min, profile.opt, profile.max, strict=True)
    )
    if not ordered:
        raise EngineError(
            "the profile is in disorder",
            expected="min <= opt <= max in each dimension",
            found=" / ".join(map(shape_in_words, (profile.min, profile.opt, profile.max))),
            advice="such as --min 1x3x16x16 --opt 1x3x512x512 --max 1x3x1088x1920",
        )
    for shape in (profile.min, profile.max):
        if any(fixed not in (-1, size) for fixed, size in zip(source.shape, shape, strict=True)):
            raise EngineError(
                "the profile does not fit the model's input",
                expected=shape_in_words(["?" if d == -1 else d for d in source.shape]),
                found=shape_in_words(shape),
                advice="the number of channels is the model's own",
            )


def _condition(message: str) -> str:
    """The first line of what TensorRT says, without places in its source code."""
    line = next((line for line in message.strip().splitlines() if line.strip()), "")
    line = re.sub(r"^\S*::\S*: |\(?In \S+ at \S+:\d+\)?|In \w+ at \S+:\d+", "", line).strip(" ()")
    return "" if line in ("false", "true") else line[:300]


UNSUPPORTED: Final = dict.fromkeys(
    ("DynamicQuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"),
    "TensorRT takes int8 as pairs of QuantizeLinear and DequantizeLinear only: convert the model "
    "from its checkpoint with --precision int8",
)
"""What to do about operators that users meet."""

FAILURES: Final = (
    (
        r"out of memory|OutOfMemory|bad_alloc|MemoryAllocation|within workspace limit",
        "the largest input needs more memory than there is, or than --workspace allows",
        "try a smaller --max, or a larger --workspace or none",
    ),
    (
        r"CUDA driver version is insufficient|cudaError 35",
        "TensorRT needs a newer NVIDIA driver than there is",
        "install NVIDIA's newest driver, or build with --trt-backend tensorrt-rtx and "
        "--compute-capability",
    ),
    (
        r"libnvinfer_lean|Unable to load library",
        "a library of TensorRT is missing that this option needs",
        "leave --version-compatible away, or install TensorRT completely",
    ),
    (
        r"Could not find any implementation for node \{?(?P<node>[^\s}]+)",
        "TensorRT has no kernel for a layer on this GPU",
        "try --precision fp16 or fp32, a larger --workspace, or another --compute-capability",
    ),
)
"""Patterns of what the builder says, what is wrong, and what to do."""
