"""The loaded network in PyTorch on an NVIDIA GPU, and the command line with `--device cuda`.

Part of `pytest -m gpu`; left out where there is no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from aether_converters.command_line.main import main
from aether_converters.errors import ModelError
from aether_converters.measuring.benchmark import extra_memory
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.tiling import plan_tiles, upscale_image
from aether_converters.runtimes.opening import open_upscaler
from aether_core import AetherNet
from benchmarks.gpu import ARITHMETICS, PARTS, QUICK, measure
from tests.spandrel.test_inference import network
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.tiny import tiny

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_float32() -> Generator[None]:
    """No TF32, unless a test asks for it."""
    with ARITHMETICS["fp32"].allowed():
        yield


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def attended(revision: str) -> AetherNet:
    attention = PUBLISHED[revision].attention
    return network(revision, channel_attn=attention, spatial_attn=attention)


def psnr(found: Tensor, expected: Tensor) -> float:
    error = found.cpu().double() - expected.cpu().double()
    return float(-10 * torch.log10(error.square().mean() / expected.abs().max() ** 2 + 1e-20))


def on_gpu(model: AetherNet, image: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.inference_mode():
        return model.to(DEVICE, dtype)(image.to(DEVICE, dtype))


@pytest.mark.parametrize("revision", PUBLISHED)
def test_float32_is_computed_to_the_last_digits(revision: str):
    model, image = attended(revision), picture(2, 3, 61, 83)
    with torch.inference_mode():
        expected = model.double()(image.double()).float()
    torch.testing.assert_close(on_gpu(model, image).cpu(), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("revision", PUBLISHED)
@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float16, 50.0), (torch.bfloat16, 32.0)], ids=str
)
def test_half_precision_is_close(revision: str, dtype: torch.dtype, least: float):
    model, image = attended(revision), picture(2, 3, 61, 83)
    with torch.inference_mode():
        expected = model(image)
    assert psnr(on_gpu(model, image, dtype), expected) >= least


@pytest.mark.parametrize("arithmetic", ["fp32 as PyTorch has it", "tf32"])
def test_tf32_is_close(arithmetic: str):
    model, image = attended("G1"), picture(2, 3, 61, 83)
    with torch.inference_mode(), ARITHMETICS[arithmetic].allowed():
        expected = model(image)
        assert psnr(on_gpu(model, image), expected) >= 50.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_memory_order_and_size_is_taken_and_the_input_left_alone(dtype: torch.dtype):
    model = network("G1").to(DEVICE, dtype)
    with torch.inference_mode():
        for image in (
            picture(1, 3, 1, 1),
            picture(2, 3, 9, 4).contiguous(memory_format=torch.channels_last),
            picture(1, 4, 9, 8)[:, 1:, ::2, 1:],
            picture(3, 9, 8).expand(2, 3, 9, 8),
        ):
            there = image.to(DEVICE, dtype)
            before = there.clone()
            expected = model(there.contiguous())
            atol = 1e-5 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(model(there), expected, atol=atol, rtol=atol)
            assert torch.equal(there, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("revision", ["G1", "G5f"])
def test_it_compiles_in_one_graph(revision: str, dtype: torch.dtype):
    model = attended(revision).to(DEVICE, dtype)
    image = picture(1, 3, 64, 48).to(DEVICE, dtype)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True)
        assert psnr(compiled(image), model(image)) >= (90.0 if dtype == torch.float32 else 50.0)


@pytest.mark.parametrize("revision", ["G1", "G5f"])
def test_streams_do_not_disturb_one_another(revision: str):
    model = attended(revision).to(DEVICE)
    images = [image.to(DEVICE) for image in picture(4, 1, 3, 200, 150)]
    with torch.inference_mode():
        expected = [model(image) for image in images]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in images]
        found: list[Tensor] = []
        for stream, image in zip(streams, images, strict=True):
            with torch.cuda.stream(stream):
                found.append(model(image))
        torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_cuda_graph_replays_it():
    model = attended("G5f").to(DEVICE)
    source = picture(1, 3, 40, 30).to(DEVICE)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(aside):
            model(source)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = model(source)
        source.copy_(source.flip(-1))
        graph.replay()
        torch.testing.assert_close(result, model(source), atol=1e-5, rtol=1e-5)


def test_autocast_computes_in_half_precision():
    model, image = network("G1").to(DEVICE), picture(1, 3, 32, 32).to(DEVICE)
    with torch.inference_mode():
        expected = model(image)
        with torch.autocast("cuda", torch.float16):
            found = model(image)
    assert psnr(found, expected) >= 45.0


def test_training_steps_reach_every_weight():
    model = tiny().to(DEVICE).train()
    model(picture(2, 3, 16, 16).to(DEVICE)).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    torch.save(tiny(embed_dim=48).state_dict(), path)
    return path


@pytest.mark.parametrize("cut", [[], ["--tile", "96"], ["--memory", "0.02"]], ids=str)
def test_a_picture_is_upscaled_as_on_the_cpu(cut: list[str], checkpoint: Path, tmp_path: Path):
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 600)).save(photo)
    for device in ("cpu", DEVICE.type):
        out = str(tmp_path / f"{device}.png")
        arguments = ["--out", out, "--device", device, *cut]
        assert main(["upscale", str(checkpoint), str(photo), *arguments]) == 0
    on_cpu, there = (
        read_picture(tmp_path / f"{device}.png").color.astype(int)
        for device in ("cpu", DEVICE.type)
    )
    assert there.shape == (3, 1200, 1600)
    assert np.abs(there - on_cpu).max() <= 1


@pytest.mark.parametrize("tile", [None, 256])
def test_the_memory_that_tiles_may_take_is_kept(tile: int | None, checkpoint: Path):
    allowed = 2**28
    upscaler = open_upscaler(checkpoint, device=DEVICE.type)
    image = np.random.default_rng(0).random((3, 1500, 2000), dtype=np.float32)
    plan = plan_tiles(upscaler, 1500, 2000, memory=allowed, tile=tile)
    taken = extra_memory(lambda: upscale_image(upscaler, image, plan), DEVICE.type)
    assert taken is not None
    assert 0 < taken <= allowed


def test_memory_that_runs_out_is_named(checkpoint: Path):
    upscaler = open_upscaler(checkpoint, device=DEVICE.type)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**28 / total)
    try:
        with pytest.raises(ModelError, match="memory ran out on cuda with 4000 x 4000 px"):
            upscaler.run(np.zeros((1, 3, 4000, 4000), np.float32))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert upscaler.run(np.zeros((1, 3, 40, 40), np.float32)).shape == (1, 3, 80, 80)


def test_bench_measures_the_gpu(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--device", "cuda", "--dtype", "fp32,fp16,bf16", "--size", "64", "--json"]
    assert main(["bench", str(checkpoint), *arguments, "--seconds", "0.1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["machine"]["device"] == torch.cuda.get_device_name()
    assert [row["dtype"] for row in found["measurements"]] == ["fp32", "fp16", "bf16"]
    assert all(row["memory"] > 0 and row["share_of_peak"] > 0 for row in found["measurements"])


def test_the_doctor_sees_the_gpu(capsys: pytest.CaptureFixture[str]):
    main(["doctor"])
    assert torch.cuda.get_device_name() in capsys.readouterr().out


def test_the_benchmark_runs(tmp_path: Path):
    titles = [title for title in PARTS if "compiled" not in title and "other" not in title]
    measure(QUICK, tmp_path, titles=titles)
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert found["machine"]["device"] == torch.cuda.get_device_name()
    assert found["small networks, CUDA graph"]
