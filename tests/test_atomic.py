"""A file appears under its name complete, or not at all."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from aether_converters import ConversionError, open_upscaler
from aether_converters.atomic import complete_or_nothing
from tests.support.tiny import tiny

posix = pytest.mark.skipif(sys.platform == "win32", reason="uses limits and users of POSIX")

CONVERT = (
    "import sys; from aether_converters.command_line.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(tiny().state_dict(), path)
    return path


def hear_interruptions() -> None:
    """As in a terminal: a shell has what it runs in the background ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_old(path: Path) -> None:
    """As if it had been left two hours ago."""
    two_hours_ago = time.time() - 7200
    os.utime(path, (two_hours_ago, two_hours_ago))


def start(checkpoint: Path, out: Path, prepare: Callable[[], None] = hear_interruptions):
    command = [sys.executable, "-c", CONVERT, "convert", str(checkpoint), "--out", str(out)]
    return subprocess.Popen(
        command,
        preexec_fn=prepare,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_file_has_its_name_only_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "new" / "file.bin"
    with complete_or_nothing(target, force=False) as partial:
        partial.path.write_bytes(b"all of it")
        assert not target.exists()
    assert target.read_bytes() == b"all of it"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_an_error_leaves_nothing_and_the_old_file_untouched(tmp_path: Path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def fail() -> None:
        with complete_or_nothing(target, force=True) as partial:
            partial.path.write_bytes(b"half of")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_discarded_file_disappears(tmp_path: Path):
    with complete_or_nothing(tmp_path / "file.bin", force=False) as partial:
        partial.path.write_bytes(b"wrong")
        partial.discard()
    assert not list(tmp_path.iterdir())


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path):
    target = tmp_path / "file.bin"

    def lose_the_race() -> None:
        with complete_or_nothing(target, force=False) as partial:
            partial.path.write_bytes(b"mine")
            target.write_bytes(b"theirs")

    with pytest.raises(ConversionError, match="exists already, and is kept"):
        lose_the_race()
    assert target.read_bytes() == b"theirs"


def test_what_a_killed_process_left_is_removed_by_a_later_one(tmp_path: Path):
    stale, recent = (tmp_path / f".file.bin.{digit * 16}.partial" for digit in "ab")
    for path in (stale, recent):
        path.write_bytes(b"half of")
    make_old(stale)
    with complete_or_nothing(tmp_path / "file.bin", force=False) as partial:
        partial.path.write_bytes(b"all of it")
    assert sorted(path.name for path in tmp_path.iterdir()) == [recent.name, "file.bin"]


@pytest.mark.parametrize(
    "name",
    [
        ".file.bin.my-download.partial",
        ".file.bin.partial",
        ".file.bin.0123456789abcde.partial",  # fifteen digits
        ".file.bin.0123456789abcdefg.partial",
        ".file.bin.0123456789ABCDEF.partial",
        ".file.bin.0123456789abcdef.partial.zip",
        ".file.bin.v2.0123456789abcdef.partial",
        "file.bin.0123456789abcdef.partial",
    ],
)
def test_a_hidden_file_of_somebody_else_is_kept(tmp_path: Path, name: str):
    theirs = tmp_path / name
    theirs.write_bytes(b"theirs")
    make_old(theirs)
    with complete_or_nothing(tmp_path / "file.bin", force=False) as partial:
        partial.path.write_bytes(b"all of it")
    assert theirs.read_bytes() == b"theirs"


def test_a_folder_named_like_a_partial_file_is_kept(tmp_path: Path):
    theirs = tmp_path / f".file.bin.{'a' * 16}.partial"
    theirs.mkdir()
    make_old(theirs)
    with complete_or_nothing(tmp_path / "file.bin", force=False) as partial:
        partial.path.write_bytes(b"all of it")
    assert theirs.is_dir()


def test_a_full_folder_is_hardly_ever_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index in range(2000):
        (tmp_path / f"{index}.png").touch()
    listings = 0
    scan = os.scandir

    def count(folder: Path):
        nonlocal listings
        listings += 1
        return scan(folder)

    monkeypatch.setattr(os, "scandir", count)
    monkeypatch.setattr(os, "listdir", count)
    for index in range(10):
        with complete_or_nothing(tmp_path / f"new{index}.png", force=False) as partial:
            partial.path.write_bytes(b"all of it")
    assert listings <= 3


@posix
@pytest.mark.parametrize("letter", ["a", "é", "超", "😀"])
def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path, letter: str):
    target = tmp_path / (letter * (250 // len(letter.encode())) + ".png")
    with complete_or_nothing(target, force=False) as partial:
        partial.path.write_bytes(b"all of it")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path):
    (tmp_path / "out").write_text("a file")
    target = tmp_path / "out" / "file.bin"

    def write() -> None:
        with complete_or_nothing(target, force=False):
            pass

    with pytest.raises(ConversionError) as caught:
        write()
    assert str(caught.value) == (
        f"{target}: cannot be written: File exists; nothing was left there\n"
        "  next      a file stands where a folder is needed: choose another folder with --out"
    )


@pytest.mark.parametrize("moment", range(1, 30))
def test_an_interruption_at_any_moment_leaves_no_unfinished_file(tmp_path: Path, moment: int):
    target = tmp_path / "file.bin"
    traced = inspect.unwrap(complete_or_nothing).__code__
    lines = 0

    def interrupt(frame: types.FrameType, event: str, _: object):
        nonlocal lines
        if frame.f_code is not traced:
            return None
        lines += event == "line"
        if lines == moment:
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        with complete_or_nothing(target, force=False) as partial:
            partial.path.write_bytes(b"all of it")
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["file.bin"])


@posix
def test_a_full_disk_is_explained_and_leaves_nothing(checkpoint: Path, tmp_path: Path):
    import resource

    out = tmp_path / "out"

    def allow_4_kib() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = start(checkpoint, out, allow_4_kib)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors == (
        f"error: {out / '2x_tiny_fp32.pth'}: cannot be written: File too large; "
        "nothing was left there\n"
        "  next      the file system or a limit of the process allows no larger file: "
        "choose another folder with --out\n"
    )
    assert not list(out.iterdir())


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    superuser = os.geteuid() == 0  # may write anywhere
    if superuser:
        os.seteuid(65534)
    yield folder
    if superuser:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


@posix
def test_a_read_only_folder_is_explained_and_stays_as_it_was(read_only_folder: Path):
    target = read_only_folder / "file.bin"

    def write() -> None:
        with complete_or_nothing(target, force=False) as partial:
            partial.path.write_bytes(b"never")

    with pytest.raises(ConversionError) as caught:
        write()
    assert str(caught.value) == (
        f"{target}: cannot be written: Permission denied; nothing was left there\n"
        "  next      choose a folder that you may write to with --out"
    )
    assert not list(read_only_folder.iterdir())


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_killed_conversion_leaves_complete_files_alone(
    checkpoint: Path, tmp_path: Path, name: str
):
    out = tmp_path / "out"
    process = start(checkpoint, out)
    deadline = time.monotonic() + 120
    while not (out.is_dir() and any(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.001)  # until the first file is being written
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=120)
    for path in out.iterdir():
        if not path.name.endswith(".partial"):
            assert open_upscaler(path).scale == 2
    if name != "SIGKILL":
        assert process.returncode in (130, 143)
        assert errors == "error: interrupted; no unfinished file was left\n"
        assert not [path for path in out.iterdir() if path.name.endswith(".partial")]
