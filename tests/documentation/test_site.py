"""The pages of `docs` build into a site, and say of the code what is true."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aether_converters.installation import wheel_name

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [*DOCS.glob("*.md"), *ROOT.glob("*.md")]
PACKAGES = {
    "aether_spandrel": "aether_spandrel",
    "aether_converters": "converters/aether_converters",
}


def test_the_site_builds_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", str(DOCS), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    index = (tmp_path / "index.html").read_text("utf-8")
    for page in DOCS.glob("*.md"):
        assert f'href="{page.stem}.html"' in index or page.stem == "index", page.name
    pages = [page.read_text("utf-8") for page in tmp_path.glob("*.html")]
    loaded = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//')
    assert not any(loaded.search(page) for page in pages), "a page loads from elsewhere"
    assert all("copybutton.js" in page for page in pages), "nothing copies a command"
    for door in ("I use ChaiNNer or ComfyUI", "I release models", "I write Python"):
        assert f"<h2>{door}" in index


@pytest.mark.parametrize("package", ["aether_spandrel", "aether_converters", "aether_core"])
def test_every_public_name_is_in_the_reference(package: str):
    reference = (DOCS / "api.rst").read_text("utf-8")
    documented = re.findall(rf"^\.\. auto\w+:: {package}\.(\w+)$", reference, re.MULTILINE)
    assert sorted(documented) == sorted(importlib.import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_architecture_names_every_module_and_no_other(package: str):
    folder = ROOT / PACKAGES[package]
    page = (DOCS / "architecture.md").read_text("utf-8")
    section = page.split(f"\n`{PACKAGES[package]}/`\n")[1].split("\n`")[0]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", "".join(re.findall(r"^\|.*?\|", section, re.M)))
    there = [module.name for module in folder.glob("*.py") if module.name != "__init__.py"]
    there += [f"{inner.name}/" for inner in folder.iterdir() if list(inner.glob("*.py"))]
    assert sorted(named) == sorted(there)


def test_what_the_architecture_says_to_change_is_there():
    page = (DOCS / "architecture.md").read_text("utf-8")
    table = page.split("## Where to change what")[1].split("\n## ")[0]
    places = re.findall(r"`(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w/.]+\.py)`", table)
    assert len(places) > 8
    for *names, path in places:
        folder = next(
            f for f in (ROOT, ROOT / PACKAGES["aether_converters"]) if (f / path).exists()
        )
        source = (folder / path).read_text("utf-8")
        for name in filter(None, names):
            assert re.search(rf"^(?:class |def )?{name}\b", source, re.MULTILINE), f"{name}, {path}"


def test_pages_name_the_parts_that_can_be_installed():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    extras = project.split("[project.optional-dependencies]")[1].split("\n\n")[0]
    parts = set(re.findall(r"^([\w-]+) = \[", extras, re.MULTILINE))
    table = (DOCS / "install.md").read_text("utf-8").split("## Parts")[1]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == parts
    for page in PAGES:
        text = page.read_text("utf-8")
        for named in re.findall(r"(?:aether-spandrel|\"\.|'\.| \.)\[([\w,-]+)\]", text):
            assert set(named.split(",")) <= parts, f"{page.name}: {named}"


def test_pages_name_the_wheel_of_this_version():
    named = {
        wheel
        for page in PAGES
        for wheel in re.findall(
            r"aether_spandrel-[\w.]+-py3-none-any\.whl", page.read_text("utf-8")
        )
    }
    assert named == {wheel_name()}


def test_lines_to_be_pasted_stay_whole_on_the_page_of_chainner():
    """At 1280 px a line of code within a list has room for 86 characters, as was looked at."""
    page = (DOCS / "chainner.md").read_text("utf-8")
    blocks = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    assert any("pip install" in line for line in lines)
    assert max(map(len, lines)) <= 86
