"""All arguments of the command `aethernet`."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
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
from aether_converters.pictures.formats import is_picture

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


OF_THE_MODEL: Final = "the scale is the model's; --outscale N resizes what it gives"

HABITS: Final[Mapping[str, str]] = {
    "-i": "write the pictures after the model: aethernet upscale model.pth photo.png",
    "--input": "write the pictures after the model: aethernet upscale model.pth photo.png",
    "-o": "--out PATH says where results go",
    "--output": "--out PATH says where results go",
    "-s": OF_THE_MODEL,
    "--scale": OF_THE_MODEL,
    "--upscale": OF_THE_MODEL,
    "-n": "write the model's file first: aethernet upscale model.pth photo.png",
    "--model": "write the model's file first: aethernet upscale model.pth photo.png",
    "-m": "write the model's file first: aethernet upscale model.pth photo.png",
    "-t": "--tile SIZE is the side of a tile in px; left out, memory decides",
    "-f": "--format png, jpeg, webp, tiff, bmp or same; left out, --out decides",
    "-g": "--device cuda computes on the GPU, or fails; left out, it does where there is one",
    "--gpu": "--device cuda computes on the GPU, or fails; left out, it does where there is one",
    "--gpu-id": "--device cuda:0 computes on the first GPU",
    "--fp16": "--dtype fp16 computes in half precision, as GPUs do by themselves where they gain",
    "--half": "--dtype fp16 computes in half precision, as GPUs do by themselves where they gain",
    "-y": "--force replaces files that exist",
    "--overwrite": "--force replaces files that exist",
    "-r": "--recursive takes folders with all that is below them",
}
"""What options that other tools have for enlarging are here."""


TO_ONNX: Final = "--to onnx, with --precision fp32 or fp16"
IN_HALF: Final = "--precision fp16; without it, fp32 and fp16 are both written"
IN_INT8: Final = "--to onnx --precision int8"

OF_CONVERSIONS: Final[Mapping[str, str]] = {
    "--fp16": IN_HALF,
    "--half": IN_HALF,
    "--int8": IN_INT8,
    "--quantise": IN_INT8,
    "--quantize": IN_INT8,
    "--onnx": TO_ONNX,
    "--format": "--to pth, safetensors, onnx, trt or ncnn, several with commas",
    "-f": "--to pth, safetensors, onnx, trt or ncnn, several with commas",
    "--scale": "the scale is the model's, and cannot be chosen",
    "-s": "the scale is the model's, and cannot be chosen",
    "-i": "write the model behind the command: aethernet convert model.pth",
    "--input": "write the model behind the command: aethernet convert model.pth",
    "--model": "write the model behind the command: aethernet convert model.pth",
}
"""What options that other tools have for converting are here."""

ALIKE: Final = 0.65  # of the characters of two names, without their dashes

MEANT: Final[Mapping[str, str]] = {
    "info": "aethernet inspect",
    "enlarge": "aethernet upscale",
    "run": "aethernet upscale",
    "export": "aethernet convert",
    "quantise": "aethernet convert --precision int8",
    "quantize": "aethernet convert --precision int8",
    "publish": "aethernet release",
    "compare": "aethernet verify",
}
"""What words that are no command are here."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as every other error is said."""

    @property
    def options(self) -> frozenset[str]:
        """All that begin with a dash."""
        return frozenset(self._option_string_actions)

    def refuse_unknown(self, arguments: Iterable[str]) -> None:
        """Exit with 2 and the next steps if options are none of these."""
        unknown: list[str] = []
        for argument in arguments:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if not re.match(r"-{1,2}[A-Za-z]", name) or self._known(name):
                continue
            unknown.append(name)
        if not unknown:
            return
        advice = list(dict.fromkeys(map(self._advice, unknown)))
        names = " ".join(dict.fromkeys(unknown))
        fail(f"there is no option {names}", *(f"  next      {line}" for line in advice))
        raise SystemExit(2)

    def _known(self, name: str) -> bool:
        """Whether argparse takes it: whole, or the beginning of one long option alone."""
        return name in self.options or sum(_begins(o, name) for o in self.options) == 1

    def _advice(self, name: str) -> str:
        if habit := self._habit(name):
            return habit
        bare = {option.lstrip("-"): option for option in self.options}
        begun = sorted(option for option in self.options if _begins(option, name))
        near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=ALIKE)
        meant = begun or [bare[word] for word in near]
        return f"did you mean {' or '.join(meant)}?" if meant else f"{self.prog} --help"

    def _habit(self, name: str) -> str:
        """What an option of other tools is here; nothing if it is none."""
        if "--to" in self.options and name in OF_CONVERSIONS:
            return OF_CONVERSIONS[name]
        habit = HABITS.get(name, "")
        here = self.prog.endswith("upscale") or habit.partition(" ")[0] in self.options
        return habit if here else ""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or version; argparse would not notice that it cannot."""
        stream = file or sys.stderr
        with written_to(stream):
            stream.write(message)
            stream.flush()

    def refuse_more(self, arguments: Sequence[str]) -> None:
        """Exit with 2 and what belongs there if arguments are left over."""
        if arguments:
            fail(f"nothing can be done with {' '.join(arguments)}", *self._order())
            raise SystemExit(2)

    def _order(self) -> tuple[str, str]:
        """What stands behind the command without a dash, in the order in which it has to."""
        needed = [a for a in self._actions if a.required or not a.option_strings]
        rows = [" ".join((*a.option_strings[:1], str(a.metavar or a.dest))) for a in needed]
        rows = [
            f"{r} [{r} ...]" if a.nargs == "+" else r for r, a in zip(rows, needed, strict=True)
        ]
        return (
            f"  expected  {' '.join((self.prog, *rows))}",
            f"  next      {self.prog} --help",
        )

    def error(self, message: str) -> NoReturn:
        """Print the line and where to read on, and what is required; exit with 2."""
        missing = message.startswith("the following arguments are required")
        fail(message, *self._order()[0 if missing else 1 :])
        raise SystemExit(2)


def _begins(option: str, name: str) -> bool:
    return name.startswith("--") and len(name) > 2 and option.startswith(name)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What was asked for; exits with a next step where it is nothing that can be done.

    Without any argument the help is shown, and 0 the exit status.
    """
    parser, commands = _parsers()
    if not arguments:
        parser.print_help()
        raise SystemExit(0)
    asked = next((index for index, text in enumerate(arguments) if not text.startswith("-")), None)
    if asked is not None:
        command = arguments[asked]
        if command not in commands:
            advice = _instead_of(command, arguments[asked + 1 :], commands)
            fail(f"there is no command {command}", f"  next      {advice}")
            raise SystemExit(2)
        commands[command].refuse_unknown(arguments[asked + 1 :])
    options, more = parser.parse_known_args(arguments)
    if asked is not None:
        commands[arguments[asked]].refuse_more(more)
    return options


def _instead_of(word: str, following: Sequence[str], commands: Iterable[str]) -> str:
    """What may be meant by a word that is no command."""
    if word == "help":
        return " ".join(("aethernet", *following[:1], "--help"))
    if word in MEANT:
        return MEANT[word]
    if is_picture(Path(word)) or word.endswith(("/", os.sep)):
        return f"aethernet upscale model.pth {word}"
    if "." in word:
        return f"aethernet upscale {word} photo.png"
    near = difflib.get_close_matches(word, commands, n=1)
    return f"did you mean {near[0]}?" if near else "aethernet --help"


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, _Parser]]:
    """What reads them all, and what reads those of each command."""
    parser = _Parser(
        prog="aethernet",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("aether-spandrel"))
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error arose")
    commands: Any = parser.add_subparsers(metavar="command", required=True)
    for add in COMMANDS:
        add(commands)
    return parser, commands.choices


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
