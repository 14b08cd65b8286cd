"""The whole way of a checkpoint, with whatever versions of its libraries are installed.

Run on the wheel alone, in environments with the oldest and the newest supported versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from spandrel import MAIN_REGISTRY, ImageModelDescriptor, ModelLoader
from torch import Tensor

from aether_converters import convert, sample, verify
from aether_converters.command_line.main import main
from aether_converters.int8.planning import Int8Options
from aether_core import AetherNet
from tests.support import golden_cases


def load(path: Path) -> ImageModelDescriptor[AetherNet]:
    found = ModelLoader().load_from_file(path)
    assert isinstance(found, ImageModelDescriptor)
    return cast("ImageModelDescriptor[AetherNet]", found)


def test_importing_spandrel_was_enough():
    assert "AetherNet" in MAIN_REGISTRY


@pytest.mark.parametrize("name", ["g1-train-2x", "g2c-train-3x", "g3-train-2x", "g5f-train-2x"])
def test_load_upscale_save_reload_convert_and_run(name: str, tmp_path: Path):
    case = golden_cases.CASES[name]
    image, expected = golden_cases.image(case), golden_cases.expected(case)
    source = tmp_path / f"{name}.pth"
    torch.save(golden_cases.checkpoint(case), source)

    model = load(source)
    with torch.inference_mode():
        upscaled = model.model(image)
        half = model.half().model(image.half())
    torch.testing.assert_close(upscaled, expected, atol=1e-4, rtol=0)
    assert float((half.float() - upscaled).square().mean().sqrt()) < 2e-3

    state = {key: t.contiguous() for key, t in load(source).model.state_dict().items()}
    torch.save(state, tmp_path / "saved.pth")
    safetensors.torch.save_file(state, tmp_path / "saved.safetensors")
    for path in (tmp_path / "saved.pth", tmp_path / "saved.safetensors"):
        with torch.inference_mode():
            assert torch.equal(load(path).model(image), upscaled)

    report = convert(source, tmp_path / "out")
    assert report.passed, [artefact.problem for artefact in report.artefacts]
    assert len(report.artefacts) == 6
    assert verify(source, [artefact.path for artefact in report.artefacts]).passed
    onnx_file = next(a.path for a in report.artefacts if a.path.name.endswith("fp32.onnx"))
    session: Any = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=0)


def test_the_command_line_enlarges_a_picture_as_the_network_does(tmp_path: Path):
    case = golden_cases.CASES["g1-train-2x"]
    torch.save(golden_cases.checkpoint(case), tmp_path / "net.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    command = ["upscale", tmp_path / "net.pth", tmp_path / "in.png", "--out", out]
    assert main([str(part) for part in command]) == 0
    with torch.inference_mode():
        x: Tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        expected = load(tmp_path / "net.pth")(x)[0].permute(1, 2, 0).numpy()
    found = np.asarray(Image.open(out)).astype(np.float32)
    assert np.abs(found - expected * 255).max() <= 0.51  # rounded, and nothing else


def test_the_sample_model_enlarges_its_picture(tmp_path: Path):
    out = tmp_path / "out.png"
    command = ["upscale", sample.MODEL, sample.PICTURE, "--out", out]
    assert main([str(part) for part in command]) == 0
    assert Image.open(out).size == (600, 400)


def test_a_model_is_released_with_its_report(tmp_path: Path):
    command = ["release", sample.MODEL, "--out", tmp_path, "--to", "onnx", "--precision", "fp16"]
    assert main([str(part) for part in command]) == 0
    assert (tmp_path / "report.html").read_text("utf-8").count("data:image/webp") > 2
    assert (tmp_path / "README.md").exists()


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_int8_files_run(target: Literal["tensorrt", "cpu"], tmp_path: Path):
    report = convert(
        sample.MODEL,
        tmp_path,
        to=["onnx"],
        precision=["int8"],
        int8=Int8Options(targets=(target,), method="minmax", tune=0),
    )
    assert report.passed, report.artefacts[0].problem
