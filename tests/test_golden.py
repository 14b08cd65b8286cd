"""Published checkpoints give the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spandrel import ModelLoader

import aether_spandrel
from tests import golden_cases

TOLERANCE = 1e-4


@pytest.fixture(params=list(golden_cases.CASES))
def case(request: pytest.FixtureRequest) -> dict[str, object]:
    return golden_cases.CASES[request.param]


@pytest.fixture
def path(case: dict[str, object], tmp_path: Path) -> Path:
    target = tmp_path / f"{case['id']}.pth"
    torch.save(golden_cases.state_dict(case), target)
    return target


def test_load_reproduces_the_expected_output(case: dict[str, object], path: Path):
    model = aether_spandrel.load(path)
    with torch.inference_mode():
        output = model.model(golden_cases.image(case))
    torch.testing.assert_close(output, golden_cases.expected(case), atol=TOLERANCE, rtol=0)


def test_spandrels_loader_reproduces_the_expected_output(case: dict[str, object], path: Path):
    aether_spandrel.install()
    model = ModelLoader().load_from_file(path)
    with torch.inference_mode():
        output = model.model(golden_cases.image(case))
    torch.testing.assert_close(output, golden_cases.expected(case), atol=TOLERANCE, rtol=0)


def test_inspect_infers_every_field_from_keys_and_shapes(case: dict[str, object], path: Path):
    info = aether_spandrel.inspect(path)
    assert info.config.embed_dim == case["embed_dim"]
    assert list(info.config.depths) == case["depths"]
    assert info.config.scale == case["scale"]
    assert info.config.in_chans == case["in_channels"] == case["out_channels"]
    assert info.config.lk_kernel == case["lk_kernel"]
    assert info.fused == case["fused"]
    assert info.qat == case["qat"]
