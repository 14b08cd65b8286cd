"""A folder to publish: files, model card, catalogue entry, checksums, report and a picture."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from typing_extensions import Unpack

from aether_converters.artefacts import model_name
from aether_converters.atomic import (
    complete_or_nothing,
    identities,
    refuse_existing,
    refuse_input,
)
from aether_converters.card import ModelCard
from aether_converters.conversion import convert
from aether_converters.errors import require
from aether_converters.installation import is_public, wheel_line, wheel_name
from aether_converters.measuring.figures import Pixels
from aether_converters.plain_text import printable
from aether_converters.publishing.model_card import markdown_card
from aether_converters.publishing.openmodeldb import TAGS, entry, model_id
from aether_converters.reports.files import FIGURES, PAGE
from aether_converters.reports.report import Report
from aether_converters.runtimes.upscaler import Format
from aether_converters.source import read_source
from aether_converters.tensorrt.build import BuildProgress
from aether_converters.tensorrt.sidecar import sidecar_path
from aether_converters.wanted import Choices, Progress, Wanted

CARD: Final = "README.md"
CHECKSUMS: Final = "SHA256SUMS"
GAP: Final = 4  # px, between the two halves of the picture
ENLARGED: Final = 2  # times, so that px can be seen

NEEDED_BY: Final[dict[Format, tuple[str, ...]]] = {
    "pth": (),
    "safetensors": (),
    "onnx": ("onnx", "onnxruntime"),
}
"""Modules of extras, by the format to publish that needs them. Engines serve one kind of GPU."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What was made to be published.

    Attributes:
        folder: Where.
        report: What was measured.
        files: What was written beside the model files; none if one of these failed.
        missing: What only the author can say, in words.
    """

    folder: Path
    report: Report
    files: tuple[Path, ...]
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return {
            **self.report.as_dict(),
            "files": [str(file) for file in self.files],
            "missing": list(self.missing),
        }


def installed_formats() -> tuple[Format, ...]:
    """The formats to publish that can be written here."""
    return tuple(
        kind
        for kind, modules in NEEDED_BY.items()
        if all(importlib.util.find_spec(module) for module in modules)
    )


def release(
    source: str | Path,
    out: str | Path,
    *,
    progress: Progress | None = None,
    build_progress: BuildProgress | None = None,
    **choices: Unpack[Choices],
) -> Release:
    """Convert a checkpoint and write all that is published with it.

    If a file differs from its source, it is not kept, and nothing is written beside the others but
    the report.

    Args:
        source: The checkpoint.
        out: The folder, made if it is missing.
        progress: Called with a few words before each step.
        build_progress: Called while an engine is built.
        **choices: As for `convert`. `to` is by default what everything is installed for; `card`
            is what the author says of the model, of which nothing is invented, and its name is
            part of the files' names; `pictures` are those to show it on, by default a bundled one.

    Raises:
        CheckpointError: The source cannot be read, is no AetherNet, or is doubtful and `strict`
            is set.
        ConversionError: A file exists and `force` is not set, or one cannot be written.
        ImageError: A picture cannot be read.
        MissingExtraError: A package is needed that is not installed.
    """
    folder, wanted = Path(out), Wanted.of(choices)
    origin = read_source(source, **wanted.constants)
    card = (wanted.card or ModelCard()).or_else(origin.card)
    card = card.or_else(ModelCard(name=model_name(origin.path) or "aether"))
    places = _Places.of(folder, card.name, origin.network.config.scale)
    inputs = identities((*origin.files, *wanted.reads))
    for file in (places.card, places.database, places.checksums, places.picture):
        refuse_input(file, inputs)
        refuse_existing(file, force=wanted.force)
    choices["to"] = choices.get("to") or installed_formats()
    report = convert(
        source,
        folder,
        progress=progress,
        build_progress=build_progress,
        **{**choices, "report": True, "card": card, "name": card.name},
    )
    if report.failed:
        return Release(folder=folder, report=report, files=(), missing=())
    if progress is not None:
        progress(CARD)
    written = _write_rest(report, places, force=wanted.force)
    return Release(
        folder=folder,
        report=report,
        files=(*written, folder / PAGE, folder / FIGURES),
        missing=(*_missing(report.card, places.database), *_unpublished(folder)),
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where what lies beside the model files goes."""

    picture: Path
    card: Path
    database: Path
    checksums: Path

    @classmethod
    def of(cls, folder: Path, name: str, scale: int) -> _Places:
        """Those of a model of this name."""
        return cls(
            picture=folder / f"{scale}x_{name}_comparison.png",
            card=folder / CARD,
            database=folder / f"{model_id(name, scale)}.json",
            checksums=folder / CHECKSUMS,
        )


def _write_rest(report: Report, places: _Places, *, force: bool) -> list[Path]:
    """Write what lies beside the model files; returns where."""
    contents: dict[Path, bytes] = {}
    if report.scenes:
        scene = report.scenes[0]
        contents[places.picture] = _side_by_side(scene.bicubic, scene.source)
    shown = places.picture.name if report.scenes else ""
    made_by = f"aether-spandrel {version('aether-spandrel')}"
    name = printable(report.card.name)
    contents[places.card] = markdown_card(report, picture=shown, made_by=made_by).encode()
    contents[places.database] = entry(report, name, released=date.today()).encode()
    contents[places.checksums] = os.fsencode(_checksums(report))
    for file, content in contents.items():
        with complete_or_nothing(file, force=force) as partial:
            partial.path.write_bytes(content)
    return list(contents)


def _side_by_side(left: Pixels, right: Pixels) -> bytes:
    """A PNG file of both, a white line between them."""
    images: Any = require("PIL.Image")
    line = np.full((left.shape[0], GAP // ENLARGED, 3), 255, np.uint8)
    whole = np.concatenate([left, line, right], axis=1)
    whole = whole.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    content = io.BytesIO()
    images.fromarray(whole).save(content, format="PNG", optimize=True)
    return content.getvalue()


def _checksums(report: Report) -> str:
    """What `sha256sum -c` reads: the model files and what lies beside engines.

    The report and the model card may be changed later and are left out.
    """
    lines: list[str] = []
    for artefact in report.artefacts:
        lines.append(_checksum(artefact.path.name, artefact.sha256))
        lines += [_checksum(file.path.name, file.sha256) for file in artefact.companions]
        if artefact.format == "trt":
            beside = sidecar_path(artefact.path)
            lines.append(_checksum(beside.name, hashlib.sha256(beside.read_bytes()).hexdigest()))
    return "".join(f"{line}\n" for line in lines)


ESCAPED: Final = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"))


def _checksum(name: str, digest: str) -> str:
    escaped = name
    for character, written in ESCAPED:
        escaped = escaped.replace(character, written)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}"


def _unpublished(folder: Path) -> list[str]:
    """That the card names a wheel which is not beside it yet, and how it gets there."""
    if is_public() or (folder / wheel_name()).exists():
        return []
    return [
        f"aether-spandrel is not on PyPI, so that its wheel, {wheel_name()}, belongs beside the "
        f"files: {wheel_line(folder)}"
    ]


def _missing(card: ModelCard, database: Path) -> list[str]:
    """What only the author can say, and how."""
    unsaid = (
        (card.licence, "the licence was not stated, so nobody may use the model: --licence"),
        (card.author, "the author was not stated: --author"),
        (card.description, "there is no description of what the model is for: --description"),
        (card.tags, "there are no tags, of which OpenModelDB wants at least one: --tags"),
    )
    found = [text for value, text in unsaid if not value]
    unknown = [tag for tag in card.tags if tag not in TAGS]
    if unknown:
        found.append(f"OpenModelDB has no tags {', '.join(unknown)}, which its entry leaves out")
    found.append(f"the addresses of the files (urls) are for you to fill in: {database.name}")
    return found
