"""`verify` says what matters of a file where it is meant to run, and computes each picture once."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aether_converters import comparison, convert, verify
from aether_converters.command_line.main import main
from aether_converters.command_line.tables import print_report
from aether_converters.int8.planning import Int8Options
from aether_converters.measuring.figures import PictureProof
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Upscaler
from tests.support.tiny import tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(tiny().state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.mark.parametrize(("target", "said"), [("cpu", False), ("tensorrt", True)])
def test_tensorrt_is_named_for_the_files_that_are_meant_for_it(
    target: Any, said: bool, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = Int8Options(targets=(target,), method="minmax", tune=0)
    made = convert(source, tmp_path / "out", to=["onnx"], precision=["int8"], int8=options)
    capsys.readouterr()
    assert main(["verify", str(source), str(made.artefacts[0].path), "--no-report"]) == 0
    out = capsys.readouterr().out
    assert ("int8 share tensorrt" in out) == said
    assert ("int8 share cpu" in out) != said


def test_each_picture_is_computed_once(
    source: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes: Counter[tuple[int, ...]] = Counter()

    def counted(path: Path) -> Upscaler:
        upscaler = open_upscaler(path)

        def run(image: Any) -> Any:
            sizes[image.shape[2:]] += 1
            return upscaler.run(image)

        return replace(upscaler, run=run)

    monkeypatch.setattr(comparison, "open_upscaler", counted)
    report = verify(source, [source], pictures=[picture])
    assert len(report.artefacts[0].pictures) == 1
    assert sizes[40, 48] == 1


def test_without_originals_there_are_no_columns_for_them(
    source: Path, picture: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["verify", str(source), str(source), "--no-report", "--pictures", str(picture)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "to source" in out
    assert "to original" not in out
    assert "loss" not in out


def test_nothing_is_lost_without_a_sign(source: Path, capsys: pytest.CaptureFixture[str]):
    report = verify(source, [source])
    proof = PictureProof(picture="a", psnr=99.0, ssim=1.0, original_psnr=30.0, loss=-1e-5)
    shown = replace(report, artefacts=(replace(report.artefacts[0], pictures=(proof,)),))
    print_report(shown, argparse.Namespace(json=False), kept="passed", dropped="failed")
    out = capsys.readouterr().out
    assert " 0.000 dB" in out
    assert "-0.000" not in out


def test_what_a_usable_file_loses_stands_in_the_table(
    source: Path, capsys: pytest.CaptureFixture[str]
):
    report = verify(source, [source])
    usable = replace(report.artefacts[0], psnr=36.9, max_difference=0.1)
    for kept, said in (("passed", "usable: "), ("written", "written, usable: ")):
        print_report(
            replace(report, artefacts=(usable,)),
            argparse.Namespace(json=False),
            kept=kept,
            dropped="failed",
        )
        assert f"{said}loses about 0.8 dB" in capsys.readouterr().out
