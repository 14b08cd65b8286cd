"""`release/*` means the same in every shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aether_converters.command_line.main import main
from aether_converters.command_line.wildcards import matching
from tests.support.tiny import tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.pth", "a.pth", ".hidden.pth", "[c].pth", "note.txt"):
        torch.save(tiny().state_dict(), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_a_pattern_that_the_shell_left_is_replaced(capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", "--json", "[ab].pth"]) == 0
    assert [fact["path"] for fact in json.loads(capsys.readouterr().out)] == ["a.pth", "b.pth"]


@pytest.mark.usefixtures("folder")
def test_names_of_files_are_never_taken_for_patterns():
    assert matching(Path("[c].pth")) == [Path("[c].pth")]


def test_hidden_files_are_left_out_and_the_rest_is_in_order(folder: Path):
    assert matching(folder / "*.pth") == [folder / n for n in ("[c].pth", "a.pth", "b.pth")]


@pytest.mark.usefixtures("folder")
def test_a_pattern_without_files_is_named_in_the_error(capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", "*.ckpt"]) == 1
    assert "*.ckpt: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["photos [2024]", "a[b]c", "[x", "[1]/[2]", "what*ever", "plain"])
@pytest.mark.parametrize("pattern", ["*.pth", "[ab].pth", "?.pth"])
def test_a_pattern_below_a_folder_with_brackets_finds_its_files(
    tmp_path: Path, place: str, pattern: str
):
    inside = tmp_path / place
    inside.mkdir(parents=True)
    for name in ("a.pth", "b.pth"):
        (inside / name).touch()
    assert matching(inside / pattern) == [inside / "a.pth", inside / "b.pth"]


def test_a_pattern_in_the_middle_of_a_path_enters_folders_with_brackets(tmp_path: Path):
    for name in ("set1", "set2"):
        (tmp_path / name / "[raw]").mkdir(parents=True)
        (tmp_path / name / "[raw]" / "a.pth").touch()
    found = matching(tmp_path / "set*" / "[raw]" / "*.pth")
    assert found == [tmp_path / name / "[raw]" / "a.pth" for name in ("set1", "set2")]
