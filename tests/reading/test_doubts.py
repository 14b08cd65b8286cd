"""Files that can be read and should not be trusted are named, each with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aether_spandrel
from aether_converters import convert
from aether_converters.command_line.main import main
from aether_core import aether
from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.doubts import activation_peak
from aether_spandrel.folding import fuse_state_dict
from aether_spandrel.network import read_network
from tests.support.published import REVISIONS, draw
from tests.support.tiny import tiny


def warnings(state: object, tmp_path: Path) -> tuple[str, ...]:
    torch.save(state, tmp_path / "a.pth")
    return aether_spandrel.inspect(tmp_path / "a.pth").warnings


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("fused", [False, True])
def test_there_is_no_doubt_about_a_sound_file(tmp_path: Path, revision: str, fused: bool):
    assert warnings(draw(revision, fused=fused), tmp_path) == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_named_by_their_key(tmp_path: Path, value: float):
    state = draw("G5f")
    state["stages.1.0.ffn.conv_out.bias"][3] = value
    (warning,) = warnings(state, tmp_path)
    assert warning == (
        "1 tensors hold NaN or Inf, first stages.1.0.ffn.conv_out.bias: "
        "the training diverged or the file is damaged"
    )


def with_fresh_kernels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a release script makes of a fused G5 file: it fills a new unfused network with it."""
    corrupt = dict(state)
    for key, tensor in state.items():
        if key.endswith("fused_conv.weight"):
            channels, _, side, _ = tensor.shape
            torch.manual_seed(0)
            large = nn.Conv2d(channels, channels, side, groups=channels).weight.detach()
            small = nn.Conv2d(channels, channels, 5, groups=channels).weight.detach()
            margin = (side - 5) // 2
            corrupt[key] = large + nn.functional.pad(small, (margin,) * 4)
        elif key.endswith("norm.weight"):
            corrupt[key] = tensor / (1 + 1e-4) ** 0.5
    return corrupt


@pytest.mark.parametrize("lk_kernel", [7, 13, 21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_releases_with_random_kernels_are_recognised(
    tmp_path: Path, lk_kernel: int, dtype: torch.dtype
):
    sound = draw("G5f", fused=True, embed_dim=64, lk_kernel=lk_kernel, sk_kernel=5)
    corrupt = with_fresh_kernels(sound)
    stored = {k: t.to(dtype) if t.is_floating_point() else t for k, t in corrupt.items()}
    (warning,) = warnings(stored, tmp_path)
    assert warning.startswith("the depthwise kernels of 2 of 2 blocks are as random as before")
    assert warning.endswith("use another file of this model")


@pytest.mark.parametrize("fused", [False, True])
def test_untrained_networks_are_recognised(tmp_path: Path, fused: bool):
    torch.manual_seed(0)
    state = aether(embed_dim=32, depths=(2,), scale=2).state_dict()
    (warning,) = warnings(fuse_state_dict(state) if fused else dict(state), tmp_path)
    assert warning.startswith("the depthwise kernels of 2 of 2 blocks are as random")


def test_normally_distributed_kernels_of_a_fresh_network_are_recognised(tmp_path: Path):
    state = draw("G5f", embed_dim=32, lk_kernel=13)
    for key in state:
        if key.endswith(".lk_conv.weight"):
            state[key] = nn.init.trunc_normal_(torch.empty_like(state[key]), std=0.02)
    (warning,) = warnings(state, tmp_path)
    assert "as random as before training" in warning


def trained_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Variances of channels differ by orders of magnitude after training; scales stay near 1."""
    torch.manual_seed(0)
    trained = dict(state)
    for key, tensor in state.items():
        if key.endswith("running_var"):
            trained[key] = torch.exp(2 * torch.randn_like(tensor))
        elif key.endswith("norm.weight"):
            trained[key] = 1 + 0.1 * torch.randn_like(tensor)
    return trained


def folded(state: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    divided = dict(state)
    for key in state:
        if key.endswith("norm.weight"):
            variance = state[key.replace("weight", "running_var")]
            divided[key] = state[key] / (variance + 1e-5) ** (times / 2)
    return divided


@pytest.mark.parametrize(
    ("revision", "fused", "times", "expected"),
    [
        ("G2d", True, 1, None),  # as its fused files are
        ("G2d", True, 0, "not been folded, but were taken as folded: compare with --set norm_"),
        ("G2d", True, 2, "folded twice: their scales are divided by the variance"),
        ("G3", True, 1, None),
        ("G5a", True, 2, "folded twice"),
        ("G5f", False, 0, None),  # as its training files are
        ("G5f", False, 1, "folded already, and would be folded twice: use the file"),
        ("G4", True, 0, None),  # whose fused files keep their statistics in use
        ("G4", True, 1, "folded already, and would be folded twice"),
    ],
)
def test_norms_that_were_folded_otherwise_than_assumed_are_recognised(
    tmp_path: Path, revision: str, fused: bool, times: int, expected: str | None
):
    state = folded(trained_statistics(draw(revision, fused=fused, embed_dim=32)), times)
    found = warnings(state, tmp_path)
    if expected is None:
        assert found == ()
    else:
        assert sum(expected in warning for warning in found) == 1


def test_half_fused_networks_are_named(tmp_path: Path):
    whole, fused = draw("G5f"), draw("G5f", fused=True)
    half = {key: tensor for key, tensor in whole.items() if not key.startswith("stages.0.0.")}
    half |= {key: tensor for key, tensor in fused.items() if key.startswith("stages.0.0.")}
    (warning,) = warnings(half, tmp_path)
    assert warning.startswith("1 of 2 blocks are fused, the others not: the file mixes")


def amplified(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """A network whose features, which the blocks normalise and add to, are larger."""
    state["conv_first.weight"] = state["conv_first.weight"] * factor
    state["conv_before_upsample.0.weight"] = state["conv_before_upsample.0.weight"] / factor
    return state


def test_values_that_float16_cannot_hold_are_named_with_their_place(tmp_path: Path):
    state = amplified(dict(tiny().state_dict()), 1e5)
    (warning,) = warnings(state, tmp_path)
    assert "in conv_first, " in warning or "in conv_after_body, " in warning
    assert warning.endswith("float16 ends at 65504: fp16 would overflow; use fp32 or bf16")


def test_the_measured_peak_is_that_of_the_network():
    factor = 1e5
    before, _ = activation_peak(read_network(Checkpoint.from_object(tiny().state_dict())))
    state = amplified(dict(tiny().state_dict()), factor)
    after, where = activation_peak(read_network(Checkpoint.from_object(state)))
    assert where.startswith("conv_")
    assert 1e3 < after / before < 10 * factor


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"embed_dim": 16, "depths": [1, 1], "scale": 2, "use_channel_attn": False}, []),
        ({"depths": (1, 1)}, []),
        ({"embed_dim": 96}, ["the metadata say embed_dim 96, the tensors 16: these count"]),
        ({"depths": [4, 4]}, ["the metadata say depths [4, 4], the tensors [1, 1]: these count"]),
        ({"norm_type": "layernorm"}, ["the metadata say norm_type layernorm, the tensors deploym"]),
    ],
)
def test_metadata_that_contradict_the_tensors_are_named(
    tmp_path: Path, stated: dict[str, Any], expected: list[str]
):
    found = warnings({"params": draw("G5f"), "arch_config": stated}, tmp_path)
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    torch.save(with_fresh_kernels(draw("G5f", fused=True, embed_dim=32)), tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_strict_refuses_what_is_doubtful(doubtful: Path, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        convert(doubtful, tmp_path / "out", strict=True)
    assert caught.value.problem == "the file is doubtful, and --strict refuses it"
    assert (caught.value.found or "").startswith("the depthwise kernels of 2 of 2 blocks")
    assert not (tmp_path / "out").exists()
    assert convert(doubtful, tmp_path / "out", to=["pth"]).passed


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_inspect_and_convert_warn_and_with_strict_fail(doubtful: Path, tmp_path: Path, run: Run):
    text = "the depthwise kernels of 2 of 2 blocks are as random"
    status, out, err = run("inspect", doubtful)
    assert (status, err) == (0, "")
    assert f"  warning    {text}" in out
    status, out, err = run("inspect", "--strict", doubtful)
    assert status == 1
    assert f"  warning    {text}" in out
    assert f"error: {doubtful}: the file is doubtful, and --strict refuses it" in err
    status, _, err = run("convert", doubtful, "--to", "pth", "--out", tmp_path / "a")
    assert status == 0
    assert f"warning: {text}" in err
    status, _, err = run("convert", "--strict", doubtful, "--to", "pth", "--out", tmp_path / "b")
    assert status == 1
    assert not (tmp_path / "b").exists()
