"""The shares that Slurm and Kubernetes would start are all of the pictures, each once."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from aether_converters.command_line.main import main
from tests.support.tiny import tiny

PAGE = Path(__file__).parent.parent.parent / "docs" / "many-machines.md"
SHARES = 16
PICTURES = [f"{number:02}.png" for number in range(SHARES + 2)]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    for name in PICTURES:
        Image.linear_gradient("L").resize((12, 8)).save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked_for(script: str, **environment: str) -> list[str]:
    """The arguments with which a script would start `aethernet`, in the shell that expands them."""
    result = subprocess.run(
        ["bash", "-c", f'aethernet() {{ printf "%s\\n" "$@"; }}\n{script}'],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The results that were written, by name."""
    lines = re.findall(r"^(.+?): \d+ x \d+ px", capsys.readouterr().out, re.MULTILINE)
    return [Path(line).name for line in lines]


@pytest.mark.skipif(os.name == "nt", reason="neither runs shells of Windows")
def test_a_job_array_of_slurm_takes_each_picture_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    script = block("bash")
    (last,) = re.findall(r"--array=1-(\d+)", script)
    assert int(last) == SHARES
    for share in range(1, SHARES + 1):
        arguments = asked_for(script, SLURM_ARRAY_TASK_ID=str(share), SLURM_CPUS_PER_TASK="4")
        assert main(arguments) == 0
    assert sorted(told(capsys)) == PICTURES
    assert sorted(path.name for path in (folder / "enlarged").iterdir()) == PICTURES


@pytest.mark.skipif(os.name == "nt", reason="neither runs shells of Windows")
def test_an_indexed_job_of_kubernetes_takes_each_picture_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    job: Any = yaml.safe_load(block("yaml"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (spec["completions"], spec["completionMode"]) == (SHARES, "Indexed")
    # A limit for each index is allowed only where containers are not started again in place.
    assert "backoffLimitPerIndex" in spec
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    (mount,) = container["volumeMounts"]
    (volume,) = spec["template"]["spec"]["volumes"]
    assert mount["name"] == volume["name"]
    (script,) = container["args"]
    for index in range(SHARES):
        arguments = asked_for(script, JOB_COMPLETION_INDEX=str(index))
        inside = [text.replace(mount["mountPath"], str(folder), 1) for text in arguments]
        assert main(inside) == 0
    assert sorted(told(capsys)) == PICTURES
