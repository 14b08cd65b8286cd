"""On a real cluster of two nodes every picture is enlarged once and whole, whatever ends."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import upscale_on_ray
from aether_converters import upscale
from aether_converters.pictures.batch import PictureReport
from aether_converters.pictures.jobs import Job
from tests.support.tiny import tiny

ray: Any = pytest.importorskip("ray")
clusters: Any = pytest.importorskip("ray.cluster_utils")
if sys.platform != "linux":
    pytest.skip("Ray starts several nodes on one machine on Linux alone", allow_module_level=True)

EXAMPLE = Path(upscale_on_ray.__file__)
PICTURES = 96
PATIENCE = 300  # seconds; a node is missed after some, and machines may have other work


@dataclass(frozen=True)
class TwoNodes:
    cluster: Any
    second: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def second_works(self) -> bool:
        """Whether a worker of the second node has pictures just now."""
        raylet = self.second.all_processes["raylet"][0].process.pid
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # it has ended
                continue
            if title.startswith(b"ray::enlarge") and int(parent) == raylet:
                return True
        return False

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Generator[TwoNodes]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets in it have short names
    (Path(folder) / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", folder)
    each = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = clusters.Cluster()
    try:
        cluster.add_node(**each, include_dashboard=False)
        yield TwoNodes(cluster, cluster.add_node(**each))
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that takes its time, and pictures of which one is damaged."""
    torch.save(tiny(embed_dim=32, depths=(4, 4)).state_dict(), tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:03}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    return tmp_path


def started(folder: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLE), "model.pth", "photos", "--out", "large"]
    return subprocess.Popen(
        [*command, "--address", address],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path) -> list[Path]:
    return [path for path in (folder / "large").glob("*.png") if not path.name.startswith(".")]


def test_every_picture_is_there_once_and_whole_though_a_node_is_killed(
    nodes: TwoNodes, folder: Path
):
    run = started(folder, nodes.address)
    while not (len(results(folder)) >= 8 and nodes.second_works()):
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
    nodes.kill_second()
    assert len(results(folder)) < PICTURES
    out, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 1, errors  # for the damaged one
    assert "broken.png: failed" in errors
    names = [path.name for path in results(folder)]
    assert sorted(names) == [f"{number:03}.png" for number in range(PICTURES)]
    told = re.findall(rf"^{re.escape(str(folder))}\S+(?=: )", out, re.MULTILINE)
    assert len(told) == len(set(told)) == PICTURES
    for name in names:
        assert np.asarray(Image.open(folder / "large" / name)).shape == (128, 160, 3)
    pixels = np.asarray(Image.open(folder / "photos" / "050.png"))
    expected = upscale(folder / "model.pth", pixels)
    found = np.asarray(Image.open(folder / "large" / "050.png")).astype(int)
    assert np.abs(found - expected).max() <= 1  # another number of threads

    (folder / "photos" / "broken.png").unlink()
    again = started(folder, nodes.address)
    out, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, errors
    assert f"\n{PICTURES} pictures: 0 written, {PICTURES} skipped, 0 failed\n" in out


def test_a_picture_that_ends_its_workers_fails_alone(
    nodes: TwoNodes, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def enlarge(_: upscale_on_ray.Task, jobs: Sequence[Job]) -> list[PictureReport]:
        if any(job.source.name == "003.png" for job in jobs):
            os._exit(1)
        return [
            PictureReport(source=job.source, target=job.target, outcome="written") for job in jobs
        ]

    monkeypatch.setattr(upscale_on_ray, "enlarge", enlarge)
    monkeypatch.setattr(upscale_on_ray, "TRIES", 0)
    jobs = upscale_on_ray.planned(folder / "model.pth", [folder / "photos"], folder / "large")[:12]
    task = upscale_on_ray.Task(model=folder / "model.pth", device="cpu", memory=2**30)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        found = list(upscale_on_ray.enlarge_everywhere(task, jobs, cpus=1, gpus=0))
    finally:
        ray.shutdown()
    assert sorted(report.source.name for report in found) == sorted(j.source.name for j in jobs)
    (failed,) = [report for report in found if report.outcome == "failed"]
    assert failed.source.name == "003.png"
    assert "the worker that had this picture ended" in failed.notes[0]


def test_what_cannot_be_planned_is_an_error_before_ray_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "none").mkdir()
    model = tmp_path / "model.pth"
    torch.save(tiny().state_dict(), model)
    arguments = [str(model), str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert upscale_on_ray.main(arguments) == 1
    assert "there is no picture in this folder" in capsys.readouterr().err
    assert importlib.import_module("ray").is_initialized() is False
