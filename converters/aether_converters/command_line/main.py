"""The command `aethernet`: demo, inspect, convert, release, upscale, verify, bench, doctor."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType
from typing import Any, Final, NoReturn

from aether_converters.command_line.bench import add_bench
from aether_converters.command_line.convert import add_convert
from aether_converters.command_line.demo import add_demo
from aether_converters.command_line.doctor import add_doctor
from aether_converters.command_line.inspect import add_inspect
from aether_converters.command_line.release import add_release
from aether_converters.command_line.terminal import (
    FAILED,
    abandon,
    fail,
    fail_with,
    finish_streams,
    prepare_streams,
    written_to,
)
from aether_converters.command_line.upscale import add_upscale
from aether_converters.command_line.verify import add_verify
from aether_spandrel.errors import AetherError

# Imports of torch, spandrel and the extras stand in the commands that need them, so that `--help`
# answers at once and `inspect` needs no extra.

INTERRUPTED: Final = 130
TERMINATED: Final = 143

DESCRIPTION: Final = """\
Load, convert and run AetherNet super-resolution models.

  aethernet demo    out/                           try everything out with a sample model
  aethernet inspect model.pth                      what is this file?
  aethernet convert model.pth --out release/       fused .pth, .safetensors and .onnx, verified
  aethernet release model.pth --out release/       the same, with all that is published with it
  aethernet upscale model.pth photo.png            enlarge a picture, or a folder of pictures
  aethernet verify  model.pth release/*            do these files compute what the model computes?
  aethernet bench   model.pth release/*            how fast are they here?
  aethernet doctor                                 what works here, in ChaiNNer, in ComfyUI?
"""


class _Terminated(KeyboardInterrupt):
    """Another process asked this one to stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 for success, 1 for failure, 2 for usage."""
    prepare_streams()
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(arguments)
        finish_streams()
    except AetherError as error:
        return fail_with(error)
    except KeyboardInterrupt as interruption:
        fail("interrupted; no unfinished file was left")
        return TERMINATED if isinstance(interruption, _Terminated) else INTERRUPTED
    except MemoryError:
        return fail("memory ran out", "  next      close other programs, or try a smaller --tile")
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            abandon(stream)
        return FAILED
    except Exception as error:  # noqa: BLE001  a defect of ours: one line for users
        if debug:
            traceback.print_exc()
        return fail(
            f"unexpected {type(error).__name__}: {error}",
            "  next      run it again with --debug in front, and report the output",
        )
    return status


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    return options.run(options)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as every other error is said."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or version; argparse would not notice that it cannot."""
        stream = file or sys.stderr
        with written_to(stream):
            stream.write(message)
            stream.flush()

    def error(self, message: str) -> NoReturn:
        """Print the line, and where to read on; exit with 2."""
        fail(message, f"  next      {self.prog} --help")
        raise SystemExit(2)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aethernet",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("aether-spandrel"))
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error arose")
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands)
    return parser


COMMANDS: Final = (
    add_demo,
    add_inspect,
    add_convert,
    add_release,
    add_upscale,
    add_verify,
    add_bench,
    add_doctor,
)
"""In the order in which the help lists them."""
