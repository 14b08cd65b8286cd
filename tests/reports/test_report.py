"""The report shows what was measured, on one page that needs nothing else and trusts nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import html5lib
import numpy as np
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from aether_converters import convert, verify
from aether_converters.card import ModelCard
from aether_converters.command_line.main import main
from aether_converters.errors import ConversionError
from aether_converters.graphs.macs import module_macs, network_macs
from aether_converters.int8.planning import Int8Options
from aether_converters.measuring.exhibit import SHOWN, bicubic, exhibit_of
from aether_converters.measuring.figures import (
    ArtefactReport,
    Colour,
    Patch,
    PictureProof,
    View,
)
from aether_converters.measuring.speed import with_speeds
from aether_converters.pictures.comparison import Pair
from aether_converters.reports.files import card_beside, report_facts, write_report
from aether_converters.reports.page import render_page
from aether_converters.reports.programs import chosen_files
from aether_converters.reports.report import Report
from aether_core import AetherNet
from tests.support.tiny import tiny

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def saved(path: Path, **metadata: str) -> Path:
    torch.save({"params": tiny().state_dict(), **metadata}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted network with its report, int8 and what each layer costs included."""
    folder = tmp_path_factory.mktemp("report")
    source = saved(folder / "tiny.pth")
    int8 = Int8Options(targets=("cpu",), method="minmax", sensitivity=True, tune=0)
    out = folder / "out"
    report = convert(
        source, out, to=["pth", "onnx"], precision=["fp32", "int8"], int8=int8, report=True
    )
    assert report.passed
    return out


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def page_of(folder: Path) -> Any:
    """The page, parsed by a parser that accepts no error."""
    return parsed(folder / "report.html")


def parsed(page: Path) -> Any:
    text = page.read_text("utf-8")
    parser: Any = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(text)


def text_of(element: Any) -> str:
    return "".join(element.itertext())


# What it says


def test_the_figures_are_those_of_the_files(folder: Path, facts: dict[str, Any]):
    assert facts["schema_version"] == 2
    assert facts["generator"].startswith("aether-spandrel ")
    assert facts["kind"] == "conversion"
    for artefact in facts["artefacts"]:
        content = (folder / artefact["path"]).read_bytes()
        assert artefact["bytes"] == len(content)
        assert artefact["sha256"] == hashlib.sha256(content).hexdigest()
        assert 0 < artefact["ssim"] <= 1
        assert artefact["speed"]["milliseconds"] > 0
        assert artefact["views"][0]["scene"] == "coffee"
    assert [a["details"].get("opset") for a in facts["artefacts"]] == [None, None, 17, 17]
    assert facts["effort"]["receptive_radius"] == tiny().config.receptive_radius
    assert facts["effort"]["macs"] == module_macs(fused(), (1, 3, *facts["effort"]["size"]))


def test_files_that_run_the_same_code_have_one_speed(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    report = convert(tmp_path / "model.pth", tmp_path / "out", report=True)
    speeds = {(a.format, a.precision): a.speed for a in report.artefacts}
    assert len(speeds) == 6
    of_torch = {id(speed) for (kind, _), speed in speeds.items() if kind != "onnx"}
    assert len(of_torch) == 1
    assert len(set(map(id, speeds.values()))) == 3
    assert all(speed is not None and speed.runs >= 3 for speed in speeds.values())


def spread(report: Report, value: float, load: float = 0.9) -> Report:
    """The same report, as if its files had been timed with so much else going on."""
    artefacts = (
        replace(a, speed=a.speed and replace(a.speed, spread=value, load=load, milliseconds=1884.3))
        for a in report.artefacts
    )
    return replace(report, artefacts=tuple(artefacts))


def test_speed_has_two_digits_and_no_column_where_it_was_not_measured_well(tmp_path: Path):
    report = convert(saved(tmp_path / "a.pth"), to=["pth"], precision=["fp32"], report=True)
    for name, value, load in (("calm", 0.02, 0.9), ("busy", 0.4, 0.9), ("full", 0.02, 3)):
        write_report(spread(report, value, load), tmp_path / name, force=False)
    calm, busy, full = (text_of(page_of(tmp_path / name)) for name in ("calm", "busy", "full"))
    assert "1.9 s" in calm
    assert "1884" not in calm
    assert "1.9 s" not in busy
    assert "1.9 s" not in full


def test_a_file_that_loses_something_is_usable_and_says_what(folder: Path, facts: dict[str, Any]):
    results = {a["path"]: a["verdict"]["result"] for a in facts["artefacts"]}
    assert set(results.values()) == {"passed", "usable"}
    (int8,) = (a for a in facts["artefacts"] if a["path"] == "2x_tiny_int8_cpu.onnx")
    assert int8["verdict"]["result"] == "usable"
    assert "dB" in int8["verdict"]["words"]
    text = " ".join(text_of(page_of(folder)).split())
    assert f"2x_tiny_int8_cpu.onnx {int8['verdict']['words']}" in text


def judged(**facts: Any) -> tuple[str, str]:
    whole: dict[str, Any] = {
        **{"path": Path("a.onnx"), "format": "onnx", "precision": "int8", "bytes": 1, "sha256": ""},
        **{"max_difference": 0.1, "mean_difference": 0.1, "psnr": 136.0, "ssim": 1.0},
        **{"limit": "", "passed": True, "problem": "", "seconds": 0.0, "details": {}},
    }
    verdict = ArtefactReport(**{**whole, **facts}).verdict
    return verdict.result, verdict.words


def test_the_verdict_has_a_middle_with_figures():
    tint = Colour(pictures=0.4, patches=(Patch(colour="0/255/0", shift=7.2, source=(), found=()),))
    proof = PictureProof(picture="a", psnr=36.9, ssim=0.99, loss=0.93)
    assert judged() == ("passed", "")
    assert judged(psnr=None) == ("passed", "")
    assert judged(colour=Colour(pictures=0.4)) == ("passed", "")
    assert judged(psnr=36.9) == ("usable", "loses about 0.8 dB")
    assert judged(psnr=36.9, colour=tint, pictures=(proof,)) == (
        "usable",
        "loses 0.9 dB, tints by 7 levels",
    )
    assert judged(psnr=49.0)[1] == "loses less than 0.1 dB"
    assert judged(problem="too far")[0] == "failed"
    assert judged(not_run="no GPU")[0] == "not run"


def test_each_program_is_told_its_file(folder: Path, facts: dict[str, Any]):
    chosen = {choice["program"]: choice for choice in facts["programs"]}
    assert chosen["ComfyUI"]["file"] == "2x_tiny_fp32.pth"
    assert chosen["VapourSynth"]["file"] == "2x_tiny_fp32.onnx"
    assert (chosen["Upscayl"]["file"], chosen["Upscayl"]["how"]) == ("", "convert --to ncnn")
    assert chosen["CPU"]["cheaper"] == "2x_tiny_int8_cpu.onnx"
    assert "dB" in chosen["CPU"]["loses"]
    assert chosen["TensorRT"]["cheaper"] == ""  # the int8 file is meant for CPUs
    assert "Which file do I take?" in text_of(page_of(folder))


def test_a_cheaper_file_that_was_not_run_is_said_to_be_so():
    facts: Any = {"bytes": 1, "sha256": "", "max_difference": 0.0, "mean_difference": 0.0}
    facts |= {"psnr": None, "ssim": None, "limit": "", "passed": False, "problem": ""}
    facts |= {"seconds": 0.0, "details": {}, "format": "trt", "not_run": "no driver is installed"}
    files = [
        ArtefactReport(path=Path(f"{p}.engine"), precision=p, **facts) for p in ("fp16", "int8")
    ]
    (choice,) = (choice for choice in chosen_files(files) if choice.program == "TensorRT")
    assert (choice.file, choice.cheaper) == ("fp16.engine", "int8.engine")
    assert choice.loses == "was not run here"


def test_twins_share_a_row_and_both_checksums_are_below(tmp_path: Path):
    source = saved(tmp_path / "tiny.pth")
    out = tmp_path / "out"
    convert(source, out, to=["pth", "safetensors"], precision=["fp32"], report=True)
    table, all_figures = list(page_of(out).iter("table"))
    assert len(list(table.iter("tr"))) == 2
    assert len(list(all_figures.iter("tr"))) == 3


def test_difference_maps_have_one_scale(tmp_path: Path):
    report = convert(saved(tmp_path / "a.pth"), to=["pth"], precision=["fp32"], report=True)
    (artefact,) = report.artefacts
    (view,) = artefact.views

    def differing(name: str, by: float) -> ArtefactReport:
        difference = np.full((*SHOWN, 3), by, np.float32)
        shown = replace(view, max_difference=by, difference=difference)
        return replace(artefact, path=tmp_path / name, views=(shown,))

    several = (differing("a.pth", 0.04), differing("b.pth", 0.01), differing("c.pth", 2e-4))
    write_report(replace(report, artefacts=several), tmp_path / "out", force=False)
    page = page_of(tmp_path / "out")
    maps = [i for i in page.iter("img") if "difference of" in (i.get("alt") or "")]
    assert [picture_of(image)[0, 0, 0] for image in maps] == [230, 153]
    text = " ".join(text_of(page).split())
    assert "-0.05+0.05" in text
    assert "Nothing to be seen on this scale in coffee: c.pth" in text


def picture_of(image: Any) -> Any:
    content = base64.b64decode(image.get("src").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def fused() -> AetherNet:
    return AetherNet(replace(tiny().config, fused=True))


def test_the_page_says_the_same(folder: Path, facts: dict[str, Any]):
    text = text_of(page_of(folder))
    for artefact in facts["artefacts"]:
        assert artefact["path"] in text
        assert artefact["sha256"] in text
        assert f"{artefact['bytes'] / 2**20:.2f} MiB" in text
    for said in ("revision g1", "169,347", "not stated", "img_range = 1", "limit: psnr 35 db"):
        assert said in " ".join(text.lower().split()).replace("revisiong1", "revision g1")
    layers = [row for row in page_of(folder).iter("table") if "bars" in row.get("class", "")]
    rows = sum(len(list(table.iter("tr"))) - 1 for table in layers)
    assert rows == len(facts["sensitivity"]["cpu"])


def test_the_page_is_one_file_of_valid_html_with_headings_alternatives_and_scopes(folder: Path):
    page = page_of(folder)
    assert page.get("lang") == "en"
    levels = [int(e.tag[1]) for e in page.iter() if e.tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in page.iter("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.iter("th"))
    labelled = {label.get("for") for label in page.iter("label")}
    assert {e.get("id") for e in page.iter("input")} == labelled
    for element in page.iter():
        for attribute in ("src", "href"):
            assert element.get(attribute, "#").startswith(("data:", "#"))
        assert "style" not in element.attrib  # the policy would not let it


def test_no_folder_of_the_machine_is_published(folder: Path):
    for name in ("report.html", "report.json"):
        assert str(folder.parent) not in (folder / name).read_text("utf-8")


def test_pictures_are_what_the_files_give(folder: Path):
    plates = [image.get("src") for image in page_of(folder).iter("img")]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
        for uri in plates
    ]
    assert {picture.shape for picture in shown} == {(*SHOWN, 3)}
    differs = np.abs(shown[1].astype(int) - shown[2])  # the network, and the int8 file
    assert 0 < differs.max() < 128


@pytest.mark.parametrize("name", [f"{MARKUP.replace('/', '')}.pth", "half \udcff of a letter.pth"])
def test_names_and_metadata_are_text_and_never_markup(name: str, tmp_path: Path):
    try:
        source = saved(tmp_path / name, author=MARKUP, license='"><b>free</b>')
    except (OSError, UnicodeError):
        pytest.skip("this system has no such names")
    convert(source, tmp_path / "out", to=["pth"], precision=["fp32"], report=True)
    page = page_of(tmp_path / "out")
    assert len(list(page.iter("script"))) == 1
    assert not list(page.iter("b"))
    assert all(image.get("src").startswith("data:image/webp") for image in page.iter("img"))
    assert MARKUP in text_of(page)


def test_author_and_licence_come_from_the_file_or_whoever_says_so_and_stay_with_the_files(
    tmp_path: Path,
):
    source = saved(tmp_path / "a.pth", author="Somebody", license="CC-BY-4.0")
    report = convert(
        source, tmp_path / "b", to=["safetensors"], precision=["fp32"], card=ModelCard(author="Me")
    )
    assert (report.card.author, report.card.licence) == ("Me", "CC-BY-4.0")
    again = verify(report.artefacts[0].path, [report.artefacts[0].path])
    assert (again.card.author, again.card.licence) == ("Me", "CC-BY-4.0")


def test_a_file_that_fails_is_shown_failing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = saved(tmp_path / "tiny.pth")
    torch.save(tiny(7).state_dict(), tmp_path / "other.pth")
    torch.save({k: v * torch.nan for k, v in tiny().state_dict().items()}, tmp_path / "nan.pth")
    assert main(["verify", str(source), str(tmp_path / "other.pth"), str(tmp_path / "nan.pth")])
    text = text_of(parsed(tmp_path / "verify.html"))
    assert "2 of 2 files differ from the model by more than allowed" in text
    assert "it gives NaN or Inf" in text
    facts = json.loads((tmp_path / "verify.json").read_text())
    assert facts["artefacts"][1]["max_difference"] is None
    assert "failed" in capsys.readouterr().out


def test_a_graph_of_one_size_has_figures_and_no_pictures(tmp_path: Path):
    source = saved(tmp_path / "tiny.pth")
    convert(
        source,
        tmp_path / "out",
        to=["onnx"],
        precision=["fp32"],
        shape=(1, 3, 24, 40),
        report=True,
    )
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert facts["artefacts"][0]["views"] == []
    assert facts["artefacts"][0]["speed"] is None
    assert len(list(page_of(tmp_path / "out").iter("img"))) == 2  # bicubic and the network


@pytest.mark.parametrize(("channels", "shown"), [(1, True), (4, True), (2, False)])
def test_networks_of_other_channels_are_shown_as_far_as_they_map_pictures(
    channels: int, shown: bool, tmp_path: Path
):
    torch.save(tiny(in_chans=channels).state_dict(), tmp_path / "net.pth")
    out = tmp_path / "out"
    convert(tmp_path / "net.pth", out, to=["pth"], precision=["fp32"], report=True)
    assert bool(list(page_of(out).iter("img"))) == shown


# Where it is written


OURS = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="x">\n'
    '<meta name="generator" content="aether-spandrel 0.1.0">\n'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.html", "<html><p>my thesis quotes aether-spandrel</p></html>"),
        ("report.html", f"<html><body><pre>{OURS}</pre></body></html>"),
        ("report.html", f"<!-- {OURS} -->"),
        (
            "report.html",
            OURS.replace("aether-spandrel 0.1.0", "my page about aether-spandrel 0.1.0"),
        ),
        ("report.html", OURS.replace('name="generator"', 'name="keywords"')),
        ("report.html", OURS.replace("aether-spandrel 0", "aether-spandrel-viewer 0")),
        ("report.json", '{"notes": "made with aether-spandrel 0.1.0"}'),
        (
            "report.json",
            '{"title": "x", "generator": "aether-spandrel 0.1.0", "schema_version": 1}',
        ),
        ("report.json", '["generator", "aether-spandrel 0.1.0"]'),
        ("report.json", '{"generator": "aether-spandrel 0.1.0 by me", "schema_version": 1}'),
    ],
)
def test_a_page_of_somebody_else_that_names_us_is_kept(tmp_path: Path, name: str, text: str):
    theirs = tmp_path / name
    theirs.write_text(text)
    with pytest.raises(ConversionError, match="exists already, and is kept"):
        convert(saved(tmp_path / "tiny.pth"), tmp_path, to=["pth"], precision=["fp32"], report=True)
    assert theirs.read_text() == text


def test_reports_are_replaced_by_newer_ones_and_other_files_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = saved(tmp_path / "tiny.pth")
    out = tmp_path / "out"
    command = ["convert", str(source), "--out", str(out), "--to", "pth", "--precision", "fp32"]
    assert main([*command, "--no-report"]) == 0
    assert [path.name for path in out.iterdir()] == ["2x_tiny_fp32.pth"]
    assert main([*command, "--force"]) == 0
    (out / "2x_tiny_fp32.pth").unlink()
    assert main(command) == 0  # over its own report

    (out / "report.html").write_text("mine")
    (out / "2x_tiny_fp32.pth").unlink()
    capsys.readouterr()
    assert main(command) == 1
    assert f"{out / 'report.html'}: the file exists already" in capsys.readouterr().err
    assert not (out / "2x_tiny_fp32.pth").exists()
    assert main([*command, "--force"]) == 0
    assert (out / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_verify_writes_beside_the_files_or_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = saved(tmp_path / "tiny.pth")
    (tmp_path / "files").mkdir()
    file = saved(tmp_path / "files" / "copy.pth")
    command = ["verify", str(source), *map(str, (file, tmp_path / "files" / "notes.txt"))]
    assert main([*command, "--no-report"]) == 0
    assert [path.name for path in file.parent.iterdir()] == ["copy.pth"]
    assert main([*command, "--report", str(tmp_path / "there")]) == 0
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "verify.html",
        "verify.json",
    ]
    assert main(command) == 0
    assert json.loads((file.parent / "verify.json").read_text())["kind"] == "verification"

    (file.parent / "verify.json").write_text("{}")
    capsys.readouterr()
    assert main(command) == 0  # the files are as good as before
    assert "no report is written: " in capsys.readouterr().err
    assert (file.parent / "verify.json").read_text() == "{}"
    with pytest.raises(ConversionError, match="exists already"):
        verify(source, [file], report=file.parent)


def test_verify_keeps_the_report_of_a_release_and_reads_whose_it_is(tmp_path: Path):
    source, out = saved(tmp_path / "tiny.pth"), tmp_path / "out"
    card = ModelCard(name="Tiny", author="Me", licence="CC0-1.0", tags=("photo",))
    made = convert(source, out, to=["pth"], precision=["fp32"], report=True, card=card)
    before = {name: (out / name).read_bytes() for name in ("report.html", "report.json")}
    file = made.artefacts[0].path
    assert main(["verify", str(source), str(file)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert json.loads((out / "verify.json").read_text())["card"]["author"] == "Me"
    assert verify(source, [file]).card == card

    torch.save({"params": tiny(7).state_dict()}, tmp_path / "other.pth")  # of another model
    assert verify(tmp_path / "other.pth", [file]).card == ModelCard()


@pytest.mark.parametrize(
    "changed", [{"card": ["Me"]}, {"card": {"tags": None}}, {"card": None}, {"source": None}]
)
def test_a_card_that_somebody_broke_is_none(changed: dict[str, Any], tmp_path: Path):
    source, out = saved(tmp_path / "tiny.pth"), tmp_path / "out"
    card = ModelCard(author="Me")
    report = convert(source, out, to=["pth"], precision=["fp32"], report=True, card=card)
    assert card_beside(out, report.source_sha256) == card
    facts = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps({**facts, **changed}))
    assert card_beside(out, report.source_sha256) == ModelCard()


# How large it is


def test_the_page_stays_small_whatever_the_number_of_files_and_pictures(
    tmp_path: Path, rng: np.random.Generator
):
    source = saved(tmp_path / "tiny.pth")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(6):
        noise = rng.integers(0, 256, (150, 200, 3), np.uint8)
        Image.fromarray(noise).save(pictures / f"{index}.png")
    few = convert(
        source, tmp_path, to=["pth"], precision=["fp32"], report=True, pictures=[pictures]
    )
    assert len(few.scenes) == 4

    def noisy(scene: str) -> View:
        noise = rng.integers(0, 256, (*SHOWN, 3), np.uint8)
        return View(
            scene=scene, pixels=noise, max_difference=0.5, difference=noise.astype(np.float32) - 128
        )

    (artefact,) = few.artefacts
    hundreds = tuple(
        replace(
            artefact,
            path=tmp_path / f"{index}{'x' * 200}.onnx",
            views=tuple(noisy(scene.name) for scene in few.scenes) if index < 12 else (),
        )
        for index in range(1000)
    )
    many = replace(
        few,
        artefacts=hundreds,
        source=replace(few.source, warnings=("w" * 10_000,) * 1000, notes=("n" * 10_000,) * 1000),
    )
    write_report(many, tmp_path / "many", force=False)
    assert (tmp_path / "many" / "report.html").stat().st_size < 3_000_000
    text = (tmp_path / "many" / "report.html").read_text("utf-8")
    assert "800 more files are in report.json" in text
    assert "more pictures would have made this page too large" in text
    assert len(json.loads((tmp_path / "many" / "report.json").read_text())["artefacts"]) == 1000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# What it shows


def test_the_part_with_the_most_detail_is_shown(rng: np.random.Generator):
    image = np.full((1, 3, 300, 400), 0.5, np.float32)
    image[:, :, 170:280, 220:380] = rng.random((3, 110, 160), np.float32)
    (scene,) = exhibit_of([Pair(name="a", image=image)], 2, 1000.0).scenes
    assert scene.image.shape == (1, 3, 104, 152)
    assert scene.image.std() > 0.25


def test_bicubic_is_that_of_picture_editors(rng: np.random.Generator):
    pixels = rng.integers(80, 176, (24, 32, 3), np.uint8)  # they clip between rows and columns
    wanted = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC))
    image = np.asarray(np.moveaxis(pixels, 2, 0)[None] / 255, dtype=np.float32)
    found = bicubic(image, 3, 2)[0].transpose(1, 2, 0).clip(0, 1) * 255
    assert np.abs(found - wanted).max() < 1.5


@pytest.mark.parametrize("attention", [False, True])
def test_multiply_accumulates_are_exact_for_every_size(attention: bool):
    network = AetherNet(replace(tiny(fused_init=True).config, channel_attn=attention))
    size = (37, 53)
    assert network_macs(network.config, size) == module_macs(network, (1, 3, *size))


def test_speed_is_measured_for_the_sizes_that_a_file_takes(tmp_path: Path):
    source = saved(tmp_path / "a.pth")
    report = convert(source, to=["onnx"], precision=["fp32"], shape=(1, 3, 32, 32))
    assert with_speeds(report.artefacts, (64, 64))[0].speed is None
    speed = with_speeds(report.artefacts, (32, 32))[0].speed
    assert speed is not None
    assert (speed.size, speed.computed_by) == ((32, 32), "onnxruntime, CPU")
    assert speed.runs >= 3


def test_rendering_twice_gives_the_same_page(tmp_path: Path):
    report: Report = convert(saved(tmp_path / "a.pth"), to=["pth"], precision=["fp32"], report=True)
    facts = json.loads(json.dumps(report_facts(report)))
    assert render_page(facts, report, "report.json") == render_page(facts, report, "report.json")


# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Generator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: webdriver.Chrome, folder: Path, *, width: int = 1280, dark: bool = False):
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    send(browser, "Emulation.setEmulatedMedia", features=scheme)
    send(
        browser,
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=800,
        deviceScaleFactor=1,
        mobile=False,
    )
    browser.get((folder / "report.html").as_uri())


def send(browser: webdriver.Chrome, command: str, **parameters: object) -> Any:
    return cast("Any", browser).execute_cdp_cmd(command, parameters)


def ask(browser: webdriver.Chrome, script: str) -> Any:
    return cast("Any", browser).execute_script(script)


def test_the_page_opens_without_a_complaint_and_asks_for_nothing(
    browser: webdriver.Chrome, folder: Path
):
    opened(browser, folder)
    ask(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
    log = cast("list[dict[str, Any]]", cast("Any", browser).get_log("browser"))
    assert log == []
    events = cast("list[dict[str, Any]]", cast("Any", browser).get_log("performance"))
    messages = [json.loads(event["message"])["message"] for event in events]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    page = (folder / "report.html").as_uri()
    assert page in asked
    assert all(url == page or url.startswith("data:") for url in asked)
    assert ask(browser, "return [...document.images].every(i => i.naturalWidth > 0)")


def test_scripts_that_are_not_the_pages_own_do_not_run(browser: webdriver.Chrome, folder: Path):
    opened(browser, folder)
    ask(
        browser,
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">');"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s)",
    )
    assert ask(browser, "return window.ran === undefined")
    cast("Any", browser).get_log("browser")  # it complained, as it should


@pytest.mark.parametrize("width", [320, 360, 700, 768, 900, 1000, 1280])
def test_nothing_but_tables_scrolls_sideways(browser: webdriver.Chrome, folder: Path, width: int):
    opened(browser, folder, width=width)
    ask(browser, "document.querySelectorAll('details').forEach(d => d.open = true)")
    assert ask(browser, "return document.documentElement.scrollWidth") == width
    wide = ask(
        browser,
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)",
    )
    assert wide == []


def test_the_slider_is_moved_by_the_keyboard_and_changes_the_picture(
    browser: webdriver.Chrome, folder: Path
):
    opened(browser, folder, width=800)
    stage = browser.find_element(By.CLASS_NAME, "stage")
    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    before = stage.screenshot_as_png
    slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 10)
    assert slider.get_attribute("value") == "10"
    assert ask(browser, "return document.activeElement.matches(':focus-visible')")
    moved = stage.screenshot_as_png
    assert moved != before
    tab = browser.find_element(By.CSS_SELECTOR, "input[type=radio]:checked")
    tab.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    tags = [tag.text for tag in browser.find_elements(By.CLASS_NAME, "tag")]
    assert tags == ["tiny", "int8, pth"]
    assert stage.screenshot_as_png != moved


def test_what_decides_is_above_the_fold_and_narrow_screens_have_cards(
    browser: webdriver.Chrome, folder: Path
):
    opened(browser, folder, width=1280)
    bottom = "return document.getElementById('which').parentElement.getBoundingClientRect().bottom"
    assert ask(browser, bottom) <= 900
    opened(browser, folder, width=375)
    cells = ask(
        browser,
        "return [...document.querySelectorAll('.stacked td')].map((cell) =>"
        " [getComputedStyle(cell, '::before').content, cell.getBoundingClientRect().right])",
    )
    assert {content.strip('"') for content, _ in cells} >= {"Result", "Size", "PSNR to the model"}
    assert all(right <= 375 for _, right in cells)


def test_it_is_above_the_fold_with_two_files_that_tint_too(
    browser: webdriver.Chrome, tmp_path: Path
):
    report = convert(saved(tmp_path / "a.pth"), to=["pth"], precision=["fp32"], report=True)
    (artefact,) = report.artefacts
    (view,) = artefact.views
    patches = (Patch(colour="255/0/0", shift=3.2, source=(255, 0, 0), found=(251, 1, 0)),) * 4
    names = ("fp32.pth", "fp16.pth", "int8.pth", "int8_of_the_model.onnx", "int8_for_cpus.onnx")
    several = tuple(
        replace(
            artefact,
            path=tmp_path / name,
            precision=name[:4],
            colour=Colour(pictures=0.4, patches=patches if name.endswith(".onnx") else ()),
            views=(replace(view, pixels=view.pixels ^ np.uint8(number), max_difference=0.1),),
        )
        for number, name in enumerate(names)
    )
    write_report(replace(report, artefacts=several), tmp_path / "out", force=False)
    opened(browser, tmp_path / "out", width=1280)
    assert len(browser.find_elements(By.CLASS_NAME, "flat")) == 2
    bottom = "return document.getElementById('which').parentElement.getBoundingClientRect().bottom"
    assert ask(browser, bottom) <= 900


def test_without_scripts_all_pictures_are_there(browser: webdriver.Chrome, folder: Path):
    send(browser, "Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(browser, folder)
        plates = browser.find_elements(By.CSS_SELECTOR, ".pictures-of-scene img")
        assert len(plates) >= 3
        assert all(plate.is_displayed() for plate in plates)
        assert not browser.find_element(By.CLASS_NAME, "viewer").is_displayed()
    finally:
        send(browser, "Emulation.setScriptExecutionDisabled", value=False)


CONTRASTS = """
const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = numbers(getComputedStyle(e).backgroundColor);
    if (color.length === 3 || color[3] > 0.99) return color;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".stage, script") && e.getClientRects().length
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .map((e) => {
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)];
  });
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(browser: webdriver.Chrome, folder: Path, dark: bool):
    opened(browser, folder, dark=dark)
    ground = ask(browser, "return getComputedStyle(document.body).backgroundColor")
    assert (int(ground.partition("(")[2].partition(",")[0]) < 60) == dark
    found = cast("list[tuple[float, str]]", ask(browser, CONTRASTS))
    assert len(found) > 50
    assert min(found)[0] >= 4.5, min(found)


@pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
def test_a_folder_that_cannot_be_written_to_gets_no_report(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    source = saved(tmp_path / "tiny.pth")
    tmp_path.chmod(0o500)
    try:
        assert main(["verify", str(source), str(source)]) == 0
    finally:
        tmp_path.chmod(0o700)
