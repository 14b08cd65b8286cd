"""NCNN computes what the network computes, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aether_converters import ModelError, open_upscaler
from aether_converters.graphs.ncnn_graph import build_ncnn
from aether_converters.runtimes import ncnn
from tests.graphs.test_ncnn_graph import WITHOUT_FORM, golden
from tests.support.golden_cases import CASES, expected, image
from tests.support.tiny import tiny


def save(network: torch.nn.Module, folder: Path, *, channels: int = 3, half: bool = False) -> Path:
    pair = build_ncnn(network, channels=channels, half=half)
    path = folder / "2x_model.param"
    path.write_bytes(pair.param)
    path.with_suffix(".bin").write_bytes(pair.weights)
    return path


@pytest.mark.parametrize("case", [case for case in CASES if case != WITHOUT_FORM])
def test_every_revision_computes_what_it_did_when_it_was_published(case: str, tmp_path: Path):
    network = golden(case, tmp_path)
    model = open_upscaler(save(network, tmp_path, channels=network.config.in_chans))
    found = model.run(image(CASES[case]).numpy())
    assert np.abs(found - expected(CASES[case]).numpy()).max() < 1e-4


@pytest.mark.parametrize("changes", [{"img_range": 255.0}, {"scale": 4}, {"in_chans": 4}])
@pytest.mark.parametrize("size", [(1, 1), (5, 31)])
def test_pictures_of_any_size(changes: dict[str, Any], size: tuple[int, int], tmp_path: Path):
    network = tiny(**changes).fuse_model()
    channels = network.config.in_chans
    pictures = torch.rand(2, channels, *size)
    with torch.inference_mode():
        right = network(pictures).numpy()
    found = open_upscaler(save(network, tmp_path, channels=channels)).run(pictures.numpy())
    assert found.shape == right.shape
    assert np.abs(found - right).max() < 2e-5


def test_half_storage_stays_near(tmp_path: Path):
    network = tiny().fuse_model()
    picture = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        right = network(picture).numpy()
    model = open_upscaler(save(network, tmp_path, half=True))
    assert model.precision == "fp16"
    assert np.square(model.run(picture.numpy()) - right).mean() < 10**-5.5


def test_a_process_that_ends_becomes_an_error(tmp_path: Path):
    process = ncnn._Process(tmp_path)  # pyright: ignore[reportPrivateUsage]
    process._process.kill()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ModelError, match="NCNN ended while it computed"):
        process.ask({"do": "devices"})


def test_the_process_ends_with_the_model(tmp_path: Path):
    model = ncnn._Process(tmp_path)  # pyright: ignore[reportPrivateUsage]
    process = model._process  # pyright: ignore[reportPrivateUsage]
    assert process.poll() is None
    del model
    assert process.poll() is not None


@pytest.mark.parametrize("device", ["cuda", "vulkan:x", "mps"])
def test_a_device_that_ncnn_has_not_is_refused(device: str, tmp_path: Path):
    path = save(tiny().fuse_model(), tmp_path)
    with pytest.raises(ModelError, match="NCNN runs on the CPU, or on a GPU through Vulkan"):
        open_upscaler(path, device=device)


def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(tmp_path: Path):
    path = save(tiny().fuse_model(), tmp_path)
    with pytest.raises(ModelError, match="takes no other processor instead"):
        open_upscaler(path, device="vulkan:99")


def test_constants_belong_to_checkpoints(tmp_path: Path):
    path = save(tiny().fuse_model(), tmp_path)
    with pytest.raises(ModelError, match="an NCNN file has all its constants in it"):
        open_upscaler(path, res_scale=0.15)
