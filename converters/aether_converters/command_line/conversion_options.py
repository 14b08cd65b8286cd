"""What `convert` and `release` can be told of the files that they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from aether_converters.command_line.arguments import (
    CHECKPOINT,
    card_options,
    checkpoint_options,
    integer,
    list_of,
    named,
    picture_options,
    shape,
)
from aether_converters.command_line.engine_options import engine_arguments, engine_options
from aether_converters.command_line.int8_options import int8_arguments, int8_options

if TYPE_CHECKING:
    from aether_converters.wanted import Choices

FORMATS: Final = ("pth", "safetensors", "onnx", "trt", "ncnn")
USUAL_FORMATS: Final = ("pth", "safetensors", "onnx")
PRECISIONS: Final = ("fp32", "fp16", "int8")
USUAL_PRECISIONS: Final = ("fp32", "fp16")


def conversion_arguments(
    command: argparse.ArgumentParser, *, default: Sequence[str] | None, said: str
) -> None:
    """The checkpoint, and what is made of it; `said` is the default of the formats in words."""
    command.add_argument("model", type=named, help=CHECKPOINT)
    command.add_argument(
        "--to",
        type=list_of(FORMATS),
        default=None if default is None else list(default),
        metavar="FORMATS",
        help=f"comma-separated, of {', '.join(FORMATS)} (default: {said})",
    )
    command.add_argument(
        "--precision",
        type=list_of(PRECISIONS),
        default=list(USUAL_PRECISIONS),
        metavar="PRECISIONS",
        help=f"comma-separated, of {', '.join(PRECISIONS)} (default: all but int8)",
    )
    command.add_argument(
        "--shape",
        type=shape,
        metavar="NxCxHxW",
        help="write ONNX and engines for this input alone, such as 1x3x720x1280 (default: any)",
    )
    command.add_argument(
        "--opset",
        type=integer(1, 999),
        metavar="N",
        help="of ONNX files, up to the newest that the installed onnx knows (default: 17)",
    )
    command.add_argument("--force", action="store_true", help="replace files that exist")
    picture_options(command)
    card_options(command)
    int8_arguments(command)
    checkpoint_options(command, strict=True)
    engine_arguments(command)


def conversion_choices(options: argparse.Namespace) -> Choices:
    """What was said of it, by the names of `Choices`; without the card and the constants."""
    return {
        "to": options.to,
        "precision": options.precision,
        "shape": options.shape,
        "opset": options.opset,
        "force": options.force,
        "strict": options.strict,
        "int8": int8_options(options),
        "engine": engine_options(options),
        "pictures": options.pictures,
    }
