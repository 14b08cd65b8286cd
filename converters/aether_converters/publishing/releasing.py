"""A folder to publish: files, model card, catalogue entry, checksums, report and a picture."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import shlex
from collections.abc import Collection, Mapping
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
from aether_converters.measuring.exhibit import MOST_SCENES, exhibit_for, shown_pairs
from aether_converters.measuring.figures import Pixels
from aether_converters.plain_text import printable
from aether_converters.publishing.model_card import markdown_card
from aether_converters.publishing.openmodeldb import TAGS, entry, model_id
from aether_converters.reports.files import FIGURES, PAGE
from aether_converters.reports.report import Report
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Format
from aether_converters.source import read_source
from aether_converters.tensorrt.build import BuildProgress
from aether_converters.tensorrt.sidecar import sidecar_path
from aether_converters.wanted import Choices, Progress, Wanted
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.model_folder import CONFIG, MODEL, config_text
from aether_spandrel.network import read_network

CARD: Final = "README.md"
CHECKSUMS: Final = "SHA256SUMS"
ADDRESS: Final = "https://huggingface.co/{}/resolve/main/"
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
        hub: Where it will be on Hugging Face, such as someone/my-model; empty if that is not known.
    """

    folder: Path
    report: Report
    files: tuple[Path, ...]
    missing: tuple[str, ...]
    hub: str = ""

    @property
    def upload(self) -> str:
        """The command that uploads the folder, to be run by whoever may."""
        return shlex.join(["hf", "upload", self.hub or "USER/NAME", str(self.folder), "."])

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return {
            **self.report.as_dict(),
            "files": [str(file) for file in self.files],
            "missing": list(self.missing),
            "upload": self.upload,
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
    hub: str = "",
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
        hub: Where it will be on Hugging Face, such as someone/my-model, from which the addresses of
            the files follow; empty if that is not known. Nothing is uploaded.
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
    choices["to"] = choices.get("to") or installed_formats()
    for file in (*places.always, *(places.hub if "safetensors" in choices["to"] else ())):
        refuse_input(file, inputs)
        refuse_existing(file, force=wanted.force)
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
    pictures = _pictures(report, places, wanted)
    contents = {**_texts(report, places, pictures, hub), **pictures}
    for file, content in contents.items():
        with complete_or_nothing(file, force=wanted.force) as partial:
            partial.path.write_bytes(content)
    return Release(
        folder=folder,
        report=report,
        files=(*contents, folder / PAGE, folder / FIGURES),
        missing=(*_missing(report.card, places.database, hub), *_unpublished(folder)),
        hub=hub,
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where what lies beside the model files goes.

    Attributes:
        hub: The model and its description under the names that hubs know.
        pairs: Small and enlarged pictures, as many as there may be.
    """

    picture: Path
    card: Path
    database: Path
    checksums: Path
    hub: tuple[Path, Path]
    pairs: tuple[tuple[Path, Path], ...]

    @property
    def always(self) -> tuple[Path, ...]:
        """Those of every release."""
        pictures = [picture for pair in self.pairs for picture in pair]
        return (self.card, self.database, self.checksums, self.picture, *pictures)

    @classmethod
    def of(cls, folder: Path, name: str, scale: int) -> _Places:
        """Those of a model of this name."""
        return cls(
            picture=folder / f"{scale}x_{name}_comparison.png",
            card=folder / CARD,
            database=folder / f"{model_id(name, scale)}.json",
            checksums=folder / CHECKSUMS,
            hub=(folder / MODEL, folder / CONFIG),
            pairs=tuple(
                (folder / f"{start}_LR.png", folder / f"{start}_SR.png")
                for start in (f"{scale}x_{name}_{number}" for number in range(1, 1 + MOST_SCENES))
            ),
        )


def _texts(
    report: Report, places: _Places, pictures: Collection[Path], hub: str
) -> dict[Path, bytes]:
    """Card, entry, checksums, and what hubs want under their own names."""
    name = printable(report.card.name)
    as_hubs = dict(zip(places.hub, _as_hubs_have_it(report), strict=False))
    return {
        places.card: markdown_card(
            report,
            picture=places.picture.name if places.picture in pictures else "",
            made_by=f"aether-spandrel {version('aether-spandrel')}",
        ).encode(),
        places.database: entry(
            report,
            name,
            released=date.today(),
            address=ADDRESS.format(hub) if hub else "",
            pairs=[(small.name, large.name) for small, large in places.pairs if small in pictures],
        ).encode(),
        **as_hubs,
        places.checksums: os.fsencode(_checksums(report, as_hubs)),
    }


def _pictures(report: Report, places: _Places, wanted: Wanted) -> dict[Path, bytes]:
    """The picture of the card, and pairs of small and enlarged pictures."""
    if not report.scenes:
        return {}
    found = {places.picture: _side_by_side(report.scenes[0].bicubic, report.scenes[0].source)}
    runs_here = [artefact.path for artefact in report.artefacts if artefact.passed]
    if not runs_here:
        return found
    from aether_converters.pictures.arrays import upscale

    config, upscaler = report.source.config, open_upscaler(runs_here[0])
    scenes = exhibit_for(config, shown_pairs(config, wanted.pictures)).scenes
    for scene, (small, large) in zip(scenes, places.pairs, strict=False):
        planes = np.rint(255 * scene.image[0].transpose(1, 2, 0)).astype(np.uint8)
        pixels = planes if planes.shape[2] > 1 else planes[..., 0]
        found |= {small: _png(pixels), large: _png(upscale(upscaler, pixels))}
    return found


def _as_hubs_have_it(report: Report) -> tuple[bytes, ...]:
    """A safetensors file, the most precise one, and what `config.json` says of it; or nothing."""
    written = [artefact for artefact in report.artefacts if artefact.format == "safetensors"]
    for artefact in sorted(written, key=lambda artefact: artefact.precision != "fp32")[:1]:
        network = read_network(read_checkpoint(artefact.path))
        return artefact.path.read_bytes(), config_text(network).encode()
    return ()


def _side_by_side(left: Pixels, right: Pixels) -> bytes:
    """A PNG file of both, a white line between them."""
    line = np.full((left.shape[0], GAP // ENLARGED, 3), 255, np.uint8)
    whole = np.concatenate([left, line, right], axis=1)
    return _png(whole.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


def _png(pixels: Pixels) -> bytes:
    images: Any = require("PIL.Image")
    content = io.BytesIO()
    images.fromarray(pixels).save(content, format="PNG", optimize=True)
    return content.getvalue()


def _checksums(report: Report, as_hubs: Mapping[Path, bytes]) -> str:
    """What `sha256sum -c` reads: the model files, and what lies beside engines.

    `as_hubs` has the one under the name that hubs know, where there is one.

    The report and the model card may be changed later and are left out.
    """
    lines = [
        _checksum(file.name, hashlib.sha256(content).hexdigest())
        for file, content in as_hubs.items()
        if file.name == MODEL
    ]
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


def _missing(card: ModelCard, database: Path, hub: str) -> list[str]:
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
    if not hub:
        found.append(
            f"the addresses of the files (urls) are for you to fill in: {database.name}; "
            "or say with --hub where they will be"
        )
    return found
