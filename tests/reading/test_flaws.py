"""Files that contradict themselves are doubted; files that end while they are read are errors."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.opening import open_file
from aether_spandrel.stored import FileBytes
from tests.support.checkpoint_files import saved
from tests.support.hostile_files import archive, network, torch_entries
from tests.support.tiny import tiny


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(tiny().state_dict())


def entry_at(path: Path, name: str) -> tuple[int, zipfile.ZipInfo]:
    """Where the bytes of an entry begin, and what the directory says of it."""
    with zipfile.ZipFile(path) as file:
        entry = file.getinfo(name)
    head = path.read_bytes()[entry.header_offset : entry.header_offset + 30]
    name_length, extra_length = struct.unpack("<HH", head[26:30])
    return entry.header_offset + 30 + name_length + extra_length, entry


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


@pytest.mark.parametrize(("key", "at"), [("0", 0), ("3", 0), ("0", 8)])
def test_bytes_that_differ_from_their_checksum_are_a_doubt(
    state: dict[str, Tensor], tmp_path: Path, key: str, at: int
):
    path = saved({"params": state}, tmp_path / "a.pth")
    assert not [w for w in aether_spandrel.inspect(path).warnings if "checksums" in w]
    begin, entry = entry_at(path, f"a/data/{key}")
    overwrite(path, begin + at, bytes(entry.file_size - at))
    (warning,) = [w for w in aether_spandrel.inspect(path).warnings if "checksums" in w]
    assert warning.startswith(
        f"1 parts of the file differ from their checksums, first a/data/{key}"
    )


def test_a_file_without_checksums_is_no_reason_for_doubt(tmp_path: Path):
    entries = torch_entries({"params": network()})
    content = bytearray(archive(*entries))
    for signature, position in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        start = content.find(signature)
        while start >= 0:
            content[start + position : start + position + 4] = bytes(4)
            start = content.find(signature, start + 4)
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    assert not [w for w in aether_spandrel.inspect(path).warnings if "checksum" in w]


LIES: dict[str, Callable[[bytearray, int], None]] = {
    "another size": lambda head, at: head.__setitem__(slice(at + 22, at + 26), b"\1\0\0\0"),
    "another packed size": lambda head, at: head.__setitem__(slice(at + 18, at + 22), b"\1\0\0\0"),
    "another checksum": lambda head, at: head.__setitem__(slice(at + 14, at + 18), b"abcd"),
    "another method": lambda head, at: head.__setitem__(slice(at + 8, at + 10), b"\x08\0"),
    "another name": lambda head, at: head.__setitem__(slice(at + 30, at + 37), b"another"),
}


@pytest.mark.parametrize("title", LIES)
def test_headers_that_contradict_the_directory_are_a_doubt(tmp_path: Path, title: str):
    content = bytearray(archive(*torch_entries({"params": network()})))
    LIES[title](content, content.find(b"PK\x03\x04", 4))
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    (warning,) = [w for w in aether_spandrel.inspect(path).warnings if "twice" in w]
    assert warning.startswith("the archive describes 1 of its parts twice, differently")


@pytest.mark.parametrize("write", ["torch", "zipfile", "by hand"])
def test_sound_archives_of_every_writer_are_not_doubted(
    state: dict[str, Tensor], tmp_path: Path, write: str
):
    path = saved({"params": state}, tmp_path / "a.pth")
    if write == "zipfile":
        again = tmp_path / "b.pth"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
        path = again
    elif write == "by hand":
        path.write_bytes(archive(*[replace(e) for e in torch_entries({"params": network()})]))
    doubts = aether_spandrel.inspect(path).warnings
    assert not [d for d in doubts if "checksum" in d or "twice" in d]


# Numbers of other types


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "uint16", "int8"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_type_that_no_network_is_read_in_is_called_by_its_name(
    state: dict[str, Tensor], tmp_path: Path, kind: str, suffix: str
):
    dtype: torch.dtype = getattr(torch, kind)
    key = "layers.0.0.ffn.fc2.weight"
    typed = {**state, key: state[key].to(torch.float32).to(dtype)}
    path = tmp_path / f"a.{suffix}"
    torch.save(typed, path) if suffix == "pth" else safetensors.torch.save_file(typed, path)
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.load(path)
    assert (caught.value.key, caught.value.found) == (key, kind)


# Files that end while they are read


def test_a_file_that_becomes_shorter_is_an_error_and_not_the_end(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(bytes(10**6))
    with open_file(path, CheckpointError) as stream:
        file = FileBytes(stream=stream, size=10**6)
        file.read(0, 100)
        os.truncate(path, 1000)
        with pytest.raises(CheckpointError, match="cut short"):
            file.read(500_000, 400_000)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_after_it_was_read_changes_nothing(
    state: dict[str, Tensor], tmp_path: Path, form: str
):
    path = tmp_path / "a.pth"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    found = read_checkpoint(path)
    os.truncate(path, 10)
    assert all(torch.equal(found.state_dict[key], state[key]) for key in state)
