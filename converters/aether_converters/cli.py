"""The command `aethernet`: demo, inspect, convert, release, upscale, verify, bench, doctor."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aether_converters.commands.arguments import (
    CHECKPOINT,
    FORMATS,
    PRECISIONS,
    USUAL_FORMATS,
    USUAL_PRECISIONS,
    add_command,
    card_options,
    checkpoint_options,
    integer,
    list_of,
    name_part,
    positive,
    shape,
    shard,
    size,
)
from aether_converters.commands.demo import add_demo
from aether_converters.commands.release import add_release
from aether_converters.commands.report_table import print_report
from aether_converters.commands.terminal import (
    FAILED,
    console,
    fail,
    picture_progress,
    print_json,
    progress,
    rich_module,
    table_of,
)
from aether_converters.providers import PROVIDERS
from aether_converters.tensorrt_backend import BACKENDS, COMPUTE_CAPABILITIES
from aether_converters.tensorrt_build import CAPABILITIES, HARDWARE
from aether_converters.wildcards import Files
from aether_spandrel.errors import AetherError

if TYPE_CHECKING:
    from aether_converters.benchmark import Benchmark
    from aether_converters.providers import ProviderOptions
    from aether_converters.quantising import Int8Options
    from aether_converters.tensorrt_build import EngineOptions
    from aether_converters.upscaling import PictureReport
    from aether_spandrel.inspection import CheckpointInfo

# Imports of torch, spandrel and the extras stand in the commands that need them, so that `--help`
# answers at once and `inspect` needs no extra.

INT8_TARGETS: Final = ("tensorrt", "cpu")
CALIBRATION_METHODS: Final = ("mse", "percentile", "minmax")
COMPUTED_IN: Final = ("fp32", "bf16", "fp16")
IMAGE_FORMATS: Final = ("png", "jpeg", "webp", "tiff", "bmp")

INTERRUPTED: Final = 130
TERMINATED: Final = 143

DESCRIPTION: Final = """\
Load, convert and run AetherNet super-resolution models.

  aethernet demo    out/                           try everything out with a sample model
  aethernet inspect model.pth                      what is this file?
  aethernet convert model.pth --out release/       fused .pth, .safetensors and .onnx, verified
  aethernet release model.pth --out release/       the same, with all that is published with it
  aethernet upscale model.pth photo.png            enlarge a picture, or a folder of pictures
  aethernet verify  model.pth release/*            do these files compute what the model computes?
  aethernet bench   model.pth release/*            how fast are they here?
  aethernet doctor                                 what works here, in ChaiNNer, in ComfyUI?
"""

INSPECT: Final = """\
Say what a checkpoint is, from its tensors: revision, size, scale, channels, fused or not; which
values had to be assumed, what is doubtful, and which programs cannot read it.

examples:
  aethernet inspect model.pth
  aethernet inspect --set res_scale=0.15 model.pth
  aethernet inspect --json model.safetensors
  aethernet inspect model_fp16.engine                        from the .json file beside it
"""

CONVERT: Final = """\
Convert a checkpoint to fused files for inference. Each file is read back from disk and compared
with the original network before it gets its name; one that differs is not kept. report.html in the
same folder shows what was measured.

examples:
  aethernet convert model.pth                                everything, beside the model
  aethernet convert model.pth --to onnx --precision fp16     for ChaiNNer, vs-mlrt, TensorRT
  aethernet convert model.pth --to onnx --shape 1x3x720x1280 one picture size only
  aethernet convert model.pth --out release/ --force         replace older files
  aethernet convert model.pth --set res_scale=0.15           a value that the file does not say
  aethernet convert model.pth --to onnx --precision int8 --int8-target tensorrt,cpu
  aethernet convert model.pth --to trt --precision fp16      a TensorRT engine for this GPU
  aethernet convert model.pth --to trt --trt-backend tensorrt-rtx --compute-capability 8.6,8.9
                                                             built without a GPU, for RTX 30 and 40
"""

UPSCALE: Final = """\
Enlarge pictures with a .pth, .safetensors, .onnx or .engine model. Transparency, greyscale, 16 bit,
colour profile and orientation are kept. Large pictures are cut into overlapping tiles, without
seams.

examples:
  aethernet upscale model.pth photo.png                      writes photo_2x.png
  aethernet upscale model.onnx photos/ --out enlarged/       a whole folder
  aethernet upscale model.pth scan.tif --format tiff         keep TIFF
  aethernet upscale model.pth huge.png --memory 0.5          with half a GiB for the tiles
  aethernet upscale model.pth frames/ --shard 3/16           the third of 16 shares of the work
  aethernet upscale model.onnx photo.png --provider cuda     ONNX on the GPU, or an error
  aethernet upscale model.engine photo.png                   TensorRT
"""

VERIFY: Final = """\
Compare model files with the checkpoint they were made from, on built-in pictures and your own.
report.html, beside the files, shows what was measured.

examples:
  aethernet verify model.pth release/*
  aethernet verify model.pth model_fp16.onnx --pictures photos/
  aethernet verify model.pth model_int8.onnx --pictures small/ --originals large/ --differences d/
"""

BENCH: Final = """\
Measure how fast model files are here: time, multiply-accumulates (MAC), share of the peak of a
plain matrix product, output, memory. Files run in turn, so that noise falls on all of them.

examples:
  aethernet bench model.pth
  aethernet bench model.pth release/*.onnx --size 128 720x1280
  aethernet bench model.pth --dtype fp32,bf16 --threads 1
"""

DOCTOR: Final = """\
Say whether this Python, ChaiNNer and ComfyUI can load AetherNet models, what is missing, and which
line installs it. With files: why each does or does not load. Paste the output into a bug report.

examples:
  aethernet doctor
  aethernet doctor model.pth model_fp16.onnx
  aethernet doctor --look-in D:/tools/ComfyUI
"""


class _Terminated(KeyboardInterrupt):
    """Another process asked this one to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 for success, 1 for failure, 2 for usage."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.run(options)
    except AetherError as error:
        return fail(str(error))
    except KeyboardInterrupt as interruption:
        fail("interrupted; no unfinished file was left")
        return TERMINATED if isinstance(interruption, _Terminated) else INTERRUPTED
    except MemoryError:
        return fail("memory ran out\n  next      close other programs, or try a smaller --tile")
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about it while exiting.
        sys.stderr.close()
        return FAILED
    except Exception as error:  # noqa: BLE001  a defect of ours: one line for users
        if options.debug:
            traceback.print_exc()
        return fail(
            f"unexpected {type(error).__name__}: {error}\n"
            "  next      run it again with --debug in front, and report the output"
        )


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _inspect(options: argparse.Namespace) -> int:
    from aether_spandrel.inspection import inspect

    facts: list[dict[str, object]] = []
    tables: list[tuple[Path, list[tuple[str, str]]]] = []
    failures: list[AetherError] = []
    for path in options.models:
        try:
            if path.suffix.lower() == ".engine":
                from aether_converters.engine_sidecar import read_sidecar

                engine = read_sidecar(path)
                facts.append(engine.as_dict())
                tables.append((path, engine.in_rows()))
                continue
            info = inspect(path, **options.constants)
            facts.append(info.as_dict())
            tables.append((info.path, _inspection_rows(info)))
            if options.strict:
                info.refuse_doubts()
        except AetherError as error:
            failures.append(error)
    if options.json:
        print_json(facts[0] if len(options.models) == len(facts) == 1 else facts)
    else:
        for path, rows in tables:
            print(path)
            for name, text in rows:
                print(f"  {name:<11}{text}")
    for error in failures:
        fail(str(error))
    return FAILED if failures else 0


CHANNELS: Final = {1: "1 (grey)", 3: "3 (RGB)", 4: "4 (RGBA)"}


def _inspection_rows(info: CheckpointInfo) -> list[tuple[str, str]]:
    """What `inspect` prints of a file, a name and a text a row."""
    config = info.config
    taken, given = (CHANNELS.get(n, str(n)) for n in (config.in_chans, config.out_chans))
    kernels = f"{config.lk_kernel}x{config.lk_kernel}"
    attention = [
        name
        for name, there in (("channel", config.channel_attn), ("spatial", config.spatial_attn))
        if there
    ]
    stated = {name: value for name, value in info.constants.items() if name not in info.assumed}
    quantised = "weights converted to int8" if info.int8 else "no"
    if info.qat and not info.int8:
        quantised = "trained with observers or fake quantisation (QAT)"
    return [
        ("network", f"AetherNet {info.preset or 'of its own size'}, revision {info.revision}"),
        ("scale", f"{config.scale}x"),
        ("channels", taken if taken == given else f"{taken} in, {given} out"),
        ("embed_dim", str(config.embed_dim)),
        ("depths", ", ".join(map(str, config.depths))),
        ("ffn_dim", str(config.ffn_dim)),
        (
            "kernels",
            f"{kernels}, fused"
            if info.fused
            else f"{kernels} and {config.sk_kernel}x{config.sk_kernel}, not fused",
        ),
        ("norm", config.norm_type),
        ("attention", " and ".join(attention) or "none"),
        ("weights", f"{info.parameters:,} in {info.dtype}"),
        ("quantised", quantised),
        *([("taken from", info.wrapper)] if info.wrapper else []),
        *(("constant", f"{name} = {value:g}") for name, value in stated.items()),
        *(("assumed", f"{name} = {why}") for name, why in info.assumed.items()),
        *(("warning", text) for text in info.warnings),
        *(("note", text) for text in info.notes),
    ]


def _convert(options: argparse.Namespace) -> int:
    from aether_converters.conversion import convert
    from aether_converters.model_card import ModelCard

    steps = 2 + options.report + len(options.to) * len(options.precision)
    with progress("converting", steps, quiet=options.quiet) as advance:
        report = convert(
            options.model,
            options.out,
            to=options.to,
            precision=options.precision,
            shape=options.shape,
            name=options.name,
            force=options.force,
            strict=options.strict,
            progress=advance,
            int8=_int8_options(options),
            engine=_engine_options(options),
            build_progress=advance.detail,
            report=options.report,
            pictures=options.pictures,
            card=ModelCard(author=options.author, licence=options.licence),
            **options.constants,
        )
    return print_report(report, options, kept="written", dropped="not kept")


def _int8_options(options: argparse.Namespace) -> Int8Options | None:
    """How a network becomes int8, or None if nothing was said of it."""
    from aether_converters.quantising import Int8Options

    int8 = Int8Options(
        targets=tuple(options.int8_target),
        calibration=tuple(options.calibration),
        method=options.calibration_method,
        keep_float=tuple(options.keep_float),
        everything=options.int8_all,
        sensitivity=options.sensitivity,
        max_loss=options.max_loss,
    )
    return None if int8 == Int8Options() else int8


def _engine_options(options: argparse.Namespace) -> EngineOptions | None:
    """What an engine is to be, or None if nothing was said of it."""
    from aether_converters.errors import ConversionError
    from aether_converters.tensorrt_build import EngineOptions, Profile

    counts = {len(options.min), len(options.opt), len(options.max)}
    if len(counts) > 1:
        raise ConversionError(
            "a profile needs all of --min, --opt and --max",
            expected="each of them once for every profile",
            found=f"--min {len(options.min)}, --opt {len(options.opt)} and --max "
            f"{len(options.max)} times",
        )
    engine = EngineOptions(
        backend=options.trt_backend,
        profiles=tuple(
            Profile(min=least, opt=usual, max=most)
            for least, usual, most in zip(options.min, options.opt, options.max, strict=True)
        ),
        workspace=None if options.workspace is None else int(options.workspace * 2**30),
        timing_cache=options.timing_cache,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        compute_capabilities=tuple(options.compute_capability),
    )
    return None if engine == EngineOptions() else engine


def _verify(options: argparse.Namespace) -> int:
    from aether_converters.conversion import verify
    from aether_converters.upscalers import SUFFIXES

    files = [path for path in options.files if path.suffix.lower() in SUFFIXES]
    if others := [path.name for path in options.files if path not in files]:
        print(f"left out, since they are no model files: {', '.join(others)}", file=sys.stderr)
    if not files:
        return fail(f"there is no model file to verify (expected {', '.join(SUFFIXES)})")
    with progress("verifying", 1 + len(files), quiet=options.quiet) as advance:
        report = verify(
            options.model,
            files,
            pictures=options.pictures,
            originals=options.originals,
            differences=options.differences,
            report=_report_folder(options, files[0].parent),
            progress=advance,
            **options.constants,
        )
    return print_report(report, options, kept="passed", dropped="failed")


def _report_folder(options: argparse.Namespace, beside: Path) -> Path | None:
    """Where the report goes, if anywhere: what was asked for, or beside the files."""
    from aether_converters.report_files import why_no_report

    if options.report is not None or not options.write_report:
        return options.report
    if reason := why_no_report(beside):
        print(f"no report is written: {reason}; --report FOLDER names a place", file=sys.stderr)
        return None
    return beside


def _upscale(options: argparse.Namespace) -> int:
    from aether_converters.errors import require

    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.upscalers import open_upscaler
    from aether_converters.upscaling import TileOptions, plan_jobs, run_jobs

    upscaler = open_upscaler(
        options.model,
        device=options.device,
        provider=_provider_options(options),
        **options.constants,
    )
    if "provider" in upscaler.details:
        print(f"computed by {upscaler.details['provider']}", file=sys.stderr)
    tiles = TileOptions(
        tile=options.tile, overlap=options.overlap, memory=int(options.memory * 2**30)
    )
    jobs = plan_jobs(
        options.pictures,
        options.out,
        upscaler.scale,
        image_format=options.format,
        recursive=options.recursive,
    )
    part, parts = options.shard
    jobs = jobs[part - 1 :: parts]
    with picture_progress(len(jobs), quiet=options.quiet) as (on_picture, on_pixels):
        reports = list(
            run_jobs(
                jobs,
                upscaler,
                tiles,
                quality=options.quality,
                force=options.force,
                on_picture=on_picture,
                on_pixels=on_pixels,
            )
        )
    failed = [report for report in reports if report.outcome == "failed"]
    if options.json:
        print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            _print_picture(report)
    return FAILED if failed else 0


def _provider_options(options: argparse.Namespace) -> ProviderOptions:
    from aether_converters.providers import ProviderOptions

    return ProviderOptions(
        name=options.provider,
        engine_cache=options.engine_cache,
        fp16=options.provider_fp16,
        int8=options.provider_int8,
    )


def _print_picture(report: PictureReport) -> None:
    if report.outcome == "failed":
        fail("\n".join(report.notes))
        return
    facts = report.outcome
    if report.size is not None:
        width, height = report.size
        tiles = "1 tile" if report.tiles == 1 else f"{report.tiles} tiles"
        facts = f"{width} x {height} px, {tiles}, {report.seconds:.1f} s"
    print(f"{report.target}: {'; '.join([facts, *report.notes])}")


def _bench(options: argparse.Namespace) -> int:
    from aether_converters.benchmark import benchmark

    with progress("measuring", len(options.size), quiet=options.quiet) as advance:
        found = benchmark(
            options.files,
            sizes=options.size,
            threads=options.threads,
            device=options.device,
            dtypes=options.dtype,
            seconds=options.seconds,
            provider=_provider_options(options),
            progress=advance,
        )
    if options.json:
        print_json(found.as_dict())
    else:
        _print_benchmark(found)
    return 0


def _print_benchmark(found: Benchmark) -> None:
    from aether_converters.benchmark import size_in_words

    escape: Any = rich_module("markup").escape
    table = table_of(found.machine.in_words(), BENCHMARK_COLUMNS)
    size = None
    for row in found.measurements:
        if size not in (None, row.size):
            table.add_section()
        size = row.size
        rate, share = row.macs_per_second, row.share_of_peak
        table.add_row(
            escape(row.name),
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
    console(sys.stdout).print(table)


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


def _doctor(options: argparse.Namespace) -> int:
    from aether_converters.doctor import diagnose

    diagnosis = diagnose(options.files, options.look_in)
    if options.json:
        print_json(diagnosis.as_dict())
        return FAILED if diagnosis.problems else 0
    for section in diagnosis.sections:
        print(section.title)
        for row in section.rows:
            text = row.text.replace("\n", f"\n{'':<13}")
            print(f"  {row.name:<11}{text}")
            if row.next:
                print(f"  {'next':<11}{row.next}")
    count = diagnosis.problems
    print(f"{count} problem{'s' * (count != 1)} found" if count else "no problem found here")
    return FAILED if count else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aethernet",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("aether-spandrel"))
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error arose")
    commands = parser.add_subparsers(metavar="command", required=True)

    add_demo(commands)

    inspect = add_command(commands, "inspect", _inspect, "say what a checkpoint is", INSPECT)
    inspect.add_argument(
        "models", nargs="+", type=Path, action=Files, metavar="model", help=CHECKPOINT
    )
    checkpoint_options(inspect, strict=True)

    convert = add_command(
        commands, "convert", _convert, "make fused .pth, .safetensors and .onnx files", CONVERT
    )
    convert.add_argument("model", type=Path, help=CHECKPOINT)
    convert.add_argument("--out", type=Path, metavar="FOLDER", help="default: beside the model")
    convert.add_argument(
        "--to",
        type=list_of(FORMATS),
        default=list(USUAL_FORMATS),
        metavar="FORMATS",
        help=f"comma-separated, of {', '.join(FORMATS)} (default: all but trt)",
    )
    convert.add_argument(
        "--precision",
        type=list_of(PRECISIONS),
        default=list(USUAL_PRECISIONS),
        metavar="PRECISIONS",
        help=f"comma-separated, of {', '.join(PRECISIONS)} (default: all but int8)",
    )
    convert.add_argument(
        "--shape",
        type=shape,
        metavar="NxCxHxW",
        help="write ONNX and engines for this input alone, such as 1x3x720x1280 (default: any)",
    )
    convert.add_argument(
        "--name",
        type=name_part,
        help="the model's name in the file names (default: the model's own)",
    )
    convert.add_argument("--force", action="store_true", help="replace files that exist")
    convert.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="write no report.html and report.json",
    )
    convert.add_argument(
        "--pictures",
        nargs="+",
        type=Path,
        action=Files,
        default=[],
        metavar="PATH",
        help="pictures and folders that the report shows (default: a bundled one)",
    )
    card_options(convert)
    _int8_arguments(convert)
    checkpoint_options(convert, strict=True)
    _engine_arguments(convert)

    add_release(commands)

    upscale = add_command(commands, "upscale", _upscale, "enlarge pictures", UPSCALE)
    upscale.add_argument("model", type=Path, help=".pth, .safetensors, .onnx or .engine")
    upscale.add_argument(
        "pictures",
        nargs="+",
        type=Path,
        action=Files,
        metavar="picture",
        help="pictures, or folders of them",
    )
    upscale.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="a folder, or a file name for one picture (default: the scale in the name)",
    )
    upscale.add_argument(
        "--format",
        choices=IMAGE_FORMATS,
        default="png",
        help="of the enlarged pictures (default: png)",
    )
    upscale.add_argument(
        "--quality",
        type=integer(1, 100),
        default=95,
        metavar="1-100",
        help="of JPEG and WebP; WebP is lossless at 100 (default: 95)",
    )
    upscale.add_argument(
        "--tile",
        type=integer(1, 2**16),
        metavar="PX",
        help="side of a tile (default: from --memory)",
    )
    upscale.add_argument(
        "--overlap",
        type=integer(0, 2**14),
        metavar="PX",
        help="that tiles see beyond their part (default: all that the result can depend on)",
    )
    upscale.add_argument(
        "--memory",
        type=positive,
        default=1.0,
        metavar="GIB",
        help="that one tile may take (default: 1)",
    )
    upscale.add_argument(
        "--device", default="cpu", help="for .pth and .safetensors: cpu, cuda, mps (default: cpu)"
    )
    _provider_arguments(upscale)
    upscale.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="only every N-th picture from the I-th on, such as 3/16, to share a folder among "
        "processes or computers",
    )
    upscale.add_argument("--recursive", action="store_true", help="enter folders within folders")
    upscale.add_argument("--force", action="store_true", help="replace pictures that exist")
    checkpoint_options(upscale)

    verify = add_command(commands, "verify", _verify, "compare files with their source", VERIFY)
    verify.add_argument("model", type=Path, help=f"the original {CHECKPOINT}")
    verify.add_argument(
        "files", nargs="+", type=Path, action=Files, metavar="file", help="what was made of it"
    )
    verify.add_argument(
        "--pictures",
        nargs="+",
        type=Path,
        action=Files,
        default=[],
        metavar="PATH",
        help="pictures and folders to compare on too; the middle 512 x 512 px of each",
    )
    verify.add_argument(
        "--originals",
        type=Path,
        metavar="FOLDER",
        help="what the pictures should become, under the same names, to tell the loss",
    )
    verify.add_argument(
        "--differences",
        type=Path,
        metavar="FOLDER",
        help="write a picture of each difference, amplified 16 times",
    )
    where = verify.add_mutually_exclusive_group()
    where.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="for report.html and report.json (default: beside the first file)",
    )
    where.add_argument(
        "--no-report", dest="write_report", action="store_false", help="write no report"
    )
    checkpoint_options(verify)

    bench = add_command(commands, "bench", _bench, "measure how fast files are here", BENCH)
    bench.add_argument(
        "files",
        nargs="+",
        type=Path,
        action=Files,
        metavar="model",
        help=".pth, .safetensors, .onnx or .engine",
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
    bench.add_argument(
        "--device", default="cpu", help="for .pth and .safetensors: cpu, cuda, mps (default: cpu)"
    )
    _provider_arguments(bench)
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

    doctor = add_command(
        commands, "doctor", _doctor, "say what works here and what is missing", DOCTOR
    )
    doctor.add_argument(
        "files", nargs="*", type=Path, action=Files, metavar="file", help="models to examine"
    )
    doctor.add_argument(
        "--look-in",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="where else ChaiNNer or ComfyUI may be; may be given several times",
    )
    return parser


def _engine_arguments(command: argparse.ArgumentParser) -> None:
    """What a TensorRT engine is to be."""
    group = command.add_argument_group("TensorRT engines (--to trt)")
    group.add_argument(
        "--trt-backend",
        choices=BACKENDS,
        help="default: what is installed; tensorrt where both are and a driver answers",
    )
    for name, what in (
        ("--min", "smallest input"),
        ("--opt", "input for which it is fastest"),
        ("--max", "largest input"),
    ):
        group.add_argument(
            name,
            type=shape,
            action="append",
            default=[],
            metavar="NxCxHxW",
            help=f"{what} of a profile; all three may be given again for more profiles",
        )
    group.add_argument(
        "--workspace",
        type=positive,
        metavar="GIB",
        help="GPU memory for one layer beside its tensors (default: all)",
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings of earlier builds, which make the next one faster (tensorrt)",
    )
    group.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE,
        default="none",
        help="other GPUs that are to run it, at some cost in speed (tensorrt; default: none)",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="let newer versions of the same major version run it (tensorrt)",
    )
    group.add_argument(
        "--compute-capability",
        type=list_of(tuple(COMPUTE_CAPABILITIES)),
        default=[],
        metavar="LIST",
        help="GPUs that are to run it, comma-separated, of "
        f"{', '.join(COMPUTE_CAPABILITIES)} (tensorrt-rtx; default: {','.join(CAPABILITIES)})",
    )


def _provider_arguments(command: argparse.ArgumentParser) -> None:
    """Where ONNX files are computed."""
    command.add_argument(
        "--provider",
        choices=PROVIDERS,
        default="cpu",
        help="for .onnx: where onnxruntime computes; no other is taken instead (default: cpu)",
    )
    command.add_argument(
        "--engine-cache",
        type=Path,
        metavar="FOLDER",
        help="where --provider tensorrt keeps its engines",
    )
    command.add_argument(
        "--provider-fp16", action="store_true", help="let --provider tensorrt compute in fp16"
    )
    command.add_argument(
        "--provider-int8",
        action="store_true",
        help="let --provider tensorrt compute quantised files in int8",
    )


def _int8_arguments(convert: argparse.ArgumentParser) -> None:
    """Options of `convert --precision int8`."""
    group = convert.add_argument_group("int8")
    group.add_argument(
        "--int8-target",
        type=list_of(INT8_TARGETS),
        default=["tensorrt"],
        metavar="TARGETS",
        help="who will run it, a file for each: comma-separated, of tensorrt (symmetric int8) and "
        "cpu (uint8 activations, for onnxruntime) (default: tensorrt)",
    )
    group.add_argument(
        "--calibration",
        nargs="+",
        type=Path,
        action=Files,
        default=[],
        metavar="PATH",
        help="pictures and folders like those that the model will upscale, from which the ranges "
        "come (default: built-in pictures)",
    )
    group.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        default="mse",
        help="how a range follows from the values met (default: mse)",
    )
    group.add_argument(
        "--keep-float",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers that stay float, such as conv_last or 'layers.0.*'",
    )
    group.add_argument(
        "--int8-all",
        action="store_true",
        help="every convolution and linear map, depthwise ones too",
    )
    group.add_argument(
        "--sensitivity", action="store_true", help="measure and list what each layer costs"
    )
    group.add_argument(
        "--max-loss",
        type=positive,
        metavar="DB",
        help="keep layers float until the loss is at most this, such as 0.02",
    )
