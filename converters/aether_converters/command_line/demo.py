"""`aethernet demo`: everything once, with what the package brings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from aether_converters.command_line.arguments import add_command, named
from aether_converters.command_line.release import print_rest
from aether_converters.command_line.tables import print_page, print_report
from aether_converters.command_line.terminal import FAILED, fail, print_json, progress, say

if TYPE_CHECKING:
    from aether_converters.pictures.batch import PictureReport

DEMO: Final = """\
Try everything out: convert the sample model that comes with the package to every format that is
installed, compare each file with it, enlarge a picture, and write the report and all else that a
release has. Then open report.html in a browser.

example:
  aethernet demo out/
"""


def add_demo(commands: Any) -> None:
    """The command and its arguments."""
    command = add_command(commands, "demo", run, "try everything out", DEMO)
    command.add_argument("out", type=named, metavar="FOLDER", help="made if it is missing")
    command.add_argument("--force", action="store_true", help="replace files that exist")


def run(options: argparse.Namespace) -> int:
    """Convert, verify, enlarge, report, and say where to look."""
    from aether_converters.errors import require
    from aether_converters.publishing.demo import FORMATS, demo, steps

    for module in ("PIL", "tifffile", "imagecodecs", *FORMATS["onnx"]):
        require(module)
    with progress("trying out", steps(), quiet=options.quiet) as advance:
        made = demo(
            options.out, force=options.force, progress=advance, build_progress=advance.detail
        )
    if options.json:
        print_json({**made.release.as_dict(), "picture": made.picture.as_dict()})
        return FAILED if made.failed else 0
    status = print_report(made.release.report, options, kept="written", dropped="not kept")
    print_rest(made.release)
    status = _print_picture(made.picture) or status
    print_page(made.release.folder, made.release.report, options)
    return status


def _print_picture(picture: PictureReport) -> int:
    if picture.outcome == "failed":
        return fail(*(row for note in picture.notes for row in note.split("\n")))
    say(f"a picture enlarged: {picture.target.name}, {picture.seconds:.1f} s")
    return 0
