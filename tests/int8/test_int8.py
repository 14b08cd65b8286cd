"""Files that were converted to int8 become float networks, with a loss that is stated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aether_spandrel
from aether_converters import convert
from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from aether_spandrel.network import float_weights, read_network
from aether_spandrel.stored import Quantised
from tests.support.published import draw
from tests.support.reference import published
from tests.support.tiny import tiny

# torch announces that its own quantised tensors, in which such files are stored, will go.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

LINEAR = (".ffn.fc1_gate", ".ffn.fc1_main", ".ffn.fc2")


def quantise(weight: Tensor, *, per_channel: bool) -> Tensor:
    if not per_channel:
        scale = float(weight.abs().max()) / 127
        return torch.quantize_per_tensor(weight, scale, 0, torch.qint8)
    scales = weight.flatten(1).abs().amax(dim=1).double() / 127
    zero_points = torch.zeros(len(weight), dtype=torch.int64)
    return torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)


def rounded(weight: Tensor, *, per_channel: bool) -> Tensor:
    """The numbers that the integers stand for, in double precision and rounded once."""
    quantised = quantise(weight, per_channel=per_channel)
    if not per_channel:
        return (quantised.int_repr().double() * quantised.q_scale()).float()
    scales = quantised.q_per_channel_scales().reshape(-1, *([1] * (weight.dim() - 1)))
    return (quantised.int_repr().double() * scales).float()


def converted(state: dict[str, Tensor], *, per_channel: bool) -> dict[str, Any]:
    """As torch's convert leaves a fused network: docs/reference.md#converted-files."""
    found: dict[str, Any] = {
        "quant.scale": torch.tensor([0.01]),
        "quant.zero_point": torch.tensor([3]),
    }
    for key, tensor in state.items():
        layer = key.removesuffix(".weight")
        if not key.endswith(".weight") or tensor.dim() < 2:
            if not any(key == f"{name}.bias" for name in state if name.endswith(LINEAR)):
                found[key] = tensor
            continue
        quantised = quantise(tensor, per_channel=per_channel)
        bias = state.get(f"{layer}.bias")
        if tensor.dim() == 2:
            found[f"{layer}._packed_params.dtype"] = torch.qint8
            packed = (quantised, None if bias is None else torch.nn.Parameter(bias))
            found[f"{layer}._packed_params._packed_params"] = packed
            found.pop(f"{layer}.bias", None)
        else:
            found[key] = quantised
            found[f"{layer}.bias"] = bias  # None where the layer has none
        found[f"{layer}.scale"] = torch.tensor(0.02)
        found[f"{layer}.zero_point"] = torch.tensor(64)
    for key in state:
        layer, _, name = key.rpartition(".")
        if name == "bias" and f"{layer}._packed_params.dtype" in found:
            found.pop(key, None)
    return found


def cases() -> list[Any]:
    g5 = draw("G5f", fused=True, channel_attn=True, spatial_attn=True)
    g4 = draw("G4", fused=True, channel_attn=True)
    return [
        pytest.param("G1", dict(tiny().fuse_model().state_dict()), True, id="G1-per-channel"),
        pytest.param("G1", dict(tiny().fuse_model().state_dict()), False, id="G1-per-tensor"),
        pytest.param("G5f", g5, False, id="G5f-bias-free-attention"),
        pytest.param("G4", g4, True, id="G4-packed-attention"),
    ]


@pytest.mark.parametrize(("revision", "state", "per_channel"), cases())
def test_weights_are_exactly_the_integers_times_their_scale(
    revision: str, state: dict[str, Tensor], per_channel: bool, tmp_path: Path
):
    content = converted(state, per_channel=per_channel)
    torch.save(content, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.state_dict.keys() == state.keys()
    for key, tensor in found.state_dict.items():
        if tensor.is_floating_point() and state[key].dim() >= 2 and key.endswith(".weight"):
            assert torch.equal(tensor, rounded(state[key], per_channel=per_channel)), key
        else:
            assert torch.equal(tensor, state[key]), key
    info = aether_spandrel.inspect(tmp_path / "a.pth")
    assert (info.revision, info.int8, info.qat, info.dtype) == (revision, True, True, "int8")


@pytest.mark.parametrize(("revision", "state", "per_channel"), cases())
def test_the_network_computes_what_the_rounded_weights_say(
    revision: str, state: dict[str, Tensor], per_channel: bool, tmp_path: Path
):
    torch.save(converted(state, per_channel=per_channel), tmp_path / "a.pth")
    weights = {
        key: rounded(tensor, per_channel=per_channel)
        if key.endswith(".weight") and tensor.dim() >= 2
        else tensor
        for key, tensor in state.items()
    }
    image = torch.rand(1, 3, 12, 15)
    expected = published(revision, weights, image, qat=True).float()
    with torch.inference_mode():
        found = aether_spandrel.load(tmp_path / "a.pth").model(image)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_quantised_tensors_that_another_program_loaded_are_taken_too():
    """Such as torch.load(...) and spandrel's load_from_state_dict."""
    content = converted(dict(tiny().fuse_model().state_dict()), per_channel=True)
    model = aether_spandrel.AetherNetArch().load(content).model
    read = float_weights(read_network(Checkpoint.from_object(content)))
    assert all(torch.equal(model.state_dict()[key], read[key]) for key in read)


def test_activation_ranges_are_kept_apart(tmp_path: Path):
    content = converted(dict(tiny().fuse_model().state_dict()), per_channel=True)
    torch.save(content, tmp_path / "a.pth")
    kept = read_checkpoint(tmp_path / "a.pth").qat_entries
    assert float(kept["conv_first.scale"]) == pytest.approx(0.02)
    assert int(kept["layers.0.0.ffn.fc2.zero_point"]) == 64
    assert int(kept["quant.zero_point"]) == 3


def test_the_stated_loss_is_the_measured_one(tmp_path: Path):
    """Rounding errors are uniform within half a step, so their energy is known in advance."""
    torch.manual_seed(0)
    weight = torch.randn(64, 3, 7, 7)
    quantised = quantise(weight, per_channel=True)
    stored = Quantised(
        integers=quantised.int_repr(),
        scale=quantised.q_per_channel_scales(),
        zero_point=quantised.q_per_channel_zero_points(),
        axis=0,
    )
    signal, noise = stored.signal_to_noise()
    measured = float((weight - stored.dequantised()).double().square().sum())
    assert 10 * math.log10(noise / measured) == pytest.approx(0.0, abs=0.2)
    assert signal == pytest.approx(float(weight.double().square().sum()), rel=0.01)

    state = dict(tiny().fuse_model().state_dict())
    torch.save(converted(state, per_channel=True), tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth").state_dict
    kernels = [key for key in state if key.endswith(".weight") and state[key].dim() >= 2]
    energy = sum(float(state[key].double().square().sum()) for key in kernels)
    lost = sum(float((state[key] - found[key]).double().square().sum()) for key in kernels)
    note = aether_spandrel.inspect(tmp_path / "a.pth").notes[0]
    stated = float(note.partition("lies ")[2].partition(" dB")[0])
    assert stated == pytest.approx(10 * math.log10(energy / lost), abs=0.3)


def test_an_int8_file_converts_to_every_format(tmp_path: Path):
    content = converted(dict(tiny().fuse_model().state_dict()), per_channel=True)
    torch.save(content, tmp_path / "a.pth")
    assert convert(tmp_path / "a.pth", precision=["fp32", "fp16"]).passed
