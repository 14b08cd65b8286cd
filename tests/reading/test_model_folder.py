"""A folder of a model hub is read by its tensors, which its description may not contradict."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import aether_spandrel
from aether_converters import convert, open_upscaler, upscale
from aether_converters.command_line.main import main
from aether_spandrel import CheckpointError
from aether_spandrel.model_folder import config_text, read_model
from tests.support.tiny import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Model and description of one network, in a folder with a dot in its name."""
    inside = tmp_path / "my.model"
    inside.mkdir()
    safetensors.torch.save_file(tiny().state_dict(), inside / "model.safetensors")
    _, network = read_model(inside / "model.safetensors")
    (inside / "config.json").write_text(config_text(network))
    return inside


def test_a_folder_is_loaded_inspected_converted_and_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    picture = torch.rand(1, 3, 12, 10)
    expected = aether_spandrel.load(folder / "model.safetensors")(picture)
    torch.testing.assert_close(aether_spandrel.load(folder)(picture), expected)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    enlarged = upscale(folder / "model.safetensors", pixels)
    np.testing.assert_array_equal(upscale(folder, pixels), enlarged)
    np.testing.assert_array_equal(upscale(open_upscaler(folder), pixels), enlarged)
    assert aether_spandrel.inspect(folder).path == folder / "model.safetensors"
    assert main(["inspect", str(folder)]) == 0
    assert "AetherNet" in capsys.readouterr().out
    report = convert(folder, folder / "out", to=["pth"], precision=["fp32"])
    assert [artefact.path.name for artefact in report.artefacts] == ["2x_model_fp32.pth"]


def test_what_is_described_is_what_hubs_and_people_ask_for(folder: Path):
    said = json.loads((folder / "config.json").read_text())
    assert said["architectures"] == ["AetherNet"]
    assert (said["model_type"], said["scale"], said["embed_dim"]) == ("aethernet", 2, 16)
    assert said["depths"] == [2, 1]


def test_a_folder_without_a_description_is_read_too(folder: Path):
    (folder / "config.json").unlink()
    assert aether_spandrel.inspect(folder).config.scale == 2


def test_what_no_tensor_tells_may_stand_in_a_description(folder: Path):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "sk_kernel": 99, "torch_dtype": "x"}))
    assert aether_spandrel.inspect(folder).config.sk_kernel == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", 4),
        ("scale", 2.0),
        ("scale", True),
        ("depths", [2, 1, 1]),
        ("depths", {"a": 1}),
        ("channel_attn", 0),
        ("model_type", "swin2sr"),
        ("architectures", "AetherNet"),
    ],
)
def test_a_description_of_another_network_is_refused(folder: Path, name: str, value: Any):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, name: value}))
    with pytest.raises(CheckpointError) as raised:
        aether_spandrel.load(folder)
    assert raised.value.problem == "config.json describes another network than the tensors"
    assert (raised.value.file, raised.value.key) == (folder / "config.json", name)
    assert aether_spandrel.inspect(folder / "model.safetensors").config.scale == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"nothing", b"\xff\xfe", b"[" * 100_000, b'{"scale": ' + b"9" * 5000 + b"}", b"3"],
    ids=["empty", "list", "text", "bytes", "deep", "long", "number"],
)
def test_a_hostile_description_is_an_error_that_names_it(folder: Path, content: bytes):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        aether_spandrel.load(folder)
    assert raised.value.file == folder / "config.json"


def test_a_description_that_is_huge_or_no_file_is_not_read(folder: Path):
    (folder / "config.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(CheckpointError, match="larger than any of its kind"):
        aether_spandrel.load(folder)
    (folder / "config.json").unlink()
    if sys.platform != "win32":
        os.mkfifo(folder / "config.json")
        with pytest.raises(CheckpointError, match="not a regular file"):
            aether_spandrel.load(folder)


def test_a_folder_without_a_model_says_what_it_should_hold(tmp_path: Path):
    with pytest.raises(CheckpointError) as raised:
        aether_spandrel.load(tmp_path)
    assert str(raised.value).split("\n") == [
        f"{tmp_path}: there is no checkpoint in this folder under the name that model hubs use",
        "  expected  model.safetensors or model.safetensors.index.json",
        "  next      name the model's file itself",
    ]


def test_a_model_in_several_files_is_read_by_its_index(folder: Path):
    state = tiny().state_dict()
    names = {key: f"model-0000{1 + index % 2}.safetensors" for index, key in enumerate(state)}
    for name in set(names.values()):
        part = {key: tensor for key, tensor in state.items() if names[key] == name}
        safetensors.torch.save_file(part, folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert aether_spandrel.inspect(folder).config.depths == (2, 1)
