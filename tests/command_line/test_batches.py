"""Many files in one run: nothing is lost, each fault stays with its file, and all of it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aether_converters.command_line.main import main
from aether_converters.sample import MODEL

posix = pytest.mark.skipif(sys.platform == "win32", reason="uses names and signals of POSIX")


def picture(path: Path, size: tuple[int, int] = (6, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def listed(folder: Path) -> list[str]:
    """Every picture below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)


# Names and sizes of results


def test_a_suffix_names_results_and_tells_them_from_sources(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    picture(tmp_path / "in" / "a.png")
    for _ in range(2):
        status, _, _ = run(capsys, "upscale", MODEL, "in/*.png", "--suffix=-large")
        assert status == 0
    assert listed(tmp_path) == ["in/a-large.png", "in/a.png"]
    run(capsys, "upscale", MODEL, "in/a.png", "--suffix=-large", "--out", "out")
    run(capsys, "upscale", MODEL, "in", "--suffix=-large", "--force")
    assert listed(tmp_path)[:2] == ["in-large/a.png", "in/a-large.png"]
    assert (tmp_path / "out" / "a-large.png").is_file()
    status, _, err = run(capsys, "upscale", MODEL, "in/a.png", "--suffix=x", "--out", "b.png")
    assert status == 1
    assert "leave --suffix out" in err


def test_each_picture_can_keep_its_format_and_ending(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for name in ("a.png", "b.JPG", "c.jpeg", "d.tif", "e.bmp", "f.gif"):
        picture(tmp_path / "in" / name)
    status, _, _ = run(capsys, "upscale", MODEL, "in", "--out", "out", "--format", "same")
    assert status == 0
    found = {path.name: Image.open(path).format for path in (tmp_path / "out").iterdir()}
    assert found == {
        "a.png": "PNG",
        "b.JPG": "JPEG",
        "c.jpeg": "JPEG",
        "d.tif": "TIFF",
        "e.bmp": "BMP",
        "f.png": "PNG",
    }


@pytest.mark.parametrize(
    ("outscale", "size", "name"),
    [("3", (18, 15), "a_3x.png"), ("1.5", (9, 8), "a_1.5x.png"), ("2", (12, 10), "a_2x.png")],
)
def test_results_get_the_size_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    outscale: str,
    size: tuple[int, int],
    name: str,
):
    picture(tmp_path / "in" / "a.png")
    for _ in range(2):  # the result is not enlarged the second time
        status, _, _ = run(capsys, "upscale", MODEL, "in/*.png", "--outscale", outscale)
        assert status == 0
    assert listed(tmp_path) == sorted(["in/a.png", f"in/{name}"])
    assert Image.open(tmp_path / "in" / name).size == size


# No target is an input


@pytest.mark.parametrize(
    ("inputs", "out"),
    [
        (("a.png", "a_2x.png"), None),
        (("a_2x.png", "a.png"), None),
        (("a.png", "./in/../a_2x.png"), None),
        (("a.png", "in/b.png"), "in"),
        (("in",), "in"),
        (("in/b.png",), "./in/"),
        (("*.png",), None),
    ],
)
def test_no_picture_of_the_run_is_replaced_even_by_force(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Sequence[str], out: str | None
):
    for name in ("a.png", "a_2x.png", "in/a.png", "in/b.png"):
        picture(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in listed(tmp_path)}
    read = {"a.png", "a_2x.png"} if out is None else {"in/b.png"}
    status, _, err = run(
        capsys, "upscale", MODEL, *inputs, *(("--out", out) if out else ()), "--force"
    )
    assert status == 1
    assert "the result would replace a file that this run reads" in err
    for name in read:
        assert (tmp_path / name).read_bytes() == before[name]


def test_a_link_to_a_picture_of_the_run_is_no_target(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    (tmp_path / "large.png").hardlink_to(b)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").hardlink_to(b)
    assert run(capsys, "upscale", MODEL, a, b, "--out", "out", "--force")[0] == 1
    assert (tmp_path / "out" / "a.png").samefile(b)


def test_convert_replaces_no_picture_that_it_calibrates_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    shown = picture(tmp_path / "2x_mine_comparison.png", (64, 64))
    before = shown.read_bytes()
    status, _, err = run(
        capsys,
        *("release", MODEL, "--out", tmp_path, "--name", "mine", "--to", "pth"),
        *("--precision", "fp32", "--pictures", shown, "--force"),
    )
    assert status == 1
    assert "the result would replace a file that this run reads" in err
    assert shown.read_bytes() == before


def test_a_part_of_a_checkpoint_is_not_replaced(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from aether_spandrel.checkpoint import read_checkpoint

    part = tmp_path / "2x_mine_fp32.safetensors"
    shutil.copy(MODEL, part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(read_checkpoint(part).state_dict, part.name)})
    )
    before = part.read_bytes()
    status, _, err = run(
        capsys,
        *("convert", index, "--to", "safetensors", "--precision", "fp32", "--name", "mine"),
        "--force",
    )
    assert status == 1
    assert "the result would replace a file that this run reads" in err
    assert part.read_bytes() == before


# Results are no inputs


@pytest.mark.parametrize("out", ["in/out", "in/deep/out", "./in/../in/out/"])
def test_results_within_the_input_are_not_enlarged_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: str
):
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "deep" / "b.png")
    for _ in range(2):
        assert run(capsys, "upscale", MODEL, "in", "--recursive", "--out", out)[0] == 0
    assert listed(tmp_path / out) == ["a.png", "deep/b.png"]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ("photos/*.png", ()),
        ("photos/?.*", ()),
        (".", ("--recursive", "--out", "elsewhere")),
        ("photos", ("--out", "elsewhere")),
    ],
)
def test_results_beside_their_sources_are_left_out_and_that_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given: str, options: Sequence[str]
):
    picture(tmp_path / "photos" / "7.png")
    picture(tmp_path / "photos" / "8.jpg")
    assert run(capsys, "upscale", MODEL, "photos/*.*")[0] == 0
    status, out, _ = run(capsys, "upscale", MODEL, given, *options)
    assert status == 0
    assert not [name for name in listed(tmp_path) if "_2x_2x" in name]
    if given != "photos/?.*":
        assert "7_2x.png" in out
        assert "left out: named as a result of 7.png" in out


def test_a_folder_of_results_beside_its_source_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    picture(tmp_path / "all" / "in" / "a.png")
    run(capsys, "upscale", MODEL, "all/in")
    status, out, _ = run(capsys, "upscale", MODEL, "all", "--recursive", "--out", "o")
    assert status == 0
    assert "left out: named as a result of in" in out
    assert listed(tmp_path / "o") == ["in/a.png"]


def test_what_is_there_is_named_and_a_result_behind_the_pictures_is_understood(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    name = picture(tmp_path / "photos" / "7.png").relative_to(tmp_path)
    assert run(capsys, "upscale", MODEL, name)[0] == 0
    status, out, err = run(capsys, "upscale", MODEL, name, "large.png")
    assert status == 1
    there = Path("photos", "7_2x.png")
    assert f"{name}: skipped; {there} exists already; replace it with --force\n" in out
    assert "large.png: there is no such file\n" in err
    assert "where results are to go there: --out large.png" in err
    status, _, err = run(capsys, "upscale", MODEL, name, "--out", "large.gif")
    assert "next      choose one of these endings, or end the name of a folder with /" in err


def test_results_of_a_folder_are_told_by_the_path_that_was_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    picture(tmp_path / "photos" / "7.png")
    _, out, _ = run(capsys, "upscale", MODEL, "photos/")
    assert out.startswith(str(Path("photos_2x", "7.png")))


def test_what_a_shell_makes_of_a_pattern_is_not_enlarged_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    names = [picture(tmp_path / name) for name in ("7.png", "8.png")]
    assert run(capsys, "upscale", MODEL, *names)[0] == 0
    status, out, _ = run(capsys, "upscale", MODEL, *sorted(tmp_path.glob("*.png")))
    assert status == 0
    assert "left out: the result of 7.png belongs there" in out
    assert listed(tmp_path) == ["7.png", "7_2x.png", "8.png", "8_2x.png"]


@pytest.mark.parametrize("given", ["7_2x.png", "*_2x.png"])
def test_a_result_that_is_asked_for_alone_is_enlarged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, given: str
):
    for name in ("7.png", "7_2x.png", "b_2x.png"):
        picture(tmp_path / name)
    if "*" in given:
        picture(tmp_path / "b.png")
    assert run(capsys, "upscale", MODEL, given)[0] == 0
    assert (tmp_path / "7_2x_2x.png").is_file()


# Only a file is done already


@pytest.mark.parametrize("there", ["folder", "full folder", "fifo", "dangling link"])
def test_what_is_no_file_is_no_finished_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, there: str
):
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    target = tmp_path / "out" / "a.png"
    target.parent.mkdir()
    if there == "fifo":
        os.mkfifo(target)
    elif there == "dangling link":
        target.symlink_to("nowhere.png")
    else:
        target.mkdir()
    if there == "full folder":
        picture(target / "c.png")
    for force in ((), ("--force",)):
        status, out, err = run(capsys, "upscale", MODEL, a, b, "--out", "out", *force)
        assert status == 1
        assert "something else than a file stands where the file belongs" in err
        assert "b.png" in out


def test_a_folder_called_like_a_picture_is_no_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "o.png").mkdir()
    status, out, err = run(capsys, "upscale", MODEL, picture(tmp_path / "a.png"), "--out", "o.png")
    assert (status, out) == (1, "")
    assert "something else than a file stands where the file belongs" in err


@pytest.mark.parametrize("out", ["large.gif", "large.jxl", "film.mp4", "large.HEIC"])
def test_a_name_that_is_no_picture_becomes_no_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: str
):
    status, _, err = run(capsys, "upscale", MODEL, picture(tmp_path / "a.png"), "--out", out)
    assert status == 1
    assert "no picture is written under a name with this ending" in err
    assert f"--out {out}/" in err
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["all.png", "all.jpg", "all.mp4"])
def test_many_pictures_do_not_become_one_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: str
):
    picture(tmp_path / "in" / "a.png")
    status, _, err = run(capsys, "upscale", MODEL, "in", "--out", out)
    assert status == 1
    assert "several pictures cannot be written to one file" in err
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["v1.5", "new/", "large.gif/", "run.2026", ".hidden"])
def test_folders_are_made_under_any_other_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, out: str
):
    assert run(capsys, "upscale", MODEL, picture(tmp_path / "a.png"), "--out", out)[0] == 0
    assert (tmp_path / out / "a.png").is_file()


# One file's fault is not that of others


@posix
@pytest.mark.parametrize(
    "name", ["x" * 250 + ".png", "x" * 300 + ".png", "x/" * 3000 + "a.png", "é" * 125 + ".png"]
)
def test_a_name_that_no_file_can_have_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
):
    if len(name.encode()) < 255:
        picture(tmp_path / name)
    picture(tmp_path / "b.png")
    status, out, err = run(capsys, "upscale", MODEL, name, "b.png")
    assert status == 1
    assert "error: " in err
    assert "unexpected" not in err
    assert "b_2x.png" in out
    assert (tmp_path / "b_2x.png").is_file()


def test_an_empty_folder_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "full" / "a.png")
    status, _, err = run(capsys, "upscale", MODEL, "empty", "full")
    assert status == 1
    assert "error: empty: there is no picture in this folder" in err
    assert (tmp_path / "full_2x" / "a.png").is_file()


@posix
@pytest.mark.parametrize("command", ["inspect", "verify", "bench", "doctor"])
@pytest.mark.parametrize("bad", ["x" * 300 + ".pth", "damaged.pth", "folder.onnx", "missing.onnx"])
def test_a_damaged_model_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, bad: str
):
    (tmp_path / "damaged.pth").write_bytes(b"damaged")
    (tmp_path / "folder.onnx").mkdir()
    good = Path(shutil.copy(MODEL, tmp_path / "good.safetensors"))
    status, out, err = run(
        capsys,
        *{
            "verify": ("verify", MODEL, bad, good, "--no-report"),
            "bench": ("bench", bad, good, "--size", "16", "--seconds", "0.01"),
        }.get(command, (command, bad, good)),
        "--json",
    )
    assert status == 1
    assert "unexpected" not in out + err
    assert "good.safetensors" in json.dumps(json.loads(out))
    assert bad[:100] in out + err


def test_a_file_that_is_no_model_does_not_stop_the_measuring_of_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    (tmp_path / "notes.txt").write_text("no model")
    status, out, err = run(
        capsys, "bench", "notes.txt", MODEL, "--size", "16", "--seconds", "0.01", "--json"
    )
    assert status == 0
    assert [row["name"] for row in json.loads(out)["measurements"]] == [MODEL.name]
    assert err == "left out, since they are no model files: notes.txt\n"


# What became of each is told


def test_a_picture_named_in_several_ways_is_taken_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    a = picture(tmp_path / "in" / "a.png")
    for out in (("--out", "o"), ("--out", "o.png"), ()):
        status, text, _ = run(
            capsys, "upscale", MODEL, a, "in/a.png", "./in/../in/a.png", "in/*.png", *out
        )
        assert status == 0
        assert text.count("\n") == 1


def test_a_folder_and_its_picture_are_taken_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    picture(tmp_path / "in" / "a.png")
    status, out, _ = run(capsys, "upscale", MODEL, "in", "in/", "in/a.png", "--out", "o")
    assert (status, out.count("\n")) == (0, 1)


def test_the_slower_of_two_runs_skips(tmp_path: Path):
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", (24, 24))
    command = [sys.executable, "-m", "aether_converters", "upscale", MODEL, "in", "--out", "o"]
    runs = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in runs:
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    assert len(listed(tmp_path / "o")) == 3


def test_the_summary_has_counts_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in" / "2.png").write_bytes(b"damaged")
    picture(tmp_path / "o" / "3.png")
    status, out, err = run(capsys, "upscale", MODEL, "in", "--out", "o")
    assert status == 1
    assert out.count("\n") == 2
    assert err.endswith(
        f"3 pictures: 1 written, 1 skipped, 1 failed\n  failed    {Path('in/2.png')}\n"
    )


@posix
@pytest.mark.parametrize(
    ("name", "json_too"), [("SIGINT", False), ("SIGHUP", False), ("SIGTERM", True)]
)
def test_who_stops_a_run_is_told_what_was_done(tmp_path: Path, name: str, json_too: bool):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(b"damaged")
    for index in range(1, 30):
        picture(tmp_path / "in" / f"{index}.png", (120, 120))
    options = ("--json",) if json_too else ()
    process = subprocess.Popen(
        [sys.executable, "-m", "aether_converters", "upscale", MODEL, "in", "--out", "o", *options],
        preexec_fn=hear_signals,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("o/*.png"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.Signals[name]
    assert err.endswith("error: interrupted; no unfinished file was left\n")
    written = len(listed(tmp_path / "o"))
    assert f"30 pictures: {written} written, 0 skipped, 1 failed, {29 - written} not done\n" in err
    assert f"  failed    {Path('in/0.png')}\n" in err
    assert not list((tmp_path / "o").glob(".*"))
    if json_too:
        outcomes = [report["outcome"] for report in json.loads(out)]
        assert outcomes == ["failed", *["written"] * written]


def hear_signals() -> None:
    """As in a terminal: a shell has what it runs in the background ignore some."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@posix
@pytest.mark.parametrize(
    ("command", "imported"),
    [("upscale", "argparse"), ("inspect", "aether_spandrel"), ("--help", "importlib.metadata")],
)
def test_who_stops_a_command_at_once_sees_no_traceback(command: str, imported: str):
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {imported!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.modules.pop('argparse', None)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from aether_converters.command_line.main import main\n"
        f"sys.exit(main([{command!r}, 'x.pth', 'y.png']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=hear_signals,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "error: interrupted; no unfinished file was left\n"
    assert done.returncode in (130, -signal.SIGINT)


def test_lines_come_as_pictures_are_done(tmp_path: Path):
    for index in range(12):
        picture(tmp_path / "in" / f"{index}.png", (120, 120))
    process = subprocess.Popen(
        [sys.executable, "-m", "aether_converters", "upscale", MODEL, "in", "--out", "o"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "0.png" in first
    assert process.poll() is None
    process.communicate()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("convert", MODEL, "--to", "pth", "--out", "o", "--pictures"), "--recursive"),
        (("verify", MODEL, MODEL, "--no-report", "--pictures"), "--recursive"),
        (("release", MODEL, "--to", "pth", "--out", "o", "--pictures"), "--recursive"),
        (("upscale", MODEL, "--recursive"), "--recursive"),
    ],
)
def test_no_command_advises_an_option_that_does_not_help(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: Sequence[object], option: str
):
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, *command, "empty")
    assert status == 1
    assert "there is no picture in this folder" in err
    assert option not in err
