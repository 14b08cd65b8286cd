"""Arguments that several commands take, and how their texts are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from aether_converters.command_line.wildcards import Files
from aether_spandrel.errors import one_line

COMPUTED_IN: Final = ("fp32", "bf16", "fp16")


CHECKPOINT: Final = ".pth, .pt, .ckpt, .safetensors or .index.json checkpoint"


def checkpoint_options(command: argparse.ArgumentParser, *, strict: bool = False) -> None:
    """Options of the commands that read a checkpoint."""
    command.add_argument(
        "--set",
        dest="constants",
        type=_constant,
        action=_Constants,
        default={},
        metavar="NAME=VALUE",
        help="a value that no tensor carries, such as res_scale=0.15; `inspect` lists them",
    )
    if strict:
        command.add_argument(
            "--strict", action="store_true", help="fail where `inspect` would print a warning"
        )


def picture_options(
    command: argparse.ArgumentParser,
    said: str = "pictures and folders that the report shows (default: a bundled one)",
) -> None:
    """What a report shows, or files are compared on; `said` is its help."""
    command.add_argument(
        "--pictures",
        nargs="+",
        type=named,
        action=Files,
        default=[],
        metavar="PATH",
        help=said,
    )


def card_options(command: argparse.ArgumentParser) -> None:
    """Whose the model is."""
    command.add_argument(
        "--author",
        type=said,
        default="",
        help="of the model (default: what its file says, if anything)",
    )
    command.add_argument(
        "--licence",
        "--license",
        type=said,
        default="",
        help="by its SPDX identifier, such as CC-BY-4.0 (default: what its file says, if anything)",
    )


def named(text: str) -> Path:
    """Reads the name of a file or folder."""
    return Path(as_written(text))


def as_written(text: str) -> str:
    """Reads a name with what stands at its end; an empty one, of a variable perhaps, is none."""
    if not text:
        raise argparse.ArgumentTypeError("nothing is no name of a file or folder")
    return text


def said(text: str) -> str:
    """Reads a text that others will read: no control characters, nothing that is no text."""
    if text != one_line(text):
        raise argparse.ArgumentTypeError(f"{text} has characters in it that nobody can read")
    return text


def paragraphs(text: str) -> str:
    """Reads a text of several lines."""
    return "\n".join(said(line) for line in text.splitlines())


class _Constants(argparse.Action):
    """Collects every `--set` in one dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        name, value = values
        namespace.constants = {**namespace.constants, name: value}


def _constant(text: str) -> tuple[str, float | str]:
    name, separator, value = (part.strip() for part in text.partition("="))
    if not (name and separator and value):
        raise argparse.ArgumentTypeError(f"{text} is not of the form res_scale=0.15 (NAME=VALUE)")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    """A command that shows its examples and prints JSON when asked to."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for scripts")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.set_defaults(run=run)
    return parser


def list_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads comma-separated words, each of `choices`, without repetition."""

    def parse(text: str) -> list[str]:
        values = [part.strip().lower() for part in text.split(",") if part.strip()]
        unknown = [value for value in values if value not in choices]
        if unknown or not values:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown) or 'nothing'} is not one of {', '.join(choices)}"
            )
        return list(dict.fromkeys(values))

    return parse


def integer(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def shard(text: str) -> tuple[int, int]:
    """Reads 3/16 as (3, 16)."""
    part, _, parts = text.partition("/")
    plain = all(number.isdecimal() and len(number) < 10 for number in (part, parts))
    if not (plain and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not of the form 3/16, from 1/16 to 16/16")
    return int(part), int(parts)


def positive(text: str) -> float:
    """Reads a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2**20:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


MOST_ENLARGED: Final = 32  # times, by a model and what resizes its result


def enlargement(text: str) -> Fraction:
    """Reads by how much pictures become larger, such as 3 or 1.5, as exactly as it was written."""
    plain = len(text) < 10 and text.replace(".", "", 1).isdecimal() and text.isascii()
    value = Fraction(text) if plain else Fraction(0)
    if not 0 < value <= MOST_ENLARGED:
        raise argparse.ArgumentTypeError(
            f"{text} is no number such as 3 or 1.5, up to {MOST_ENLARGED}"
        )
    return value


SECONDS_OF: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """Reads a time such as 90s, 10m or 600 (seconds), and `off` as none."""
    if text == "off":
        return 0.0
    unit = SECONDS_OF.get(text[-1:])
    try:
        return positive(text if unit is None else text[:-1]) * (unit or 1.0)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text} is no time such as 90s or 10m, nor off") from None


def shape(text: str) -> tuple[int, ...]:
    """Reads 1x3x720x1280 as (N, C, H, W)."""
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(map(_is_length, parts)):
        raise argparse.ArgumentTypeError(f"{text} is not of the form 1x3x720x1280 (NxCxHxW)")
    return tuple(int(part) for part in parts)


LONGEST_SIDE: Final = 2**24  # of any tensor; what it takes is estimated before it is made


def _is_length(text: str) -> bool:
    return len(text) < 10 and text.isdecimal() and 0 < int(text) <= LONGEST_SIDE


def size(text: str) -> tuple[int, int]:
    """Reads 128, or 720x1280, as (H, W) in px."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(map(_is_length, parts)):
        raise argparse.ArgumentTypeError(f"{text} is not of the form 128 or 720x1280 (HxW)")
    return int(parts[0]), int(parts[-1])


def name_part(text: str) -> str:
    """Reads what can be part of a file name in every system."""
    if not text or text != Path(text).name or set(text) & set('\\/:*?"<>|'):
        raise argparse.ArgumentTypeError(f"{text} cannot be part of a file name")
    if text != one_line(text):
        raise argparse.ArgumentTypeError(f"{text} cannot be part of a file name")
    return text
