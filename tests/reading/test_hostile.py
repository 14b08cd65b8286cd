"""Files that are no checkpoints, one line each: every one is refused with advice, or read right.

What a file may do at worst is said by `hostile_files.examine`. Those that are valid after all are
marked: `SAME` gives exactly the network of the clean file, `OTHER` another sound network.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

import aether_spandrel
from aether_spandrel import CheckpointError
from tests.reading.hostile.archives import forged_zip, truncation
from tests.reading.hostile.exhaustion import exhaustion
from tests.reading.hostile.kinds import (
    Group,
    Hostile,
)
from tests.reading.hostile.pickles import (
    DEAD,
    LIVE,
    SENTINEL,
    executable,
    odd_instructions,
)
from tests.reading.hostile.safetensors_files import odd_headers
from tests.reading.hostile.sharded import odd_shards
from tests.reading.hostile.state_dicts import odd_networks, other_files
from tests.reading.hostile.tensors import odd_tensors
from tests.support import hostile_files
from tests.support.hostile_files import (
    MOST_BYTES,
    Raw,
    ViolationError,
    name,
    network,
    program,
    safetensors_file,
    tensors,
    torch_legacy,
    torch_zip,
    watched,
)

# Cut short

GROUPS: Final[Mapping[str, Callable[[], Group]]] = {
    "cut": truncation,
    "zip": forged_zip,
    "code": executable,
    "pickle": odd_instructions,
    "much": exhaustion,
    "tensor": odd_tensors,
    "safetensors": odd_headers,
    "shards": odd_shards,
    "state": odd_networks,
    "other": other_files,
}

TABLE: Final = [
    (f"{group}: {title}", file) for group, of_it in GROUPS.items() for title, file in of_it()
]
FILES: Final[Mapping[str, Hostile]] = dict(TABLE)


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is executed leaves its traces in the folder of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, Tensor]]:
    """The weights of the clean networks; reading them warms everything up."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clean")
    found: dict[str, Mapping[str, Tensor]] = {}
    for kind in hostile_files.KINDS:
        path = folder / f"{kind}.pth"
        path.write_bytes(torch_zip(network(kind)))
        found[kind] = hostile_files.examine(path).weights
    return found


@pytest.mark.parametrize("title", FILES)
def test_a_hostile_file_is_refused_or_read_as_the_network_that_it_is(
    title: str, tmp_path: Path, clean: dict[str, Mapping[str, Tensor]]
):
    hostile = FILES[title]
    folder = tmp_path / "files"
    folder.mkdir()
    os.chdir(folder)
    path = hostile.place(folder)
    os.chdir(tmp_path)
    outcome = watched(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["files"], "something was executed"
    assert outcome.accepted == (hostile.verdict != "refused"), outcome.problem
    if hostile.verdict == "same":
        weights = clean[hostile.kind]
        assert outcome.weights.keys() == weights.keys()
        assert all(torch.equal(outcome.weights[key], weights[key]) for key in weights)


def test_a_device_that_may_not_be_read_is_told(tmp_path: Path):
    path = tmp_path / "secret.pth"
    path.write_bytes(torch_zip(network()))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert not watched(path).accepted


@pytest.mark.skipif(sys.platform == "win32", reason="the payloads are for POSIX systems")
@pytest.mark.parametrize("title", LIVE)
def test_pythons_own_unpickler_would_execute_it(title: str, tmp_path: Path):
    for protocol in (2, 4):  # old names are known up to 2, dotted ones from 4
        with contextlib.suppress(Exception):  # whatever becomes of it after it has run
            pickle.loads(program(LIVE[title], protocol))
    assert (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize("title", DEAD)
def test_a_harmful_name_is_named_or_never_looked_up(title: str, tmp_path: Path):
    module, attribute = DEAD[title]
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip(Raw(name(module, attribute))))
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.inspect(path)
    told = caught.value.found or ""
    assert f"{module}.{attribute}".split("\n")[0] in told or module == "torch.optim"


@pytest.mark.parametrize("kind", hostile_files.KINDS)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_clean_file_of_every_form_is_read(
    kind: str, form: str, tmp_path: Path, clean: dict[str, Mapping[str, Tensor]]
):
    if form == "safetensors" and kind == "int8":
        pytest.skip("safetensors holds no quantised tensors")
    path = tmp_path / "a.pth"
    write: dict[str, Callable[[], bytes]] = {
        "zip": lambda: torch_zip(network(kind)),
        "legacy": lambda: torch_legacy(network(kind)),
        "safetensors": lambda: safetensors_file(tensors(kind)),
    }
    path.write_bytes(write[form]())
    outcome = watched(path)
    assert outcome.accepted
    assert all(torch.equal(outcome.weights[key], clean[kind][key]) for key in clean[kind])


def test_the_names_differ():
    assert len(FILES) == len(TABLE)


def test_the_files_differ(tmp_path: Path):
    digests: dict[str, str] = {}
    for index, (title, hostile) in enumerate(FILES.items()):
        folder = tmp_path / str(index)
        folder.mkdir()
        os.chdir(folder)
        hostile.place(folder)
        files = sorted(entry for entry in folder.rglob("*") if entry.is_file())
        if files:
            content = b"".join(entry.read_bytes() for entry in files)
            digest = hashlib.sha256(content).hexdigest()
            assert digest not in digests, f"{title} is the same file as {digests[digest]}"
            digests[digest] = title
    assert len(digests) >= 500


# The instruments


def refusal(path: Path) -> CheckpointError:
    return CheckpointError("it is refused", file=path, advice="try another")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory was taken")
def test_memory_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def greedy(path: Path) -> object:
        bytearray(MOST_BYTES + 10**8)
        raise refusal(path)

    monkeypatch.setattr(aether_spandrel, "inspect", greedy, raising=False)
    monkeypatch.setattr(aether_spandrel, "load", greedy, raising=False)
    with pytest.raises(ViolationError, match="MB of memory"):
        watched(tmp_path / "a.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no timers on Windows")
@pytest.mark.parametrize(
    ("seconds", "patience", "told"), [(1.05, 60.0, "took 1"), (30.0, 1.5, "more than")]
)
def test_time_is_measured(
    seconds: float, patience: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def slow(path: Path) -> object:
        ended = time.process_time() + seconds
        while time.process_time() < ended:
            pass
        raise refusal(path)

    monkeypatch.setattr(aether_spandrel, "inspect", slow, raising=False)
    monkeypatch.setattr(aether_spandrel, "load", slow, raising=False)
    monkeypatch.setattr(hostile_files, "PATIENCE", patience)
    monkeypatch.setattr(hostile_files, "slowness", lambda: 1.0)  # a second is one anywhere
    with pytest.raises(ViolationError, match=told):
        watched(tmp_path / "a.pth")


class CarelessError(CheckpointError):
    """Says what it was given as it is."""

    def __str__(self) -> str:
        return self.problem


def careless(problem: str) -> CheckpointError:
    return CarelessError(problem, file=Path("a"), advice="y")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("x"), "raised ValueError"),
        (MemoryError(), "raised MemoryError"),
        (CheckpointError("x", advice="y"), "names no file"),
        (CheckpointError("x", file=Path("a")), "names no next step"),
        (careless("\ud800"), "cannot be printed"),
        (careless("\x1b[2J"), "lets the file speak"),
        (careless("x\n\n\n\n\n"), "lets the file speak"),
        (careless("x" * 9999), "too little or too much"),
        (careless(""), "too little or too much"),
    ],
)
def test_other_errors_are_violations(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch):
    def failing(_: Path) -> object:
        raise error

    monkeypatch.setattr(aether_spandrel, "inspect", failing, raising=False)
    with pytest.raises(ViolationError, match=told):
        hostile_files.examine(Path("a"))
