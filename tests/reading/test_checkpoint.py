"""Checkpoint files as trainers leave them, and files that are none: nothing is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from tests.support.checkpoint_files import same, saved
from tests.support.tiny import tiny


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(tiny().state_dict())


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "safetensors", "bin"])
def test_the_kind_is_told_by_content_not_by_name(
    state: dict[str, Tensor], tmp_path: Path, suffix: str
):
    assert same(read_checkpoint(saved(state, tmp_path / f"torch.{suffix}")), state)
    safetensors.torch.save_file(state, tmp_path / f"safe.{suffix}")
    found = read_checkpoint(tmp_path / f"safe.{suffix}").state_dict
    assert found.keys() == state.keys()


WRAPPERS = (
    *("params_ema", "params-ema", "ema", "model_ema", "ema_model", "ema_state_dict"),
    *("params", "state_dict", "model_state_dict", "net_g", "netG", "generator", "model", "net"),
    *("module", "what a trainer of tomorrow may call it"),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_state_dict_is_found(state: dict[str, Tensor], tmp_path: Path, wrapper: str):
    content = {wrapper: state, "iter": 500}
    found = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert same(found, state)
    assert found.wrapper == wrapper
    assert found.metadata == {"iter": 500}


@pytest.mark.parametrize("averaged", ["params_ema", "params-ema", "ema"])
def test_averaged_weights_win_and_the_choice_is_told(
    state: dict[str, Tensor], tmp_path: Path, averaged: str
):
    other = dict(tiny(seed=1).state_dict())
    path = saved({"params": other, averaged: state}, tmp_path / "a.pth")
    found = read_checkpoint(path)
    assert same(found, state)
    assert (found.wrapper, found.alternatives) == (averaged, ("params",))
    assert aether_spandrel.inspect(path).warnings == ()
    assert aether_spandrel.inspect(path).notes == (
        f"the file holds several networks: {averaged} was taken, params left aside",
    )


def test_wrappers_nest_and_a_lone_unknown_one_is_opened(state: dict[str, Tensor], tmp_path: Path):
    found = read_checkpoint(saved({"my_net": {"state_dict": state}}, tmp_path / "a.pth"))
    assert same(found, state)
    assert found.wrapper == "my_net.state_dict"


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "netG.", "net_g.", "net.", "module._orig_mod.", "net.net."]
)
def test_prefixes_of_wrappers_are_stripped(state: dict[str, Tensor], tmp_path: Path, prefix: str):
    content = {"params": {prefix + key: tensor for key, tensor in state.items()}}
    found = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert same(found, state)
    assert found.prefix == prefix.replace("_orig_mod.", "")


def test_a_prefix_that_only_some_keys_have_stays():
    tensors = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(Checkpoint.from_object(tensors).state_dict) == ["module.a", "b"]


def test_nested_metadata_is_kept_and_the_outer_level_wins(state: dict[str, Tensor], tmp_path: Path):
    content = {"params": state, "iter": 7, "metadata": {"iter": 1, "arch_config": {"scale": 2}}}
    found = read_checkpoint(saved(content, tmp_path / "a.pth"))
    assert found.metadata == {"iter": 7, "arch_config": {"scale": 2}}


def test_the_safetensors_header_is_metadata(state: dict[str, Tensor], tmp_path: Path):
    header = {"author": "me", "arch_config": json.dumps({"img_range": 255.0}), "odd": "{not json"}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", metadata=header)
    assert read_checkpoint(tmp_path / "a.safetensors").metadata == {
        "author": "me",
        "arch_config": {"img_range": 255.0},
        "odd": "{not json",
    }


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_tensors_keep_their_dtype(
    state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype, suffix: str
):
    typed = {key: tensor.to(dtype) for key, tensor in state.items()}
    path = tmp_path / f"a.{suffix}"
    torch.save(typed, path) if suffix == "pth" else safetensors.torch.save_file(typed, path)
    found = read_checkpoint(path).state_dict
    assert all(torch.equal(found[key], typed[key]) for key in typed)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert aether_spandrel.inspect(path).dtype == str(dtype).removeprefix("torch.")
    assert aether_spandrel.load(path).dtype == torch.float32


def test_files_of_torch_before_1_6_are_read(state: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path), state)


def test_fake_quant_entries_are_kept_apart(state: dict[str, Tensor]):
    entry = "conv_first.weight_fake_quant.scale"
    found = Checkpoint.from_object({**state, entry: torch.ones(1)})
    assert same(found, state)
    assert list(found.qat_entries) == [entry]


def test_the_object_that_was_given_is_left_alone(state: dict[str, Tensor]):
    inner = {"module." + key: tensor for key, tensor in state.items()}
    content = {"params": inner, "iter": 1}
    Checkpoint.from_object(content)
    assert content == {"params": inner, "iter": 1}
    assert all(key.startswith("module.") for key in inner)


def test_nan_weights_are_warned_of(state: dict[str, Tensor], tmp_path: Path):
    state["norm.weight"][3] = float("nan")
    (warning,) = aether_spandrel.inspect(saved(state, tmp_path / "a.pth")).warnings
    assert warning.startswith("1 tensors hold NaN or Inf, first norm.weight")


# What is no checkpoint


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_executed(state: dict[str, Tensor], tmp_path: Path, zipped: bool):
    target = tmp_path / "executed"
    path = tmp_path / "a.pth"
    content = {"params": state, "payload": Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="asks for more than tensors, and is not executed"):
        read_checkpoint(path)
    assert not target.exists()


def test_code_in_a_bare_pickle_is_not_executed(tmp_path: Path):
    target = tmp_path / "executed"
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(Payload(target), protocol=2))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not target.exists()


def test_a_pickled_network_object_is_refused_with_advice(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(saved(tiny(), tmp_path / "a.pth"))
    assert caught.value.file == tmp_path / "a.pth"
    assert caught.value.found == "the Python object aether_core.AetherNet"
    assert "save its state dict alone" in (caught.value.advice or "")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_cut_anywhere_is_a_checkpoint_error(
    state: dict[str, Tensor], tmp_path: Path, suffix: str
):
    whole = tmp_path / f"whole.{suffix}"
    torch.save(state, whole) if suffix == "pth" else safetensors.torch.save_file(state, whole)
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for length in np.linspace(0, len(content) - 1, 60, dtype=int):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(cut)
        assert caught.value.file == cut
        assert caught.value.advice


@pytest.mark.parametrize(
    ("content", "guess"),
    [
        (b"", "nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "a JPEG picture"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "a gzip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(40), "a 7-Zip archive"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(40), "a RAR archive"),
        (b"\x08\x08\x12\x07pytorch" + bytes(40), "perhaps an ONNX file"),
        (bytes(64), "bytes 00 00 00 00"),
    ],
)
def test_what_the_file_is_instead_is_told(tmp_path: Path, content: bytes, guess: str):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert (caught.value.found or "").startswith(guess)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(path)


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one_tensor(dtype: str, shape: list[int], offsets: list[int], data: bytes) -> bytes:
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    return safetensors_bytes(header, data)


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes({}, length=2**62),
        safetensors_bytes({}, length=1),
        one_tensor("F32", [4], [0, 16], b""),
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}, b"1234"
        ),
        one_tensor("F99", [1], [0, 4], b"1234"),
        one_tensor("F32", [-1], [0, 4], b"1234"),
        one_tensor("F32", [1], [4, 0], b"1234"),
        safetensors_bytes([]),
        safetensors_bytes({}),
    ],
)
def test_forged_safetensors_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.file == path


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ({}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"params": {"params": {"params": {"params": {"params": 1}}}}}, "holds no state dict"),
    ],
)
def test_content_without_a_state_dict_is_told(tmp_path: Path, content: object, problem: str):
    with pytest.raises(CheckpointError, match=problem):
        read_checkpoint(saved(content, tmp_path / "a.pth"))


def test_folders_pipes_and_missing_files_are_told(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="this is a folder"):
        read_checkpoint(tmp_path)
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.pth")
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_checkpoint(tmp_path / "pipe.pth")


def test_the_error_reads_as_a_page_of_advice(tmp_path: Path):
    path = saved({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.load(path)
    assert str(caught.value) == (
        f"{path}: this is not an AetherNet checkpoint of a known revision\n"
        "  expected  conv_first and conv_last, and blocks under layers.0.0 (G1) or stages.0.0 "
        "(G2 to G5)\n"
        "  found     weight ...\n"
        "  next      if another program loads it, it is another architecture"
    )


def test_a_stream_of_random_bytes_after_a_true_beginning_is_an_error(
    state: dict[str, Tensor], tmp_path: Path
):
    stream = io.BytesIO()
    torch.save(state, stream)
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pth"
    for _ in range(20):
        content = stream.getvalue()[:2000] + rng.bytes(3000)
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
