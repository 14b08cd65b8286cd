"""Enlarged pictures: `aethernet upscale`."""

from __future__ import annotations

import argparse
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    COMPUTED_IN,
    add_command,
    as_written,
    checkpoint_options,
    enlargement,
    integer,
    name_part,
    named,
    positive,
    shard,
)
from aether_converters.command_line.model_files import model_first
from aether_converters.command_line.provider_options import provider_arguments, provider_options
from aether_converters.command_line.terminal import (
    FAILED,
    fail,
    picture_progress,
    print_json,
    say,
    tell,
)
from aether_converters.command_line.wildcards import Files
from aether_converters.pictures.formats import format_named

if TYPE_CHECKING:
    from aether_converters.pictures.batch import PictureReport
    from aether_converters.runtimes.upscaler import Upscaler

UPSCALE: Final = """\
Enlarge pictures with a .pth, .safetensors, .onnx, .engine or .param model: AetherNet, or any other
network that spandrel or onnxruntime runs. Transparency, greyscale, 16 bit, colour profile and
orientation are kept. Large pictures are cut into overlapping tiles, without seams.

examples:
  aethernet upscale model.pth photo.png                      writes photo_2x.png
  aethernet upscale model.onnx photos/ --out enlarged/       a whole folder
  aethernet upscale model.pth scans/ --format same           TIFF stays TIFF, JPEG stays JPEG
  aethernet upscale model.pth photo.png --outscale 3         resized after the model
  aethernet upscale model.pth huge.png --memory 0.5          with half a GiB for the tiles
  aethernet upscale model.pth frames/ --shard 3/16           the third of 16 shares of the work
  aethernet upscale model.pth photo.png --device cpu         not on the GPU
  aethernet upscale model.onnx photo.png --provider cuda     ONNX on the GPU, or an error
  aethernet upscale model.engine photo.png                   TensorRT
  aethernet upscale model.param photo.png --device vulkan    NCNN on the GPU, or an error
"""

IMAGE_FORMATS: Final = ("png", "jpeg", "webp", "tiff", "bmp", "same")

MOST_NAMES: Final = 20  # of pictures that failed, in the summary


def add_upscale(commands: Any) -> None:
    """The command and its arguments."""
    upscale = add_command(commands, "upscale", run, "enlarge pictures", UPSCALE)
    upscale.add_argument("model", type=named, help=".pth, .safetensors, .onnx, .engine or .param")
    upscale.add_argument(
        "pictures",
        nargs="+",
        type=named,
        action=Files,
        metavar="picture",
        help="pictures, or folders of them",
    )
    _result_arguments(upscale)
    _tile_arguments(upscale)
    provider_arguments(upscale)
    upscale.add_argument(
        "--dtype",
        choices=("auto", *COMPUTED_IN),
        default="auto",
        help="for .pth and .safetensors: in which PyTorch computes (default: auto, fp16 on NVIDIA "
        "GPUs that gain by it where the network is safe in it, else fp32)",
    )
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
    upscale.add_argument(
        "--strict", action="store_true", help="refuse damaged pictures that could be read"
    )
    checkpoint_options(upscale)


def _result_arguments(upscale: argparse.ArgumentParser) -> None:
    """Where results go, and as what."""
    upscale.add_argument(
        "--out",
        type=as_written,
        metavar="PATH",
        help="a folder, or a file name for one picture (default: the scale in the name)",
    )
    upscale.add_argument(
        "--suffix",
        type=name_part,
        metavar="TEXT",
        help="behind the names of results, such as _large (default: the scale, or none with --out)",
    )
    upscale.add_argument(
        "--format",
        type=format_named,
        choices=IMAGE_FORMATS,
        help="of the enlarged pictures, or same for that of each picture (default: that of --out, "
        "or png)",
    )
    upscale.add_argument(
        "--quality",
        type=integer(1, 100),
        default=95,
        metavar="1-100",
        help="of JPEG and WebP; WebP is lossless at 100 (default: 95)",
    )
    upscale.add_argument(
        "--outscale",
        type=enlargement,
        metavar="N",
        help="by how much pictures become larger: the model's result is resized with Lanczos "
        "(default: the model's scale)",
    )


def _tile_arguments(upscale: argparse.ArgumentParser) -> None:
    """How large pictures are cut."""
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


def run(options: argparse.Namespace) -> int:
    """Enlarge pictures, and say what became of each."""
    from aether_converters.errors import require

    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.pictures.batch import run_jobs
    from aether_converters.pictures.jobs import plan_jobs
    from aether_converters.pictures.upscaling import TileOptions
    from aether_converters.runtimes.opening import open_upscaler

    with model_first("upscale", options.model, options.pictures):
        upscaler = open_upscaler(
            options.model,
            device=options.device,
            dtype=options.dtype,
            provider=provider_options(options),
            **options.constants,
        )
    if not options.quiet:
        _print_model(options, upscaler)
    tiles = TileOptions(
        tile=options.tile, overlap=options.overlap, memory=int(options.memory * 2**30)
    )
    jobs = plan_jobs(
        options.pictures,
        options.out,
        float(options.outscale or upscaler.scale),
        image_format=options.format,
        recursive=options.recursive,
        matched=options.matched,
        suffix=options.suffix,
    )
    if options.outscale is not None:
        resize = options.outscale / upscaler.scale
        jobs = [replace(job, resize=resize) for job in jobs]
    part, parts = options.shard
    jobs = jobs[part - 1 :: parts]
    results = _Results(options)
    try:
        with picture_progress(len(jobs), quiet=options.quiet) as (on_picture, on_pixels):
            for report in run_jobs(
                jobs,
                upscaler,
                tiles,
                quality=options.quality,
                force=options.force,
                strict=options.strict,
                on_picture=on_picture,
                on_pixels=on_pixels,
            ):
                results.add(report)
    finally:
        results.sum_up(len(jobs))
    return FAILED if results.of("failed") else 0


def _print_model(options: argparse.Namespace, upscaler: Upscaler) -> None:
    """What the model is, where that is unusual, and what computes it."""
    if architecture := upscaler.details.get("architecture"):
        tell(f"{options.model.name} is no AetherNet but {architecture}, {upscaler.scale}x")
    tell(f"computed by {upscaler.computed_by}")


class _Results:
    """Says what became of each picture as soon as it is known, and of all of them in the end."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Say nothing yet."""
        self._json: bool = options.json
        self._debug: bool = options.debug
        self._reports: list[PictureReport] = []

    def of(self, outcome: str) -> list[PictureReport]:
        """The reports of one outcome."""
        return [report for report in self._reports if report.outcome == outcome]

    def add(self, report: PictureReport) -> None:
        """What became of one picture."""
        self._reports.append(report)
        if report.fault is not None and self._debug:
            traceback.print_exception(report.fault)
        if not self._json:
            _print_picture(report)

    def sum_up(self, pictures: int) -> None:
        """What became of all, however the run ends."""
        if self._json:
            print_json([report.as_dict() for report in self._reports])
        if pictures == 1 and self._reports:
            return
        counts = [
            f"{len(self.of(outcome))} {outcome}" for outcome in ("written", "skipped", "failed")
        ]
        missing = pictures - len(self._reports)
        counts += [f"{missing} not done"] if missing else []
        tell(f"{pictures} pictures: {', '.join(counts)}")
        for report in self.of("failed")[:MOST_NAMES]:
            tell(f"  failed    {report.source}")
        if (more := len(self.of("failed")) - MOST_NAMES) > 0:
            tell(f"  failed    {more} more")


def _print_picture(report: PictureReport) -> None:
    if report.outcome == "failed":
        fail(*(row for note in report.notes for row in note.split("\n")))
        return
    if report.size is None:
        say(f"{report.source}: {'; '.join([report.outcome, *report.notes])}")
        return
    width, height = report.size
    tiles = "1 tile" if report.tiles == 1 else f"{report.tiles} tiles"
    parts = f"{report.bands} bands" if report.bands > 1 else tiles
    facts = f"{width} x {height} px, {parts}, {report.seconds:.1f} s"
    say(f"{report.target}: {'; '.join([facts, *report.notes])}")
