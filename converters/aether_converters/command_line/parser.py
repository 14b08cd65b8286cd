"""All arguments of the command `aethernet`."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from typing import Any, Final, NoReturn

from aether_converters.command_line.bench import add_bench
from aether_converters.command_line.convert import add_convert
from aether_converters.command_line.demo import add_demo
from aether_converters.command_line.doctor import add_doctor
from aether_converters.command_line.evaluate import add_evaluate
from aether_converters.command_line.inspect import add_inspect
from aether_converters.command_line.release import add_release
from aether_converters.command_line.terminal import fail, written_to
from aether_converters.command_line.upscale import add_upscale
from aether_converters.command_line.verify import add_verify

DESCRIPTION: Final = """\
Load, convert and run AetherNet super-resolution models.

  aethernet demo    out/                           try everything out with a sample model
  aethernet inspect model.pth                      what is this file?
  aethernet convert model.pth --out release/       fused .pth, .safetensors and .onnx, verified
  aethernet release model.pth --out release/       the same, with all that is published with it
  aethernet upscale model.pth photo.png            enlarge a picture, or a folder of pictures
  aethernet verify  model.pth release/*            do these files compute what the model computes?
  aethernet evaluate model.pth --originals photos/ how near do they come to originals?
  aethernet bench   model.pth release/*            how fast are they here?
  aethernet doctor                                 what works here, in ChaiNNer, in ComfyUI?
"""


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


def whole_parser() -> argparse.ArgumentParser:
    """What reads them."""
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
    add_evaluate,
    add_bench,
    add_doctor,
)
"""In the order in which the help lists them."""
