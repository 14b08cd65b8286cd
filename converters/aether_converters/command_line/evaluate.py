"""How near files come to originals: `aethernet evaluate`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    add_command,
    checkpoint_options,
    integer,
    named,
    positive,
)
from aether_converters.command_line.provider_options import provider_arguments, provider_options
from aether_converters.command_line.terminal import (
    FAILED,
    Table,
    fail_with,
    print_json,
    progress,
    tell,
)
from aether_converters.command_line.wildcards import Files

if TYPE_CHECKING:
    from aether_converters.measuring.evaluation import Evaluation
    from aether_converters.measuring.quality import Quality

EVALUATE: Final = """\
Measure PSNR and SSIM of model files beside each other, on originals that are made smaller first or
on low-resolution pictures of yours; on RGB and on Y, as papers do. With --lpips, LPIPS, too.

examples:
  aethernet evaluate model.pth --originals Set5/HR/
  aethernet evaluate release/* --originals photos/ --kept figures.jsonl
  aethernet evaluate model.pth --originals large/ --lowres small/ --crop 8
"""

WAYS: Final = ("bicubic-matlab", "bicubic-pillow", "area")


def add_evaluate(commands: Any) -> None:
    """The command and its arguments."""
    command = add_command(
        commands, "evaluate", run, "measure how near files come to originals", EVALUATE
    )
    command.add_argument(
        "files",
        nargs="+",
        type=named,
        action=Files,
        metavar="model",
        help=".pth, .safetensors, .onnx, .engine or .param",
    )
    command.add_argument(
        "--originals",
        type=named,
        required=True,
        metavar="FOLDER",
        help="what the enlarged pictures should be; Set5, Set14 and others are known by name",
    )
    command.add_argument(
        "--lowres",
        type=named,
        metavar="FOLDER",
        help="what is enlarged, under the same names (default: the originals made smaller)",
    )
    command.add_argument(
        "--shrinking",
        choices=WAYS,
        default=WAYS[0],
        help="how originals are made smaller (default: bicubic-matlab, as most papers do)",
    )
    command.add_argument(
        "--crop",
        type=integer(0, 2**10),
        metavar="PX",
        help="at each side that are not compared (default: the scale, as papers do)",
    )
    command.add_argument(
        "--lpips",
        action="store_true",
        help="measure how different they look, too; needs the extra `lpips`",
    )
    command.add_argument(
        "--kept",
        type=named,
        metavar="FILE",
        help="add each figure to this file, and compute none again that is there",
    )
    command.add_argument(
        "--memory",
        type=positive,
        default=1.0,
        metavar="GIB",
        help="that one tile may take (default: 1)",
    )
    provider_arguments(command)
    checkpoint_options(command)


def run(options: argparse.Namespace) -> int:
    """Measure, and print tables."""
    from aether_converters.errors import require

    for module in ("PIL", "tifffile", "imagecodecs"):
        require(module)
    from aether_converters.measuring.evaluation import Comparing, evaluate
    from aether_converters.pictures.jobs import pictures_in
    from aether_converters.pictures.upscaling import TileOptions
    from aether_converters.runtimes.opening import open_upscaler

    comparing = Comparing(
        originals=options.originals,
        lowres=options.lowres,
        shrinking=options.shrinking,
        crop=options.crop,
        lpips=options.lpips,
        tiles=TileOptions(memory=int(options.memory * 2**30)),
    )
    pictures = len(list(pictures_in(options.originals, recursive=False)))
    with progress("measuring", pictures * len(options.files), quiet=options.quiet) as advance:
        found = evaluate(
            options.files,
            comparing,
            kept=options.kept,
            opened=partial(
                open_upscaler,
                device=options.device,
                provider=provider_options(options),
                **options.constants,
            ),
            on_picture=advance,
        )
    if options.json:
        print_json(found.as_dict())
    else:
        _print_evaluation(found)
    for fault in found.faults:
        fail_with(fault)
    return FAILED if found.faults else 0


def _print_evaluation(found: Evaluation) -> None:
    name = found.set_name or "pictures"
    lpips = any(file.mean is not None and file.mean.lpips is not None for file in found.files)
    table = Table(
        f"{name}, made smaller {found.lowres}"
        if found.lowres.startswith("by")
        else f"{name}, {found.lowres}",
        (*COLUMNS, LPIPS) if lpips else COLUMNS,
    )
    pictures = dict.fromkeys(name for file in found.files for name in file.pictures)
    for picture in pictures:
        for file in found.files:
            if picture in file.pictures:
                table.add_row(picture, file.path.name, *_cells(file.pictures[picture]))
        table.add_section()
    for file in found.files:
        if file.mean is not None:
            mean = f"mean of {len(file.pictures)}, without {file.crop} px"
            table.add_row(mean, file.path.name, *_cells(file.mean))
    table.show()
    if found.expected not in (None, found.originals):
        tell(
            f"warning: {found.set_name} has {found.expected} pictures, and here are "
            f"{found.originals}: these are no figures of {found.set_name}"
        )


def _cells(figures: Quality) -> tuple[str, ...]:
    return (
        *_pair(figures.psnr, figures.ssim),
        *_pair(figures.psnr_y, figures.ssim_y),
        *(() if figures.lpips is None else (f"{figures.lpips:.4f}",)),
    )


def _pair(psnr: float | None, ssim: float) -> tuple[str, str]:
    return "equal" if psnr is None else f"{psnr:.2f} dB", f"{ssim:.4f}"


COLUMNS: Final = (
    ("picture", "left"),
    ("file", "left"),
    ("PSNR", "right"),
    ("SSIM", "right"),
    ("PSNR Y", "right"),
    ("SSIM Y", "right"),
)
LPIPS: Final = ("LPIPS", "right")
