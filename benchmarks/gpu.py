"""AetherNet on an NVIDIA GPU, beside the published code and other networks.

    python -m benchmarks.gpu --out results/ [--trained model.pth] [--minutes 4]

Writes `gpu.json` and `gpu.md` into the folder after each part, the most telling parts first; what
the minutes do not suffice for is left out, and named. Speed is set beside a matrix product and a
copy, which are measured first, and beside the roofline that `gpu_cost.py` counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from aether_converters.graphs.macs import module_macs
from aether_converters.measuring.verification import structured_image
from aether_core import AetherNet
from aether_spandrel import AetherNetArch, load
from benchmarks.gpu_cost import Gpu, launches, milliseconds
from benchmarks.published_networks import G1, OTHERS, G5f, fused_tensors, visible
from benchmarks.report import markdown_table

Row = dict[str, Any]
Size = tuple[int, int]
Run = Callable[[], object]

MODES: Final = ("eager", "tuned", "graph", "compiled")
WARM_UP: Final = 2  # runs
LEAST_RUNS: Final = 4
COMPILING: Final = 45.0  # s that are left before a network is compiled
TOP: Final = 15  # kernels of a profile
CHECKED: Final = (61, 83)  # (H, W) in px of the picture that all have to agree on
DEPTHWISE: Final = ((96, 11), (96, 13))  # channels and kernels of the small networks


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How PyTorch computes.

    Attributes:
        dtype: Of weights and activations.
        tf32_convolutions: Whether cuDNN may round float32 to TF32, as it may by default.
        tf32_products: Whether cuBLAS may, as it may not by default.
    """

    dtype: torch.dtype
    tf32_convolutions: bool = False
    tf32_products: bool = False

    @contextmanager
    def allowed(self) -> Generator[None]:
        """PyTorch set to it."""
        cudnn: Any = torch.backends.cudnn
        products: Any = torch.backends.cuda.matmul
        before = cudnn.allow_tf32, products.allow_tf32
        cudnn.allow_tf32, products.allow_tf32 = self.tf32_convolutions, self.tf32_products
        try:
            yield
        finally:
            cudnn.allow_tf32, products.allow_tf32 = before


ARITHMETICS: Final[Mapping[str, Arithmetic]] = {
    "fp32": Arithmetic(dtype=torch.float32),
    "fp32 as PyTorch has it": Arithmetic(dtype=torch.float32, tf32_convolutions=True),
    "tf32": Arithmetic(dtype=torch.float32, tf32_convolutions=True, tf32_products=True),
    "fp16": Arithmetic(dtype=torch.float16),
    "bf16": Arithmetic(dtype=torch.bfloat16),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        small: Arguments of the small networks.
        medium: Those of the medium one.
        sizes: (H, W) of inputs in px.
        layer: (H, W) in px for which a layer alone is measured.
        side: Of the matrices that are multiplied.
        copied: Bytes that are copied.
        seconds: For each row.
        device: Where.
        deadline: When the minutes are over, by `time.perf_counter`.
    """

    small: Mapping[str, Any]
    medium: Mapping[str, Any]
    sizes: tuple[Size, ...]
    layer: Size
    side: int
    copied: int
    seconds: float
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    deadline: float = math.inf

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()


FULL: Final = Settings(
    small={"embed_dim": 96, "depths": (4,) * 4},
    medium={"embed_dim": 128, "depths": (6,) * 6},
    sizes=((256, 256), (1024, 1024), (1080, 1920)),
    layer=(512, 512),
    side=8192,
    copied=2**30,
    seconds=0.25,
)
QUICK: Final = Settings(
    small={"embed_dim": 16, "depths": (2, 1)},
    medium={"embed_dim": 24, "depths": (2, 2)},
    sizes=((24, 24), (32, 40)),
    layer=(16, 16),
    side=64,
    copied=2**16,
    seconds=0.0,
)
"""Whether everything runs; no figure of it means anything."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network.

    Attributes:
        name: Of its rows.
        network: In float32, on the CPU.
        arithmetics: In which it is run, of `ARITHMETICS`.
    """

    name: str
    network: nn.Module
    arithmetics: tuple[str, ...] = tuple(ARITHMETICS)


def contenders(settings: Settings, trained: Path | None) -> tuple[list[Contender], ...]:
    """The small networks, those of others, and the medium ones.

    The published arithmetic has the same weights as ours, drawn or trained.
    """
    torch.manual_seed(0)
    small = [
        *_pair("G1 small", _fused_g1(settings.small), trained),
        *_pair("G5f small", visible(G5f(**settings.small))),
    ]
    halves = ("fp32 as PyTorch has it", "fp16")
    others = [
        Contender(name=name, network=build().eval(), arithmetics=halves)
        for name, build in OTHERS.items()
    ]
    medium = _pair("G1 medium", _fused_g1(settings.medium))
    return small, others, [replace(contender, arithmetics=halves) for contender in medium]


def _fused_g1(arguments: Mapping[str, Any]) -> nn.Module:
    fused = G1(**arguments, fused=True)
    fused.load_state_dict(fused_tensors(visible(G1(**arguments, fused=False)).state_dict()))
    return fused.eval()


def _pair(name: str, published: nn.Module, trained: Path | None = None) -> list[Contender]:
    if trained is None:
        ours = AetherNetArch().load(published.state_dict()).model
    else:
        stored: Any = torch.load(trained, map_location="cpu", weights_only=True)
        published.load_state_dict(stored.get("params", stored), strict=True)
        ours = load(trained).model
    return [
        Contender(name=f"{name}, this package", network=ours),
        Contender(name=f"{name}, published", network=published),
    ]


# Timing


def run_times(run: Run, settings: Settings) -> list[float]:
    """Milliseconds of each run, by the GPU's own clock, after some that do not count."""
    for _ in range(WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + settings.seconds
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        if settings.device.type != "cuda":
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return times


def peaks(settings: Settings) -> dict[str, float]:
    """FLOP/s of a matrix product in each arithmetic, and B/s of a copy, read and written."""
    found: dict[str, float] = {}
    for name, arithmetic in ARITHMETICS.items():
        shape = (settings.side, settings.side)
        a, b = (torch.randn(shape, device=settings.device).to(arithmetic.dtype) for _ in range(2))
        with arithmetic.allowed():
            best = min(run_times(lambda a=a, b=b: a @ b, settings))
        found[name] = 2 * settings.side**3 / (best / 1e3)
    # Most of its work is convolutions, which may use TF32.
    found["fp32 as PyTorch has it"] = found["tf32"]
    source = torch.zeros(settings.copied, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    best = min(run_times(lambda: target.copy_(source), settings))
    return {**found, "copy": 2 * settings.copied / (best / 1e3)}


# A network, ready to run


def prepared(
    network: nn.Module, arithmetic: Arithmetic, picture: Tensor, mode: str
) -> Callable[[], Tensor]:
    """A network as a function without arguments: what it makes of a picture, on its device.

    In mode `graph` all kernels are recorded once and started together (CUDA graphs); `tuned` lets
    cuDNN try its algorithms for this size.
    """
    model = copy.deepcopy(network).to(picture.device, arithmetic.dtype).eval()
    if mode == "compiled":
        model = torch.compile(model, dynamic=False)

    @torch.inference_mode()
    def run() -> Tensor:
        return model(picture)

    if mode != "graph":
        return run
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@contextmanager
def tuned(mode: str) -> Generator[None]:
    """Let cuDNN try its algorithms, where the mode is of that name."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = mode == "tuned"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def picture_of(size: Size, arithmetic: Arithmetic, device: torch.device) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(structured_image(3, *size)).to(device, arithmetic.dtype)


# The parts


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """What the parts share, and where they leave their rows."""

    settings: Settings
    small: Sequence[Contender]
    others: Sequence[Contender]
    medium: Sequence[Contender]
    peaks: Mapping[str, float]
    left_out: list[str]

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of the device."""
        return MODES if self.settings.device.type == "cuda" else ("eager", "compiled")


def check(lab: Laboratory) -> list[Row]:
    """How far each arithmetic lies from float64 on the CPU, which the published code computes."""
    rows: list[Row] = []
    for ours, published in zip(lab.small[::2], lab.small[1::2], strict=True):
        with torch.inference_mode():
            exact = copy.deepcopy(published.network).double()
            expected = exact(torch.from_numpy(structured_image(3, *CHECKED)).double())
        for contender in (ours, published):
            for name, arithmetic in ARITHMETICS.items():
                for mode in [mode for mode in lab.modes if mode in ("eager", "graph")]:
                    if mode == "graph" and contender is published:
                        continue
                    picture = picture_of(CHECKED, arithmetic, lab.settings.device)
                    with arithmetic.allowed():
                        found = prepared(contender.network, arithmetic, picture, mode)()
                    error = (found.cpu().double() - expected).abs()
                    noise = float(error.square().mean())
                    rows.append(
                        {
                            "network": contender.name,
                            "arithmetic": name,
                            "mode": mode,
                            "max difference": float(error.max()),
                            "PSNR": -10 * math.log10(noise) if noise else None,
                        }
                    )
    return rows


def speed_of(contender: Contender, name: str, size: Size, mode: str, lab: Laboratory) -> Row:
    """A row of a table of speed."""
    arithmetic, settings = ARITHMETICS[name], lab.settings
    row: Row = {"network": contender.name, "arithmetic": name, "mode": mode, "size": size}
    picture = picture_of(size, arithmetic, settings.device)
    on_gpu = settings.device.type == "cuda"
    try:
        with arithmetic.allowed(), tuned(mode):
            if on_gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            run = prepared(contender.network, arithmetic, picture, mode)
            run()
            if on_gpu:
                torch.cuda.synchronize()
            row["first run, s"] = time.perf_counter() - started
            times = run_times(run, settings)
    except torch.cuda.OutOfMemoryError:
        return {**row, "problem": "more memory than there is"}
    taken = statistics.median(times)
    row |= {"ms": taken, "best": min(times), "runs": len(times)}
    row["bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
    shape = (1, 3, *size)
    flops = 2 * module_macs(contender.network, shape)
    row |= {"GFLOP": flops / 1e9, "of peak": flops / (taken / 1e3) / lab.peaks[name]}
    if isinstance(contender.network, AetherNet):
        counted = launches(contender.network, *size, arithmetic.dtype)
        moved = sum(launch.moved for launch in counted)
        gpu = Gpu(
            float32=lab.peaks["fp32"] / 1e12,
            tensor=lab.peaks[name] / 1e12,
            bandwidth=lab.peaks["copy"] / 1e9,
        )
        # TF32 computes on the tensor cores, as half precision does.
        cores = torch.float32 if name == "fp32" else torch.float16
        row["of copy"] = moved / (taken / 1e3) / lab.peaks["copy"]
        row["roofline, ms"] = milliseconds(counted, gpu, cores)
    return row


def speed(group: str, mode: str) -> Callable[[Laboratory], list[Row]]:
    """The part that measures a group of networks in a mode."""

    def part(lab: Laboratory) -> list[Row]:
        rows: list[Row] = []
        for contender in getattr(lab, group):
            ours = "this package" in contender.name or group == "others"
            if mode in ("graph", "tuned") and not ours:
                continue
            for name in contender.arithmetics:
                if mode != "eager" and name not in ("fp32 as PyTorch has it", "fp16"):
                    continue
                for size in lab.settings.sizes[: 2 if mode != "eager" else None]:
                    needed = COMPILING if mode == "compiled" else 5.0
                    if lab.settings.left < needed:
                        lab.left_out.append(f"{contender.name}, {name}, {mode}, {size}")
                        continue
                    rows.append(speed_of(contender, name, size, mode, lab))
                    say(_line(rows[-1]))
        return rows

    return part


def depthwise(lab: Laboratory) -> list[Row]:
    """The large convolution alone, in both orders of memory and by every way that PyTorch has.

    `turned` goes from channels-last to the other order for the convolution, and back.
    """
    rows: list[Row] = []
    device, size = lab.settings.device, lab.settings.layer
    last, first = torch.channels_last, torch.contiguous_format
    for channels, kernel in DEPTHWISE:
        for name in ("fp32", "fp32 as PyTorch has it", "fp16", "bf16"):
            arithmetic = ARITHMETICS[name]
            layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
            layer = layer.to(device, arithmetic.dtype).requires_grad_(False)
            for order, way in (
                (last, "cuDNN"),
                (last, "cuDNN, tuned"),
                (last, "own"),
                (last, "turned"),
                (first, "cuDNN"),
                (first, "own"),
            ):
                if lab.settings.left < 5.0:
                    lab.left_out.append(f"depthwise {channels}, {kernel}, {name}, {way}")
                    continue
                shape = (1, channels, *size)
                x = torch.rand(shape, device=device).to(arithmetic.dtype, memory_format=order)

                def run(layer: nn.Module = layer, x: Tensor = x, way: str = way) -> object:
                    if way != "turned":
                        return layer(x)
                    return layer(x.contiguous()).contiguous(memory_format=last)

                enabled = way not in ("own", "turned")
                flags = torch.backends.cudnn.flags(
                    enabled=enabled,
                    benchmark=way.endswith("tuned"),
                    allow_tf32=arithmetic.tf32_convolutions,
                )
                with torch.inference_mode(), flags:
                    taken = statistics.median(run_times(run, lab.settings))
                moved = 2 * x.numel() * x.element_size()
                rows.append(
                    {
                        "channels": channels,
                        "kernel": kernel,
                        "arithmetic": name,
                        "order": "channels-last" if order == last else "channels-first",
                        "way": way,
                        "size": size,
                        "ms": taken,
                        "of copy": moved / (taken / 1e3) / lab.peaks["copy"],
                        "TFLOP/s": 2e-12 * x.numel() * kernel**2 / (taken / 1e3),
                    }
                )
    return rows


def profiles(lab: Laboratory) -> list[Row]:
    """The kernels that take the time of one run of our small networks."""
    on_gpu = lab.settings.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    rows: list[Row] = []
    for contender in lab.small:
        for name in ("fp32", "fp32 as PyTorch has it", "fp16"):
            if lab.settings.left < 10.0 or ("published" in contender.name and name == "fp32"):
                lab.left_out.append(f"profile of {contender.name}, {name}")
                continue
            arithmetic = ARITHMETICS[name]
            picture = picture_of(lab.settings.sizes[1], arithmetic, lab.settings.device)
            with arithmetic.allowed():
                run = prepared(contender.network, arithmetic, picture, "eager")
                for _ in range(WARM_UP):
                    run()
                with profile(activities=activities) as found:
                    run()
                    if on_gpu:
                        torch.cuda.synchronize()
            kernels = _kernels(found, on_gpu=on_gpu)
            total = sum(taken for _, _, taken in kernels)
            rows += [
                {
                    "network": contender.name,
                    "arithmetic": name,
                    "kernel": kernel,
                    "calls": calls,
                    "ms": taken,
                    "share": taken / total,
                }
                for kernel, calls, taken in kernels[:TOP]
            ]
    return rows


def _kernels(found: profile, *, on_gpu: bool) -> list[tuple[str, int, float]]:
    """Name, calls and milliseconds of each kernel, the longest first."""
    events: Any = found.key_averages()
    kernels: list[tuple[str, int, float]] = []
    for event in events:
        if on_gpu and "cuda" not in str(event.device_type).lower():
            continue
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kernels.append((str(event.key), int(event.count), taken / 1e3))
    return sorted(kernels, key=lambda kernel: -kernel[2])


PARTS: Final[Mapping[str, Callable[[Laboratory], list[Row]]]] = {
    "difference to float64": check,
    "small networks": speed("small", "eager"),
    "kernels": profiles,
    "depthwise convolution alone": depthwise,
    "other networks": speed("others", "eager"),
    "small networks, tuned": speed("small", "tuned"),
    "small networks, CUDA graph": speed("small", "graph"),
    "medium networks": speed("medium", "eager"),
    "other networks, tuned": speed("others", "tuned"),
    "small networks, compiled": speed("small", "compiled"),
}


def _line(row: Row) -> str:
    found = row.get("problem") or f"{row['ms']:.3g} ms, {row['of peak']:.0%} of peak"
    return f"{row['network']}, {row['arithmetic']}, {row['mode']}, {row['size']}: {found}"


def text_of(value: object) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return "x".join(map(str, cast("Size", value)))
    return "-" if value is None else str(value).replace("|", "/")[:90]


def table_of(rows: Sequence[Row]) -> str:
    """Markdown, with a column for each name that a row has."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    return markdown_table(titles, [[text_of(row.get(title)) for title in titles] for row in rows])


def machine_of(device: torch.device) -> dict[str, object]:
    """What the figures depend on."""
    facts: dict[str, object] = {"Python": platform.python_version(), "torch": torch.__version__}
    if device.type != "cuda":
        return {"device": device.type, **facts}
    properties = cast(Any, torch.cuda.get_device_properties(device))
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        **facts,
    }


def measure(
    settings: Settings, out: Path, trained: Path | None = None, titles: Sequence[str] = tuple(PARTS)
) -> None:
    """Run parts of `PARTS`, and bring the files up to date after each."""
    out.mkdir(parents=True, exist_ok=True)
    small, others, medium = contenders(settings, trained)
    lab = Laboratory(
        settings=settings,
        small=small,
        others=others,
        medium=medium,
        peaks=peaks(settings),
        left_out=[],
    )
    say(", ".join(f"{name} {peak / 1e12:.3g} T/s" for name, peak in lab.peaks.items()))
    results: dict[str, Any] = {
        "machine": machine_of(settings.device),
        "trained": trained and trained.name,
        "peaks": lab.peaks,
        "left out": lab.left_out,
    }
    tables: list[str] = []
    for title in titles:
        if "graph" in title and "graph" not in lab.modes:
            lab.left_out.append(title)
            continue
        started = time.perf_counter()
        rows = PARTS[title](lab)
        results[title] = rows
        say(f"{title}: {time.perf_counter() - started:.0f} s")
        if rows:
            tables.append(f"## {title}\n\n{table_of(rows)}")
        (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        head = "\n".join(f"- {name}: {fact}" for name, fact in results["machine"].items())
        rates = "\n".join(f"- {name}: {rate / 1e12:.4g} T/s" for name, rate in lab.peaks.items())
        (out / "gpu.md").write_text("\n\n".join([head, rates, *tables]) + "\n", "utf-8")
    print("\n\n".join(tables))
    say(f"left out: {'; '.join(lab.left_out) or 'nothing'}")


def words(text: str) -> list[str]:
    """The value of `--only` and `--without`."""
    return [word.strip() for word in text.split(",") if word.strip()]


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--trained", type=Path, help="a fused 2x checkpoint of aether_small (G1)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which it ends")
    parser.add_argument("--only", type=words, default=[], help="words of titles: compiled,other")
    parser.add_argument("--without", type=words, default=[], help="words of titles to leave out")
    parser.add_argument("--quick", action="store_true", help="see whether it runs; tiny networks")
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        say("error: this PyTorch cannot use a GPU; --device cpu --quick only shows that it runs")
        return 1
    settings = replace(
        QUICK if options.quick else FULL,
        device=options.device,
        deadline=time.perf_counter() + 60 * options.minutes,
    )
    titles = [
        title
        for title in PARTS
        if not any(word in title for word in options.without)
        and (not options.only or any(word in title for word in options.only))
    ]
    measure(settings, options.out, options.trained, titles)
    return 0


if __name__ == "__main__":
    sys.exit(main())
