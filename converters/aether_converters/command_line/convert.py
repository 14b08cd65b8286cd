"""Fused files of a checkpoint: `aethernet convert`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from aether_converters.command_line.arguments import add_command, name_part, named
from aether_converters.command_line.conversion_options import (
    USUAL_FORMATS,
    conversion_arguments,
    conversion_choices,
)
from aether_converters.command_line.tables import print_page, print_report
from aether_converters.command_line.terminal import (
    progress,
)

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
  aethernet convert model.pth --to ncnn                      .param and .bin, for Upscayl
  aethernet convert model.pth --to trt --trt-backend tensorrt-rtx --compute-capability 8.6,8.9
                                                             built without a GPU, for RTX 30 and 40
"""


def add_convert(commands: Any) -> None:
    """The command and its arguments."""
    convert = add_command(
        commands, "convert", run, "make fused .pth, .safetensors and .onnx files", CONVERT
    )
    conversion_arguments(convert, default=USUAL_FORMATS, said=", ".join(USUAL_FORMATS))
    convert.add_argument("--out", type=named, metavar="FOLDER", help="default: beside the model")
    convert.add_argument(
        "--name",
        type=name_part,
        help="the model's name in the file names (default: the model's own)",
    )
    convert.add_argument(
        "--no-report",
        dest="report",
        action="store_false",
        help="write no report.html and report.json",
    )


def run(options: argparse.Namespace) -> int:
    """Convert a checkpoint, and print what was measured."""
    from aether_converters.card import ModelCard
    from aether_converters.conversion import convert

    choices = conversion_choices(options)
    choices["name"] = options.name
    choices["report"] = options.report
    choices["card"] = ModelCard(author=options.author, licence=options.licence)
    steps = 2 + 2 * options.report + len(options.to) * len(options.precision)
    with progress("converting", steps, quiet=options.quiet) as advance:
        report = convert(
            options.model,
            options.out,
            progress=advance,
            build_progress=advance.detail,
            **choices,
            **options.constants,
        )
    status = print_report(report, options, kept="written", dropped="not kept")
    if options.report:
        print_page(options.out or options.model.parent, report, options)
    return status
