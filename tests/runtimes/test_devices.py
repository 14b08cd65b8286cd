"""Without being told, PyTorch computes on the fastest device that works, and says on which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aether_converters import ModelError, open_upscaler
from aether_converters.command_line.main import main
from aether_converters.command_line.parser import read_arguments
from aether_converters.measuring.benchmark import benchmark
from aether_converters.runtimes.devices import (
    Chosen,
    chosen_device,
    chosen_dtype,
    why_unusable,
)
from tests.support.tiny import tiny

NO_GPU = not (torch.cuda.is_available() or torch.backends.mps.is_available())
only_a_cpu = pytest.mark.skipif(not NO_GPU, reason="PyTorch has a GPU here")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


@only_a_cpu
def test_the_cpu_is_taken_where_there_is_nothing_else():
    assert chosen_device("auto") == Chosen(device="cpu")


@pytest.mark.parametrize("name", ["cpu", "cuda:1", "mps", "nonsense"])
def test_a_device_that_was_asked_for_is_not_replaced(name: str):
    assert chosen_device(name) == Chosen(device=name)


@only_a_cpu
def test_a_gpu_that_does_not_compute_is_passed_over_and_told(monkeypatch: pytest.MonkeyPatch):
    """PyTorch sees it and cannot use it, as a card older than its kernels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = chosen_device("auto")
    assert chosen.device == "cpu"
    assert chosen.against == f"PyTorch cannot use cuda: {why_unusable('cuda')}"


def test_a_device_that_computes_has_nothing_against_it():
    assert why_unusable("cpu") == ""
    assert why_unusable("cpu:1") == "there is one CPU"


@pytest.mark.parametrize(
    ("capability", "fits", "dtype"),
    [
        ((8, 0), True, "fp16"),
        ((12, 0), True, "fp16"),
        ((8, 9), False, "fp32"),
        ((7, 5), True, "fp32"),
        ((6, 1), True, "fp32"),
    ],
)
def test_half_is_taken_where_the_network_is_safe_and_every_such_gpu_gains(
    capability: tuple[int, int], fits: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    def of_device(_device: str) -> tuple[int, int]:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", of_device)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert chosen_dtype("auto", "cuda", fits_float16=fits) == dtype


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_what_was_not_measured_stays_in_single_precision(device: str):
    assert chosen_dtype("auto", device, fits_float16=True) == "fp32"
    assert chosen_dtype("bf16", device, fits_float16=False) == "bf16"


@only_a_cpu
def test_the_command_says_on_what_and_in_what_it_computes(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    photo = model.parent / "photo.png"
    Image.effect_noise((24, 16), 80).convert("RGB").save(photo)
    results: dict[str, bytes] = {}
    for dtype in ("auto", "fp32", "bf16"):
        assert main(["upscale", str(model), str(photo), "--force", "--dtype", dtype]) == 0
        said = "fp32" if dtype == "auto" else dtype
        assert capsys.readouterr().err == f"computed by PyTorch on the CPU, in {said}\n"
        results[dtype] = (model.parent / "photo_2x.png").read_bytes()
    assert results["auto"] == results["fp32"] != results["bf16"]
    assert main(["upscale", str(model), str(photo), "--force", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_dtype_is_for_pytorch(model: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", str(model), "--to", "onnx", "--precision", "fp32", "--no-report"]) == 0
    onnx_file = next(model.parent.glob("*.onnx"))
    image = np.zeros((1, 3, 8, 8), np.float32)
    assert open_upscaler(onnx_file, device="auto", dtype="auto").run(image).shape == (1, 3, 16, 16)
    with pytest.raises(ModelError, match="a dtype is for PyTorch"):
        open_upscaler(onnx_file, dtype="bf16")
    capsys.readouterr()


@only_a_cpu
def test_speed_is_measured_on_the_same_device(model: Path):
    found = benchmark([model], sizes=[(16, 16)], seconds=0.01, device="auto")
    assert found.machine.device == "cpu"


@only_a_cpu
def test_int8_learns_where_it_is_fastest_and_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["convert", str(model), "--out", str(tmp_path / "out"), "--to", "onnx", "--no-report"]
    assert main([*words, "--precision", "fp32"]) == 0
    assert "learns" not in capsys.readouterr().err
    assert main([*words, "--precision", "int8", "--tune", "1s"]) == 0
    assert "int8 learns on the CPU\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["upscale", "bench", "evaluate"])
def test_every_command_that_takes_a_device_chooses_by_itself(command: str):
    more = {"upscale": ["a.png"], "bench": [], "evaluate": ["--originals", "."]}[command]
    read = read_arguments([command, "model.pth", *more])
    assert (read.device, read.provider) == ("auto", "auto")
