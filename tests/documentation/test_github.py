"""GitHub's files are what GitHub understands, and agree with the project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


HOOKS: list[dict[str, str]] = [
    hook
    for repository in load(ROOT / ".pre-commit-config.yaml")["repos"]
    for hook in repository["hooks"]
    if hook["entry"].startswith("check-jsonschema")
]


def checked_by(hook: dict[str, str]) -> list[str]:
    names = [path.relative_to(ROOT).as_posix() for path in sorted(GITHUB.rglob("*.yml"))]
    return [name for name in names if re.search(hook["files"], name)]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_files_follow_githubs_schemas(hook: dict[str, str]):
    program, *options = hook["entry"].split()
    command = [sys.executable, "-m", program.replace("-", "_"), *options, *checked_by(hook)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_each_file_has_one_schema():
    names = [name for hook in HOOKS for name in checked_by(hook)]
    assert sorted(names) == [p.relative_to(ROOT).as_posix() for p in sorted(GITHUB.rglob("*.yml"))]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_no_more_unless_a_job_says_so(workflow: Path):
    assert load(workflow)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit_and_name_its_version(workflow: Path):
    for used in re.findall(r"uses: (.+)", workflow.read_text("utf-8")):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+|\./\.github/workflows/\w+\.yml", used)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_job_ends_in_time(workflow: Path):
    for name, job in load(workflow)["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 60, name


def test_the_oldest_python_of_the_matrix_is_the_oldest_of_the_package():
    matrix = load(GITHUB / "workflows" / "test.yml")["jobs"]["test"]["strategy"]["matrix"]
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={matrix["python"][0]}"' in project
