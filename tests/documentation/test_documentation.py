"""Every command and example of the pages runs as it is written, on every system."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from aether_converters.command_line.main import main
from aether_converters.tensorrt.driver import probe_driver
from tests.support.tiny import tiny

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

# On Linux tests/measuring/test_benchmark.py runs the other parts and looks at their figures.
BENCHMARKS = " --only convert,upscale" if sys.platform == "linux" else ""

SHORT = {
    "python benchmarks/int8_training.py": " --steps 10 --fine-tuning 10",
    "python benchmarks/": f" --quick --no-plot{BENCHMARKS}",
    "python examples/train_sample.py --out": " --steps 4 --photographs photographs",
    "aethernet bench": " --seconds 0.05",
}
"""What is added to commands that take too long in earnest, so that a test shows that they run."""

ONCE = "aethernet demo"
"""Takes longest of all and leaves nothing that others need: run on the first page alone."""

PROGRAMS = {
    "aethernet": [sys.executable, "-m", "aether_converters"],
    "python": [sys.executable],
}
"""What is run here, in the Python that runs the tests."""

IN_PROCESSES_OF_THEIR_OWN = "README.md"
"""The page whose commands of `aethernet` are started as a reader does, each by a new Python; those
of the other pages differ in their arguments alone, and starting costs more than most of them."""

GATE = [
    "pytest",
    "sphinx-build -W -n docs out/site",  # by tests/documentation/test_site.py
    *(ROOT / ".ci" / "run").read_text("utf-8").splitlines(),
]
"""What runs on every change anyway."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would be: a model, a picture and a folder of pictures."""
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    (tmp_path / "tools" / "ComfyUI").mkdir(parents=True)
    for picture in ("photo.png", "photos/a.jpg"):
        Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(tmp_path / picture)
    (tmp_path / "photographs").mkdir()
    noise = Image.effect_noise((160, 160), 80).convert("RGB")
    noise.save(tmp_path / "photographs" / "noise.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page: Path, capfd: pytest.CaptureFixture[str]):
    if page.name == "tensorrt.md":
        pytest.importorskip("tensorrt_rtx")
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            command = line.rpartition("&& ")[2]  # `.ci/run` runs the installation itself
            command += next((add for start, add in SHORT.items() if command.startswith(start)), "")
            command += " --tune off" if "--precision int8" in command else ""
            command = re.sub(
                r"(?<= )(benchmarks|examples|converters)/", rf"{ROOT.as_posix()}/\1/", command
            )
            if command.startswith(ONCE) and page.name != IN_PROCESSES_OF_THEIR_OWN:
                continue
            program, *arguments = shlex.split(command, comments=True)
            if program == "aethernet" and page.name != IN_PROCESSES_OF_THEIR_OWN:
                assert main(arguments) == 0, f"{line}\n{capfd.readouterr().err}"
            elif program in PROGRAMS:
                # No shell: patterns such as release/* are for the program, as on Windows.
                result = subprocess.run(
                    [*PROGRAMS[program], *arguments], capture_output=True, text=True, check=False
                )
                assert result.returncode == 0, f"{line}\n{result.stderr}"
            else:
                assert command in GATE, line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_needs_a_gpu_is_known_and_says_so(
    page: Path, capsys: pytest.CaptureFixture[str]
):
    """They stand in blocks of their own; what they do on a GPU is tested by `pytest -m gpu`."""
    commands = [line for block in blocks(page, "sh gpu") for line in block.splitlines()]
    if not commands or probe_driver().answers:
        return
    assert main(["convert", "model.pth", "--to", "onnx", "--out", "release"]) == 0
    for command in commands:
        name, *arguments = shlex.split(command)
        if name == "pytest":
            assert arguments == ["-m", "gpu"]
            continue
        capsys.readouterr()
        assert main(arguments) == 1, command  # a wrong option would end the process with 2
        said = capsys.readouterr().err
        assert re.search("GPU|not installed|no provider|cannot be read", said), command


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_example_runs(page: Path):
    if script := "\n".join(blocks(page, "python")):
        result = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:aether_", "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
