"""The command line teaches, reports and fails in plain words."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aether_converters.command_line.arguments import seconds
from aether_converters.command_line.main import main
from aether_converters.installation import install_line
from aether_converters.pictures.picture import Picture, to_float
from aether_converters.pictures.reading import read_picture
from tests.support.tiny import tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save({"params": tiny().state_dict()}, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_inspect_says_what_the_file_is(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    checkpoint = tmp_path / "both.pth"
    torch.save({"params": tiny(1).state_dict(), "params_ema": tiny().state_dict()}, checkpoint)
    status, out, err = run(capsys, "inspect", checkpoint)
    assert status == 0
    assert err == ""
    assert out == (
        f"{checkpoint}\n"
        "  network    AetherNet of its own size, revision G1\n"
        "  scale      2x\n"
        "  channels   3 (RGB)\n"
        "  embed_dim  16\n"
        "  depths     2, 1\n"
        "  ffn_dim    32\n"
        "  kernels    7x7 and 3x3, not fused\n"
        "  norm       layernorm\n"
        "  attention  none\n"
        "  weights    169,347 in float32\n"
        "  quantised  no\n"
        "  taken from params_ema\n"
        "  assumed    img_range = 1, the default of G1: no tensor carries it and the file's "
        "metadata do not name it\n"
        "  assumed    mean = 0.5, for 3 channels: G1 stores none\n"
        "  note       the file holds several networks: params_ema was taken, params left aside\n"
    )


def test_inspect_prints_json_for_scripts(capsys: pytest.CaptureFixture[str], checkpoint: Path):
    _, out, _ = run(capsys, "inspect", "--json", checkpoint)
    facts = json.loads(out)
    assert facts["revision"] == "G1"
    assert facts["config"]["depths"] == [2, 1]
    _, out, _ = run(capsys, "inspect", "--json", checkpoint, checkpoint)
    assert [entry["path"] for entry in json.loads(out)] == [str(checkpoint)] * 2


def test_inspect_reports_every_readable_file_and_fails_in_the_end(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    status, out, err = run(capsys, "inspect", tmp_path / "no.pth", checkpoint)
    assert status == 1
    assert out.startswith(f"{checkpoint}\n")
    assert err.startswith(f"error: {tmp_path / 'no.pth'}: there is no such file")
    _, out, _ = run(capsys, "inspect", "--json", tmp_path / "no.pth", checkpoint)
    assert [entry["path"] for entry in json.loads(out)] == [str(checkpoint)]


def test_transparency_is_no_second_tile(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    picture = Image.linear_gradient("L").resize((24, 16)).convert("RGBA")
    picture.putalpha(Image.radial_gradient("L").resize((24, 16)))
    picture.save(tmp_path / "clear.png")
    _, out, _ = run(capsys, "upscale", checkpoint, tmp_path / "clear.png")
    assert "48 x 32 px, 1 tile, " in out


def test_inspect_needs_no_extra(checkpoint: Path):
    code = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'PIL', 'rich', 'tifffile', 'imagecodecs'):\n"
        "    sys.modules[name] = None\n"
        "from aether_converters.command_line.main import main\n"
        f"sys.exit(main(['inspect', {str(checkpoint)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "AetherNet of its own size" in done.stdout


def test_a_missing_extra_is_named_with_the_command_that_installs_it(checkpoint: Path):
    code = (
        "import sys\n"
        "sys.modules['rich'] = None\n"
        "from aether_converters.command_line.main import main\n"
        f"sys.exit(main(['convert', {str(checkpoint)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this needs the Python package rich" in done.stderr
    assert f"next      {install_line('convert')}\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_convert_writes_and_reports(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    arguments = ("convert", checkpoint, "--out", tmp_path / "out", "--to", "onnx,safetensors")
    status, out, _ = run(capsys, *arguments, "--precision", "fp16", "--name", "mine")
    assert status == 0
    for name in ("2x_mine_fp16.onnx", "2x_mine_fp16.safetensors"):
        assert (tmp_path / "out" / name).is_file()
        assert name in out
    assert out.count("written") == 2


def test_convert_prints_json_for_scripts(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    _, out, _ = run(capsys, "convert", checkpoint, "--out", tmp_path, "--to", "onnx", "--json")
    report = json.loads(out)
    assert report["passed"] is True
    assert report["source"]["revision"] == "G1"
    assert [a["precision"] for a in report["artefacts"]] == ["fp32", "fp16"]
    assert report["artefacts"][0]["details"]["opset"] == 17


def test_convert_keeps_existing_files_and_says_how_to_replace_them(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    arguments = ("convert", checkpoint, "--to", "pth", "--precision", "fp32")
    assert run(capsys, *arguments)[0] == 0
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert err == (
        f"error: {tmp_path / '2x_tiny_fp32.pth'}: the file exists already, and is kept\n"
        "  next      choose another folder with --out, or replace it with --force\n"
    )
    assert run(capsys, *arguments, "--force")[0] == 0


def test_convert_exits_with_failure_when_an_artefact_is_not_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    state = tiny().state_dict()
    state["conv_first.weight"] *= 2e5  # the activations leave the range of fp16 ...
    state["conv_before_upsample.0.weight"] *= 5e-6  # ... and come back
    torch.save(state, tmp_path / "wild.pth")
    status, out, err = run(
        capsys, "convert", tmp_path / "wild.pth", "--out", tmp_path / "out", "--to", "onnx"
    )
    assert status == 1
    assert "not kept" in out
    assert f"error: {tmp_path / 'out' / '2x_wild_fp16.onnx'}: not kept: " in err
    assert not (tmp_path / "out" / "2x_wild_fp16.onnx").exists()


def test_upscale_enlarges_pictures_with_any_format(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    run(capsys, "convert", checkpoint, "--out", tmp_path, "--precision", "fp32")
    pictures: list[Picture] = []
    for suffix in ("pth", "safetensors", "onnx"):
        out = tmp_path / f"{suffix}.png"
        status, text, _ = run(
            capsys, "upscale", tmp_path / f"2x_tiny_fp32.{suffix}", photo, "--out", out
        )
        assert status == 0
        assert text.startswith(f"{out}: 48 x 32 px, 1 tile, ")
        pictures.append(read_picture(out))
    for other in pictures[1:]:
        np.testing.assert_allclose(to_float(other.color), to_float(pictures[0].color), atol=1 / 255)


def test_upscale_goes_on_after_a_damaged_picture_and_fails_in_the_end(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    status, out, err = run(capsys, "upscale", checkpoint, broken, photo, "--out", tmp_path / "out")
    assert status == 1
    assert f"error: {broken}: this is not a picture that can be read" in err
    assert str(tmp_path / "out" / "photo.png") in out
    assert (tmp_path / "out" / "photo.png").is_file()


def test_upscale_prints_json_for_scripts(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    _, out, _ = run(capsys, "upscale", checkpoint, photo, "--json")
    (report,) = json.loads(out)
    assert report["outcome"] == "written"
    assert report["target"] == str(tmp_path / "photo_2x.png")
    assert report["size"] == [48, 32]


def test_options_of_upscale_change_the_result(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    def size_with(quality: int) -> int:
        out = tmp_path / f"{quality}.jpg"
        run(capsys, "upscale", checkpoint, photo, "--out", out, "--quality", quality)
        return out.stat().st_size

    assert size_with(5) < size_with(100)
    _, out, _ = run(
        capsys, "upscale", checkpoint, photo, "--format", "tiff", "--tile", 12, "--overlap", 2
    )
    assert out.startswith(f"{tmp_path / 'photo_2x.tif'}: 48 x 32 px, 6 tiles")
    status, _, err = run(capsys, "upscale", checkpoint, photo, "--tile", 12, "--force")
    assert status == 1
    assert "the tiles are too small" in err


def test_verify_compares_on_pictures_of_the_user_too(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    run(capsys, "convert", checkpoint, "--out", tmp_path / "release", "--to", "onnx")
    (tmp_path / "release" / "notes.txt").write_text("not a model")
    files = sorted((tmp_path / "release").iterdir())
    status, out, err = run(capsys, "verify", checkpoint, *files, "--pictures", photo)
    assert status == 0
    assert out.count("passed") == 2
    assert err == "left out, since they are no model files: notes.txt, report.html, report.json\n"


def test_verify_fails_for_a_file_of_another_training(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    torch.save(tiny(7).state_dict(), tmp_path / "other.pth")
    status, _, err = run(capsys, "verify", checkpoint, tmp_path / "other.pth")
    assert status == 1
    assert err.startswith(f"error: {tmp_path / 'other.pth'}: failed: max difference ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("inspect", "no.pth"),
            "error: no.pth: there is no such file\n  next      check the path\n",
        ),
        (
            ("convert", "no.pth"),
            "error: no.pth: there is no such file\n  next      check the path\n",
        ),
        (
            ("verify", "no.pth", "no.txt"),
            "left out, since they are no model files: no.txt\n"
            "error: there is no model file to verify "
            "(expected .pth, .pt, .ckpt, .safetensors, .onnx, .engine, .param)\n"
            "  next      name the files that convert wrote, behind the checkpoint\n",
        ),
        (
            ("upscale", "no.txt", "no.png"),
            "error: no.txt: this is not the name of a model file\n"
            "  expected  .pth, .pt, .ckpt, .safetensors, .onnx, .engine, .param\n"
            "  found     .txt\n"
            "  next      name the model before the pictures, or rename it as its format is "
            "called\n",
        ),
        (
            ("upscale", "no.onnx", "no.png", "--device", "cuda"),
            "error: no.onnx: --device is for PyTorch: ONNX files run where --provider says\n"
            "  found     --device cuda\n"
            "  next      try --provider cuda, or run the .pth or .safetensors file\n",
        ),
    ],
)
def test_errors_are_whole_sentences_without_a_traceback(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
):
    status, out, err = run(capsys, *arguments)
    assert (status, out, err) == (1, "", text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("convert", "a.pth", "--to", "tar"), "tar is not one of pth, safetensors, onnx, trt"),
        (("convert", "a.pth", "--precision", "int3"), "int3 is not one of fp32, fp16"),
        (("convert", "a.pth", "--shape", "720x1280"), "is not of the form 1x3x720x1280 (NxCxHxW)"),
        (("convert", "a.pth", "--name", "a/b"), "a/b cannot be part of a file name"),
        (("upscale", "a.pth", "b.png", "--tile", "x"), "x is not a whole number from 1 to 65536"),
        (("upscale", "a.pth", "b.png", "--memory", "0"), "0 is not a positive number"),
        (("upscale", "a.pth", "b.png", "--quality", "101"), "101 is not a whole number from 1"),
        (("convert",), "the following arguments are required: model"),
        (("upscal", "a.pth"), "there is no command upscal\n  next      did you mean upscale?"),
        (("a.pth", "b.png"), "next      aethernet upscale a.pth photo.png"),
        (("upscale", "a.pth", "b.png", "--tiel", "9"), "next      did you mean --tile?"),
        (("convert", "a.pth", "--precison=fp16"), "next      did you mean --precision?"),
        (("upscale", "a.pth", "-i", "b.png"), "next      write the pictures after the model"),
        (("upscale", "a.pth", "b.png", "-s", "4"), "next      the scale is the model's"),
        (("upscale", "a.pth", "b.png", "--scale", "4"), "--outscale N resizes what it gives"),
        (("convert", "a.pth", "-o", "out"), "next      --out PATH says where results go"),
        (("upscale", "a.pth", "b.png", "--outscale", "0"), "0 is no number such as 3 or 1.5"),
        (("upscale", "a.pth", "b.png", "--outscale", "1e9"), "1e9 is no number such as 3 or 1.5"),
        (("bench", "a.pth", "--xyzzy"), "no option --xyzzy\n  next      aethernet bench --help"),
    ],
)
def test_wrong_usage_is_explained(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str
):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_habits_of_other_programs_are_answered_all_at_once(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["upscale", "-i", "b.png", "-o", "out", "-n", "a", "-s", "2", "-t", "9"])
    assert capsys.readouterr().err == (
        "error: there is no option -i -o -n -s -t\n"
        "  next      write the pictures after the model: aethernet upscale model.pth photo.png\n"
        "  next      --out PATH says where results go\n"
        "  next      write the model's file first: aethernet upscale model.pth photo.png\n"
        "  next      the scale is the model's; --outscale N resizes what it gives\n"
        "  next      --tile SIZE is the side of a tile in px; left out, memory decides\n"
    )


def test_verify_takes_a_folder_and_leaves_the_source_out_of_it(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
):
    (tmp_path / "README.md").write_text("no model")
    torch.save({"params": tiny().state_dict()}, tmp_path / "copy.pth")
    status, out, err = run(capsys, "verify", checkpoint, tmp_path, "--no-report", "--json")
    assert status == 0, err
    assert [Path(a["path"]).name for a in json.loads(out)["artefacts"]] == ["copy.pth"]
    (tmp_path / "empty").mkdir()
    status, _, err = run(capsys, "verify", checkpoint, tmp_path / "empty")
    assert status == 1
    assert "there is no model file to verify" in err


def test_the_bare_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    assert "try everything out with a sample model" in capsys.readouterr().out


def test_options_may_be_shortened_and_files_may_look_like_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["inspect", "--jso", str(tmp_path / "none.pth")]) == 1
    assert main(["inspect", "--", "--tiel"]) == 1
    assert "there is no option" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "convert", "upscale", "verify"])
def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"examples:\n  aethernet {command} " in out
    assert "--json" in out


def test_a_damaged_onnx_file_is_explained(
    capsys: pytest.CaptureFixture[str], photo: Path, tmp_path: Path
):
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x08garbage" * 20)
    status, _, err = run(capsys, "upscale", tmp_path / "bad.onnx", photo)
    assert status == 1
    assert err.startswith(
        f"error: {tmp_path / 'bad.onnx'}: the file is damaged or is no ONNX model"
    )
    assert "Traceback" not in err


def test_shards_share_a_folder_and_a_second_run_goes_on(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photo: Path, tmp_path: Path
):
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(photo.read_bytes())
    written: list[list[str]] = []
    for shard in ("1/3", "2/3", "3/3", "1/1"):
        status, out, _ = run(
            capsys,
            "upscale",
            "--json",
            checkpoint,
            folder,
            "--out",
            tmp_path / "o",
            "--shard",
            shard,
        )
        assert status == 0
        found = json.loads(out)
        written.append([Path(r["target"]).name for r in found if r["outcome"] == "written"])
    assert written == [["0.png", "3.png"], ["1.png", "4.png"], ["2.png"], []]


@pytest.mark.parametrize(
    "arguments",
    [
        ("upscale", "m.pth", ""),
        ("upscale", "", "p.png"),
        ("upscale", "m.pth", "p.png", "--out", ""),
        ("convert", "m.pth", "--out", ""),
        ("verify", "m.pth", ""),
        ("verify", "m.pth", "m.onnx", "--report", ""),
        ("release", "m.pth", "--out", ""),
        ("bench", ""),
        ("evaluate", "", "pictures"),
        ("inspect", ""),
        ("doctor", "--look-in", ""),
    ],
)
def test_an_empty_text_is_no_folder(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    assert "nothing is no name of a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_a_shard_that_does_not_exist_is_a_usage_error(shard: str, checkpoint: Path, photo: Path):
    with pytest.raises(SystemExit) as caught:
        main(["upscale", str(checkpoint), str(photo), f"--shard={shard}"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("off", 0.0), ("90s", 90.0), ("2m", 120.0), ("7", 7.0)]
)
def test_a_time_is_read_with_its_unit(text: str, expected: float):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1s", "m", "soon", "0"])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="is no time such as 90s"):
        seconds(text)
