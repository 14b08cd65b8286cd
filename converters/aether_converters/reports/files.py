"""The report of a conversion or verification as `report.html` and `report.json`.

One way alone: `Report` to plain values, these to JSON, and what the JSON says to the page. Only the
pictures, which no JSON file should carry, come to the page beside it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, cast

import torch

from aether_converters.atomic import complete_or_nothing, refuse_existing
from aether_converters.card import ModelCard
from aether_converters.errors import ConversionError
from aether_converters.measuring.benchmark import this_machine
from aether_converters.plain_text import printable
from aether_converters.reports.page import GENERATOR, render_page

if TYPE_CHECKING:
    from aether_converters.reports.report import Report

Kind = Literal["conversion", "verification"]

PAGE: Final = "report.html"
FIGURES: Final = "report.json"
NAMES: Final[dict[Kind, tuple[str, str]]] = {
    "conversion": (FIGURES, PAGE),
    "verification": ("verify.json", "verify.html"),
}
"""Of the figures and the page, by what was done: a comparison replaces no report of a release."""

SCHEMA_VERSION: Final = 2
"""Of `report.json`: changed when a name or a meaning changes, not when something is added."""

LOOKED_AT: Final = 4096  # bytes at the start of a report, in which it says whose it is

MADE_BY_US: Final = rf'"{re.escape(GENERATOR)} [0-9][^"<>\s]*"'
BEGINNINGS: Final = {
    ".json": rf'\s*\{{\s*"generator":\s*{MADE_BY_US},\s*"schema_version":\s*[0-9]+,',
    ".html": r'<!DOCTYPE html>\s*<html lang="en">\s*<head>\s*<meta charset="utf-8">\s*'
    r'<meta http-equiv="Content-Security-Policy" content="[^"<>]*">\s*'
    rf'<meta name="generator" content={MADE_BY_US}>',
}
"""How reports of ours begin; that a page names us somewhere does not make it ours."""


def write_report(report: Report, folder: Path, *, force: bool) -> Path:
    """Write page and figures into a folder, under the names of `NAMES`; returns the page's path.

    A report of ours is replaced by the newer one.

    Raises:
        ConversionError: One of them exists and is not ours, and `force` is not set; or the
            operating system refuses.
        MissingExtraError: A package for pictures is not installed.
    """
    refuse_other_report(folder, report.kind, force=force)
    figures, shown = (folder / name for name in NAMES[report.kind])
    text = json.dumps(report_facts(report), indent=2, allow_nan=False)
    page = render_page(json.loads(text), report, figures.name)
    contents = ((figures, f"{text}\n"), (shown, page))
    for target, content in contents:
        with complete_or_nothing(target, force=True) as partial:
            partial.path.write_text(content, "utf-8")
    return shown


def refuse_other_report(folder: Path, kind: Kind, *, force: bool) -> None:
    """Raise ConversionError if a file that is no report of ours has a report's name."""
    for target in (folder / name for name in NAMES[kind]):
        refuse_existing(target, force=force or _is_ours(target))


def why_no_report(folder: Path) -> str:
    """Why `verify` cannot write a report into a folder, in words; empty if it can."""
    try:
        refuse_other_report(folder, "verification", force=False)
    except ConversionError as error:
        return f"{error.file}: {error.problem}"
    return "" if os.access(folder, os.W_OK) else f"{folder} cannot be written to"


def card_beside(folder: Path, source_sha256: str) -> ModelCard:
    """What the report of a conversion in this folder says of the model; nothing without one.

    Args:
        folder: Where files lie.
        source_sha256: Of the checkpoint that it must have been made from.
    """
    file = folder / FIGURES
    try:
        if not _is_ours(file) or file.stat().st_size > LARGEST_READ:
            return ModelCard()
        facts = json.loads(file.read_text("utf-8"))
        if facts["source"]["sha256"] != source_sha256:
            return ModelCard()
        said = facts["card"]
        texts = {name: said[name] for name in TEXTS if isinstance(said[name], str)}
        tags = tuple(tag for tag in said["tags"] if isinstance(tag, str))
    except (ConversionError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ModelCard()  # somebody changed it
    return ModelCard(**texts, tags=tags)


TEXTS: Final = ("name", "author", "licence", "description")
LARGEST_READ: Final = 2**24  # bytes of a report


def _is_ours(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            beginning = stream.read(LOOKED_AT).decode("utf-8", "replace")
    except OSError as error:
        raise ConversionError(
            f"the report that is there cannot be read: {error.strerror or error}",
            file=file,
            advice="choose another folder, or leave the report away with --no-report",
        ) from error
    return re.match(BEGINNINGS[file.suffix], beginning) is not None


def report_facts(report: Report) -> dict[str, object]:
    """All that the report says, as values of JSON; files by their names, without folders."""
    facts: dict[str, object] = {
        "generator": f"{GENERATOR} {version('aether-spandrel')}",
        "schema_version": SCHEMA_VERSION,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": vars(this_machine(torch.get_num_threads())),
        **report.as_dict(),
    }
    files = [artefact.path for artefact in report.artefacts]
    files += [p.difference for a in report.artefacts for p in a.pictures if p.difference]
    shortened = cast("dict[str, object]", _plain(facts, {str(path): path.name for path in files}))
    # Notes about the source quote commands with its path.
    source = {str(report.source.path): report.source.path.name}
    shortened["source"] = _plain(facts["source"], source, within=True)
    return shortened


def _plain(value: object, names: Mapping[str, str], *, within: bool = False) -> object:
    """Values as JSON has them: what is no number is null, and `names` stand for whole paths.

    Paths are replaced within longer texts too if that is said.
    """
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        return {str(key): _plain(entry, names, within=within) for key, entry in entries.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry, names, within=within) for entry in cast("Sequence[object]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) or value is None:
        return value
    text = str(value)
    text = names.get(text, text)
    for path, name in names.items() if within else ():
        text = text.replace(path, name)
    return printable(text)
