"""How the pages of this folder become a site: `sphinx-build -W -n docs out`.

The pages are plain Markdown, which reads as well on GitHub. Nothing is fetched while building.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "aether-spandrel"
release = importlib.metadata.version("aether-spandrel")
author = "the aether-spandrel contributors"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3

# Names of other projects, which only their inventories on the network could resolve.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(collections|pathlib|typing_extensions|torch|spandrel|numpy)\..+|Path"
        r"|(aether_\w+\..+\.)?(Kind|Model|Format)|float32|the range",
    )
]

default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "aether-spandrel"
html_copy_source = False
pygments_dark_style = "github-dark"
html_static_path = ["static"]
html_css_files = ["site.css"]
highlight_language = "text"

SECTION: Final = re.compile(r"^## (.+?)\n+((?:- \[.+\n(?:  .+\n)*)+)", re.MULTILINE)
ENTRY: Final = re.compile(r"^- \[[^]]+\]\(([\w-]+)\.(?:md|rst)\)", re.MULTILINE)


OUTSIDE: Final = re.compile(r"\]\((\.\./[^)#]+)(?:#[^)]*)?\)")


def navigation_from_the_index(_: Sphinx, page: str, source: list[str]) -> None:
    """Give the site the order and the headings of the lists that readers see in `index.md`.

    A `toctree` in the page would say it again, and stand on GitHub as a block of code.
    """
    if page != "index":
        return
    for caption, entries in SECTION.findall(source[0]):
        pages = "\n".join(ENTRY.findall(entries))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def links_out_of_the_folder(_: Sphinx, _page: str, source: list[str]) -> None:
    """Make links to other files of the repository downloads: the site has no such pages."""
    source[0] = OUTSIDE.sub(r"](<path:\1>)", source[0])


def defaults_as_python(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, given: str, back: str
) -> tuple[str, str] | None:
    """Write a default that has no form in Python as `...`, so that Sphinx can parse the rest."""
    return (re.sub(r"<[\w. ]+>", "...", given), back) if given else None


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("autodoc-process-signature", defaults_as_python)
    app.connect("source-read", navigation_from_the_index)
    app.connect("source-read", links_out_of_the_folder)
