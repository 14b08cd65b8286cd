"""Time and memory stay in proportion to the file, however little of it says how much there is."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.errors import CheckpointError
from aether_spandrel.network import read_network
from aether_spandrel.revisions import MODULES
from tests.support.hostile_files import (
    KINDS,
    Raw,
    dict_of,
    get,
    list_of,
    network,
    put,
    tensors,
    text,
    torch_zip,
    watched,
)

ANCHOR = "layers.0.0.ffn.fc1_gate.weight"


def repeated(value: bytes, times: int) -> Raw:
    """A list of one value that the file holds once."""
    return Raw(list_of(value + put(70_000), *[get(70_000)] * (times - 1)))


LONG = "x" * 500_000


def text_in_depths() -> object:
    return {
        "params": network(),
        "arch_config": Raw(dict_of(text("depths"), repeated(text(LONG), 9000))),
    }


def text_in_every_field() -> object:
    fields = [
        part
        for name in ("scale", "embed_dim", "norm_type", "in_chans")
        for part in (text(name), repeated(text(LONG), 2000))
    ]
    return {"params": network(), "arch_config": Raw(dict_of(*fields))}


def text_as_keys_of_metadata() -> object:
    inner = b"".join((text(LONG) + put(1) + b"0", b""))
    lists = list_of(*[dict_of(get(1), get(1))] * 3000)
    return {"params": network(), "arch_config": Raw(inner + dict_of(text("depths"), lists))}


def text_in_many_metadata() -> object:
    first = Raw(text(LONG) + put(1))
    return {"params": network(), "m": first, **{f"m{n}": Raw(get(1)) for n in range(5000)}}


def long_wrapper_of_many_networks() -> object:
    inner = {f"n{i}": {ANCHOR: None} for i in range(9000)}
    return {"k" * 10**6: {"params": network(), **inner}}


def long_key_in_many_dictionaries() -> object:
    key = Raw(text("k" * 10**6) + put(1))
    first = Raw(dict_of(text("a." + ANCHOR), b"N", key, b"N"))
    others = {f"n{i}": Raw(dict_of(text("a." + ANCHOR), b"N", get(1), b"N")) for i in range(9000)}
    return {"params": network(), "n": first, **others}


def prefixes(form: str, count: int) -> Callable[[], object]:
    return lambda: {form.format(n) + ANCHOR: None for n in range(count)}


def prefixes_within_prefixes() -> object:
    entries: dict[str, object] = {}
    prefix = ""
    for n in range(240):
        prefix += f"{n}."
        entries.update({f"{prefix}{i}.{ANCHOR}": None for i in range(20)})
    return entries


def prefixes_beside_a_network() -> object:
    return {**{f"{n}.{ANCHOR}": None for n in range(40_000)}, **network()}


FILES: dict[str, tuple[Callable[[], object], bool]] = {
    "a text 9,000 times in the depths": (text_in_depths, True),
    "texts in every field": (text_in_every_field, True),
    "a text as the keys of metadata": (text_as_keys_of_metadata, True),
    "a text in 5,000 metadata": (text_in_many_metadata, True),
    "a wrapper of 1 MB around 9,000 networks": (long_wrapper_of_many_networks, True),
    "a key of 1 MB in 9,000 dictionaries": (long_key_in_many_dictionaries, True),
    "100,000 prefixes": (prefixes("{}.", 100_000), False),
    "100,000 prefixes that end within a word": (prefixes("net{}_", 100_000), False),
    "100,000 prefixes of one beginning": (prefixes("module.model.net{}.", 100_000), False),
    "40,000 prefixes beside a network": (prefixes_beside_a_network, True),
    "prefixes within prefixes": (prefixes_within_prefixes, False),
}


@pytest.mark.parametrize("title", FILES)
def test_reading_stays_in_proportion(title: str, tmp_path: Path):
    make, accepted = FILES[title]
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(make()))
    assert path.stat().st_size < 8 * 2**20
    assert watched(path).accepted == accepted


def test_networks_are_told_apart_by_their_longest_prefix(tmp_path: Path):
    state = network("G5f")
    content = {
        **{f"a.{key}": value for key, value in network().items()},
        **{f"a.b_ema.{key}": value for key, value in state.items()},
        **{f"a.bx.{key}": value for key, value in network().items()},
    }
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(content))
    found = read_checkpoint(path)
    assert (found.prefix, set(found.alternatives)) == ("a.b_ema.", {"a", "a.bx"})
    assert list(found.state_dict) == list(state)


def test_many_networks_are_not_all_listed(tmp_path: Path):
    content = {f"net{n}": network() for n in range(30)}
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(content))
    warning = aether_spandrel.inspect(path).warnings[0]
    assert "net5 and 24 more left aside" in warning


# Checkpoints in several files


@pytest.fixture
def index(tmp_path: Path) -> Path:
    state = tensors()
    keys = list(state)
    weight_map: dict[str, str] = {}
    for part in range(2):
        shard = {key: state[key] for key in keys[part::2]}
        safetensors.torch.save_file(shard, tmp_path / f"model-{part}.safetensors")
        weight_map |= dict.fromkeys(shard, f"model-{part}.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def sharing(count: int) -> dict[str, Any]:
    """Tensors that all are one of 4 MB."""
    one = torch.zeros(1000, 1000)
    return {f"layers.0.0.more{n}.weight": one for n in range(count)}


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**40)


BESIDE: dict[str, Callable[[Path], None]] = {
    "a sparse file of another name": lambda folder: sparse(folder / "other.bin"),
    "a sparse file that is named like a part": lambda f: sparse(f / "model-2.safetensors"),
    "a hidden sparse file": lambda folder: sparse(folder / ".model-1.pth"),
}


@pytest.mark.parametrize("title", BESIDE)
def test_files_that_the_index_does_not_name_raise_no_limit(title: str, tmp_path: Path, index: Path):
    torch.save(sharing(1000), tmp_path / "model-1.pth")
    content = json.loads(index.read_text())
    content["weight_map"] |= dict.fromkeys(sharing(1000), "model-1.pth")
    index.write_text(json.dumps(content))
    BESIDE[title](tmp_path)
    outcome = watched(index)
    assert not outcome.accepted
    assert outcome.problem == "the tensors claim to be larger than the file"


def test_a_sound_index_beside_a_sparse_file_is_read(tmp_path: Path, index: Path):
    sparse(tmp_path / "other.bin")
    assert read_checkpoint(index).state_dict.keys() == tensors().keys()


def test_more_parts_than_may_be_open_are_refused(index: Path):
    index.write_text(json.dumps({"weight_map": {str(n): f"{n}.pth" for n in range(5000)}}))
    assert watched(index).problem == "the index names more files than any network has"


# What is read of a large file


def test_only_the_networks_numbers_are_read(tmp_path: Path):
    path = tmp_path / "a.pth"
    state: dict[str, Tensor] = tensors()
    torch.save({"params": state, "optimizer": torch.zeros(30_000_000)}, path)
    before = _bytes_read()
    read_checkpoint(path)
    assert _bytes_read() - before < 2_000_000


def _bytes_read() -> int:
    account = Path("/proc/self/io")
    if not account.exists():
        pytest.skip("only Linux counts what a process has read")
    (line,) = [text for text in account.read_text().splitlines() if text.startswith("rchar")]
    return int(line.split()[1])


BESIDE_A_NETWORK: dict[str, tuple[str, str]] = {
    "an optimizer": ("optimizer", "U8"),
    "its moments, as a flat dictionary has them": ("optimizer_state.exp_avg", "F32"),
    "another network": ("discriminator.conv0.weight", "F16"),
    "integers": ("step_losses", "I64"),
}


@pytest.mark.parametrize("title", BESIDE_A_NETWORK)
def test_numbers_of_a_sparse_file_that_are_not_the_networks_are_not_read(
    title: str, tmp_path: Path
):
    key, kind = BESIDE_A_NETWORK[title]
    path = tmp_path / "a.safetensors"
    sparse_safetensors(path, key, kind)
    before = _bytes_read()
    found = read_checkpoint(path)
    assert _bytes_read() - before < 2_000_000
    assert all(torch.equal(found.state_dict[k], tensor) for k, tensor in tensors().items())
    with pytest.raises(CheckpointError, match="a tensor that no AetherNet of this configuration"):
        read_network(found)


@pytest.mark.parametrize("key", ["layers.0.0.more.weight", "conv_first.other", "norm.running"])
def test_a_network_larger_than_any_is_refused_before_it_is_read(key: str, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    sparse_safetensors(path, key, "F32")
    before = _bytes_read()
    with pytest.raises(CheckpointError, match="the tensors are larger than those of any network"):
        read_checkpoint(path)
    assert _bytes_read() - before < 2_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_large_in_a_network_is_in_a_known_module(kind: str):
    large = [key for key, tensor in tensors(kind).items() if tensor.numel() > 8]
    assert [key for key in large if not MODULES.match(key)] == []


def sparse_safetensors(path: Path, key: str, kind: str) -> None:
    """A network and, in a hole of the file, 8 GiB of another tensor."""
    header, contents = _header(tensors())
    size = 8 * 2**30
    begin = len(contents)
    count = size // {"U8": 1, "F16": 2, "F32": 4, "I64": 8}[kind]
    header[key] = {"dtype": kind, "shape": [count], "data_offsets": [begin, begin + size]}
    raw = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw + contents)
        stream.truncate(8 + len(raw) + begin + size)


def _header(state: dict[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    content = safetensors.torch.save(state)
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]
