"""`aethernet release`: a folder to publish."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    add_command,
    integer,
    name_part,
    named,
    paragraphs,
    said,
)
from aether_converters.command_line.conversion_options import (
    conversion_arguments,
    conversion_choices,
)
from aether_converters.command_line.tables import print_page, print_report
from aether_converters.command_line.terminal import FAILED, print_json, progress, say, tell
from aether_converters.command_line.wildcards import Files

if TYPE_CHECKING:
    from aether_converters.publishing.releasing import Release

RELEASE: Final = """\
Make a folder to publish: the model in every format that the installed extras allow, each verified,
a model card (README.md), an entry for OpenModelDB, checksums, the report and a picture. What you do
not say of the model, above all its licence, is not invented.

examples:
  aethernet release model.pth --out release/ --name MyModel
  aethernet release model.pth --out release/ --name MyModel --author "A. Uthor" \\
      --licence CC-BY-4.0 --description "Restores old photographs." --tags photo,restoration
  aethernet release model.pth --out release/ --hub uthor/my-model \\
      --training iterations=250000 batch_size=8 hr_size=256 dataset="DF2K, halved"
  aethernet release model.pth --out release/ --pictures photos/     shown on your own pictures
  aethernet release model.pth --out release/ --originals Set5/HR Set14/HR       with PSNR and SSIM
  aethernet release model.pth --out release/ --precision fp32,fp16,int8 --int8-target cpu
"""


def add_release(commands: Any) -> None:
    """The command and its arguments."""
    command = add_command(commands, "release", run, "make a folder to publish", RELEASE)
    conversion_arguments(command, default=None, said="what is installed, without trt")
    command.add_argument("--out", type=named, metavar="FOLDER", required=True)
    command.add_argument(
        "--name", type=name_part, help="of the model (default: from the file's name)"
    )
    command.add_argument(
        "--description", type=paragraphs, default="", help="what the model is for, in Markdown"
    )
    command.add_argument(
        "--tags",
        type=_tags,
        default=(),
        help="comma-separated, such as photo,restoration; OpenModelDB's own",
    )
    _training_arguments(command)
    _figure_arguments(command)


def _training_arguments(command: argparse.ArgumentParser) -> None:
    """How the model was trained, and where it will be."""
    command.add_argument(
        "--training",
        nargs="+",
        type=_trained,
        default=[],
        metavar="NAME=VALUE",
        help=f"how it was trained: {', '.join(TRAINING)} (a model from whose weights it began; "
        "default: iterations and epochs as its file states them)",
    )
    command.add_argument(
        "--hub",
        type=_hub_name,
        metavar="USER/NAME",
        help="where it will be on Hugging Face, for the files' addresses; nothing is uploaded",
    )


def _figure_arguments(command: argparse.ArgumentParser) -> None:
    """How near the files come to originals."""
    command.add_argument(
        "--originals",
        nargs="+",
        type=named,
        action=Files,
        default=[],
        metavar="FOLDER",
        help="measure how near the files come to these pictures, as `evaluate` does; each folder "
        "is a set by itself, and the figures go into card and report",
    )
    command.add_argument(
        "--kept",
        type=named,
        metavar="FILE",
        help="as for `evaluate`: add each figure to this file, and compute none again",
    )


def _tags(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text} is neither yes nor no")
    return text == "yes"


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in said(text).split(",") if part.strip())


COUNT: Final = integer(1, 10**9 - 1)

TRAINING: Final[Mapping[str, Callable[[str], object]]] = {
    "iterations": COUNT,
    "epochs": COUNT,
    "batch_size": COUNT,
    "hr_size": COUNT,
    "otf": _yes_or_no,
    "dataset": said,
    "dataset_size": COUNT,
    "base": _names,
}
"""How each field of `Training` is read."""


def _trained(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    read = TRAINING.get(name.strip().replace("-", "_"))
    if read is None or not value.strip():
        raise argparse.ArgumentTypeError(
            f"{text} says nothing of a training: it takes NAME=VALUE with {', '.join(TRAINING)}"
        )
    return name.strip().replace("-", "_"), read(value.strip())


def _hub_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text} is not of the form someone/my-model")
    return text


def run(options: argparse.Namespace) -> int:
    """Release a model."""
    from aether_converters.card import ModelCard, Training
    from aether_converters.publishing.releasing import installed_formats, release

    choices = conversion_choices(options)
    choices["to"] = formats = options.to or installed_formats()
    choices["originals"], choices["kept"] = options.originals, options.kept
    choices["card"] = ModelCard(
        name=options.name or "",
        author=options.author,
        licence=options.licence,
        description=options.description,
        tags=options.tags,
        training=Training(**dict(options.training)),
    )
    steps = 5 + len(formats) * len(options.precision) + len(options.originals)
    with progress("releasing", steps, quiet=options.quiet) as advance:
        made = release(
            options.model,
            options.out,
            hub=options.hub or "",
            progress=advance,
            build_progress=advance.detail,
            **choices,
            **options.constants,
        )
    if options.json:
        print_json(made.as_dict())
        return FAILED if made.report.failed else 0
    status = print_report(made.report, options, kept="written", dropped="not kept")
    if made.report.failed:
        tell("nothing else was written but the report")
    else:
        print_rest(made)
        for text in made.missing:
            tell(f"to do: {text}")
        tell(f"to upload it to Hugging Face: {made.upload}")
    print_page(made.folder, made.report, options)
    return status


def print_rest(made: Release) -> None:
    """Say what was written beside the model files."""
    say(f"beside them: {', '.join(file.name for file in made.files)}")
