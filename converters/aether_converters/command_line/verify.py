"""Files compared with their source: `aethernet verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from aether_converters.command_line.arguments import (
    CHECKPOINT,
    add_command,
    checkpoint_options,
    named,
    picture_options,
)
from aether_converters.command_line.model_files import model_files, model_first
from aether_converters.command_line.tables import print_page, print_report
from aether_converters.command_line.terminal import fail_with, progress, tell
from aether_converters.command_line.wildcards import Files
from aether_spandrel.errors import AetherError

VERIFY: Final = """\
Compare model files with the checkpoint they were made from, on built-in pictures and your own.
verify.html, beside the files, shows what was measured.

examples:
  aethernet verify model.pth release/                        all model files of a folder
  aethernet verify model.pth model_fp16.onnx --pictures photos/
  aethernet verify model.pth model_int8.onnx --pictures small/ --originals large/ --differences d/
"""


def add_verify(commands: Any) -> None:
    """The command and its arguments."""
    verify = add_command(commands, "verify", run, "compare files with their source", VERIFY)
    verify.add_argument("model", type=named, help=f"the original {CHECKPOINT}")
    verify.add_argument(
        "files",
        nargs="+",
        type=named,
        action=Files,
        metavar="file",
        help="what was made of it, or folders of it",
    )
    picture_options(
        verify, "pictures and folders to compare on too; the middle 512 x 512 px of each"
    )
    verify.add_argument(
        "--originals",
        type=named,
        metavar="FOLDER",
        help="what the pictures should become, under the same names, to tell the loss",
    )
    verify.add_argument(
        "--differences",
        type=named,
        metavar="FOLDER",
        help="write a picture of each difference, amplified 16 times",
    )
    where = verify.add_mutually_exclusive_group()
    where.add_argument(
        "--report",
        type=named,
        metavar="FOLDER",
        help="for verify.html and verify.json (default: beside the first file)",
    )
    where.add_argument(
        "--no-report", dest="write_report", action="store_false", help="write no report"
    )
    checkpoint_options(verify)


def run(options: argparse.Namespace) -> int:
    """Compare files with their source, and judge them."""
    from aether_converters.comparison import verify

    files = model_files(options.files, source=options.model)
    faults: list[AetherError] = []
    place = _report_folder(options, files[0].parent)
    with (
        model_first("verify", options.model, options.files),
        progress("verifying", 1 + len(files), quiet=options.quiet) as advance,
    ):
        report = verify(
            options.model,
            files,
            pictures=options.pictures,
            originals=options.originals,
            differences=options.differences,
            report=place,
            progress=advance,
            on_fault=faults.append,
            **options.constants,
        )
    status = print_report(report, options, kept="passed", dropped="failed")
    for fault in faults:
        status = fail_with(fault)
    if place is not None:
        print_page(place, report, options)
    return status


def _report_folder(options: argparse.Namespace, beside: Path) -> Path | None:
    """Where the report goes, if anywhere: what was asked for, or beside the files."""
    from aether_converters.reports.files import why_no_report

    if options.report is not None or not options.write_report:
        return options.report
    if reason := why_no_report(beside):
        tell(f"no report is written: {reason}; --report FOLDER names a place")
        return None
    return beside
