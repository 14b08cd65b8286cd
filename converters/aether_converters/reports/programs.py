"""Which of the files a program takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aether_converters.measuring.figures import ArtefactReport

Kind = tuple[str, str]
"""Format, and precision or, in int8 for onnxruntime on CPUs, `int8_cpu`."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A row of `PROGRAMS`.

    Attributes:
        name: Of the program, or of what computes.
        takes: How it is opened there, by the kind of file, the best first.
        cheaper: Kinds that are faster or smaller there, for those who bear what they lose.
        otherwise: What to do where there is none of these.
    """

    name: str
    takes: Mapping[Kind, str]
    cheaper: tuple[Kind, ...] = ()
    otherwise: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The file that a program takes.

    Attributes:
        program: Its name.
        file: Of the file; empty if none of them serves.
        how: How it is opened there, or what to do where there is none.
        cheaper: Name of a file that is faster or smaller there; empty if there is none.
        loses: What that one loses, in words.
    """

    program: str
    file: str
    how: str
    cheaper: str = ""
    loses: str = ""

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return dict(vars(self))


def _spandrel(how: str) -> dict[Kind, str]:
    """How files are opened that PyTorch runs."""
    held = ("fp32", "fp16")
    return {(kind, precision): how for precision in held for kind in ("safetensors", "pth")}


PROGRAMS: Final = (
    Program(
        name="ChaiNNer",
        takes={
            **_spandrel("PyTorch, Load Model, with the plugin"),
            ("onnx", "fp32"): "ONNX, Load Model",
            ("onnx", "fp16"): "ONNX, Load Model",
        },
        otherwise="convert --to safetensors",
    ),
    Program(
        name="ComfyUI",
        takes=_spandrel("Load Upscale Model, with the plugin"),
        otherwise="convert --to safetensors",
    ),
    Program(
        name="VapourSynth",
        takes={("onnx", "fp16"): "vs-mlrt, on a GPU", ("onnx", "fp32"): "vs-mlrt"},
        otherwise="convert --to onnx",
    ),
    Program(
        name="Upscayl",
        takes={
            ("ncnn", "fp16"): "custom models folder, with its .bin",
            ("ncnn", "fp32"): "custom models folder, with its .bin",
        },
        otherwise="convert --to ncnn",
    ),
    Program(
        name="TensorRT",
        takes={
            ("trt", "fp16"): "on the kind of GPU that it was built for",
            ("trt", "fp32"): "on the kind of GPU that it was built for",
            ("onnx", "fp16"): "builds an engine of it",
            ("onnx", "fp32"): "builds an engine of it",
        },
        cheaper=(("trt", "int8"), ("onnx", "int8")),
        otherwise="convert --to onnx --precision fp16",
    ),
    Program(
        name="CPU",
        takes={("onnx", "fp32"): "onnxruntime", **_spandrel("PyTorch, aethernet upscale")},
        cheaper=(("onnx", "int8_cpu"),),
        otherwise="convert --to onnx --precision fp32",
    ),
)
"""Programs, in the order in which a report names them."""


def chosen_files(artefacts: Sequence[ArtefactReport]) -> tuple[Choice, ...]:
    """For each program the file to take, of those that are there and have not failed."""
    files: dict[Kind, ArtefactReport] = {}
    for artefact in artefacts:
        if not artefact.problem:
            files.setdefault(_kind(artefact), artefact)
    return tuple(_choice(program, files) for program in PROGRAMS)


def _kind(artefact: ArtefactReport) -> Kind:
    cpu = artefact.details.get("int8_target") == "cpu"
    return artefact.format, "int8_cpu" if cpu else artefact.precision


def _choice(program: Program, files: Mapping[Kind, ArtefactReport]) -> Choice:
    taken = next((kind for kind in program.takes if kind in files), None)
    less = next((files[kind] for kind in program.cheaper if kind in files), None)
    return Choice(
        program=program.name,
        file="" if taken is None else files[taken].path.name,
        how=program.otherwise if taken is None else program.takes[taken],
        cheaper="" if less is None else less.path.name,
        loses="" if less is None else "was not run here" if less.not_run else less.verdict.words,
    )
