"""How fast model files are on this machine, how much memory they take, and how good that is.

Files are run in turn, over and over, so that what else the machine does falls on all of them. Speed
is set beside that of a plain matrix product, which is measured in the same rounds.
"""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from aether_converters.errors import ModelError, fault_of
from aether_converters.graphs.macs import graph_macs, module_macs
from aether_converters.graphs.ncnn_file import read_ncnn
from aether_converters.measuring.verification import structured_image
from aether_converters.runtimes.devices import AUTO, chosen_device, refuse_dtype
from aether_converters.runtimes.memory import refuse_beyond_memory
from aether_converters.runtimes.ncnn import VULKAN
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.providers import ProviderOptions, refuse_provider
from aether_converters.runtimes.upscaler import (
    PRECISIONS,
    SUFFIXES,
    Format,
    Image,
    Upscaler,
    format_of,
)
from aether_spandrel.errors import AetherError, reason

Size = tuple[int, int]
Run = Callable[[Image], Image]

SIZES: Final[tuple[Size, ...]] = ((128, 128), (256, 256))  # (H, W) in px
LEAST_ROUNDS: Final = 3
REST: Final = 0.01  # s; threads of the last file look for work for a while, on the next one's cost
PEAK_CHANNELS: Final = 256
PEAK_SIDE: Final = 128  # px; the result just stays below what the C library maps anew each time
PEAK_REPEATS: Final = 8
IMAGE_BYTES: Final = 8  # a value of a picture, with the copy that the runtime makes


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that enlarges pictures, to be measured.

    Attributes:
        name: Of the row.
        dtype: Of its weights and activations, such as bf16.
        arithmetic: The dtype whose peak it is compared with.
        channels: Of the input.
        scale: Upscaling factor.
        open: Gets it ready to run; called for each size, so that memory is taken anew.
        macs: Multiply-accumulates of a picture of (H, W) px; None where they cannot be counted.
        fixed_size: (H, W) in px of the only input that it accepts, or None.
        computed_by: What is said beside the name where it is not the CPU or PyTorch.
        bytes_per_pixel: Estimated memory of its activations, in bytes per input px.
        elsewhere: Whether it is computed in another process, whose memory is not measured.
    """

    name: str
    dtype: str
    arithmetic: str
    channels: int
    scale: int
    open: Callable[[], Run] = field(repr=False)
    macs: Callable[[Size], int | None] = field(repr=False)
    fixed_size: Size | None = None
    computed_by: str = ""
    bytes_per_pixel: int = 0
    elsewhere: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was measured of one case at one size.

    Attributes:
        name: Of the case.
        dtype: In which it ran.
        size: (H, W) of the input in px.
        times: Of each round, in ms.
        speed: How many times as fast as the first case; the median of the rounds.
        macs: Multiply-accumulates of one run, or None.
        peak: Multiply-accumulates per second of the matrix product in the same rounds.
        output_pixels: Of one run.
        memory: Bytes that its first run took beyond what was there before it, or None where the
            system does not tell.
    """

    name: str
    dtype: str
    size: Size
    times: tuple[float, ...]
    speed: float
    macs: int | None
    peak: float
    output_pixels: int
    memory: int | None

    @property
    def milliseconds(self) -> float:
        """Median time of a run."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the times, relative to the median."""
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return (third - first) / 2 / self.milliseconds

    @property
    def macs_per_second(self) -> float | None:
        """Of the median run."""
        return None if self.macs is None else 1e3 * self.macs / self.milliseconds

    @property
    def share_of_peak(self) -> float | None:
        """1 where it is as fast as the matrix product."""
        rate = self.macs_per_second
        return None if rate is None else rate / self.peak

    @property
    def megapixels_per_second(self) -> float:
        """Of the output."""
        return self.output_pixels / self.milliseconds / 1e3

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        names = ("milliseconds", "spread", "macs_per_second", "share_of_peak")
        derived = {name: getattr(self, name) for name in (*names, "megapixels_per_second")}
        return {**asdict(self), **derived}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the figures depend on beside the files.

    Attributes:
        cpu: Name of the processor.
        cores: That this process may use.
        threads: That PyTorch and onnxruntime use.
        device: On which PyTorch runs, a graphics card by its name.
        versions: Of Python and the packages.
        variables: Environment variables that change memory or threads, as far as they are set.
    """

    cpu: str
    cores: int
    threads: int
    device: str
    versions: Mapping[str, str]
    variables: Mapping[str, str]

    def in_words(self) -> str:
        """All of it in one line."""
        device = [] if self.device == "cpu" else [self.device]
        versions = [f"{name} {number}" for name, number in self.versions.items()]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        memory = variables or ["memory and threads as the system has them"]
        return ", ".join([self.cpu, cores, threads, *device, *versions, *memory])


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measurements of one run on one machine, by size and then by file.

    Attributes:
        machine: Where it was measured.
        measurements: Of the files that run.
        faults: What is wrong with those that do not.
    """

    machine: Machine
    measurements: tuple[Measurement, ...]
    faults: tuple[AetherError, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return {
            "machine": asdict(self.machine),
            "measurements": [measurement.as_dict() for measurement in self.measurements],
            "faults": [str(fault) for fault in self.faults],
        }


def benchmark(
    files: Sequence[str | Path],
    *,
    sizes: Sequence[Size] = SIZES,
    threads: int | None = None,
    device: str = "cpu",
    dtypes: Sequence[str] | None = None,
    seconds: float = 2.0,
    provider: ProviderOptions | None = None,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure model files beside each other; those that cannot be opened are left out, and named.

    Args:
        files: `.pth`, `.safetensors`, `.onnx` and `.engine` files; the first is what speed is
            relative to.
        sizes: (H, W) of the inputs in px.
        threads: For PyTorch and onnxruntime; None for PyTorch's own choice.
        device: Where PyTorch runs, such as `cpu`, `cuda` or `auto`; with an engine among the files,
            the GPU.
        dtypes: Of `DTYPES`, in which PyTorch computes; None for fp32. ONNX files have their own.
        seconds: That each file is given at each size, at least; no less than three rounds are run.
        provider: Where onnxruntime runs ONNX files; by default the CPU.
        progress: Called with each size in words before it is measured.

    Raises:
        CheckpointError: A file is a checkpoint that cannot be read.
        ModelError: A file cannot be run, at one of the sizes or in one of the dtypes.
        MissingExtraError: The runtime for a format is not installed.
    """
    threads = threads or torch.get_num_threads()
    paths = [Path(path) for path in files]
    if provider is not None and all(SUFFIXES.get(path.suffix.lower()) != "onnx" for path in paths):
        refuse_provider(provider, paths[0])
    asked = device
    if device == AUTO:
        torch_runs = any(SUFFIXES.get(path.suffix.lower()) in TORCH_FORMATS for path in paths)
        device = chosen_device(AUTO).device if torch_runs else "cpu"
    if device == "cpu" and any(SUFFIXES.get(path.suffix.lower()) == "trt" for path in paths):
        device = "cuda"
    told = ("onnx", "ncnn")  # where they run is said by more than whether there is a GPU
    alone = len({path.name for path in paths}) == len(paths)
    cases: list[Case] = []
    faults: list[AetherError] = []
    for path in paths:
        try:
            with fault_of(path):
                found = file_cases(
                    path,
                    dtypes=dtypes,
                    device=asked if format_of(path) in told else device,
                    threads=threads,
                    provider=provider if format_of(path) == "onnx" else None,
                )
        except AetherError as error:
            faults.append(error)
            continue
        cases += [
            replace(case, name=f"{path.name if alone else path}{case.computed_by}")
            for case in found
        ]
    if not cases and faults:
        raise faults[0]
    if dtypes is not None and not any(case.dtype in dtypes for case in cases):
        raise ModelError(
            "ONNX files are run in the precision that they were written in",
            found=f"--dtype {','.join(dtypes)}, and no .pth or .safetensors file",
            advice="leave --dtype away, or convert the checkpoint with --precision",
        )
    if device.startswith(VULKAN):
        device = "cpu"  # whose peak NCNN's speed is set beside: PyTorch has no Vulkan
    measured = measure(
        cases, sizes=sizes, threads=threads, device=device, seconds=seconds, progress=progress
    )
    return replace(measured, faults=tuple(faults))


def file_cases(
    path: Path,
    *,
    dtypes: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int = 0,
    provider: ProviderOptions | None = None,
) -> list[Case]:
    """The cases of a file: one a dtype for PyTorch, one for every other runtime.

    Raises:
        CheckpointError: It is a checkpoint that cannot be read.
        ModelError: It cannot be run, or not in one of the dtypes.
        MissingExtraError: The runtime for its format is not installed.
    """
    opened = partial(open_upscaler, path, device=device, threads=threads, provider=provider)
    upscaler = opened()
    if upscaler.format not in TORCH_FORMATS:
        computed_by = upscaler.details.get("provider")
        return [
            Case(
                name=path.name,
                dtype=upscaler.precision,
                arithmetic=_arithmetic(upscaler),
                channels=upscaler.channels[0],
                scale=upscaler.scale,
                open=lambda: opened().run,
                macs=_macs(upscaler),
                fixed_size=upscaler.fixed_size,
                computed_by=f", {computed_by}" if computed_by else "",
                bytes_per_pixel=upscaler.bytes_per_pixel,
                elsewhere=upscaler.format == "ncnn",
            )
        ]
    return [_torch_case(upscaler, dtype, device, opened) for dtype in dtypes or ("fp32",)]


def _arithmetic(upscaler: Upscaler) -> str:
    """The dtype whose peak a file for another runtime than PyTorch is compared with."""
    if upscaler.format == "trt":
        return "fp32" if upscaler.precision == "fp32" else "fp16"  # PyTorch multiplies no int8
    return "fp32"  # onnxruntime computes fp16 in float32 on a CPU


def _torch_case(
    upscaler: Upscaler, dtype: str, device: str, opened: Callable[..., Upscaler]
) -> Case:
    from aether_spandrel.arch import load

    path = upscaler.path
    if other := "architecture" in upscaler.details:
        opened(dtype=dtype)  # which refuses what it cannot be computed in
    else:
        refuse_dtype(dtype, path, fits_float16=dtype != "fp16" or load(path).supports_half)
    return Case(
        name=path.name,
        dtype=dtype,
        arithmetic=dtype,
        channels=upscaler.channels[0],
        scale=upscaler.scale,
        open=(lambda: opened(dtype=dtype).run)
        if other or dtype == "fp32"
        else lambda: torch_run(load(path).model, dtype, device),
        macs=(lambda _: None) if other else _macs(upscaler),
        bytes_per_pixel=upscaler.bytes_per_pixel,
    )


def torch_run(model: nn.Module, dtype: str, device: str = "cpu") -> Run:
    """A network as a function of arrays, computing in `dtype` on `device`.

    Raises, when run:
        ModelError: PyTorch cannot compute it so.
    """
    kind = PRECISIONS[dtype]
    model = model.to(device, kind).eval()

    def run(image: Image) -> Image:
        try:
            with torch.inference_mode():
                return model(torch.from_numpy(image).to(device, kind)).float().cpu().numpy()
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
            raise ModelError(
                f"this PyTorch cannot compute the network in {dtype} on {device}",
                found=reason(error),
                advice="--dtype fp32, or a newer PyTorch",
            ) from error

    return run


def module_case(
    name: str, build: Callable[[], nn.Module], *, dtype: str, channels: int = 3, scale: int
) -> Case:
    """The case of a network that is in no file: `build` makes it, in float32."""
    return Case(
        name=name,
        dtype=dtype,
        arithmetic=dtype,
        channels=channels,
        scale=scale,
        open=lambda: torch_run(build(), dtype),
        macs=lambda size: module_macs(build().eval(), (1, channels, *size)),
    )


def _macs(upscaler: Upscaler) -> Callable[[Size], int | None]:
    count = COUNTERS.get(upscaler.format, lambda _path, _shape: None)
    return lambda size: count(upscaler.path, (1, upscaler.channels[0], *size))


def _checkpoint_macs(path: Path, shape: tuple[int, ...]) -> int:
    from aether_spandrel.arch import load

    return module_macs(load(path).model, shape)


def _engine_macs(path: Path, shape: tuple[int, ...]) -> int | None:
    from aether_converters.tensorrt.sidecar import read_sidecar

    count = read_sidecar(path, check=False).network.macs_per_pixel
    return count * shape[0] * shape[2] * shape[3] or None


def _ncnn_macs(path: Path, shape: tuple[int, ...]) -> int:
    return read_ncnn(path).macs_per_pixel * shape[0] * shape[2] * shape[3]


COUNTERS: Final[Mapping[Format, Callable[[Path, tuple[int, ...]], int | None]]] = {
    "pth": _checkpoint_macs,
    "safetensors": _checkpoint_macs,
    "onnx": graph_macs,
    "trt": _engine_macs,
    "ncnn": _ncnn_macs,
}
"""What counts the multiply-accumulates of a format."""

TORCH_FORMATS: Final[frozenset[Format]] = frozenset({"pth", "safetensors"})


def measure(
    cases: Sequence[Case],
    *,
    sizes: Sequence[Size] = SIZES,
    threads: int | None = None,
    device: str = "cpu",
    seconds: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> Benchmark:
    """Measure cases beside each other; arguments and errors as in `benchmark`."""
    for case in cases:
        for size in sizes:
            if case.fixed_size not in (None, size):
                _refuse_size(case, size)
            if device == "cpu":
                of_picture = IMAGE_BYTES * case.channels * (1 + case.scale**2)
                needed = (case.bytes_per_pixel + of_picture) * size[0] * size[1]
                what = f"{case.name} with {size_in_words(size)} px"
                refuse_beyond_memory(what, needed, "a smaller --size")
    before = torch.get_num_threads()
    threads = threads or before
    measurements: list[Measurement] = []
    torch.set_num_threads(threads)
    try:
        for size in sizes:
            if progress is not None:
                progress(size_in_words(size))
            measurements += _measure_size(cases, size, device, seconds)
    finally:
        torch.set_num_threads(before)
    return Benchmark(machine=this_machine(threads, device), measurements=tuple(measurements))


def size_in_words(size: Size) -> str:
    """(H, W) in px as `--size` takes it: the side of a square, or both."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _refuse_size(case: Case, size: Size) -> None:
    only = size_in_words(case.fixed_size or size)
    raise ModelError(
        f"{case.name} takes pictures of one size only",
        expected=f"{only} px",
        found=f"{size_in_words(size)} px",
        advice=f"--size {only}",
    )


def _measure_size(
    cases: Sequence[Case], size: Size, device: str, seconds: float
) -> list[Measurement]:
    """All cases at one size, first one after the other for their memory and then in turn."""
    runs: list[Callable[[], object]] = []
    memory: list[int | None] = []
    for case in cases:
        run = partial(case.open(), structured_image(case.channels, *size))
        memory.append(None if case.elsewhere else extra_memory(run, device))
        runs.append(run)
    kinds = list(dict.fromkeys(case.arithmetic for case in cases))
    peaks = [PeakProduct(kind, device) for kind in kinds]
    for peak in peaks:
        peak()
    times: list[list[float]] = [[] for _ in runs]
    rates: list[list[float]] = [[] for _ in peaks]
    end = time.perf_counter() + seconds * len(runs)
    while len(times[0]) < LEAST_ROUNDS or time.perf_counter() < end:
        for peak, found in zip(peaks, rates, strict=True):
            time.sleep(REST)
            found.append(peak())
        for run, found in zip(runs, times, strict=True):
            time.sleep(REST)
            start = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - start))
    best = {kind: statistics.median(found) for kind, found in zip(kinds, rates, strict=True)}
    return [
        Measurement(
            name=case.name,
            dtype=case.dtype,
            size=size,
            times=tuple(found),
            # Of the same round, in which the machine was equally busy.
            speed=statistics.median(a / b for a, b in zip(times[0], found, strict=True)),
            macs=case.macs(size),
            peak=best[case.arithmetic],
            output_pixels=case.scale**2 * size[0] * size[1],
            memory=taken,
        )
        for case, found, taken in zip(cases, times, memory, strict=True)
    ]


class PeakProduct:
    """What the machine can do at best: a 1x1 convolution of 256 channels to 256, channels-last."""

    def __init__(self, dtype: str, device: str) -> None:
        """Prepare it for a dtype."""
        kind = PRECISIONS[dtype]
        self._device = device
        self._image = torch.ones(
            (1, PEAK_CHANNELS, PEAK_SIDE, PEAK_SIDE), dtype=kind, device=device
        ).contiguous(memory_format=torch.channels_last)
        self._weight = torch.ones((PEAK_CHANNELS, PEAK_CHANNELS, 1, 1), dtype=kind, device=device)

    def __call__(self) -> float:
        """Multiply-accumulates per second of the best of a few runs."""
        fastest = float("inf")
        with torch.inference_mode():
            for _ in range(PEAK_REPEATS):
                start = time.perf_counter()
                # Holding the last result lets the next one take the memory of the one before.
                held = F.conv2d(self._image, self._weight)
                if held.is_cuda:
                    torch.cuda.synchronize()
                fastest = min(fastest, time.perf_counter() - start)
        return self._image.numel() * PEAK_CHANNELS / fastest


def extra_memory(run: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes by which running something raises what this process occupies, at its peak.

    Of main memory, resident, or of the graphics card. None where the system does not tell: all but
    Linux. What was freed before is given back first, or it would be taken again unseen.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        run()
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = resident_peak()
    run()
    return resident_peak() - before


def resident_peak() -> int:
    """Bytes of main memory that this process occupied at most, on Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


VARIABLES: Final = ("GLIBC_TUNABLES", "LD_PRELOAD", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES: Final = ("torch", "onnxruntime", "spandrel", "aether-spandrel")


def this_machine(threads: int, device: str = "cpu") -> Machine:
    """The machine and what runs on it."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cuda = torch.device(device).type == "cuda"
    return Machine(
        cpu=_cpu_name(),
        cores=cores,
        threads=threads,
        device=torch.cuda.get_device_name(device) if cuda else device,
        versions={"Python": platform.python_version(), **_versions()},
        variables={
            name: value
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or name.startswith("MALLOC_")
        },
    )


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor, such as its `model name` and `flags`."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    lines = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _cpu_name() -> str:
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return cpu_facts().get("model name") or platform.processor() or platform.machine()
