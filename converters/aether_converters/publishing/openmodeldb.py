"""A model as an entry of OpenModelDB, the community's catalogue.

The names of the fields, the values allowed and the form of the identifiers are those of its
database (github.com/OpenModelDB/open-model-database, August 2026). What only the author knows
stays empty, which its own check then asks for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from aether_converters.card import Training
    from aether_converters.reports.report import Report

ARCHITECTURE: Final = "aethernet"
"""Not in the database yet: whoever adds the first model adds it to `architectures.json`."""

PLATFORMS: Final = {"pth": "pytorch", "safetensors": "pytorch", "onnx": "onnx"}
"""By format; what is not here has no place in the database, whose check knows no NCNN files."""

TAGS: Final = (
    *("ai-generated", "anime", "cartoon", "cgi", "faces", "game-screenshots", "game-textures"),
    *("manga", "pixel-art", "photo", "text", "video-frame"),
    *("anti-aliasing", "colorization", "compression-removal", "dds", "debanding", "deblur"),
    *("dedither", "dehalftone", "dehalo", "denoise", "general-upscaler", "inpainting", "jpeg"),
    *("pretrained", "research", "restoration", "texture-generation"),
)
"""What a model is for, and what it is good at; those of the architecture come by themselves."""


TRAINING: Final = {
    "iterations": "trainingIterations",
    "epochs": "trainingEpochs",
    "batch_size": "trainingBatchSize",
    "hr_size": "trainingHRSize",
    "otf": "trainingOTF",
    "dataset": "dataset",
    "dataset_size": "datasetSize",
}
"""What the database calls the fields of `Training`; there is none for losses."""

MODEL_ID: Final = re.compile(r"[0-9]+x-[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*")


def model_id(name: str, scale: int) -> str:
    """The entry's identifier, such as 2x-My-Model; its file's name as well."""
    words = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-")
    words = re.sub(rf"^{scale}x-?|-?(?:x{scale}|{scale}x)$", "", words, flags=re.IGNORECASE)
    return f"{scale}x-{words or 'aethernet'}"


def user_id(name: str) -> str:
    """The identifier that the database gives an author."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def entry(
    report: Report,
    name: str,
    *,
    released: date,
    address: str = "",
    pairs: Sequence[tuple[str, str]] = (),
) -> str:
    """The JSON file, formatted as the database wants it.

    Args:
        report: Of a conversion without failures.
        name: Of the model.
        released: When.
        address: Where the files will be, ending with /; empty where that is not known, and then
            neither they nor pictures have one.
        pairs: Names of pictures, small and enlarged.
    """
    card, config = report.card, report.source.config
    authors = [user for part in card.author.split(",") if (user := user_id(part))]
    fields: dict[str, object] = {
        "name": name,
        "author": authors[0] if len(authors) == 1 else authors,
        "license": card.licence or None,
        "tags": _database_tags(card.tags),
        "description": card.description.strip(),
        "date": released.isoformat(),
        "architecture": ARCHITECTURE,
        "size": [report.source.preset] if report.source.preset else None,
        "scale": config.scale,
        "inputChannels": config.in_chans,
        "outputChannels": config.out_chans,
        "resources": [
            {
                "platform": PLATFORMS[artefact.format],
                "type": artefact.format,
                "size": artefact.bytes,
                "sha256": artefact.sha256,
                "urls": [f"{address}{quote(os.fsencode(artefact.path.name))}"] if address else [],
            }
            for artefact in report.artefacts
            if artefact.format in PLATFORMS and not artefact.problem
        ],
        **_training_fields(card.training),
        "images": [
            {"type": "paired", "LR": f"{address}{quote(small)}", "SR": f"{address}{quote(large)}"}
            for small, large in (pairs if address else ())
        ],
    }
    return json.dumps(fields, indent=4, ensure_ascii=False)


def _training_fields(training: Training) -> dict[str, object]:
    """What is known of the training."""
    said = vars(training)
    found = {key: said[name] for name, key in TRAINING.items() if said[name] not in (None, "")}
    base = next((name for name in training.base if MODEL_ID.fullmatch(name)), None)
    return {**found, **({"pretrainedModelG": base} if base else {})}


def _database_tags(tags: Sequence[str]) -> list[str]:
    return [tag for tag in tags if tag in TAGS]
