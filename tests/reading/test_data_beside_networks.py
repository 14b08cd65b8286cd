"""What lies beside a network is passed over as data; nobody is accused of forgery."""

from __future__ import annotations

import datetime
import decimal
import fractions
import os
import random
import sys
import uuid
from collections import ChainMap, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import read_checkpoint
from tests.support.checkpoint_files import same, saved
from tests.support.hostile_files import Raw, call, list_of, network, text, torch_zip, tuple_of
from tests.support.tiny import tiny


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(tiny().state_dict())


def masked() -> Any:
    return np.ma.masked_array(np.arange(300.0), np.arange(300) % 2 == 0)


DATA: dict[str, Callable[[], Any]] = {
    "numpy's random state": np.random.get_state,
    "a generator of numpy": lambda: np.random.default_rng(7),
    "numpy's older generator": lambda: np.random.RandomState(7),
    "Python's random state": random.getstate,
    "a generator of Python": lambda: random.Random(7),
    "torch's random state": torch.get_rng_state,
    "200 figures": lambda: np.zeros(200),
    "100,000 figures of half precision": lambda: np.zeros((100, 1000), np.float16),
    "figures of a record": lambda: np.zeros(300, [("psnr", "f4"), ("name", "U20")]),
    "figures of which some are hidden": masked,
    "texts of numpy": lambda: np.array(["x" * 50] * 40),
    "objects of numpy": lambda: np.array([None, "a", 1.5], dtype=object),
    "days of numpy": lambda: np.array(["2026-11-28"] * 200, dtype="datetime64[D]"),
    "a type of numpy": lambda: np.float32,
    "a dtype": lambda: np.dtype(">i2"),
    "a complex number of numpy": lambda: np.complex64(1j),
    "a day of numpy": lambda: np.datetime64("2026-11-28"),
    "a thumbnail": lambda: b"\x89PNG" * 500,
    "no bytes": lambda: b"",
    "a megabyte": lambda: os.urandom(2**20),
    "an array of bytes": lambda: bytearray(b"\xff" * 5000),
    "a long text": lambda: "loss 0.1\n" * 30_000,
    "the name of a file that is no UTF-8": lambda: os.fsdecode(b"train/\xff\xfe.png"),
    "a loss of each step": lambda: [i / 7 for i in range(100_000)],
    "figures by data set and scale": lambda: {("Set5", 2): 38.1, ("Set14", 4): 28.9},
    "figures by step": lambda: {i: float(i) for i in range(20_000)},
    "a large number as a key": lambda: {2**100: 1},
    "a number of 400 bytes": lambda: 2**3200,
    "sets": lambda: {"a": {1, 2}, "b": frozenset(range(1000))},
    "a default dictionary of texts": lambda: defaultdict(str, a="b"),
    "a default dictionary of truth": lambda: defaultdict(bool, a=True),
    "a chain of dictionaries": lambda: ChainMap({"a": 1}, {"b": 2}),
    "an ordered dictionary": lambda: OrderedDict([("a", 1), ("b", [1, 2])]),
    "times": lambda: [
        datetime.datetime.now(datetime.timezone.utc),
        datetime.time(12, 30),
        datetime.timedelta(1),
    ],
    "exact numbers": lambda: [decimal.Decimal("0.1"), fractions.Fraction(1, 3), uuid.uuid4()],
    "paths": lambda: [Path("/data/x"), PurePosixPath("a", *["b"] * 20), PureWindowsPath("C:/x")],
    "a path of 2,000 letters": lambda: PurePosixPath("x" * 2000),
    "a tensor without numbers": lambda: torch.empty(3, device="meta"),
    "a type of numbers": lambda: torch.bfloat16,
    "an ellipsis": lambda: ...,
    "types": lambda: [int, str, tuple, dict],
}


@pytest.mark.parametrize("title", DATA)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_data_beside_the_network_do_not_matter(
    state: dict[str, Tensor], tmp_path: Path, title: str, protocol: int
):
    value = DATA[title]()
    torch.save({"params": state, title: value}, tmp_path / "a.pth", pickle_protocol=protocol)
    found = read_checkpoint(tmp_path / "a.pth")
    assert same(found, state)
    assert found.wrapper == "params"


def test_all_of_it_at_once_in_the_older_format(state: dict[str, Tensor], tmp_path: Path):
    content = {"params": state, **{title: make() for title, make in DATA.items()}}
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path), state)


def test_dictionaries_of_python_2_hold_their_entries_as_pairs(tmp_path: Path):
    pairs = list_of(*(list_of(text(key), text("b")) for key in ("a", "c")))
    content = {"params": network(), "history": Raw(call("collections", "OrderedDict", pairs))}
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(content))
    assert read_checkpoint(path).metadata["history"] == {"a": "b", "c": "b"}
    content["history"] = Raw(call("collections", "OrderedDict", list_of(tuple_of(text("a")))))
    path.write_bytes(torch_zip(content))
    assert "history" not in read_checkpoint(path).metadata


def test_what_tells_something_is_kept(state: dict[str, Tensor], tmp_path: Path):
    content = {
        "params": state,
        "folder": PurePosixPath("/data", "models"),
        "short": b"abc",
        "scale": np.int64(2),
        "size": torch.Size([3, 4]),
        "history": np.zeros(1000),
    }
    assert read_checkpoint(saved(content, tmp_path / "a.pth")).metadata == {
        "folder": "/data/models",
        "scale": 2,
        "size": (3, 4),
    }


def test_more_values_than_can_be_looked_through_are_no_forgery(
    state: dict[str, Tensor], tmp_path: Path
):
    path = saved({"params": state, "x": list(range(2**20))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="more than can be looked through") as caught:
        read_checkpoint(path)
    assert "save the network's state dict alone" in (caught.value.advice or "")


# Numbers that tools leave among the tensors


def thop(dtype: torch.dtype, value: float) -> Callable[[list[str]], dict[str, Tensor]]:
    """What thop leaves in every module."""
    return lambda modules: {
        f"{module}{name}": torch.full((1,), value, dtype=dtype)
        for module in modules
        for name in ("total_ops", "total_params")
    }


COUNTS: dict[str, Callable[[list[str]], dict[str, Tensor]]] = {
    "thop": thop(torch.float64, 123456789.0),
    "thop, unused": thop(torch.float64, 0.0),
    "thop in float32": thop(torch.float32, 2.0**33),
    "thop, overflowed": thop(torch.float16, float("inf")),
    "a count of flops": lambda modules: {f"{m}__flops__": torch.tensor(7) for m in modules},
    "steps and whether it began": lambda _: {
        "step": torch.tensor(100_000),
        "initted": torch.tensor(True),
        "n_averaged": torch.tensor(3),
    },
}


@pytest.mark.parametrize("title", COUNTS)
@pytest.mark.parametrize("fused", [False, True])
def test_counters_among_the_tensors_are_left_aside_and_told(
    tmp_path: Path, title: str, fused: bool
):
    model = tiny()
    if fused:
        model.fuse_model()
    named = cast("Iterator[tuple[str, object]]", model.named_modules())
    modules = [f"{name}." if name else "" for name, _ in named]
    counts = COUNTS[title](modules)
    state = dict(model.state_dict())
    path = saved({**state, **counts}, tmp_path / "a.pth")
    plain = aether_spandrel.load(saved(state, tmp_path / "b.pth"))
    loaded = aether_spandrel.load(path)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded.model(image), plain.model(image))
    (note,) = [n for n in aether_spandrel.inspect(path).notes if "count something" in n]
    assert note.startswith(f"{len(counts)} single numbers among the tensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers.0.0.gamma", torch.tensor(0.73)),
        ("layers.0.0.alpha", torch.tensor([-1.0])),
        ("layers.0.0.ffn.temperature", torch.tensor(1.0)),
        ("layers.0.0.more.weight", torch.tensor(1.0)),
        ("layers.0.0.scales", torch.tensor([1.0, 1.0])),
        ("total_ops", torch.zeros(2)),
        ("error_comp", torch.tensor(0.0)),
    ],
)
def test_what_may_be_a_weight_is_still_refused(
    state: dict[str, Tensor], tmp_path: Path, key: str, value: Tensor
):
    path = saved({**state, key: value}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no AetherNet of this configuration has"):
        aether_spandrel.load(path)


def test_names_of_code_are_still_refused(tmp_path: Path):
    for name in ("numpy.load", "numpy.random.os.mkdir", "builtins.eval", "random.os"):
        module, _, attribute = name.rpartition(".")
        path = tmp_path / "a.pth"
        path.write_bytes(torch_zip({"params": network(), "x": Raw(call(module, attribute))}))
        with pytest.raises(CheckpointError, match="asks for more than tensors"):
            read_checkpoint(path)


def test_this_python_has_the_paths_that_are_known():
    module = type(Path()).__module__
    assert module in ("pathlib", "pathlib._local"), sys.version
