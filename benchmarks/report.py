"""How the figures of `compare.py` are shown: Markdown tables, and a picture of the inference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aether_converters.errors import require

COLOURS: Final = {"ours": "#0b7a75", "published": "#9aa5b1", "other": "#d9cfc1"}
LEGEND: Final = {
    "ours": "AetherNet, this package",
    "published": "AetherNet, published arithmetic",
    "other": "other networks, in spandrel",
}
INK: Final = "#22303c"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up: the first is words, what follows is figures where it can."""
    figures = [all(re.match(r"-|[\d.]", row[i]) for row in rows) for i in range(len(titles))]
    widths = [max(3, *(len(row[i]) for row in [titles, *rows])) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, figures, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * (width - 1) + (":" if right else "-")
        for width, right in zip(widths, figures, strict=True)
    )
    return "\n".join([line(titles), f"| {' | '.join(rule)} |", *map(line, rows)]) + "\n"


def refresh_page(out: Path, tables: Mapping[str, str]) -> None:
    """Put the tables between the comments that name them, on the page beside the folder.

    Where there is none, they go into `tables.md` in the folder.
    """
    page = out.parent / f"{out.name}.md"
    if not page.exists():
        text = "\n".join(f"## {name}\n\n{table}" for name, table in tables.items())
        (out / "tables.md").write_text(text, "utf-8")
        return
    text = page.read_text("utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{page} lacks the comments {begin.strip()} and {end}")
        text = f"{before}{begin}{table}{end}{after}"
    page.write_text(text, "utf-8")


def draw_inference(rows: Sequence[Mapping[str, Any]], machine: str, path: Path) -> None:
    """A panel for each dtype and size: output MP/s of every network, and its share of the peak."""
    matplotlib: Any = require("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = require("matplotlib.pyplot")
    style = {"font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "aether"}
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    sizes = list(dict.fromkeys(tuple(row["size"]) for row in rows))
    with pyplot.rc_context({**style, "text.color": INK, "axes.labelcolor": INK}):
        figure, panels = pyplot.subplots(
            len(dtypes),
            len(sizes),
            figsize=(11, 0.9 + 3.1 * len(dtypes)),
            squeeze=False,
            layout="constrained",
        )
        for dtype, line in zip(dtypes, panels, strict=True):
            for size, panel in zip(sizes, line, strict=True):
                shown = [
                    row for row in rows if row["dtype"] == dtype and tuple(row["size"]) == size
                ]
                _draw_panel(panel, shown, f"{dtype}, {size[1]} x {size[0]} px")
        for panel in panels[:, 1:].flat:
            panel.set_yticklabels([])
        for panel in panels[-1]:
            panel.set_xlabel("megapixels of output a second")
        patches: Any = require("matplotlib.patches")
        handles = [patches.Patch(color=COLOURS[kind], label=LEGEND[kind]) for kind in LEGEND]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False)
        figure.supxlabel(machine, fontsize=7, color="#6b7785", x=0.01, ha="left")
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _draw_panel(panel: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    names = [row["name"] for row in rows]
    rates = [row["megapixels_per_second"] for row in rows]
    panel.barh(names, rates, color=[COLOURS[row["kind"]] for row in rows], height=0.72)
    panel.invert_yaxis()
    for index, row in enumerate(rows):
        text = f" {row['milliseconds']:.0f} ms, {row['share_of_peak']:.0%} of peak"
        panel.text(rates[index], index, text, va="center", fontsize=8)
    panel.set_xlim(0, 1.45 * max(rates))
    panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
    panel.tick_params(length=0, colors=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.spines["bottom"].set_color("#c9d1d9")
    panel.grid(axis="x", color="#e6eaee", linewidth=0.8)
    panel.set_axisbelow(True)
