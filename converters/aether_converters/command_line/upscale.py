"""Enlarged pictures: `aethernet upscale`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    add_command,
    checkpoint_options,
    integer,
    positive,
    shard,
)
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

IMAGE_FORMATS: Final = ("png", "jpeg", "webp", "tiff", "bmp")


def add_upscale(commands: Any) -> None:
    """The command and its arguments."""
    upscale = add_command(commands, "upscale", run, "enlarge pictures", UPSCALE)
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
        type=format_named,
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
    _tile_arguments(upscale)
    upscale.add_argument(
        "--device", default="cpu", help="for .pth and .safetensors: cpu, cuda, mps (default: cpu)"
    )
    provider_arguments(upscale)
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

    upscaler = open_upscaler(
        options.model,
        device=options.device,
        provider=provider_options(options),
        **options.constants,
    )
    if "provider" in upscaler.details:
        tell(f"computed by {upscaler.details['provider']}")
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
                strict=options.strict,
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


def _print_picture(report: PictureReport) -> None:
    if report.outcome == "failed":
        fail(*(row for note in report.notes for row in note.split("\n")))
        return
    facts = report.outcome
    if report.size is not None:
        width, height = report.size
        tiles = "1 tile" if report.tiles == 1 else f"{report.tiles} tiles"
        facts = f"{width} x {height} px, {tiles}, {report.seconds:.1f} s"
    say(f"{report.target}: {'; '.join([facts, *report.notes])}")
