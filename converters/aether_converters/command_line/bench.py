"""How fast files are here: `aethernet bench`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    COMPUTED_IN,
    add_command,
    integer,
    list_of,
    named,
    positive,
    size,
)
from aether_converters.command_line.model_files import model_files
from aether_converters.command_line.provider_options import provider_arguments, provider_options
from aether_converters.command_line.terminal import (
    FAILED,
    Table,
    fail_with,
    print_json,
    progress,
)
from aether_converters.command_line.wildcards import Files

if TYPE_CHECKING:
    from aether_converters.measuring.benchmark import Benchmark

BENCH: Final = """\
Measure how fast model files are here: time, multiply-accumulates (MAC), share of the peak of a
plain matrix product, output, memory. Files run in turn, so that noise falls on all of them.

examples:
  aethernet bench model.pth
  aethernet bench model.pth release/*.onnx --size 128 720x1280
  aethernet bench model.pth --dtype fp32,bf16 --threads 1
"""


def add_bench(commands: Any) -> None:
    """The command and its arguments."""
    bench = add_command(commands, "bench", run, "measure how fast files are here", BENCH)
    bench.add_argument(
        "files",
        nargs="+",
        type=named,
        action=Files,
        metavar="model",
        help=".pth, .safetensors, .onnx, .engine or .param, or folders of them",
    )
    bench.add_argument(
        "--size",
        nargs="+",
        type=size,
        default=[(128, 128), (256, 256)],
        metavar="PX",
        help="of the input: the side of a square, or HxW (default: 128 256)",
    )
    bench.add_argument("--threads", type=integer(1, 1024), metavar="N", help="default: PyTorch's")
    provider_arguments(bench)
    bench.add_argument(
        "--dtype",
        type=list_of(COMPUTED_IN),
        metavar="DTYPES",
        help=f"for .pth and .safetensors: comma-separated, of {', '.join(COMPUTED_IN)} "
        "(default: fp32)",
    )
    bench.add_argument(
        "--seconds",
        type=positive,
        default=2.0,
        metavar="S",
        help="for each file at each size, and no less than three runs (default: 2)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    from aether_converters.measuring.benchmark import benchmark

    files = model_files(options.files)
    with progress("measuring", len(options.size), quiet=options.quiet) as advance:
        found = benchmark(
            files,
            sizes=options.size,
            threads=options.threads,
            device=options.device,
            dtypes=options.dtype,
            seconds=options.seconds,
            provider=provider_options(options),
            progress=advance,
        )
    if options.json:
        print_json(found.as_dict())
    else:
        _print_benchmark(found)
    for fault in found.faults:
        fail_with(fault)
    return FAILED if found.faults else 0


def _print_benchmark(found: Benchmark) -> None:
    from aether_converters.measuring.benchmark import size_in_words

    table = Table(found.machine.in_words(), BENCHMARK_COLUMNS)
    size = None
    for row in found.measurements:
        if size not in (None, row.size):
            table.add_section()
        size = row.size
        rate, share = row.macs_per_second, row.share_of_peak
        table.add_row(
            row.name,
            row.dtype,
            size_in_words(row.size),
            f"{row.milliseconds:.1f}",
            f"{row.spread:.0%}",
            "-" if row.macs is None else f"{row.macs / 1e9:.2f}",
            "-" if rate is None else f"{rate / 1e9:.1f}",
            "-" if share is None else f"{share:.0%}",
            f"{row.speed:.2f}x",
            f"{row.megapixels_per_second:.2f}",
            "-" if row.memory is None else f"{row.memory / 2**20:.0f} MiB",
        )
    table.show()


BENCHMARK_COLUMNS: Final = (
    ("file", "left"),
    ("dtype", "left"),
    ("px", "right"),
    ("ms", "right"),
    ("±", "right"),
    ("GMAC", "right"),
    ("GMAC/s", "right"),
    ("of peak", "right"),
    ("speed", "right"),
    ("MP/s out", "right"),
    ("memory", "right"),
)
