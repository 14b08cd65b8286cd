"""What commands print, whatever the names and texts of the files they are given."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import safetensors.torch
import torch

from aether_converters.command_line.main import main
from aether_converters.command_line.terminal import LONGEST_ROW
from aether_spandrel.errors import AetherError
from tests.support.tiny import tiny

EVIL: Final = "m\x1b[31m\x07\u202egnp\u2066\u0085 \nerror: forged\r\x9b2J"
"""Colour, bell, right-to-left marks, next line, line break, carriage return, an 8-bit command."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")


def evil_model(folder: Path) -> Path:
    """A sound network whose name, metadata and neighbours hold all of `EVIL`."""
    path = folder / f"{EVIL}.pth"
    network = {f"{EVIL}.{key}": value for key, value in tiny().state_dict().items()}
    content = {
        EVIL: network,
        "metadata": {"author": EVIL, "license": EVIL, "model_name": EVIL, EVIL: EVIL},
        "arch_config": {"name": EVIL, "depths": [EVIL], "scale": EVIL},
    }
    torch.save(content, path)
    return path


def evil_picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / f"{EVIL}.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def evil_engine(folder: Path) -> Path:
    path = folder / f"{EVIL}.engine"
    path.write_bytes(EVIL.encode())
    path.with_name(f"{path.name}.json").write_text(json.dumps({"backend": EVIL, EVIL: EVIL}))
    return path


def evil_onnx(folder: Path) -> Path:
    from onnx import TensorProto, helper

    picture = [helper.make_tensor_value_info("i\x1b[1m", TensorProto.FLOAT, [1, 3, "h", "w"])]
    result = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, 3, "h", "w"])]
    node = helper.make_node("NoSuch\x1b[2J", ["i\x1b[1m"], ["o"], name=EVIL, domain=EVIL)
    model = helper.make_model(
        helper.make_graph([node], EVIL, picture, result), producer_name=EVIL, ir_version=8
    )
    helper.set_model_props(model, {"author": EVIL, "scale": EVIL})
    path = folder / f"{EVIL}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


COMMANDS: Final[dict[str, Callable[[Path], list[str]]]] = {
    "inspect": lambda f: ["inspect", str(evil_model(f)), str(f / f"no{EVIL}.pth")],
    "inspect an engine": lambda f: ["inspect", str(evil_engine(f))],
    "inspect a picture": lambda f: ["inspect", str(evil_picture(f))],
    "convert": lambda f: ["convert", str(evil_model(f)), "--to", "pth", "--out", str(f / EVIL)],
    "convert by name": lambda f: ["convert", str(evil_model(f)), "--name", EVIL],
    "release": lambda f: ["release", str(evil_model(f)), "--to", "pth", "--out", str(f / "r")],
    "upscale": lambda f: ["upscale", str(evil_model(f)), str(evil_picture(f))],
    "upscale into": lambda f: ["upscale", str(evil_model(f)), str(f), "--out", str(f / EVIL)],
    "upscale by onnx": lambda f: ["upscale", str(evil_onnx(f)), str(evil_picture(f))],
    "verify": lambda f: ["verify", str(evil_model(f)), str(evil_model(f)), str(evil_picture(f))],
    "bench": lambda f: ["bench", str(evil_model(f)), "--size", "8", "--seconds", "0.01"],
    "bench onnx": lambda f: ["bench", str(evil_onnx(f))],
    "doctor": lambda f: ["doctor", str(evil_model(f)), str(evil_onnx(f)), str(evil_engine(f))],
    "a wrong command": lambda _: [EVIL],
    "a wrong option": lambda f: ["upscale", str(evil_model(f)), "a.png", f"--{EVIL}"],
    "a wrong value": lambda f: ["upscale", str(evil_model(f)), "a.png", "--tile", EVIL],
    "a wrong constant": lambda f: ["inspect", str(evil_model(f)), "--set", f"{EVIL}=1"],
}


@posix
@pytest.mark.parametrize("title", COMMANDS)
def test_no_command_prints_what_a_terminal_obeys(
    title: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    with contextlib.suppress(SystemExit):
        main(COMMANDS[title](tmp_path))
    printed = "".join(capfd.readouterr())
    assert printed
    raw = sorted({c for c in printed if not c.isprintable() and c != "\n"})
    assert raw == []
    assert not any(line.startswith("error: forged") for line in printed.splitlines())


def run(*arguments: str | bytes, encoding: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "aether_converters", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)


@posix
@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        (b"m\xff\xfe.pth", "utf-8"),
        (b"\xe9.pth", "cp1252"),
        ("é_ж.pth".encode(), "ascii"),
        (b"\xc3.pth", "cp437"),
    ],
)
def test_every_name_is_printed_in_every_encoding(name: bytes, encoding: str, tmp_path: Path):
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118  of bytes
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    os.rename(tmp_path / "m.pth", path)  # noqa: PTH104
    done = run(b"inspect", path, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"revision G1" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tables_are_printed_in_every_encoding(encoding: str, tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "モデル_é.pth")
    options = ("--size", "8", "--seconds", "0.01")
    done = run("bench", str(tmp_path / "モデル_é.pth"), *options, encoding=encoding)
    assert done.returncode == 0, done.stderr


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&-"])
def test_closed_streams_change_nothing_but_what_is_seen(closed: str, tmp_path: Path):
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "m.safetensors")
    shell = f'"{sys.executable}" -m aether_converters inspect m.safetensors {closed}'
    done = subprocess.run(shell, shell=True, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stdout + done.stderr


def test_what_libraries_print_in_c_does_not_reach_the_terminal():
    code = (
        "import os; from aether_converters.command_line import terminal as t; "
        "t.prepare_streams(); t.silence_libraries(); os.write(2, b'PNG warning'); t.tell('ours é')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stderr.decode().splitlines() == ["ours é"]


def test_an_error_shows_what_was_found_even_if_that_is_blank():
    assert str(AetherError("no", found=" ")) == "no\n  found     ' '"
    assert str(AetherError("no", found="", key="a")) == "no\n  key       a"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
@pytest.mark.parametrize("arguments", ["inspect m.pth", "inspect --json m.pth", "--help", "doctor"])
def test_a_full_disk_behind_stdout_is_told_in_one_line(arguments: str, tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    shell = f'"{sys.executable}" -m aether_converters {arguments} > /dev/full'
    done = subprocess.run(shell, shell=True, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: what is printed cannot be written: No space left on device",
        "  next      print it to another place",
    ]


@pytest.mark.parametrize("length", [300, 6000])
@pytest.mark.parametrize("command", ["inspect", "upscale", "verify", "convert", "bench", "doctor"])
def test_a_path_that_no_system_has_is_an_error_of_its_own(
    command: str, length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    first = [str(tmp_path / "m.pth")] if command in ("upscale", "verify") else []
    status = main([command, *first, "a" * length])
    printed = "".join(capsys.readouterr())
    assert status == 1
    assert "unexpected" not in printed
    assert all(len(line) <= LONGEST_ROW + 20 for line in printed.splitlines())


@pytest.mark.parametrize("author", ["a\udcffb", "a\x1b[31mb", "a\u202eb", "a\tb"])
@pytest.mark.parametrize("option", ["--author", "--licence", "--description", "--name"])
def test_a_text_that_nobody_can_read_is_refused_before_the_work(
    author: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["release", "m.pth", "--out", str(tmp_path / "r"), option, author])
    assert "cannot be" in (told := capsys.readouterr().err) or "nobody can read" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["meta", "privateuseone", "cpu:99", "cuda:77", "xyz", "-1", ""])
def test_a_device_that_computes_nothing_is_named(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(tiny().state_dict(), tmp_path / "m.pth")
    assert main(["bench", str(tmp_path / "m.pth"), f"--device={device}"]) == 1
    said = capsys.readouterr().err
    assert f"PyTorch cannot use the device {device}" in said
    assert "expected  cpu, cuda or mps" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "m.pth", "--shape", f"1x3x{10**25}x9"],
        ["bench", "m.pth", "--size", f"{10**25}"],
        ["upscale", "m.pth", "a.png", "--tile", f"{10**25}"],
        ["upscale", "m.pth", "a.png", "--quality", "9" * 5000],
        ["upscale", "m.pth", "a.png", "--shard", "1/" + "9" * 5000],
        ["upscale", "m.pth", "a.png", "--memory", "9" * 400],
    ],
)
def test_numbers_beyond_any_use_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "is not" in capsys.readouterr().err
