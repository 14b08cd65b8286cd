"""What a checkpoint is: `aethernet inspect`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from aether_converters.command_line.arguments import (
    CHECKPOINT,
    add_command,
    checkpoint_options,
    named,
)
from aether_converters.command_line.terminal import (
    FAILED,
    fail_with,
    print_json,
    say,
)
from aether_converters.command_line.wildcards import Files
from aether_spandrel.errors import AetherError

if TYPE_CHECKING:
    from aether_spandrel.inspection import CheckpointInfo

INSPECT: Final = """\
Say what a checkpoint is, from its tensors: revision, size, scale, channels, fused or not; which
values had to be assumed, what is doubtful, and which programs cannot read it.

examples:
  aethernet inspect model.pth
  aethernet inspect --set res_scale=0.15 model.pth
  aethernet inspect --json model.safetensors
  aethernet inspect model_fp16.engine                        from the .json file beside it
  aethernet inspect model_fp16.param                         an NCNN file
"""


def add_inspect(commands: Any) -> None:
    """The command and its arguments."""
    inspect = add_command(commands, "inspect", run, "say what a checkpoint is", INSPECT)
    inspect.add_argument(
        "models", nargs="+", type=named, action=Files, metavar="model", help=CHECKPOINT
    )
    checkpoint_options(inspect, strict=True)


def run(options: argparse.Namespace) -> int:
    """Print what each file is, and what is doubtful about it."""
    from aether_converters.errors import fault_of
    from aether_spandrel.inspection import CheckpointInfo

    facts: list[dict[str, object]] = []
    failures: list[AetherError] = []
    for path in options.models:
        try:
            with fault_of(path):
                found, rows = _inspected(path, options.constants)
        except AetherError as error:
            failures.append(error)
            continue
        facts.append(found.as_dict())
        if not options.json:
            say(str(path), *(f"  {name:<11}{text}" for name, text in rows))
        try:
            if options.strict and isinstance(found, CheckpointInfo):
                found.refuse_doubts()
        except AetherError as error:
            failures.append(error)
    if options.json:
        print_json(facts[0] if len(options.models) == len(facts) == 1 else facts)
    for error in failures:
        fail_with(error)
    return FAILED if failures else 0


def _inspected(
    path: Path, constants: Mapping[str, Any]
) -> tuple[CheckpointInfo | _Described, list[tuple[str, str]]]:
    """What a file is, for programs and in rows for people."""
    described = DESCRIBED.get(path.suffix.lower())
    if described is not None:
        file = described(path)
        return file, file.in_rows()
    from aether_spandrel.inspection import inspect

    info = inspect(path, **constants)
    return info, _inspection_rows(info)


class _Described(Protocol):
    """A file that says of itself what it is, without being run."""

    def as_dict(self) -> dict[str, object]:
        """What it is, as JSON-ready values."""
        ...

    def in_rows(self) -> list[tuple[str, str]]:
        """What it is, a name and a text a row."""
        ...


def _engine(path: Path) -> _Described:
    from aether_converters.tensorrt.sidecar import read_sidecar

    return read_sidecar(path)


def _ncnn_file(path: Path) -> _Described:
    from aether_converters.graphs.ncnn_file import read_ncnn

    return read_ncnn(path)


DESCRIBED: Final[Mapping[str, Callable[[Path], _Described]]] = {
    ".engine": _engine,
    ".param": _ncnn_file,
}
"""What reads files that are no checkpoints, by their ending."""


CHANNELS: Final = {1: "1 (grey)", 3: "3 (RGB)", 4: "4 (RGBA)"}


def _inspection_rows(info: CheckpointInfo) -> list[tuple[str, str]]:
    """What `inspect` prints of a file, a name and a text a row."""
    config = info.config
    taken, given = (CHANNELS.get(n, str(n)) for n in (config.in_chans, config.out_chans))
    kernels = f"{config.lk_kernel}x{config.lk_kernel}"
    attention = [
        name
        for name, there in (("channel", config.channel_attn), ("spatial", config.spatial_attn))
        if there
    ]
    stated = {name: value for name, value in info.constants.items() if name not in info.assumed}
    quantised = "weights converted to int8" if info.int8 else "no"
    if info.qat and not info.int8:
        quantised = "trained with observers or fake quantisation (QAT)"
    return [
        ("network", f"AetherNet {info.preset or 'of its own size'}, revision {info.revision}"),
        ("scale", f"{config.scale}x"),
        ("channels", taken if taken == given else f"{taken} in, {given} out"),
        ("embed_dim", str(config.embed_dim)),
        ("depths", ", ".join(map(str, config.depths))),
        ("ffn_dim", str(config.ffn_dim)),
        (
            "kernels",
            f"{kernels}, fused"
            if info.fused
            else f"{kernels} and {config.sk_kernel}x{config.sk_kernel}, not fused",
        ),
        ("norm", config.norm_type),
        ("attention", " and ".join(attention) or "none"),
        ("weights", f"{info.parameters:,} in {info.dtype}"),
        ("quantised", quantised),
        *([("taken from", info.wrapper)] if info.wrapper else []),
        *(("constant", f"{name} = {value:g}") for name, value in stated.items()),
        *(("assumed", f"{name} = {why}") for name, why in info.assumed.items()),
        *(("warning", text) for text in info.warnings),
        *(("note", text) for text in info.notes),
    ]
