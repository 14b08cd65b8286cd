"""Checkpoints as trainers leave them: the network is found wherever it stands."""

from __future__ import annotations

import argparse
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from spandrel import ModelLoader
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.torch_version import TorchVersion

import aether_spandrel
from aether_core import AetherNet
from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.network import read_network
from tests.support.checkpoint_files import same, saved
from tests.support.published import draw
from tests.support.tiny import tiny


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(tiny().state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def test_the_optimizer_beside_the_weights_does_not_matter(state: dict[str, Tensor], tmp_path: Path):
    network = tiny().train()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).mean().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr": np.float64(2e-4),
        "args": argparse.Namespace(scale=2),
    }
    found = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert same(found, state)
    assert (found.wrapper, found.alternatives) == ("model", ())
    assert found.metadata == {"epoch": 3, "lr": 2e-4}


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "one number, expanded": lambda tensor: torch.tensor(0.25).expand(tensor.shape),
    "a row, expanded": lambda tensor: tensor[:1].expand(tensor.shape),
    "axes in another order": lambda tensor: (
        tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor
    ),
    "every second number": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "the other sign": lambda tensor: torch.complex(tensor, -tensor).conj().imag,
    "channels last": lambda tensor: (
        tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_may_lie_in_the_file_in_any_order(
    state: dict[str, Tensor], tmp_path: Path, layout: str
):
    written = {
        key: LAYOUTS[layout](tensor) if key.startswith("layers") else tensor
        for key, tensor in state.items()
    }
    found = read_checkpoint(saved(written, tmp_path / "a.pth"))
    assert same(found, written)
    assert all(tensor.is_contiguous() for tensor in found.state_dict.values())
    assert read_network(found).state_dict.keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int8])
def test_integers_of_the_other_sign_are_refused(
    state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
):
    mark: Any = getattr(torch, "_neg_view")  # noqa: B009  no public name
    state["layers.0.0.more.weight"] = mark(torch.ones(3, dtype=dtype))
    with pytest.raises(CheckpointError, match="the file is damaged or forged"):
        read_checkpoint(saved(state, tmp_path / "a.pth"))


def test_a_tensor_expanded_beyond_its_file_is_refused(state: dict[str, Tensor], tmp_path: Path):
    written = {**state, "layers.0.0.more.weight": torch.zeros(1).expand(2**20, 2**20)}
    with pytest.raises(CheckpointError, match="the tensors claim to be larger than the file"):
        read_checkpoint(saved(written, tmp_path / "a.pth"))


@pytest.mark.parametrize("prefix", ["generator.", "model.net_g.", "module.model."])
def test_lightning_keeps_several_networks_in_one_state_dict(
    state: dict[str, Tensor], tmp_path: Path, prefix: str
):
    content: dict[str, object] = {
        "epoch": 12,
        "global_step": 48000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **{f"discriminator.conv{i}.weight": torch.zeros(4, 3, 3, 3) for i in range(3)},
            **prefixed(state, prefix),
            "perceptual.vgg.features.0.weight": torch.zeros(64, 3, 3, 3),
        },
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "hyper_parameters": {"scale": 2},
        "callbacks": {},
    }
    found = read_checkpoint(saved(content, tmp_path / "epoch=12.ckpt"))
    assert same(found, state)
    assert (found.wrapper, found.prefix) == ("state_dict", prefix)


def test_averaged_models_of_torch_are_found(tmp_path: Path):
    network = tiny()
    averaged: Any = AveragedModel(network)
    content = {"net": tiny(seed=1).state_dict(), "ema": averaged.state_dict()}
    assert "n_averaged" in content["ema"]
    found = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert same(found, dict(network.state_dict()))
    assert (found.wrapper, found.prefix, found.alternatives) == ("ema", "module.", ("net",))


def test_an_ema_beside_the_network_within_one_state_dict_is_preferred(
    state: dict[str, Tensor], tmp_path: Path
):
    other = dict(tiny(seed=1).state_dict())
    content = {"state_dict": {**prefixed(other, "net."), **prefixed(state, "net_ema.module.")}}
    found = read_checkpoint(saved(content, tmp_path / "a.ckpt"))
    assert same(found, state)
    assert found.alternatives == ("state_dict.net",)


def test_compiled_and_wrapped_modules_are_found(tmp_path: Path):
    network = tiny()
    compiled: Any = torch.compile(network)  # nothing is compiled before it is called
    found = read_checkpoint(saved(compiled.state_dict(), tmp_path / "a.pth"))
    assert same(found, dict(network.state_dict()))

    inner = {
        key.replace(".conv.", "._checkpoint_wrapped_module.conv."): tensor
        for key, tensor in network.state_dict().items()
    }
    found = read_checkpoint(
        saved(prefixed(inner, "module._fsdp_wrapped_module."), tmp_path / "b.pth")
    )
    assert same(found, dict(network.state_dict()))


def test_two_generators_in_one_file_are_both_named(state: dict[str, Tensor], tmp_path: Path):
    other = dict(tiny(seed=1).state_dict())
    path = saved({"net_g": state, "teacher": other}, tmp_path / "a.pth")
    assert same(read_checkpoint(path), state)
    warning = aether_spandrel.inspect(path).warnings[0]
    assert warning == "the file holds several networks: net_g was taken, teacher left aside"


class TestShards:
    @pytest.fixture
    def index(self, state: dict[str, Tensor], tmp_path: Path) -> Path:
        keys = list(state)
        weight_map: dict[str, str] = {}
        for part in range(3):
            name = f"model-{part + 1:05}-of-00003.safetensors"
            shard = {key: state[key] for key in keys[part::3]}
            safetensors.torch.save_file(shard, tmp_path / name)
            weight_map |= dict.fromkeys(shard, name)
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        return path

    def test_are_read_as_one_through_their_index(self, state: dict[str, Tensor], index: Path):
        found = read_checkpoint(index)
        assert found.state_dict.keys() == state.keys()
        assert same(found, {key: state[key] for key in found.state_dict})  # part after part
        assert aether_spandrel.load(index).scale == 2
        assert any(
            "a checkpoint in several files" in n for n in aether_spandrel.inspect(index).notes
        )

    def test_a_missing_part_is_named(self, index: Path):
        part = index.with_name("model-00002-of-00003.safetensors")
        part.unlink()
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(index)
        assert (caught.value.file, caught.value.problem) == (part, "there is no such file")

    def test_one_part_alone_says_what_is_missing(self, index: Path):
        with pytest.raises(CheckpointError, match=r"missing|not an AetherNet") as caught:
            aether_spandrel.load(index.with_name("model-00001-of-00003.safetensors"))
        assert caught.value.advice == (
            "this is one part of a checkpoint: name the .index.json beside it"
        )

    @pytest.mark.parametrize("name", ["../secret.pth", "/etc/passwd", "a\\b", 3])
    def test_parts_outside_of_the_folder_are_refused(self, index: Path, name: object):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError):
            read_checkpoint(index)


# What spandrel's own loader refuses, and the command that helps


def with_parameters(network: AetherNet) -> dict[str, object]:
    return {"params": OrderedDict(network.named_parameters())}


def beside(network: AetherNet, value: object) -> dict[str, object]:
    return {"net": dict(network.state_dict()), "other": value}


REFUSED: dict[str, Any] = {
    "TorchVersion": lambda: {
        "state_dict": draw("G5f", fused=True),
        "metadata": {"pt_version": TorchVersion("2.7.1+cu126")},
    },
    "_rebuild_parameter": lambda: with_parameters(tiny()),
    "Namespace": lambda: beside(tiny(), argparse.Namespace(scale=2)),
    "scalar": lambda: beside(tiny(), np.float32(0.5)),
    "PosixPath": lambda: beside(tiny(), Path("/data")),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_spandrel_refuses_is_read_and_the_command_that_helps_works(
    tmp_path: Path, reason: str
):
    from aether_converters import convert

    aether_spandrel.install()
    path = saved(REFUSED[reason](), tmp_path / "a.pth")
    with pytest.raises(Exception, match=r"forbidden|Weights only|Unsupported"):
        ModelLoader().load_from_file(path)
    model = aether_spandrel.load(path)
    (note,) = [note for note in aether_spandrel.inspect(path).notes if "cannot read" in note]
    assert reason in note
    assert f"aethernet convert {path} --to safetensors" in note
    (artefact,) = convert(path, to=["safetensors"], precision=["fp32"]).artefacts
    image = torch.rand(1, 3, 9, 9)
    again = ModelLoader().load_from_file(artefact.path)
    with torch.inference_mode():
        torch.testing.assert_close(again.model(image), model.model(image), atol=1e-6, rtol=0)


def test_the_ending_that_spandrel_needs_is_said(state: dict[str, Tensor], tmp_path: Path):
    (note,) = aether_spandrel.inspect(saved(state, tmp_path / "a.bin")).notes
    assert "this is a PyTorch file under the name *.bin" in note
    assert aether_spandrel.inspect(saved(state, tmp_path / "a.pth")).notes == ()


PLAIN: tuple[Any, ...] = (
    {1, 2},
    frozenset("ab"),
    defaultdict[str, list[int]](list),
    defaultdict[str, int](int),
    Counter("abc"),
    deque([1]),
    range(3),
    slice(1),
    1j,
    bytearray(b"a"),
    datetime(2025, 7, 22),
    torch.zeros(3).to_sparse(),
)


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_python_values_beside_the_network_do_not_matter(
    state: dict[str, Tensor], tmp_path: Path, value: object, protocol: int
):
    torch.save({"net": state, "x": value}, tmp_path / "a.pth", pickle_protocol=protocol)
    assert same(read_checkpoint(tmp_path / "a.pth"), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_errors_name_the_key_that_the_file_has(tmp_path: Path, prefix: str):
    tensors = prefixed(draw("G5f"), prefix)
    del tensors[f"{prefix}stages.0.0.conv.sk_bias"]
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.load(saved(tensors, tmp_path / "missing.pth"))
    assert caught.value.key == f"{prefix}stages.0.0.conv.sk_bias"
    tensors = prefixed(draw("G5f"), prefix)
    tensors[f"{prefix}stages.1.0.ffn.conv_gate.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.load(saved(tensors, tmp_path / "shape.pth"))
    assert caught.value.key == f"{prefix}stages.1.0.ffn.conv_gate.bias"
