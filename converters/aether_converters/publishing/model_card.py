"""Whose a model is and what may be done with it, as far as anybody said so; the card itself."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aether_converters.installation import is_public, public_requirement, wheel_name
from aether_converters.plain_text import printable

if TYPE_CHECKING:
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
        picture=picture,
        torch_file=preferred[0] if preferred else "",
        onnx_file=for_onnx[0] if for_onnx else "",
        ncnn_file=for_ncnn[0] if for_ncnn else "",
        made_by=made_by,
        package=public_requirement(),
        package_with_commands=public_requirement("convert"),
        wheel="" if is_public() else wheel_name(),
    )


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


def _address(name: str) -> str:
    return quote(os.fsencode(name))


def _argument(name: str) -> str:
    return shlex.quote(printable(name).replace("\n", "\\n"))
