"""AetherNet as this package runs it, beside the published code and other networks.

    python benchmarks/compare.py --out docs/benchmarks/ [--only inference,load,convert,upscale]

Writes `results.json` and `inference.svg` into the folder, and the tables into the page beside it,
`docs/benchmarks.md`, between the comments that name them; where there is no such page, into
`tables.md` in the folder. What `--only` leaves out stays as it was measured before. Needs Linux.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import spandrel
import torch
from PIL import Image
from torch import Tensor, nn

import aether_spandrel
from aether_converters.errors import ConversionError, require
from aether_converters.graphs.macs import module_macs
from aether_converters.measuring.benchmark import (
    Case,
    Size,
    cpu_facts,
    extra_memory,
    file_cases,
    measure,
    module_case,
    this_machine,
)
from aether_converters.measuring.verification import structured_image
from aether_converters.runtimes.opening import open_upscaler
from aether_spandrel.errors import AetherError
from published_networks import G1, OTHERS, G5f, fused_tensors, visible
from report import draw_inference, markdown_table, refresh_page

Row = dict[str, Any]
Result = dict[str, Any]

LIMIT: Final = 1e-4  # by which ours may differ from the published arithmetic, where white is 1
BFLOAT16_FLAGS: Final = ("avx512_bf16", "amx_bf16")
MEGAPIXEL: Final = 10**6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
        small: Arguments of the small network.
        large: Those of the large one.
        sizes: (H, W) of inputs in px.
        seconds: For each network at each size.
        repeats: Of what runs in a process of its own.
        photos: (H, W) of photos in px.
        folder: How many small pictures a folder has.
        picture: Side of one, in px.
        threads: For all of it.
    """

    small: Mapping[str, Any]
    large: Mapping[str, Any]
    sizes: tuple[tuple[int, int], ...]
    seconds: float
    repeats: int
    photos: tuple[tuple[int, int], ...]
    folder: int
    picture: int
    threads: int = 1


FULL: Final = Settings(
    small={"embed_dim": 96, "depths": (4,) * 4},
    large={"embed_dim": 180, "depths": (8,) * 8, "mlp_ratio": 2.5, "lk_kernel": 13},
    sizes=((128, 128), (256, 256)),
    seconds=10.0,
    repeats=5,
    photos=((816, 1224), (4000, 6000)),
    folder=200,
    picture=128,
)
QUICK: Final = Settings(
    small={"embed_dim": 16, "depths": (2, 1)},
    large={"embed_dim": 24, "depths": (2, 2)},
    sizes=((24, 24), (32, 40)),
    seconds=0.0,
    repeats=1,
    photos=((40, 60), (80, 120)),
    folder=3,
    picture=24,
)
"""Whether everything runs; no figure of it means anything."""


# The networks


def published_networks(settings: Settings) -> dict[str, nn.Module]:
    """The published arithmetic with fixed random weights, by name; G1 twice with the same."""
    torch.manual_seed(0)
    unfused = visible(G1(**settings.small, fused=False))
    fused = G1(**settings.small, fused=True).eval()
    fused.load_state_dict(fused_tensors(unfused.state_dict()), strict=True)
    return {
        "G1, unfused": unfused,
        "G1, fused": fused,
        "G5f, fused": visible(G5f(**settings.small)),
    }


# Inference


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table of inference.

    Attributes:
        name: What it is called there.
        kind: Ours, published or other, for the picture.
        against: The name of the row that its speed is relative to.
        dtypes: In which it is run.
        source: The file or network, by its name among those that were made.
    """

    name: str
    kind: str
    against: str
    source: str
    dtypes: tuple[str, ...] = ("fp32", "bf16")


CONTENDERS: Final = (
    Contender(
        name="AetherNet G1, published, fused",
        kind="published",
        against="AetherNet G1, published, fused",
        source="G1, fused",
    ),
    Contender(
        name="AetherNet G1, published, unfused",
        kind="published",
        against="AetherNet G1, published, fused",
        source="G1, unfused",
    ),
    Contender(
        name="AetherNet G1, this package",
        kind="ours",
        against="AetherNet G1, published, fused",
        source="g1.pth",
    ),
    Contender(
        name="AetherNet G1, ONNX",
        kind="ours",
        against="AetherNet G1, published, fused",
        source="g1.onnx",
        dtypes=("fp32",),
    ),
    Contender(
        name="AetherNet G5f, published, fused",
        kind="published",
        against="AetherNet G5f, published, fused",
        source="G5f, fused",
    ),
    Contender(
        name="AetherNet G5f, this package",
        kind="ours",
        against="AetherNet G5f, published, fused",
        source="g5f.pth",
    ),
    *(
        Contender(name=name, kind="other", against="AetherNet G1, published, fused", source=name)
        for name in OTHERS
    ),
)


def measure_inference(settings: Settings, folder: Path) -> Result:
    """Every contender at every size, in the dtypes that this processor has."""
    networks = published_networks(settings)
    files = {"g1.pth": "G1, fused", "g5f.pth": "G5f, fused"}
    for file, name in files.items():
        torch.save(networks[name].state_dict(), folder / file)
    aethernet("convert", folder / "g1.pth", *ONNX_ONLY, "--name", "g1", "--out", folder)
    (folder / "2x_g1_fp32.onnx").rename(folder / "g1.onnx")
    same_as = {**files, "g1.onnx": "G1, fused", "G1, unfused": "G1, fused"}
    differences = {
        contender.name: difference(contender.source, same_as[contender.source], networks, folder)
        for contender in CONTENDERS
        if contender.source in same_as
    }
    flags = cpu_facts().get("flags", "").split()
    has_bfloat16 = any(flag in flags for flag in BFLOAT16_FLAGS)
    rows: list[Row] = []
    for dtype in ("fp32", "bf16") if has_bfloat16 else ("fp32",):
        contenders = [contender for contender in CONTENDERS if dtype in contender.dtypes]
        cases = [case_of(c, dtype, networks, folder, settings.threads, same_as) for c in contenders]
        found = measure(
            cases,
            sizes=settings.sizes,
            threads=settings.threads,
            seconds=settings.seconds,
            progress=lambda size, dtype=dtype: say(f"inference, {dtype}, {size} px"),
        )
        times = {(row.name, row.size): row.times for row in found.measurements}
        kinds = {contender.name: contender for contender in contenders}
        for row in found.measurements:
            contender = kinds[row.name]
            beside = times[contender.against, row.size]
            speed = statistics.median(a / b for a, b in zip(beside, row.times, strict=True))
            difference_found = differences.get(row.name)
            facts = {"kind": contender.kind, "against": contender.against, "speed": speed}
            rows.append({**row.as_dict(), **facts, "difference": difference_found})
    left_out = "" if has_bfloat16 else "bfloat16: this processor does not compute in it"
    return {"rows": rows, "left_out": left_out}


ONNX_ONLY: Final = ("--to", "onnx", "--precision", "fp32")


def case_of(
    contender: Contender,
    dtype: str,
    networks: Mapping[str, nn.Module],
    folder: Path,
    threads: int,
    same_as: Mapping[str, str],
) -> Case:
    """What is measured for a row: a file, as `aethernet bench` opens it, or a network.

    A file counts as many multiply-accumulates as the published code of its network.
    """
    name = contender.name
    path = folder / contender.source
    if path.exists():
        [case] = file_cases(path, dtypes=[dtype], threads=threads)
        published = networks[same_as[contender.source]]

        def macs(size: Size) -> int:
            return module_macs(published, (1, 3, *size))

        return replace(case, name=name, macs=macs)
    if contender.source in networks:
        network = networks[contender.source]
        return module_case(name, partial(copy.deepcopy, network), dtype=dtype, scale=2)
    return module_case(name, OTHERS[contender.source], dtype=dtype, scale=2)


def difference(
    source: str, reference: str, networks: Mapping[str, nn.Module], folder: Path
) -> float:
    """Largest difference between a file or network and the published arithmetic, in float32.

    Raises:
        ConversionError: It is beyond the limit: they are not the same network.
    """
    image = structured_image(3, 61, 83)
    with torch.inference_mode():
        expected = networks[reference](torch.from_numpy(image)).numpy()
        if source in networks:
            found = networks[source](torch.from_numpy(image)).numpy()
        else:
            found = open_upscaler(folder / source).run(image)
    largest = float(np.abs(found - expected).max())
    if not largest <= LIMIT:
        raise ConversionError(
            f"{source} does not compute what {reference} computes",
            expected=f"a difference of at most {LIMIT:g}",
            found=f"{largest:.1e}",
            advice="one of both is wrong: the tests of the published revisions say which",
        )
    return largest


# Loading


def load_ours(path: Path, _: Mapping[str, Any]) -> object:
    """Through spandrel, as programs do."""
    return spandrel.ModelLoader().load_from_file(path)


def load_published(path: Path, arguments: Mapping[str, Any]) -> object:
    """Build the published network, then fill it."""
    network = G1(**arguments, fused=True)
    network.load_state_dict(read_tensors(path, arguments), strict=True)
    return network.eval()


def read_tensors(path: Path, _: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors alone."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


LOADERS: Final = (
    ("spandrel with this package", load_ours),
    ("published constructor, strict load", load_published),
    ("the tensors alone", read_tensors),
)


def measure_load(settings: Settings, folder: Path) -> Result:
    """The first load in a process, each in a new one, in turn."""
    network = visible(G1(**settings.large, fused=True))
    state = network.state_dict()
    weights = sum(tensor.nbytes for tensor in state.values())
    files = [folder / "large.pth", folder / "large.safetensors"]
    torch.save(state, files[0])
    safetensors.torch.save_file(state, files[1])
    rows = [(path, index) for path in files for index in range(len(LOADERS))]
    found: dict[tuple[Path, int], list[tuple[float, int]]] = {row: [] for row in rows}
    for repeat in range(settings.repeats):
        say(f"load, {repeat + 1} of {settings.repeats}")
        for path, index in rows:
            found[path, index].append(fresh(first_load, index, path, settings))
    return {
        "weights": weights,
        "rows": [
            {
                "file": path.name,
                "loader": LOADERS[index][0],
                "times": [1e3 * seconds for seconds, _ in runs],
                "milliseconds": 1e3 * statistics.median(seconds for seconds, _ in runs),
                "memory": statistics.median(memory for _, memory in runs) - weights,
            }
            for (path, index), runs in found.items()
        ],
    }


def fresh(function: Callable[..., Any], *arguments: object) -> Any:
    """The result of a function of this module in a new process, which has imported the module."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def first_load(index: int, path: Path, settings: Settings) -> tuple[float, int]:
    """Seconds, and bytes that the process grew by at its peak."""
    torch.set_num_threads(settings.threads)
    aether_spandrel.install()
    _, load = LOADERS[index]
    took = 0.0
    kept: object = None

    def run() -> None:
        nonlocal took, kept
        start = time.perf_counter()
        kept = load(path, settings.large)
        took = time.perf_counter() - start

    gc.collect()  # what the imports left, or one of the loaders would pay for it
    memory = extra_memory(run)
    return took, memory or 0


# Commands


LAUNCHER: Final = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, 1024 * usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command. In a process of its own: a command begins as a copy of what starts it, and Linux
counts the memory of that copy as the command's."""


def aethernet(*arguments: object, threads: int = 0) -> tuple[float, int]:
    """Seconds that the command took from its start, and the most bytes that it occupied."""
    command = [sys.executable, "-m", "aether_converters", *map(str, arguments), "--quiet"]
    variables = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    if done.returncode:
        raise ConversionError(f"aethernet {arguments[0]} failed", found=done.stderr)
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


def measure_convert(settings: Settings, folder: Path) -> Result:
    """`aethernet convert` with its defaults: three formats in two precisions, verified."""
    networks = {"small": settings.small, "large": settings.large}
    for name, arguments in networks.items():
        network = visible(G1(**arguments, fused=False))
        torch.save(network.state_dict(), folder / f"{name}.pth")
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in networks}
    for repeat in range(settings.repeats):
        say(f"convert, {repeat + 1} of {settings.repeats}")
        for name, runs in found.items():
            arguments = ("convert", folder / f"{name}.pth", "--out", folder, "--force")
            runs.append(aethernet(*arguments, threads=settings.threads))
    return {
        "rows": [
            {
                "network": f"AetherNet G1 {name}",
                "file_bytes": (folder / f"{name}.pth").stat().st_size,
                "times": [seconds for seconds, _ in runs],
                "seconds": statistics.median(seconds for seconds, _ in runs),
                "peak": statistics.median(peak for _, peak in runs),
            }
            for name, runs in found.items()
        ]
    }


def measure_upscale(settings: Settings, folder: Path) -> Result:
    """`aethernet upscale`: a small and a large photo, and a folder beside the bare network."""
    torch.manual_seed(0)
    model = folder / "small.pth"
    torch.save(visible(G1(**settings.small, fused=True)).state_dict(), model)
    small = settings.picture
    (folder / "pictures").mkdir()

    def save(path: Path, size: tuple[int, int]) -> None:
        pixels = (255 * structured_image(3, *size)[0]).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)

    jobs: list[tuple[str, Path, float]] = []
    for height, width in settings.photos:
        path = folder / f"{width}x{height}.png"
        save(path, (height, width))
        jobs.append((f"a photo, {width} x {height} px", path, height * width / MEGAPIXEL))
    save(folder / "one.png", (small, small))
    for number in range(settings.folder):
        picture = (folder / "one.png").read_bytes()
        (folder / "pictures" / f"{number}.png").write_bytes(picture)
    pixels = settings.folder * small**2 / MEGAPIXEL
    title = f"a folder, {settings.folder} of {small} x {small} px"
    jobs.append((title, folder / "pictures", pixels))

    rows: list[Row] = []
    for name, source, megapixels in jobs:
        say(f"upscale, {name}")
        arguments = ("upscale", model, source, "--out", folder / f"out-{source.stem}")
        seconds, peak = aethernet(*arguments, threads=settings.threads)
        rows.append(upscale_row(name, megapixels, seconds, peak))
    say("upscale, the bare network")
    seconds = fresh(run_bare, model, settings)
    name = f"the bare network, {settings.folder} times"
    return {"rows": [*rows, upscale_row(name, pixels, seconds, None)]}


def upscale_row(name: str, megapixels: float, seconds: float, peak: int | None) -> Row:
    """A row of the table of upscaling."""
    rate = seconds / megapixels
    return {
        "what": name,
        "megapixels": megapixels,
        "seconds": seconds,
        "seconds_per_megapixel": rate,
        "peak": peak,
    }


def run_bare(model: Path, settings: Settings) -> float:
    """Seconds of the network alone for a folder of pictures."""
    torch.set_num_threads(settings.threads)
    run = open_upscaler(model).run
    image = structured_image(3, settings.picture, settings.picture)
    start = time.perf_counter()
    for _ in range(settings.folder):
        run(image)
    return time.perf_counter() - start


# Everything


def mebibytes(count: float | None) -> str:
    """Bytes in words."""
    return "-" if count is None else f"{count / 2**20:.0f} MiB"


Columns = tuple[tuple[str, Callable[[Row], str]], ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the benchmark: what measures it, and the columns of its table."""

    measure: Callable[[Settings, Path], Result]
    columns: Columns


PARTS: Final[Mapping[str, Part]] = {
    "inference": Part(
        measure=measure_inference,
        columns=(
            ("network, 2x", lambda row: row["name"]),
            ("dtype", lambda row: row["dtype"]),
            ("px", lambda row: "x".join(map(str, dict.fromkeys(row["size"])))),
            ("ms", lambda row: f"{row['milliseconds']:.0f}"),
            ("±", lambda row: f"{row['spread']:.0%}"),
            ("GMAC", lambda row: f"{row['macs'] / 1e9:.1f}"),
            ("GMAC/s", lambda row: f"{row['macs_per_second'] / 1e9:.0f}"),
            ("of peak", lambda row: f"{row['share_of_peak']:.0%}"),
            ("speed", lambda row: f"{row['speed']:.2f}x"),
            ("MP/s out", lambda row: f"{row['megapixels_per_second']:.2f}"),
            ("memory", lambda row: mebibytes(row["memory"])),
        ),
    ),
    "load": Part(
        measure=measure_load,
        columns=(
            ("file", lambda row: row["file"]),
            ("loaded by", lambda row: row["loader"]),
            ("ms", lambda row: f"{row['milliseconds']:.0f}"),
            ("memory beyond the weights", lambda row: mebibytes(row["memory"])),
        ),
    ),
    "convert": Part(
        measure=measure_convert,
        columns=(
            ("network", lambda row: row["network"]),
            ("file", lambda row: mebibytes(row["file_bytes"])),
            ("s", lambda row: f"{row['seconds']:.1f}"),
            ("peak memory", lambda row: mebibytes(row["peak"])),
        ),
    ),
    "upscale": Part(
        measure=measure_upscale,
        columns=(
            ("what", lambda row: row["what"]),
            ("MP in", lambda row: f"{row['megapixels']:.2f}"),
            ("s", lambda row: f"{row['seconds']:.1f}"),
            ("s per MP", lambda row: f"{row['seconds_per_megapixel']:.1f}"),
            ("peak memory", lambda row: mebibytes(row["peak"])),
        ),
    ),
}


def say(text: str) -> None:
    """What is being measured, on stderr."""
    print(text, file=sys.stderr)


def table_of(part: str, result: Result, machine: Mapping[str, Any]) -> str:
    """Markdown: the machine, and a row a case."""
    columns = PARTS[part].columns
    rows = [[text(row) for _, text in columns] for row in result["rows"]]
    table = markdown_table([title for title, _ in columns], rows)
    left_out = f"\nNot measured: {result['left_out']}.\n" if result.get("left_out") else ""
    return f"{machine['words']}.\n\n{table}{left_out}"


def parts_of(text: str) -> list[str]:
    """The value of `--only`."""
    parts = [part.strip() for part in text.split(",")]
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(PARTS)}")
    return parts


def main() -> int:
    """Measure, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", type=parts_of, default=list(PARTS), metavar="PARTS")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, help="for each network at each size")
    parser.add_argument("--no-plot", action="store_true", help="do without matplotlib")
    parser.add_argument("--quick", action="store_true", help="see whether it runs; tiny networks")
    options = parser.parse_args()
    settings = replace(QUICK if options.quick else FULL, threads=options.threads)
    if options.seconds is not None:
        settings = replace(settings, seconds=options.seconds)
    torch.set_num_threads(settings.threads)
    try:
        if not options.no_plot:
            require("matplotlib")
        run(options.only, settings, options.out, plot=not options.no_plot)
    except AetherError as error:
        say(f"error: {error}")
        return 1
    return 0


def run(parts: Sequence[str], settings: Settings, out: Path, *, plot: bool) -> None:
    """Measure parts, and bring the files up to date after each."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            result = PARTS[part].measure(settings, Path(folder))
        machine = this_machine(settings.threads)
        facts = {**asdict(machine), "words": machine.in_words()}
        results[part] = {"machine": facts, "settings": asdict(settings), **result}
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        table = table_of(part, result, facts)
        print(f"\n{part}\n\n{table}")
        if plot and part == "inference":
            draw_inference(result["rows"], facts["words"], out / "inference.svg")
    tables = {name: table_of(name, results[name], results[name]["machine"]) for name in results}
    refresh_page(out, tables)


if __name__ == "__main__":
    sys.exit(main())
