"""Files are opened in one way, which refuses whatever is no regular file and waits for nothing."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_spandrel.errors import AetherError, CheckpointError
from aether_spandrel.opening import open_file, read_file

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no pipes and devices among its files"
)


def test_a_file_is_read_from_its_beginning(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    with open_file(path) as stream:
        assert stream.read() == b"content"
    assert read_file(path, most=7) == b"content"


def test_a_link_to_a_file_is_that_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_file(tmp_path / "link", most=100) == b"content"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def link_to_pipe(folder: Path) -> Path:
    (folder / "link").symlink_to(pipe(folder))
    return folder / "link"


def listening(folder: Path) -> Path:
    before = Path.cwd()
    os.chdir(folder)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
    finally:
        os.chdir(before)
    return folder / "s"


def device(name: str) -> Callable[[Path], Path]:
    return lambda _: Path("/dev", name)


IRREGULAR = {
    "a pipe": (pipe, "a pipe"),
    "a link to a pipe": (link_to_pipe, "a pipe"),
    "a socket": (listening, "a socket"),
    "zeros without end": (device("zero"), "a device"),
    "random numbers without end": (device("urandom"), "a device"),
    "nothing": (device("null"), "a device"),
    "a disk that is always full": (device("full"), "a device"),
}


@pytest.mark.parametrize("title", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(title: str, tmp_path: Path):
    make, found = IRREGULAR[title]
    path = make(tmp_path)
    if not path.exists():
        pytest.skip(f"this system has no {path}")
    with pytest.raises(CheckpointError, match="this is not a regular file") as caught:
        open_file(path, CheckpointError)
    assert (caught.value.file, caught.value.found) == (path, found)


def test_a_pipe_that_takes_the_place_of_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    look, looks = Path.stat, threading.Semaphore(1)

    def exchanged(self: Path, **options: bool) -> os.stat_result:
        found = look(self, **options)
        if self == path and looks.acquire(blocking=False):
            path.unlink()
            os.mkfifo(path)
        return found

    monkeypatch.setattr(Path, "stat", exchanged)
    with pytest.raises(AetherError, match="not a regular file"):
        open_file(path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (".", "this is a folder"),
        ("missing", "there is no such file"),
        ("file/within", "there is no such file"),
        ("a\0b", "the file cannot be read: embedded null byte"),
        ("a" * 5000, "the file cannot be read: File name too long"),
        ("loop", "the file cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_opened_is_told(tmp_path: Path, name: str, problem: str):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError) as caught:
        open_file(tmp_path / name, CheckpointError)
    assert caught.value.problem == problem
    assert caught.value.file == tmp_path / name
    assert caught.value.advice


def test_a_file_that_is_larger_than_its_kind_is_not_read(tmp_path: Path):
    path = tmp_path / "a"
    with path.open("wb") as stream:
        stream.truncate(2**40)  # takes no place on the disk
    with pytest.raises(CheckpointError, match="larger than any of its kind"):
        read_file(path, most=1000, kind=CheckpointError)
