"""What a conversion is to make: what a caller chose, travelling to the writers as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_args

from aether_converters.card import ModelCard
from aether_converters.errors import ConversionError
from aether_converters.int8.planning import Int8Options
from aether_converters.runtimes.upscaler import FORMATS, Format
from aether_converters.tensorrt.build import EngineOptions
from aether_spandrel.constants import Constants

FloatPrecision = Literal["fp32", "fp16"]
Precision = Literal["fp32", "fp16", "int8"]
USUAL_PRECISIONS: Final[tuple[FloatPrecision, ...]] = get_args(FloatPrecision)
Shape = tuple[int, int, int, int]
Progress = Callable[[str], None]
Given = TypeVar("Given")


def silent(_step: str) -> None:
    """Tell nobody."""


def one_or_many(given: Given | Sequence[Given]) -> Sequence[Given]:
    """A name or path that stands alone as a sequence of it, not of its letters."""
    alone = isinstance(given, (str, Path))
    return (cast(Given, given),) if alone else cast("Sequence[Given]", given)


class Choices(Constants, total=False):
    """What `convert` and `release` take by name; see `Wanted`, and `Constants` for the rest."""

    to: Format | Sequence[Format]
    precision: Precision | Sequence[Precision]
    shape: Shape | None
    opset: int | None
    name: str | None
    force: bool
    strict: bool
    int8: Int8Options | None
    engine: EngineOptions | None
    report: bool
    pictures: str | Path | Sequence[str | Path]
    originals: str | Path | Sequence[str | Path]
    kept: str | Path | None
    card: ModelCard | None


LISTS: Final = frozenset(("to", "precision", "pictures", "originals"))
"""Choices of which there may be several."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a conversion is to make.

    Attributes:
        to: Formats to write.
        precision: Precisions in which each is written; int8 where the format can hold it.
        shape: (N, C, H, W) of a static ONNX graph; None for dynamic batch, height and width.
        opset: Of ONNX files, from 17 on; None for 17, which everything reads.
        name: The model's name within the file names; None for the source's own.
        force: Replace files that exist. The source itself is never replaced.
        strict: Refuse a source about which there is any doubt; see `CheckpointInfo.warnings`.
        int8: How the network becomes int8, if `precision` names it.
        engine: What a TensorRT engine is to be, if `to` names `trt`.
        report: Write `report.html` and `report.json` too, with parts of pictures and speed. A
            report is replaced by a newer one.
        pictures: Picture files and folders that the report shows; none for a bundled one.
        originals: Folders of originals on which the files are evaluated; see `evaluate`.
        kept: Where figures of these are kept, and found again; None: nowhere.
        card: Whose the model is; what it leaves open is taken from the source's metadata.
        constants: Values that no tensor carries, such as `res_scale=0.15`.
    """

    to: Sequence[Format] = FORMATS
    precision: Sequence[Precision] = USUAL_PRECISIONS
    shape: Shape | None = None
    opset: int | None = None
    name: str | None = None
    force: bool = False
    strict: bool = False
    int8: Int8Options | None = None
    engine: EngineOptions | None = None
    report: bool = False
    pictures: Sequence[str | Path] = ()
    originals: Sequence[str | Path] = ()
    kept: str | Path | None = None
    card: ModelCard | None = None
    constants: Constants = field(default_factory=lambda: Constants())

    def __post_init__(self) -> None:
        """Refuse what no writer is there for."""
        for given, known in ((self.to, get_args(Format)), (self.precision, get_args(Precision))):
            if unknown := [name for name in given if name not in known]:
                raise ConversionError(
                    "this is neither a format nor a precision that is written",
                    expected=", ".join(known),
                    found=", ".join(map(str, unknown)),
                )

    @property
    def reads(self) -> tuple[str | Path, ...]:
        """Files and folders that are read beside the source."""
        return (*self.pictures, *self.originals, *(self.int8.calibration if self.int8 else ()))

    @classmethod
    def of(cls, choices: Choices) -> Wanted:
        """The value of choices by name; what is no choice is a constant of the network."""
        named = {entry.name for entry in fields(cls)}
        chosen: dict[str, Any] = {name: value for name, value in choices.items() if name in named}
        for name in LISTS & chosen.keys():
            chosen[name] = one_or_many(chosen[name])
        constants = {name: value for name, value in choices.items() if name not in named}
        return cls(**chosen, constants=cast(Constants, constants))
