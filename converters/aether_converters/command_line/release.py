"""`aethernet release`: a folder to publish."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import (
    add_command,
    name_part,
    named,
    paragraphs,
)
from aether_converters.command_line.conversion_options import (
    conversion_arguments,
    conversion_choices,
)
from aether_converters.command_line.tables import print_page, print_report
from aether_converters.command_line.terminal import FAILED, print_json, progress, say, tell

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
  aethernet release model.pth --out release/ --pictures photos/     shown on your own pictures
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


def _tags(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))


def run(options: argparse.Namespace) -> int:
    """Release a model."""
    from aether_converters.card import ModelCard
    from aether_converters.publishing.releasing import installed_formats, release

    choices = conversion_choices(options)
    choices["to"] = formats = options.to or installed_formats()
    choices["card"] = ModelCard(
        name=options.name or "",
        author=options.author,
        licence=options.licence,
        description=options.description,
        tags=options.tags,
    )
    steps = 5 + len(formats) * len(options.precision)
    with progress("releasing", steps, quiet=options.quiet) as advance:
        made = release(
            options.model,
            options.out,
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
    print_page(made.folder, made.report, options)
    return status


def print_rest(made: Release) -> None:
    """Say what was written beside the model files."""
    say(f"beside them: {', '.join(file.name for file in made.files)}")
