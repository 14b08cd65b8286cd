"""Advice to install something leads to where this installation came from."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

from aether_converters.installation import (
    NAME,
    Origin,
    install_line,
    origin,
    public_requirement,
    read_origin,
    requirement,
)

PIP = f'"{sys.executable}" -m pip install'
Installed = Callable[[object], None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Installs the package as pip notes it, before every other on the path of Python."""
    real = distribution(NAME).read_text("METADATA") or ""

    def install(noted: object) -> None:
        folder = tmp_path / "site" / "aether_spandrel-9.9.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"(?m)^Version: .*", "Version: 9.9", real)
        (folder / "METADATA").write_text(text, "utf-8")
        (folder / "direct_url.json").unlink(missing_ok=True)
        if noted is not None:
            (folder / "direct_url.json").write_text(json.dumps(noted), "utf-8")
        monkeypatch.syspath_prepend(str(folder.parent))

    return install


def test_a_checkout_in_use_gets_the_extra_in_place(installed: Installed, tmp_path: Path):
    installed({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    assert install_line("convert") == f'{PIP} -e "{tmp_path}[convert]"'
    assert requirement() == f'"{tmp_path}"'


def test_what_came_from_a_folder_gets_the_extra_from_there(installed: Installed, tmp_path: Path):
    folder = tmp_path / "with space"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {}})
    assert install_line("ncnn") == f'{PIP} "{folder}[ncnn]"'


def test_what_came_from_a_wheel_gets_the_extra_from_it(installed: Installed, tmp_path: Path):
    wheel = tmp_path / "aether_spandrel-9.9-py3-none-any.whl"
    wheel.touch()
    installed({"url": wheel.as_uri(), "archive_info": {"hash": "sha256=0"}})
    assert install_line("convert") == f'{PIP} "{wheel}[convert]"'
    assert public_requirement() == "aether_spandrel-9.9-py3-none-any.whl"
    assert public_requirement("convert") == '"aether_spandrel-9.9-py3-none-any.whl[convert]"'


def test_a_wheel_that_is_gone_leaves_the_packages_of_the_extra(
    installed: Installed, tmp_path: Path
):
    installed({"url": (tmp_path / "gone.whl").as_uri(), "archive_info": {}})
    line = install_line("convert")
    assert NAME not in line
    for package in ("onnx>=", "onnxruntime>=", "pillow>=", "rich>="):
        assert f'"{package}' in line.lower()
    assert '"matplotlib>=' in install_line("bench")


@pytest.mark.parametrize(
    ("noted", "source"),
    [
        (
            {"url": "https://example.org/r.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            "git+https://example.org/r.git@0a1b",
        ),
        (
            {
                "url": "https://example.org/r.git",
                "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "0a1b"},
            },
            "git+https://example.org/r.git@main",
        ),
        ({"url": "https://example.org/a.whl", "archive_info": {}}, "https://example.org/a.whl"),
    ],
)
def test_what_came_from_an_address_gets_the_extra_from_it(
    noted: object, source: str, installed: Installed
):
    installed(noted)
    assert install_line("convert") == f'{PIP} "{NAME}[convert] @ {source}"'
    assert public_requirement() == f'"{NAME} @ {source}"'


def test_what_came_from_an_index_gets_the_extra_by_its_name(installed: Installed):
    installed(None)
    assert install_line("convert") == f'{PIP} "{NAME}[convert]"'
    assert public_requirement() == requirement() == NAME


def test_this_installation_names_what_is_there():
    found = origin()
    assert not found.gone
    assert read_origin(json.dumps({"url": "https://example.org/a"})) == Origin(
        address="https://example.org/a"
    )
    assert any("extra" in line for line in requires(NAME) or [])
