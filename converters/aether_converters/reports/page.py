"""The report as one page that needs nothing but itself: text, style, script and pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from aether_converters.errors import require
from aether_converters.measuring.figures import TINT, ArtefactReport, Pixels, SceneViews, View
from aether_converters.plain_text import printable

if TYPE_CHECKING:
    from aether_converters.reports.report import Report

GENERATOR: Final = "aether-spandrel"
LARGEST_PAGE: Final = 2_900_000  # bytes
MARKUP_OF_PICTURE: Final = 1500  # bytes at most, around its data
MOST_ROWS: Final = 200  # of a table; report.json has all
LONGEST_TEXT: Final = 600  # characters of a text that comes from a file
LEVEL: Final = 1 / 255
FAINTEST: Final = 1 / 64  # of the scale of difference maps: two grey levels
BUSIEST: Final = 0.15  # spread of runs, beyond which a speed says more of the machine
FULLEST: Final = 1.5  # programs for each core, beyond which it does so however even the runs are
MOST_PATCHES: Final = 4
MODEL: Final = 1  # number of the source network's plate
RGB: Final = 3  # channels that can be shown as a colour
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
        files: The artefact that gives it, or those whose difference it shows.
        note: What else is to be known of it.
        content: What is in it, of a file's; empty otherwise.
        alike: Whether nobody can tell it from the source network's.
    """

    label: str
    uri: str = field(repr=False)
    size: tuple[int, int]
    files: tuple[str, ...] = ()
    note: str = ""
    content: bytes = field(repr=False, default=b"")
    alike: bool = False


@dataclass(frozen=True, kw_only=True)
class Tab:
    """What the slider may show beside the model's own picture.

    Attributes:
        label: What made it.
        plate: Number of its plate.
        psnr: How close it comes, in dB; None where it is equal.
        files: The artefacts that give it.
    """

    label: str
    plate: int
    psnr: float | None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pictures of a scene.

    Attributes:
        name: Of the picture.
        plates: Each different one once; the second is that of the source network.
        tabs: What the slider may show.
        truth: How close the source network comes to the original, in dB; None without one.
        differences: Differences to the source network on the page's scale, each different one once.
        unseen: Artefacts whose difference is too small to be seen on it.
    """

    name: str
    plates: tuple[Plate, ...]
    tabs: tuple[Tab, ...]
    truth: float | None
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


def render_page(facts: Mapping[str, Any], report: Report, figures: str) -> str:
    """The page, of at most `LARGEST_PAGE` bytes, whatever the number of files and pictures.

    Args:
        facts: What `report.json` says.
        figures: Name of that file.
        report: Whence the pictures come.
    """
    reach = _reach(report)
    about = _About(facts=facts, figures=figures, reach=reach)
    text = _render(about, galleries=(), refused=0)
    allowance = Allowance(left=LARGEST_PAGE - len(text.encode()))
    galleries = tuple(
        gallery
        for scene in report.scenes
        if (gallery := _gallery(report, scene, _title(facts), reach, allowance))
    )
    return _render(about, galleries=galleries, refused=allowance.refused)


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a page says beside its pictures: figures, whence, and the scale of difference maps."""

    facts: Mapping[str, Any]
    figures: str
    reach: float


def _title(facts: Mapping[str, Any]) -> str:
    """The model's name."""
    path = str(facts["source"]["path"])
    return str(facts["card"]["name"] or path.rpartition(".")[0] or path)


def _reach(report: Report) -> float:
    """The one scale of all difference maps: the largest difference, in round figures, 1 at most."""
    found = [view.max_difference for artefact in report.artefacts for view in artefact.views]
    largest = max((value for value in found if math.isfinite(value)), default=0.0)
    steps = (step * 10.0**power for power in range(-4, 0) for step in (1, 2, 5))
    return next((step for step in steps if step >= largest), 1.0)


def _gallery(
    report: Report, scene: SceneViews, title: str, reach: float, allowance: Allowance
) -> Gallery | None:
    """The pictures of a scene as far as they are allowed; None if not even two are."""
    album = _Album(scene=scene, allowance=allowance)
    if not album.begin(title):
        return None
    shown = [
        (artefact, view)
        for artefact in report.artefacts[:MOST_ROWS]
        for view in artefact.views
        if view.scene == scene.name
    ]
    for artefact, view in shown:
        album.add(artefact, view)
    for artefact, view in shown:
        album.add_difference(printable(artefact.path.name), view, reach)
    return Gallery(
        name=printable(scene.name),
        plates=tuple(album.plates),
        tabs=tuple(_told_apart(album.tabs)),
        truth=scene.source_psnr,
        differences=tuple(album.differences.values()),
        unseen=tuple(album.unseen),
    )


@dataclass(kw_only=True)
class _Album:
    """The pictures of a scene while they are gathered.

    Attributes:
        scene: Of which they are.
        allowance: How many more there may be.
        plates: So far.
        tabs: So far.
        differences: By what they show.
        unseen: Files whose difference is too small to be seen.
    """

    scene: SceneViews
    allowance: Allowance
    plates: list[Plate] = field(default_factory=list[Plate])
    tabs: list[Tab] = field(default_factory=list[Tab])
    differences: dict[bytes, Plate] = field(default_factory=dict[bytes, Plate])
    unseen: list[str] = field(default_factory=list[str])

    def begin(self, title: str) -> bool:
        """Whether there is room for bicubic and the source network; with the original, if any."""
        scene = self.scene
        bicubic, source = self.allowance.take(scene.bicubic), self.allowance.take(scene.source)
        if bicubic is None or source is None:
            return False
        self.plates += [self._plate("Bicubic", bicubic), self._plate(printable(title), source)]
        self.plates[MODEL] = replace(self.plates[MODEL], content=scene.source.tobytes(), alike=True)
        self.tabs.append(Tab(label="Bicubic", plate=0, psnr=scene.bicubic_psnr))
        if scene.original is not None and (uri := self.allowance.take(scene.original)):
            self.plates.append(self._plate("Original", uri))
            self.tabs.append(Tab(label="Original", plate=2, psnr=None))
        return True

    def add(self, artefact: ArtefactReport, view: View) -> None:
        """What a file makes of the scene; files of a precision that look alike share a tab."""
        label, file = artefact.precision, printable(artefact.path.name)
        alike = view.max_difference < LEVEL
        for number, tab in enumerate(self.tabs):
            same = self.plates[tab.plate].content == view.pixels.tobytes()
            if tab.label == label and ((alike and self.plates[tab.plate].alike) or same):
                self.tabs[number] = replace(tab, files=(*tab.files, file))
                return
        if view.pixels.tobytes() == self.plates[MODEL].content:
            self.tabs.append(Tab(label=label, plate=MODEL, psnr=view.psnr, files=(file,)))
        elif uri := self.allowance.take(view.pixels):
            plate = self._plate("Converted", uri)
            content = view.pixels.tobytes()
            self.plates.append(replace(plate, files=(file,), content=content, alike=alike))
            tab = Tab(label=label, plate=len(self.plates) - 1, psnr=view.psnr, files=(file,))
            self.tabs.append(tab)

    def add_difference(self, file: str, view: View, reach: float) -> None:
        """Where a file differs, on the scale of the page."""
        if view.difference is None or view.max_difference < FAINTEST * reach:
            self.unseen.append(file)
            return
        amplified = 0.5 + view.difference / (2 * reach)
        pixels = (255 * np.clip(amplified, 0, 1) + 0.5).astype(np.uint8)
        content = pixels.tobytes()
        if content in self.differences:
            plate = self.differences[content]
            self.differences[content] = replace(plate, files=(*plate.files, file))
        elif uri := self.allowance.take(pixels):
            note = f"largest {_difference(view.max_difference)}"
            plate = self._plate("Difference", uri)
            self.differences[content] = replace(plate, files=(file,), note=note)

    def _plate(self, label: str, uri: str) -> Plate:
        height, width, _ = self.scene.source.shape
        return Plate(label=label, uri=uri, size=(width, height))


def _told_apart(tabs: Sequence[Tab]) -> list[Tab]:
    """The tabs, finest first and the original last, those of one name with more of the file's."""
    names = Counter(tab.label for tab in tabs)
    longer = Counter((tab.label, _format(tab)) for tab in tabs)
    found: list[Tab] = []
    for tab in sorted(tabs, key=lambda tab: FINENESS.get(tab.label, len(FINENESS))):
        if names[tab.label] > 1:
            alone = longer[tab.label, _format(tab)] == 1
            label = f"{tab.label}, {_format(tab)}" if alone else tab.files[0]
            found.append(replace(tab, label=label))
        else:
            found.append(tab)
    return found


FINENESS: Final = {
    name: place for place, name in enumerate(("Bicubic", "fp64", "fp32", "bf16", "fp16", "int8"))
}


def _format(tab: Tab) -> str:
    """The ending of its file."""
    return tab.files[0].rpartition(".")[2] if tab.files else ""


def _data_uri(picture: Pixels) -> str:
    images: Any = require("PIL.Image")
    content = io.BytesIO()
    images.fromarray(picture).save(content, format="WEBP", lossless=True, quality=50, method=3)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _render(about: _About, *, galleries: Sequence[Gallery], refused: int) -> str:
    facts = about.facts
    style, script = (_asset(f"report.{ending}") for ending in ("css", "js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template("report.html.jinja")
    return page.render(
        facts=facts,
        title=printable(_title(facts)),
        rows=_rows(facts["artefacts"]),
        timed=_timed(facts["artefacts"]),
        tinted=_tinted(facts["artefacts"]),
        galleries=galleries,
        refused=refused,
        figures=about.figures,
        reach=about.reach,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        most_rows=MOST_ROWS,
    )


def _rows(artefacts: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
    """Rows of the table: files of the same figures are one."""
    rows: defaultdict[tuple[object, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for number, artefact in enumerate(artefacts[:MOST_ROWS]):
        figures = (artefact[name] for name in SAME_FIGURES)
        alone = number if artefact["verdict"]["result"] in ("failed", "not run") else None
        rows[(alone, *figures)].append(artefact)
    return list(rows.values())


SAME_FIGURES: Final = ("precision", "max_difference", "mean_difference", "psnr", "ssim")
"""What twins share: files with the same weights that run the same code."""


def _timed(artefacts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """A speed for the head of the column; None if they were not measured well enough to be told."""
    speeds = [artefact["speed"] for artefact in artefacts if artefact["speed"]]
    if not speeds or max(speed["spread"] for speed in speeds) > BUSIEST:
        return None
    if max(speed["load"] for speed in speeds) > FULLEST:
        return None
    return speeds[0]


def _tinted(artefacts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Swatch]]]:
    """Files that move colours, with the patches that move furthest."""
    found: list[tuple[str, list[Swatch]]] = []
    for artefact in artefacts[:MOST_ROWS]:
        colour = cast("Mapping[str, Any]", artefact["colour"] or {"patches": ()})
        patches = cast("Sequence[Mapping[str, Any]]", colour["patches"])
        shown = [
            Swatch(
                colour=str(patch["colour"]),
                shift=float(patch["shift"]),
                source=_rgb(patch["source"]),
                found=_rgb(patch["found"]),
            )
            for patch in patches
            if patch["shift"] >= TINT and len(patch["source"]) == RGB
        ]
        if shown:
            found.append((str(artefact["path"]), shown[:MOST_PATCHES]))
    return found


@dataclass(frozen=True, kw_only=True)
class Swatch:
    """A patch of one colour: how many levels it moves, and what both make of it, in CSS."""

    colour: str
    shift: float
    source: str
    found: str


def _rgb(levels: Sequence[float]) -> str:
    return f"rgb({', '.join(str(round(level)) for level in levels)})"


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
    """In two digits, such as 68 ms or 1.9 s."""
    scale, unit = (1, "ms") if value < 995 else (1e-3, "s")
    shown = float(f"{scale * value:.1e}")
    return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"


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
