"""Networks run in float16 and bfloat16 without overflow, and nearly as exactly as in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from spandrel import ImageModelDescriptor
from torch import Tensor

import aether_spandrel
from aether_converters import convert
from aether_core import AetherNet, SampleNorm, sample_deviation
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import read_network
from tests.support import golden_cases
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw

LARGE = 1000.0


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float(((a - b.float()) ** 2).mean()))


def picture(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(1, channels, 24, 28, generator=generator)


def load(state: Mapping[str, Tensor], tmp_path: Path) -> ImageModelDescriptor[AetherNet]:
    torch.save(dict(state), tmp_path / "net.pth")
    return aether_spandrel.load(tmp_path / "net.pth")


def with_large_products(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both first maps of each feed-forward enlarged, fc2 made as much smaller."""
    factors: dict[str, Callable[[Tensor], Tensor]] = {
        "fc1_gate": lambda tensor: tensor * LARGE,
        "fc1_main": lambda tensor: tensor * LARGE,
        "fc2.weight": lambda tensor: tensor / LARGE**2,
    }
    return {
        key: next((change(t) for part, change in factors.items() if part in key), t)
        for key, t in state.items()
    }


@pytest.fixture
def as_on_gpus(monkeypatch: pytest.MonkeyPatch):
    """CPUs would keep what lies between linear maps in float32, where nothing overflows."""

    def in_parts(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
        return [
            x[:, start : start + width].contiguous(memory_format=torch.channels_last)
            for start, width in zip(np.cumsum([0, *widths]), widths, strict=False)
        ]

    monkeypatch.setattr("aether_spandrel.inference.in_parts", in_parts)


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("case", golden_cases.CASES)
def test_every_golden_case_keeps_its_picture(case: str, tmp_path: Path):
    state = golden_cases.state_dict(golden_cases.CASES[case])
    model = load(state, tmp_path)
    image = picture(model.input_channels)
    with torch.inference_mode():
        full = model.model(image)
        assert psnr(full, model.half().model(image.half())) > 55
        assert psnr(full, model.bfloat16().model(image.bfloat16())) > 38


@pytest.mark.usefixtures("as_on_gpus")
@pytest.mark.parametrize("revision", PUBLISHED)
def test_large_products_of_gate_and_main_do_not_overflow(revision: str, tmp_path: Path):
    state = with_large_products(draw(revision))
    model = load(state, tmp_path)
    image = picture()
    assert model.supports_half
    with torch.inference_mode():
        full = model.model(image)
        half = model.half().model(image.half())
    assert psnr(full / full.abs().max(), half / full.abs().max()) > 55


@pytest.mark.usefixtures("as_on_gpus")
def test_room_is_made_without_changing_a_bit_of_the_float32_result():
    state = with_large_products(draw("G1", fused=True))
    network = read_network(Checkpoint.from_object(state))
    roomy = dict(network.state_dict)
    assert not torch.equal(roomy["layers.0.0.ffn.fc2.weight"], state["layers.0.0.ffn.fc2.weight"])
    halved = {key: tensor.half() for key, tensor in state.items()}
    with torch.inference_mode():
        assert torch.equal(
            build_network(network.config, roomy)(picture()),
            build_network(network.config, state)(picture()),
        )
        without_room = build_network(network.config, halved)(picture().half())
    assert not torch.isfinite(without_room).all()


@pytest.mark.parametrize("revision", PUBLISHED)
def test_a_network_that_has_room_keeps_its_main_maps(revision: str):
    state = draw(revision)
    network = read_network(Checkpoint.from_object(state))
    names = [key for key in network.state_dict if ".fc1_main." in key]
    assert names
    for key in names:
        stored = state[network.names[key]]
        assert torch.equal(network.state_dict[key].flatten(), stored.flatten())


def test_fp16_files_of_such_a_network_are_made_and_pass(tmp_path: Path):
    torch.save(with_large_products(draw("G1")), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", precision=["fp16"])
    assert report.passed, [artefact.problem for artefact in report.artefacts]


@pytest.mark.parametrize("part", ["ffn.fc1_gate.weight", "conv_after_body.weight"])
def test_a_network_that_cannot_fit_says_so(part: str, tmp_path: Path):
    state = {key: t * 1e6 if part in key else t for key, t in draw("G1").items()}
    model = load(state, tmp_path)
    assert not model.supports_half
    assert model.supports_bfloat16
    assert any("float16" in text for text in aether_spandrel.inspect(tmp_path / "net.pth").warnings)


@pytest.mark.parametrize("deviation", [1e-4, 1.0, 1000.0, 8000.0])
def test_the_deviation_of_an_image_is_taken_in_range(deviation: float):
    x = (torch.randn(2, 8, 24, 28, generator=torch.Generator().manual_seed(0)) * deviation).half()
    found = sample_deviation(x, 1e-6)
    expected = (x.double().var(dim=(1, 2, 3), keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)


def test_normalising_an_image_does_not_overflow():
    norm = SampleNorm(8, 1e-5)
    torch.nn.init.ones_(norm.weight)
    torch.nn.init.zeros_(norm.bias)
    x = torch.randn(1, 8, 24, 28, generator=torch.Generator().manual_seed(0)) * 1000
    with torch.inference_mode():
        assert psnr(norm(x), norm.half()(x.half())) > 55
