"""Whose a model is and what may be done with it, as far as anybody said so; the card itself."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aether_converters.installation import is_public, public_requirement, wheel_name
from aether_converters.plain_text import printable

if TYPE_CHECKING:
    from aether_converters.card import Training
    from aether_converters.measuring.evaluation import Evaluation, Figures
    from aether_converters.measuring.quality import Quality
    from aether_converters.reports.report import Report


HUB_LICENCES: Final = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "wtfpl"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("mpl-2.0", "openrail", "openrail++", "zlib"),
    }
)
"""Licences that model hubs know by these names; others are called `other` there."""

HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w", re.ASCII)
"""Of a model or data set of a model hub: whose it is, and what it is called."""

HUB_TAGS: Final = ("super-resolution", "upscaling", "aethernet", "spandrel", "chainner", "comfyui")
MARKDOWN: Final = re.compile(r"([\\`*\[\]<>#|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""Characters that mean something in Markdown or HTML."""

PLAIN_NAME: Final = re.compile(r"[\w.+-]+")


def markdown_card(report: Report, *, picture: str, made_by: str) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    Names, authors and licences are shown as they are, whatever characters they have. The
    description is the author's own Markdown.

    Args:
        report: Of a conversion without failures.
        picture: Name of the picture beside the card, left bicubic, right the network; or none.
        made_by: Program and version.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # it is Markdown, which has filters of its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = cast("dict[str, Any]", environment.filters)
    filters |= {
        "plain": _plain,
        "name": _file_name,
        "quoted": _quoted,
        "shown": printable,
        "address": _address,
        "argument": _argument,
        "decibels": _decibels,
        "quoted_map": _quoted_map,
    }
    licence = report.card.licence.lower()
    by_format = {(a.format, a.precision): a.path.name for a in report.artefacts}
    preferred = [by_format[key] for key in LOADED_BY_SPANDREL if key in by_format]
    for_onnx = [a.path.name for a in report.artefacts if a.format == "onnx"]
    for_ncnn = [a.path.name for a in report.artefacts if a.format == "ncnn"]
    return environment.get_template("card.md.jinja").render(
        report=report,
        card=report.card,
        source=report.source,
        config=report.source.config,
        effort=report.effort,
        title=f"{report.source.config.scale}x {report.card.name}",
        licence_id=licence if licence in HUB_LICENCES else "other" if licence else "",
        tags=list(dict.fromkeys([*HUB_TAGS, *report.card.tags])),
        base_models=_hub_names(report.card.training.base),
        datasets=_hub_names(report.card.training.dataset.split(",")),
        training=_training_rows(report.card.training),
        results=_results(report.evaluations),
        picture=picture,
        torch_file=preferred[0] if preferred else "",
        onnx_file=for_onnx[0] if for_onnx else "",
        ncnn_file=for_ncnn[0] if for_ncnn else "",
        made_by=made_by,
        package=public_requirement(),
        package_with_commands=public_requirement("convert"),
        wheel="" if is_public() else wheel_name(),
    )


def _hub_names(names: Sequence[str]) -> list[str]:
    """Those that are names of a model hub, which shows links then."""
    return [name.strip() for name in names if HUB_NAME.fullmatch(name.strip())]


def _training_rows(training: Training) -> list[tuple[str, str]]:
    """What is known of the training, a name and a text a row."""
    return [
        (words, _in_words(value))
        for name, words in TRAINED.items()
        if (value := vars(training)[name]) not in (None, "", ())
    ]


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, cast("tuple[object, ...]", value)))
    return str(value)


TRAINED: Final = {
    "iterations": "Trained, iterations",
    "epochs": "Trained, epochs",
    "batch_size": "Batch size",
    "hr_size": "Side of the pictures in px",
    "otf": "Damaged on the fly",
    "dataset": "Data",
    "dataset_size": "Pictures in it",
    "base": "Began as",
}
"""What the card calls the fields of `Training`."""


METRICS: Final = (
    ("psnr", "PSNR", "psnr"),
    ("ssim", "SSIM", "ssim"),
    ("psnr", "PSNR on Y", "psnr_y"),
    ("ssim", "SSIM on Y", "ssim_y"),
)
"""Type and name that model hubs show of each figure, which is a field of `Quality`."""


def _results(evaluations: Sequence[Evaluation]) -> list[dict[str, object]]:
    """Entries of `model-index`: of each set the first file, which stands for the model."""
    return [
        _result(evaluation, file, file.mean)
        for evaluation in evaluations
        for file in evaluation.files[:1]
        if file.mean is not None
    ]


def _result(evaluation: Evaluation, file: Figures, mean: Quality) -> dict[str, object]:
    """The figures of a file on a set; equal pictures have no PSNR."""
    figures = vars(mean)
    return {
        "name": f"{evaluation.name}, {file.scale}x",
        "type": re.sub(r"[^a-z0-9]+", "-", evaluation.name.lower()),
        "args": {"file": file.path.name, "lowres": evaluation.lowres, "crop": file.crop},
        "metrics": [
            {"type": kind, "name": shown, "value": round(figures[field], 4)}
            for kind, shown, field in METRICS
            if figures[field] is not None
        ],
    }


LOADED_BY_SPANDREL: Final = (
    ("safetensors", "fp32"),
    ("pth", "fp32"),
    ("safetensors", "fp16"),
    ("pth", "fp16"),
)


def _plain(text: str) -> str:
    """One line that means nothing in Markdown."""
    return MARKDOWN.sub(r"\\\1", " ".join(printable(text).split()))


def _file_name(name: str) -> str:
    return f"`{name}`" if PLAIN_NAME.fullmatch(name) else _plain(name)


def _quoted(text: str) -> str:
    """A string of YAML, of Python and of JSON."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else json.dumps(text)


def _quoted_map(values: Mapping[str, object]) -> str:
    """A mapping on one line of YAML."""
    return json.dumps(values)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f} dB"


def _address(name: str) -> str:
    return quote(os.fsencode(name))


def _argument(name: str) -> str:
    return shlex.quote(printable(name).replace("\n", "\\n"))
