"""What works here: `aethernet doctor`."""

from __future__ import annotations

import argparse
from typing import Any, Final

from aether_converters.command_line.arguments import add_command, named
from aether_converters.command_line.terminal import FAILED, print_json, say
from aether_converters.command_line.wildcards import Files

DOCTOR: Final = """\
Say whether this Python, ChaiNNer and ComfyUI can load AetherNet models, what is missing, and which
line installs it. With files: why each does or does not load. Paste the output into a bug report.

examples:
  aethernet doctor
  aethernet doctor model.pth model_fp16.onnx
  aethernet doctor --look-in D:/tools/ComfyUI
"""


def add_doctor(commands: Any) -> None:
    """The command and its arguments."""
    doctor = add_command(commands, "doctor", run, "say what works here and what is missing", DOCTOR)
    doctor.add_argument(
        "files", nargs="*", type=named, action=Files, metavar="file", help="models to examine"
    )
    doctor.add_argument(
        "--look-in",
        action="append",
        type=named,
        default=[],
        metavar="FOLDER",
        help="where else ChaiNNer or ComfyUI may be; may be given several times",
    )


def run(options: argparse.Namespace) -> int:
    """Print what works, what does not, and what to do."""
    from aether_converters.doctor.diagnosis import diagnose

    diagnosis = diagnose(options.files, options.look_in)
    if options.json:
        print_json(diagnosis.as_dict())
        return FAILED if diagnosis.problems else 0
    for section in diagnosis.sections:
        say(section.title)
        for row in section.rows:
            first, *more = row.text.split("\n")
            say(f"  {row.name:<11}{first}", *(f"{'':<13}{line}" for line in more))
            if row.next:
                say(f"  {'next':<11}{row.next}")
    count = diagnosis.problems
    say(f"{count} problem{'s' * (count != 1)} found" if count else "no problem found here")
    return FAILED if count else 0
