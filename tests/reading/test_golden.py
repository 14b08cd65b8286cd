"""Published checkpoints give the published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from spandrel import ModelLoader
from torch import Tensor

import aether_spandrel
from aether_converters import convert, open_upscaler
from tests.support import golden_cases

TOLERANCE = 1e-4


Case = dict[str, Any]

# spandrel's loader hands over the tensors alone, and this file's res_scale is in its metadata.
METADATA_CASES = {name for name, case in golden_cases.CASES.items() if case["metadata"]}


@pytest.fixture(params=list(golden_cases.CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return golden_cases.CASES[request.param]


@pytest.fixture
def path(case: Case, tmp_path: Path) -> Path:
    target = tmp_path / f"{case['id']}.pth"
    torch.save(golden_cases.checkpoint(case), target)
    return target


def assert_expected(output: Tensor, case: Case) -> None:
    torch.testing.assert_close(output, golden_cases.expected(case), atol=TOLERANCE, rtol=0)


def test_load_reproduces_the_expected_output(case: Case, path: Path):
    model = aether_spandrel.load(path)
    with torch.inference_mode():
        assert_expected(model.model(golden_cases.image(case)), case)


def test_spandrels_loader_reproduces_the_expected_output(case: Case, path: Path):
    if case["id"] in METADATA_CASES:
        notes = aether_spandrel.inspect(path).notes
        assert any("would not know res_scale 0.37" in note for note in notes)
        path = convert(path, to=["pth"], precision=["fp32"], name="own").artefacts[0].path
    aether_spandrel.install()
    model = ModelLoader().load_from_file(path)
    with torch.inference_mode():
        assert_expected(model.model(golden_cases.image(case)), case)


def test_inspect_infers_every_field_from_keys_and_shapes(case: Case, path: Path):
    info = aether_spandrel.inspect(path)
    config = info.config
    assert info.revision == ROWS.get(case["revision"], case["revision"])
    assert config.embed_dim == case["embed_dim"]
    assert list(config.depths) == case["depths"]
    assert config.scale == case["scale"]
    assert (config.in_chans, config.out_chans) == (case["in_channels"], case["out_channels"])
    assert config.lk_kernel == case["lk_kernel"]
    assert config.norm_type == case["norm_type"]
    assert (config.channel_attn, config.spatial_attn) == (
        case["channel_attn"],
        case["spatial_attn"],
    )
    assert info.fused == case["fused"]
    assert info.qat == case["qat"]
    assert info.warnings == ()


ROWS = {"G1a": "G1", "G1d": "G1", "G3b": "G3"}
"""Revisions that differ from their neighbours only in what inference does not see."""


def test_every_format_agrees_with_the_expected_output(case: Case, path: Path):
    report = convert(path, precision=["fp32"])
    assert report.passed
    assert [artefact.format for artefact in report.artefacts] == ["pth", "safetensors", "onnx"]
    for artefact in report.artefacts:
        output = open_upscaler(artefact.path).run(golden_cases.image(case).numpy())
        assert_expected(torch.from_numpy(output), case)


def test_save_model_and_reload_loses_nothing(case: Case, path: Path, tmp_path: Path):
    """ChaiNNer saves the tensors of the loaded network, without any metadata."""
    aether_spandrel.install()
    model = aether_spandrel.load(path).model
    torch.save(model.state_dict(), tmp_path / "saved.pth")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "saved.safetensors")
    image = golden_cases.image(case)
    for saved in ("saved.pth", "saved.safetensors"):
        again = ModelLoader().load_from_file(tmp_path / saved).model
        with torch.inference_mode():
            assert torch.equal(again(image), model(image))
