"""`aethernet doctor` says what works, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import pytest
import torch
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

from aether_converters import convert
from aether_converters.command_line.main import main
from aether_converters.doctor.diagnosis import (
    Row,
    Section,
    examine_file,
    examine_programs,
    examine_python,
)
from aether_converters.doctor.programs import (
    ProgramPython,
    Surroundings,
    find_programs,
    start_up_files,
)
from aether_converters.installation import requirement
from aether_converters.tensorrt.driver import probe_driver
from tests.support import golden_cases
from tests.support.tiny import tiny
from tests.tensorrt.test_engines import sidecar, written

HERE = version("aether-spandrel")


def rows(section: Section) -> dict[str, Row]:
    return {row.name: row for row in section.rows}


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aether_converters", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


# This Python


@pytest.fixture(scope="module")
def here() -> dict[str, Row]:
    return rows(examine_python())


def test_versions_are_those_that_are_installed(here: dict[str, Row]):
    assert here["torch"].text.startswith(f"{torch.__version__}, built for ")
    assert here["spandrel"].text.startswith(version("spandrel"))
    assert f"onnx {version('onnx')}" in here["[convert]"].text


def test_a_fresh_python_was_asked_whether_aethernet_is_registered(here: dict[str, Row]):
    assert here["registered"].text == "yes, importing spandrel is enough"
    assert here["hook"].text.startswith("installed, ")
    assert not any(row.problem for row in here.values())


def test_extras_that_are_missing_are_named(here: dict[str, Row]):
    extras = {"gpu": "onnxruntime-gpu", "trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}
    absent = [extra for extra, package in extras.items() if not installed(package)]
    assert here["optional"].text == f"not installed: {', '.join(absent)}"
    assert "CPU" in here["providers"].text
    assert here["NVIDIA"].text.endswith(probe_driver().in_words())


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def test_an_engine_is_described_and_it_is_said_why_it_does_not_run(tmp_path: Path):
    engine = written(tmp_path, sidecar())
    found = rows(examine_file(engine))
    assert found["engine"].text == "by tensorrt-rtx 1.7.1.116, 37 bytes"
    assert found["runs"].problem
    assert found["runs"].text.startswith("no: ")
    engine.write_bytes(b"another plan")
    assert rows(examine_file(engine))["described"].problem


def test_a_hook_that_is_switched_off_is_a_problem_and_exits_with_failure():
    result = doctor(AETHER_SPANDREL_AUTO="0")
    assert result.returncode == 1
    assert "hook       switched off by AETHER_SPANDREL_AUTO=0" in result.stdout
    assert "next       remove the variable AETHER_SPANDREL_AUTO" in result.stdout
    assert "registered no: the hook did not run" in result.stdout
    assert result.stdout.endswith("1 problem found\n")
    assert not result.stderr


def test_json_for_scripts_and_one_screen_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for variable in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == 0
    assert found["sections"][0]["title"].startswith(f"aether-spandrel {HERE} on ")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("no problem found here\n")
    assert len(text.splitlines()) <= 24


# Files


def test_a_file_that_loads_says_as_what_and_how_well_it_runs_in_half_precision(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "net.pth")
    found = rows(examine_file(tmp_path / "net.pth"))
    assert found["loads"].text.startswith("yes: AetherNet of its own size, revision G1, 2x")
    assert found["spandrel"].text.startswith("yes, as AetherNet: G1, ")
    assert found["half"].text.startswith("fp16 ")
    assert found["assumed"].text.startswith("mean = 0.5, ")
    assert not any(row.problem for row in found.values())


def test_a_network_that_overflows_in_fp16_says_so(tmp_path: Path):
    state = tiny().state_dict()
    state["conv_first.weight"] *= 2e5
    state["conv_before_upsample.0.weight"] *= 5e-6
    torch.save(state, tmp_path / "net.pth")
    found = rows(examine_file(tmp_path / "net.pth"))
    assert found["half"].text.startswith("fp16 overflows: use fp32, bf16 ")


def test_a_network_of_another_kind_is_named(tmp_path: Path):
    torch.save(SRVGGNetCompact(upscale=2).state_dict(), tmp_path / "compact.pth")
    section = examine_file(tmp_path / "compact.pth")
    assert [row.problem for row in section.rows] == [True, False]
    assert rows(section)["AetherNet"].text == "no, a network of another kind"
    assert rows(section)["spandrel"].text.startswith("yes, as Compact: ")


def test_a_damaged_file_says_what_is_wrong_with_it(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(content[: len(content) // 2])
    loads = rows(examine_file(tmp_path / "net.pth"))["loads"]
    assert loads.problem
    assert loads.text.startswith("no: the file is damaged or cut short; found ")
    assert loads.next.startswith("download ")


def test_weights_that_give_no_picture_are_a_problem(tmp_path: Path):
    state = tiny().state_dict()
    state["conv_last.bias"][0] = float("nan")
    torch.save(state, tmp_path / "net.pth")
    found = rows(examine_file(tmp_path / "net.pth"))
    assert found["picture"].problem
    assert "half" not in found


def test_what_spandrels_own_loader_refuses_is_a_problem_with_a_way_out(tmp_path: Path):
    state = tiny().state_dict()
    state["conv_last.weight"] = torch.quantize_per_tensor(
        state["conv_last.weight"], 0.01, 0, torch.qint8
    )
    torch.save(state, tmp_path / "net.pth")
    found = rows(examine_file(tmp_path / "net.pth"))
    assert found["loads"].text.startswith("yes")
    assert found["spandrel"].problem
    assert f'aethernet convert "{tmp_path / "net.pth"}" --to safetensors' in found["spandrel"].next


@pytest.mark.parametrize("ir_version", [8, 11])
def test_an_onnx_file_that_chainner_cannot_read_is_found(tmp_path: Path, ir_version: int):
    torch.save(tiny().state_dict(), tmp_path / "net.pth")
    path = convert(tmp_path / "net.pth", to=["onnx"], precision=["fp16"]).artefacts[0].path
    model = onnx.load(path)
    model.ir_version = ir_version
    onnx.save(model, path)
    found = rows(examine_file(path))
    assert found["loads"].text == "yes: 2x, 3 to 3 channels, fp16, any size, opset 17"
    assert found["ChaiNNer"].problem == (ir_version == 11)


def test_several_files_are_examined_and_one_that_is_missing_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    case = golden_cases.CASES["g5f-fused-4x"]
    torch.save(golden_cases.checkpoint(case), tmp_path / "net.pth")
    assert main(["doctor", str(tmp_path / "net.pth"), str(tmp_path / "none.pth")]) == 1
    output = capsys.readouterr().out
    assert "revision G5f, 4x, fused" in output
    assert "  loads      no: " in output
    assert output.endswith("1 problem found\n")


# Other programs


def make(path: Path, *installed: str) -> Path:
    """An interpreter's file, and the folders that pip writes for what is installed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    root = path.parent.parent
    site = root / "lib" / "python3.11" / "site-packages"
    if path.suffix == ".exe":
        site = (root if path.parent.name == "Scripts" else path.parent) / "Lib" / "site-packages"
    for entry in installed:
        name, number = entry.split()
        folder = site / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}")
    return path


PYTHONS = [
    ("linux", ".config/chaiNNer/python/python/bin/python3.11", "ChaiNNer"),
    ("darwin", "Library/Application Support/chaiNNer/python/python/bin/python3.11", "ChaiNNer"),
    ("win32", "AppData/Roaming/chaiNNer/python/python/python.exe", "ChaiNNer"),
    ("win32", "Downloads/chaiNNer-windows-x64/python/python/python.exe", "ChaiNNer"),
    ("win32", "Desktop/ComfyUI_windows_portable/python_embeded/python.exe", "ComfyUI"),
    ("win32", "Documents/ComfyUI/.venv/Scripts/python.exe", "ComfyUI"),
    (
        "win32",
        "AppData/Roaming/StabilityMatrix/Packages/ComfyUI/venv/Scripts/python.exe",
        "ComfyUI",
    ),
    ("darwin", "Documents/ComfyUI/.venv/bin/python", "ComfyUI"),
    ("linux", "ComfyUI/venv/bin/python", "ComfyUI"),
    ("linux", "comfy/ComfyUI/.venv/bin/python", "ComfyUI"),
    ("linux", "pinokio/api/comfy.git/app/env/bin/python", "ComfyUI"),
]


@pytest.mark.parametrize(("platform", "path", "program"), PYTHONS, ids=[p[1] for p in PYTHONS])
def test_programs_are_found_on_their_usual_paths(
    tmp_path: Path, platform: str, path: str, program: str
):
    python = make(tmp_path / path, "torch 2.7.0", "spandrel 0.4.1", "pip 23.2")
    (found,) = find_programs(Surroundings(platform=platform, home=tmp_path, environ={}))
    assert (found.program, found.python) == (program, python)
    assert found.versions == {"torch": "2.7.0", "spandrel": "0.4.1"}
    assert found.install_command("aether-spandrel") == (
        f'"{python}" -m pip install aether-spandrel'
    )


def test_a_python_of_the_users_choice_is_found_in_the_programs_settings(tmp_path: Path):
    own = make(tmp_path / "own" / "bin" / "python3")
    settings = tmp_path / "settings" / "chaiNNer" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"useSystemPython": True, "systemPythonLocation": str(own)}))
    base = make(tmp_path / "elsewhere" / ".venv" / "bin" / "python")
    config = tmp_path / "settings" / "ComfyUI" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"basePath": str(tmp_path / "elsewhere")}))
    around = Surroundings(
        platform="linux", home=tmp_path, environ={"XDG_CONFIG_HOME": str(tmp_path / "settings")}
    )
    found = {entry.program: entry.python for entry in find_programs(around)}
    assert found == {"ChaiNNer": own, "ComfyUI": base}


@pytest.mark.parametrize("content", ["", "[]", "{", "\ufffd", '{"basePath": 3}', "[" * 100_000])
def test_settings_that_cannot_be_read_are_passed_over(tmp_path: Path, content: str):
    for name in ("chaiNNer/settings.json", "ComfyUI/config.json"):
        path = tmp_path / ".config" / name
        path.parent.mkdir(parents=True)
        path.write_text(content, encoding="utf-8")
    assert find_programs(Surroundings(platform="linux", home=tmp_path, environ={})) == []


@pytest.mark.parametrize("named", ["tools/Comfy", "tools", "tools/Comfy/venv"])
def test_a_folder_can_be_named(tmp_path: Path, named: str):
    python = make(tmp_path / "tools" / "Comfy" / "venv" / "bin" / "python")
    around = Surroundings(
        platform="linux", home=tmp_path / "home", environ={}, look_in=(tmp_path / named,)
    )
    found = find_programs(around)
    if named == "tools":  # a folder called neither ComfyUI nor ChaiNNer is not guessed at
        assert not found
    else:
        assert [entry.python for entry in found] == [python]


def test_a_place_where_it_is_missing_gets_the_line_that_installs_it(tmp_path: Path):
    python = make(tmp_path / "ComfyUI" / "venv" / "bin" / "python", "spandrel 0.4.1", "pip 25.0")
    (section,) = examine_programs(Surroundings(platform="linux", home=tmp_path, environ={}))
    assert section.title == f"ComfyUI: {python}"
    assert rows(section)["install"].text == f'"{python}" -m pip install {requirement()}'
    assert not any(row.problem for row in section.rows)


def test_a_place_that_has_it_in_this_or_another_version_is_told_apart(tmp_path: Path):
    make(tmp_path / "ComfyUI/venv/bin/python", "spandrel 0.4.1", "pip 25.0", "aether-spandrel 0.0")
    make(tmp_path / "ComfyUI2/venv/bin/python", "spandrel 0.4.1", f"aether-spandrel {HERE}")
    around = Surroundings(platform="linux", home=tmp_path, environ={})
    old, without_hook = (rows(section) for section in examine_programs(around))
    assert "-m pip install --upgrade " in old["update"].text
    assert without_hook["AetherNet"].problem
    site = tmp_path / "ComfyUI2" / "venv" / "lib" / "python3.11" / "site-packages"
    (site / "aether_spandrel.pth").touch()
    _, new = (rows(section) for section in examine_programs(around))
    assert new["AetherNet"] == Row("AetherNet", f"installed, aether-spandrel {HERE}")


def test_a_folder_that_does_not_exist_is_a_problem(tmp_path: Path):
    around = Surroundings(platform="linux", home=tmp_path, environ={}, look_in=(tmp_path / "none",))
    (section,) = examine_programs(around)
    assert section.rows[0].problem


def test_each_python_has_its_own_start_up_file():
    assert start_up_files((3, 11)) == ("aether_spandrel.pth",)
    assert start_up_files((3, 16)) == ("aether_spandrel.pth", "aether_spandrel.start")
    assert start_up_files((3, 18)) == ("aether_spandrel.start",)


def test_before_the_program_has_installed_pytorch_it_has_to_be_started_once(tmp_path: Path):
    make(tmp_path / ".config/chaiNNer/python/python/bin/python3.11", "pip 23.2")
    (section,) = examine_programs(Surroundings(platform="linux", home=tmp_path, environ={}))
    assert "start the program once" in rows(section)["AetherNet"].text


def test_an_embedded_python_that_reads_no_start_up_lines_is_a_problem(tmp_path: Path):
    embedded = tmp_path / "ComfyUI_windows_portable" / "python_embeded"
    make(embedded / "python.exe", "spandrel 0.4.1", "pip 25.0")
    around = Surroundings(platform="win32", home=tmp_path, environ={})
    for text, reads in (("python312.zip\n.\n#import site\n", False), (".\nimport site\n", True)):
        (embedded / "python312._pth").write_text(text)
        (section,) = examine_programs(around)
        assert any(row.problem for row in section.rows) != reads


def test_an_environment_without_pip_is_served_by_uv():
    entry = ProgramPython(program="ComfyUI", python=Path("/c/python"), versions={}, has_pip=False)
    line = entry.install_command("aether-spandrel")
    assert line == f'uv pip install --python "{Path("/c/python")}" aether-spandrel'


def test_what_is_installed_from_a_folder_is_installed_from_there_again():
    source = requirement()
    assert source == "aether-spandrel" or Path(source.strip('"')).exists()


def test_a_torch_that_cannot_be_imported_is_reported_and_the_rest_too(tmp_path: Path):
    (tmp_path / "torch").mkdir()
    text = "raise OSError('libcudart.so.12: cannot open shared object file')"
    (tmp_path / "torch" / "__init__.py").write_text(text)
    torch.save(tiny().state_dict(), tmp_path / "net.pth")
    result = doctor(str(tmp_path / "net.pth"), PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "torch      cannot be imported: OSError: libcudart.so.12: " in result.stdout
    assert "spandrel   cannot be imported: OSError: libcudart.so.12: " in result.stdout
    assert "loads      no: unexpected OSError: libcudart.so.12: " in result.stdout
    assert "[convert]  works: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
