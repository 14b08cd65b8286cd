"""The report as one page that needs nothing but itself: text, style, script and pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from aether_converters.errors import require
from aether_converters.measuring.figures import Pixels
from aether_converters.plain_text import printable

if TYPE_CHECKING:
    from aether_converters.reports.report import Report

GENERATOR: Final = "aether-spandrel"
LARGEST_PAGE: Final = 2_900_000  # bytes
MARKUP_OF_PICTURE: Final = 1500  # bytes at most, around its data
MOST_ROWS: Final = 200  # of a table; report.json has all
LONGEST_TEXT: Final = 600  # characters of a text that comes from a file
JOINTS: Final = re.compile(r"(?<=\w)([_.\-])(?=\w)")
"""In file names; no part of what escaping makes of other characters."""

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Plate:
    """One picture of a scene.

    Attributes:
        label: What made it.
        uri: The picture as a data URI.
        size: (W, H) in px.
        files: The artefacts that give exactly this picture, in 8 bits.
        note: What else is to be known of it.
    """

    label: str
    uri: str = field(repr=False)
    size: tuple[int, int]
    files: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the slider may show: the source network's plate and another, by their numbers.

    Attributes:
        label: Of the other.
        left: Number of the plate on the left.
        right: Number of that on the right.
        left_name: What it is called.
        right_name: What it is called.
    """

    label: str
    left: int
    right: int
    left_name: str
    right_name: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures of a scene.

    Attributes:
        name: Of the picture.
        plates: Each different one once.
        comparisons: Pairs of them.
        differences: Amplified differences to the source network, each different one once.
        unseen: Artefacts whose difference is too small to be seen.
    """

    name: str
    plates: tuple[Plate, ...]
    comparisons: tuple[Comparison, ...]
    differences: tuple[Plate, ...]
    unseen: tuple[str, ...]


@dataclass
class Allowance:
    """How many bytes of pictures the page still takes; after the first too many, none."""

    left: int
    refused: int = 0

    def take(self, picture: Pixels) -> str | None:
        """The picture as a data URI; None if the page would become too large."""
        if not self.refused:
            uri = _data_uri(picture)
            cost = len(uri) + MARKUP_OF_PICTURE
            if cost <= self.left:
                self.left -= cost
                return uri
        self.refused += 1
        return None


def render_page(facts: Mapping[str, Any], report: Report) -> str:
    """The page, of at most `LARGEST_PAGE` bytes, whatever the number of files and pictures.

    Args:
        facts: What `report.json` says.
        report: Whence the pictures come.
    """
    text = _render(facts, galleries=(), refused=0)
    allowance = Allowance(left=LARGEST_PAGE - len(text.encode()))
    galleries = tuple(
        gallery for scene in report.scenes if (gallery := _gallery(report, scene.name, allowance))
    )
    return _render(facts, galleries=galleries, refused=allowance.refused)


def _gallery(report: Report, name: str, allowance: Allowance) -> Gallery | None:
    """The pictures of a scene as far as they are allowed; None if not even two are."""
    scene = next(scene for scene in report.scenes if scene.name == name)
    bicubic, source = allowance.take(scene.bicubic), allowance.take(scene.source)
    if bicubic is None or source is None:
        return None
    height, width, _ = scene.source.shape
    size = (width, height)
    plates = [
        Plate(label="Bicubic", uri=bicubic, size=size),
        Plate(label="Source network", uri=source, size=size),
    ]
    comparisons = [
        Comparison(
            label="bicubic",
            left=0,
            right=1,
            left_name="Bicubic",
            right_name="Source network",
        )
    ]
    if scene.original is not None and (uri := allowance.take(scene.original)):
        plates.append(Plate(label="Original", uri=uri, size=size))
        comparisons.append(_beside_source("original", 2))
    known = {scene.source.tobytes(): 1}
    differences: dict[bytes, Plate] = {}
    unseen: list[str] = []
    for artefact in report.artefacts[:MOST_ROWS]:
        view = next((view for view in artefact.views if view.scene == name), None)
        if view is None:
            continue
        file = printable(artefact.path.name)
        content = view.pixels.tobytes()
        if content not in known and (uri := allowance.take(view.pixels)):
            known[content] = len(plates)
            plates.append(Plate(label="Converted", uri=uri, size=size))
        if content in known:
            number = known[content]
            plates[number] = _also(plates[number], file)
            comparisons.append(_beside_source(file, number))
        if view.difference is None:
            unseen.append(file)
        elif (shown := view.difference.tobytes()) in differences:
            differences[shown] = _also(differences[shown], file)
        elif uri := allowance.take(view.difference):
            note = f"amplified {view.factor} times; largest {_difference(view.max_difference)}"
            plate = Plate(label="Difference", uri=uri, size=size, files=(file,), note=note)
            differences[shown] = plate
    return Gallery(
        name=printable(name),
        plates=tuple(plates),
        comparisons=tuple(comparisons),
        differences=tuple(differences.values()),
        unseen=tuple(unseen),
    )


def _also(plate: Plate, file: str) -> Plate:
    return Plate(label=plate.label, uri=plate.uri, size=plate.size, files=(*plate.files, file))


def _beside_source(name: str, number: int) -> Comparison:
    return Comparison(
        label=name,
        left=1,
        right=number,
        left_name="Source network",
        right_name=name,
    )


def _data_uri(picture: Pixels) -> str:
    images: Any = require("PIL.Image")
    content = io.BytesIO()
    images.fromarray(picture).save(content, format="WEBP", lossless=True, quality=50, method=3)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _render(facts: Mapping[str, Any], *, galleries: Sequence[Gallery], refused: int) -> str:
    style, script = (_asset(f"report.{ending}") for ending in ("css", "js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template("report.html.jinja")
    return page.render(
        facts=facts,
        galleries=galleries,
        refused=refused,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        most_rows=MOST_ROWS,
    )


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Any]", environment.filters)
    filters |= {
        "difference": _difference,
        "mebibytes": _mebibytes,
        "clip": _clip,
        "breakable": _breakable,
        "milliseconds": _milliseconds,
        "decibels": _decibels,
    }
    return environment


def _difference(value: float | None) -> str:
    """Such as 1.3e-6."""
    if value is None:
        return "NaN"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}" if value else "0"


def _mebibytes(value: int) -> str:
    return f"{value / 2**20:.2f} MiB"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def _decibels(value: float | None, digits: int) -> str:
    """Such as 28.47 dB, without a minus before nothing."""
    if value is None:
        return "-"
    return f"{round(value, digits) + 0.0:.{digits}f} dB"


def _clip(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _breakable(name: object) -> Markup:
    """A name that breaks at its joints where a line is short."""
    return Markup(JOINTS.sub(r"\1<wbr>", str(escape(_clip(name)))))
