"""A release holds what people publish, states what is known, and invents nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.utils
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import aether_spandrel
from aether_converters import Comparing, evaluate, upscale
from aether_converters.card import ModelCard, Training, card_in
from aether_converters.command_line.main import main
from aether_converters.installation import (
    is_public,
    public_requirement,
    wheel_line,
    wheel_name,
)
from aether_converters.publishing import demo as demonstration
from aether_converters.publishing.model_card import markdown_card
from aether_converters.publishing.openmodeldb import TAGS, model_id, user_id
from aether_converters.publishing.releasing import installed_formats, release
from tests.support.tiny import tiny

SAID = ModelCard(
    name="My_Model",
    author="A. Uthor, Some_body",
    licence="CC-BY-4.0",
    description="Restores **old** photographs.",
    tags=("photo", "restoration"),
)
MODELS = [
    f"2x_My_Model_{precision}.{kind}"
    for precision in ("fp16", "fp32")
    for kind in ("onnx", "pth", "safetensors")
]


def saved(path: Path, **metadata: str) -> Path:
    torch.save({"params": tiny().state_dict(), **metadata}, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    made = release(saved(folder / "tiny.pth"), folder / "out", card=SAID)
    said = [text for text in made.missing if "urls" not in text]
    assert [text for text in said if ".whl" not in text] == []
    assert bool(said) != is_public()
    return folder / "out"


def test_the_card_names_no_package_that_nobody_can_install(folder: Path, tmp_path: Path):
    card = (folder / "README.md").read_text("utf-8")
    told = re.findall(r"pip install ([^`]+)`", card)
    assert set(told) == {public_requirement(), public_requirement("convert")}
    assert (f"`{wheel_name()}`\nlies beside this card" in card) != is_public()
    assert str(Path(__file__).parents[2]) not in card, "a folder of the author's"
    made = release(saved(tmp_path / "tiny.pth"), tmp_path, card=SAID, to=["pth"])
    (tmp_path / wheel_name()).touch()
    again = release(tmp_path / "tiny.pth", tmp_path, card=SAID, to=["pth"], force=True)
    assert set(made.missing) - set(again.missing) == (
        set()
        if is_public()
        else {
            f"aether-spandrel is not on PyPI, so that its wheel, {wheel_name()}, belongs beside "
            f"the files: {wheel_line(tmp_path)}"
        }
    )


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def front_matter(card: str) -> str:
    return card.split("---\n")[1]


def test_a_release_has_all_that_people_publish(folder: Path):
    assert installed_formats() == ("pth", "safetensors", "onnx")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *MODELS,
            "2x-My-Model.json",
            "2x_My_Model_1_LR.png",
            "2x_My_Model_1_SR.png",
            "2x_My_Model_comparison.png",
            "README.md",
            "SHA256SUMS",
            "config.json",
            "model.safetensors",
            "report.html",
            "report.json",
        ]
    )
    size = Image.open(folder / "2x_My_Model_comparison.png").size
    assert size == (2 * (2 * 288 + 2), 2 * 192)


def test_the_folder_is_read_back_as_a_hub_gives_it(folder: Path):
    picture = torch.rand(1, 3, 9, 11)
    found, said = aether_spandrel.load(folder), aether_spandrel.inspect(folder)
    expected = aether_spandrel.load(folder / "2x_My_Model_fp32.safetensors")(picture)
    torch.testing.assert_close(found(picture), expected, rtol=0, atol=0)
    config = json.loads((folder / "config.json").read_text())
    assert (config["scale"], config["depths"]) == (said.config.scale, [2, 1])


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_the_checksums_are_checked_by_sha256sum(folder: Path):
    result = checked(folder)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == sorted(
        f"{name}: OK" for name in (*MODELS, "model.safetensors")
    )


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_a_release_for_ncnn_has_both_files_and_says_what_tiles_do(tmp_path: Path):
    release(saved(tmp_path / "tiny.pth"), tmp_path / "out", to=["ncnn"], precision=["fp32"])
    result = checked(tmp_path / "out")
    assert result.stdout.splitlines() == ["2x_tiny_fp32.param: OK", "2x_tiny_fp32.bin: OK"]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "ChaiNNer's NCNN nodes**: `2x_tiny_fp32.param` and the `.bin` file" in card
    assert "beyond their part, of the" in card


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
def test_checksums_of_strange_names_are_checked_too(tmp_path: Path):
    try:
        source = saved(tmp_path / "back\\slash\nline\udcff.pth")
    except (OSError, UnicodeError):
        pytest.skip("this system has no such names")
    release(source, tmp_path / "out", to=["pth"], precision=["fp32"])
    assert checked(tmp_path / "out").returncode == 0
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "back\\\\slash" in card


def test_the_card_states_what_was_said_and_measured(folder: Path):
    card = (folder / "README.md").read_text("utf-8")
    assert front_matter(card).startswith("license: cc-by-4.0\npipeline_tag: image-to-image\n")
    assert '- "photo"' in front_matter(card)
    assert "Restores **old** photographs." in card
    assert "| Author | A. Uthor, Some_body |" in card
    assert "| Licence | CC-BY-4.0 |" in card
    figures = json.loads((folder / "report.json").read_text())["artefacts"]
    for artefact in figures:
        row = next(line for line in card.splitlines() if f"`{artefact['path']}`" in line)
        assert artefact["sha256"][:16] in row
    for word in ("ChaiNNer", "ComfyUI", "VapourSynth", "Python"):
        assert f"**{word}" in card or f"**[{word}" in card
    for link in re.findall(r"\]\(([^)]+)\)", card):
        assert link.startswith("https://") or (folder / link).exists()


def test_the_python_of_the_card_runs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    card = (folder / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder)
    values: dict[str, Any] = {}
    exec(code, values)
    assert values["model"].scale == 2


def test_the_entry_is_one_that_openmodeldb_takes(folder: Path):
    """By the rules of its own check, as far as they do not concern its other files."""
    text = (folder / "2x-My-Model.json").read_text("utf-8")
    entry = json.loads(text)
    assert text == json.dumps(entry, indent=4, ensure_ascii=False)
    assert entry["author"] == ["a-uthor", "some-body"]
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", author) for author in entry["author"])
    assert entry["tags"] == ["photo", "restoration"]
    assert set(entry["tags"]) <= set(TAGS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    assert re.fullmatch("[a-z0-9]+", entry["architecture"])
    assert (entry["scale"], entry["inputChannels"], entry["outputChannels"]) == (2, 3, 3)
    assert entry["license"] == "CC-BY-4.0"
    assert entry["description"] == entry["description"].strip()
    platforms = {"pth": "pytorch", "safetensors": "pytorch", "onnx": "onnx"}
    files = {path.stat().st_size: path for path in folder.iterdir()}
    assert entry["images"] == []  # nobody said where they will be
    assert len(entry["resources"]) == len(MODELS)
    for resource in entry["resources"]:
        assert resource["platform"] == platforms[resource["type"]]
        assert re.fullmatch("[0-9a-f]{64}", resource["sha256"])
        assert files[resource["size"]].suffix == f".{resource['type']}"
        assert resource["urls"] == []


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("My_Model", "2x-My-Model"),
        ("2x_net", "2x-net"),
        ("net-x2", "2x-net"),
        ("ßß", "2x-aethernet"),
        ("a  b", "2x-a-b"),
    ],
)
def test_identifiers_have_the_form_of_the_database(name: str, identifier: str):
    assert model_id(name, 2) == identifier
    assert re.fullmatch("[0-9]+x-[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", identifier)
    assert user_id("Ä. Uthor") == "uthor"


def test_what_nobody_said_is_not_invented_and_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = saved(tmp_path / "tiny.pth")
    out = tmp_path / "out"
    command = ["release", str(source), "--out", str(out), "--to", "pth", "--precision", "fp32"]
    assert main(command) == 0
    said = capsys.readouterr().err
    for flag in ("--licence", "--author", "--description", "--tags", "2x-tiny.json"):
        assert flag in said
    assert "the licence was not stated" in said
    card = (out / "README.md").read_text("utf-8")
    assert "license" not in front_matter(card)
    assert "| Licence | not stated" in card
    entry = json.loads((out / "2x-tiny.json").read_text())
    assert (entry["license"], entry["author"], entry["tags"]) == (None, [], [])

    assert main(command) == 1  # nothing is replaced unasked
    assert f"{out / 'README.md'}: the file exists already" in capsys.readouterr().err
    options = ["--force", "--name", "Other", "--license", "Own terms", "--tags", "photo,shiny"]
    assert main([*command, *options]) == 0
    said = capsys.readouterr().err
    assert "OpenModelDB has no tags shiny" in said
    assert "licence" not in said
    other = front_matter((out / "README.md").read_text("utf-8"))
    assert 'license: other\nlicense_name: "Own terms"\n' in other


def test_a_file_that_stands_in_the_way_stops_it_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = saved(tmp_path / "tiny.pth")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "SHA256SUMS").write_text("mine")
    assert main(["release", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "SHA256SUMS: the file exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["SHA256SUMS"]


def test_nothing_is_released_of_a_model_of_which_a_file_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    state = tiny().state_dict()
    state["conv_first.weight"] *= 2e5  # the activations leave the range of fp16 ...
    state["conv_before_upsample.0.weight"] *= 5e-6  # ... and come back
    torch.save(state, tmp_path / "wild.pth")
    out = tmp_path / "out"
    command = ["release", str(tmp_path / "wild.pth"), "--out", str(out), "--to", "onnx"]
    assert main(command) == 1
    assert "nothing else was written but the report" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == [
        "2x_wild_fp32.onnx",
        "report.html",
        "report.json",
    ]


def test_names_cannot_write_into_the_card(tmp_path: Path):
    made = release(
        saved(tmp_path / "tiny.pth", author="[x](https://evil.test) <b>|</b>\n# Head"),
        tmp_path / "out",
        to=["pth"],
        precision=["fp32"],
    )
    card = markdown_card(made.report, picture="", made_by="x")
    assert "| Author | \\[x\\](https://evil.test) \\<b\\>\\|\\</b\\> \\# Head |" in card
    assert "\n# Head" not in card


def test_only_short_lines_are_taken_from_files():
    assert card_in({"author": "a" * 1000}).author == f"{'a' * 200}…"
    assert card_in({"author": ["a"], "license": 3}) == ModelCard()
    assert card_in({"modelspec.license": " MIT\x00\n"}).licence == "MIT"


def test_a_release_in_int8_says_how_it_was_made(tmp_path: Path):
    torch.save(tiny(scale=1).state_dict(), tmp_path / "tiny.pth")
    command = ["release", str(tmp_path / "tiny.pth"), "--out", str(tmp_path / "out")]
    command += ["--to", "pth,onnx", "--precision", "fp32,int8", "--int8-target", "cpu"]
    assert main([*command, "--tune", "1s"]) == 0
    for name in ("1x_tiny_int8_cpu.onnx", "1x_tiny_int8_cpu.pth", "1x_tiny_fp32.pth"):
        assert (tmp_path / "out" / name).exists()
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^- `1x_tiny_int8_cpu.onnx`: .*$", card, re.MULTILINE)
    assert "ranges come from built-in pictures" in line
    assert re.search(r"calibrated [\d.]+ dB, .*distilled [\d.]+ dB", line)
    assert re.search(r"colours move by at most [\d.]+ levels", line)


def test_the_demo_converts_enlarges_and_says_where_to_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # Engines are built where the README's command is run.
    monkeypatch.setitem(demonstration.FORMATS, "trt", ("no_such_module",))
    monkeypatch.setattr(demonstration, "PRECISIONS", ("fp16",))
    monkeypatch.setattr(demonstration, "INT8", None)
    out = tmp_path / "out"
    assert main(["demo", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"open this in a browser: {out / 'report.html'}"
    assert lines[-1] == (out / "report.html").as_uri()
    assert Image.open(out / "coffee_2x.png").size == (600, 400)
    assert "license: mit" in (out / "README.md").read_text("utf-8")
    assert (out / "2x-aether-sample.json").exists()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with figures on five pictures of a known set, and on two that are none."""
    folder = tmp_path_factory.mktemp("measured")
    for name, pictures in (("Set5", 5), ("Set14", 2)):
        (folder / name).mkdir()
        for number in range(pictures):
            noise = Image.effect_noise((40, 36), 60 + number).convert("RGB")
            noise.save(folder / name / f"{number}.png")
    command = ["release", str(saved(folder / "tiny.pth")), "--out", str(folder / "out")]
    command += ["--name", "My_Model", "--originals", str(folder / "Set5"), str(folder / "Set14")]
    assert main([*command, "--kept", str(folder / "kept.jsonl")]) == 0
    return folder


def test_the_figures_of_a_release_are_those_of_evaluate(measured: Path):
    facts = json.loads((measured / "out" / "report.json").read_text())
    whole, part = facts["evaluations"]
    assert (whole["name"], part["name"]) == ("Set5", "2 pictures of Set14")
    # A twin that runs the same weights in the same program is not measured again.
    names = ["2x_My_Model_fp32.pth", "2x_My_Model_fp16.pth"]
    names += ["2x_My_Model_fp32.onnx", "2x_My_Model_fp16.onnx"]
    assert [file["path"] for file in whole["files"]] == names
    found = evaluate([measured / "out" / names[0]], Comparing(originals=measured / "Set5"))
    assert found.files[0].mean is not None
    expected = vars(found.files[0].mean)
    assert whole["files"][0]["mean"] == expected
    card = (measured / "out" / "README.md").read_text("utf-8")
    row = f"| Set5 | by bicubic-matlab | `{names[0]}` | {expected['psnr']:.2f} dB | "
    assert row in card
    page = (measured / "out" / "report.html").read_text("utf-8")
    assert "Against originals" in page
    assert f"{expected['psnr_y']:.2f} dB" in page
    assert len((measured / "kept.jsonl").read_text().split()) > 0


def test_the_card_is_one_that_the_hub_takes(measured: Path):
    """As huggingface_hub reads it; its own check asks the network."""
    card = huggingface_hub.ModelCard((measured / "out" / "README.md").read_text("utf-8"))
    data: Any = card.data
    assert (data.pipeline_tag, data.library_name) == ("image-to-image", "spandrel")
    results = data.eval_results
    assert [(r.dataset_type, r.dataset_name, r.metric_name) for r in results[:5]] == [
        ("set5", "Set5, 2x", "PSNR"),
        ("set5", "Set5, 2x", "SSIM"),
        ("set5", "Set5, 2x", "PSNR on Y"),
        ("set5", "Set5, 2x", "SSIM on Y"),
        ("2-pictures-of-set14", "2 pictures of Set14, 2x", "PSNR"),
    ]
    assert results[0].task_type == "image-to-image"
    assert results[0].metric_args == {
        "file": "2x_My_Model_fp32.pth",
        "lowres": "by bicubic-matlab",
        "crop": 2,
    }
    mean = json.loads((measured / "out" / "report.json").read_text())["evaluations"][0]["files"][0]
    assert results[0].metric_value == pytest.approx(mean["mean"]["psnr"], abs=1e-4)
    assert data.model_name == "My_Model"


def test_a_release_without_originals_claims_no_figure(folder: Path):
    card = huggingface_hub.ModelCard((folder / "README.md").read_text("utf-8"))
    assert "model-index" not in front_matter(card.content)
    assert "## Figures" not in card.content
    assert json.loads((folder / "report.json").read_text())["evaluations"] == []


def test_originals_that_cannot_be_read_stop_a_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "none").mkdir()
    command = ["release", str(saved(tmp_path / "tiny.pth")), "--out", str(tmp_path / "out")]
    assert main([*command, "--originals", str(tmp_path / "none")]) == 1
    assert "there is no picture in this folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "none" / "a.png").write_bytes(b"nothing")
    command += ["--to", "pth", "--precision", "fp32"]
    assert main([*command, "--originals", str(tmp_path / "none")]) == 1
    assert "a.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of which all is said that can be, with a picture of its own."""
    folder = tmp_path_factory.mktemp("placed")
    noise = Image.effect_noise((33, 21), 60).convert("RGB")
    noise.save(folder / "photo.png")
    torch.save({"params": tiny().state_dict(), "iter": 5000, "epoch": 0}, folder / "net.pth")
    command = ["release", str(folder / "net.pth"), "--out", str(folder / "out")]
    command += ["--name", "My_Model", "--author", "A. Uthor", "--licence", "CC-BY-4.0"]
    command += ["--tags", "photo", "--description", "Restores photographs."]
    command += ["--pictures", str(folder / "photo.png"), "--hub", "uthor/my-model"]
    command += ["--training", "batch-size=8", "hr_size=256", "otf=no", "dataset_size=800"]
    command += ["dataset=uthor/photographs, other/set", "base=2x-Some-Model,other/some.model"]
    assert main([*command, "--to", "safetensors,onnx", "--precision", "fp32"]) == 0
    return folder / "out"


FIELDS: dict[str, tuple[type | tuple[type, ...], bool]] = {
    **dict.fromkeys(("name", "description", "date", "architecture"), (str, True)),
    **dict.fromkeys(("author",), ((str, list), True)),
    **dict.fromkeys(("tags", "resources", "images"), (list, True)),
    **dict.fromkeys(("scale", "inputChannels", "outputChannels"), (int, True)),
    **dict.fromkeys(("license", "dataset", "pretrainedModelG"), (str, False)),
    **dict.fromkeys(("trainingIterations", "trainingEpochs", "trainingBatchSize"), (int, False)),
    **dict.fromkeys(("trainingHRSize", "datasetSize"), (int, False)),
    "trainingOTF": (bool, False),
    "size": (list, False),
}
"""What the database's check (August 2026) takes: kind, and whether it must be there."""


def test_the_entry_has_the_fields_of_a_training_and_no_other(placed: Path):
    entry = json.loads((placed / "2x-My-Model.json").read_text())
    for name, value in entry.items():
        kind, _ = FIELDS[name]
        assert value is None or isinstance(value, kind), name
        assert type(value) is not int or value >= 1, name
    assert all(entry.get(name) is not None for name, (_, needed) in FIELDS.items() if needed)
    said = {name: value for name, value in entry.items() if "rain" in name or "ataset" in name}
    assert said == {
        "trainingIterations": 5000,  # as the file states; it states no epoch that is one
        "trainingBatchSize": 8,
        "trainingHRSize": 256,
        "trainingOTF": False,
        "dataset": "uthor/photographs, other/set",
        "datasetSize": 800,
        "pretrainedModelG": "2x-Some-Model",
    }


def test_where_a_release_will_be_gives_its_files_and_pictures_their_addresses(placed: Path):
    entry = json.loads((placed / "2x-My-Model.json").read_text())
    base = "https://huggingface.co/uthor/my-model/resolve/main/"
    addresses = [url for resource in entry["resources"] for url in resource["urls"]]
    (image,) = entry["images"]
    assert image.pop("type") == "paired"
    for address in (*addresses, *image.values()):
        assert address.startswith(base)
        assert (placed / address.removeprefix(base)).is_file()
    small, large = (placed / image[name].removeprefix(base) for name in ("LR", "SR"))
    pixels = np.asarray(Image.open(small))
    found = upscale(placed / "model.safetensors", pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(large)), found)


def test_the_card_names_what_the_hub_links(placed: Path):
    data: Any = huggingface_hub.ModelCard((placed / "README.md").read_text("utf-8")).data
    assert data.base_model == ["other/some.model"]
    assert data.datasets == ["uthor/photographs", "other/set"]
    assert data.license == "cc-by-4.0"
    for name in (*data.base_model, *data.datasets):
        huggingface_hub.utils.validate_repo_id(name)
    card = (placed / "README.md").read_text("utf-8")
    assert "| Trained, iterations | 5000 |" in card
    assert "| Damaged on the fly | no |" in card


def test_the_upload_is_named_and_left_to_its_author(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = ["release", str(saved(tmp_path / "tiny.pth")), "--out", str(tmp_path / "o p")]
    command += ["--to", "pth", "--precision", "fp32"]
    assert main([*command, "--hub", "uthor/my-model"]) == 0
    said = capsys.readouterr().err
    assert f"to upload it to Hugging Face: hf upload uthor/my-model '{tmp_path / 'o p'}' ." in said
    assert "addresses" not in said
    assert main([*command, "--force"]) == 0
    assert "hf upload USER/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("--training", "losses=l1", "says nothing of a training"),
        ("--training", "iterations", "says nothing of a training"),
        ("--training", "iterations=0", "0 is not a whole number from 1 to"),
        ("--training", "otf=maybe", "maybe is neither yes nor no"),
        ("--hub", "my-model", "my-model is not of the form someone/my-model"),
        ("--hub", "a/b/c", "a/b/c is not of the form someone/my-model"),
    ],
)
def test_what_says_nothing_is_refused_at_once(
    tmp_path: Path, option: str, value: str, answer: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main(["release", "tiny.pth", "--out", str(tmp_path / "out"), option, value])
    assert answer in capsys.readouterr().err


def test_a_file_states_how_long_it_was_trained():
    assert card_in({"iter": 500, "epoch": 3}).training == Training(iterations=500, epochs=3)
    assert card_in({"global_step": 7, "iter": True}).training == Training(iterations=7)
    assert card_in({"iter": -1, "epoch": 10**30, "iteration": "9"}).training == Training()
    said = ModelCard(training=Training(iterations=9)).or_else(card_in({"iter": 5, "epoch": 2}))
    assert said.training == Training(iterations=9, epochs=2)


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]+", capsys.readouterr().out.split("options:")[1]))


def test_a_release_takes_every_option_of_a_conversion(capsys: pytest.CaptureFixture[str]):
    """But the one without which it has no report, which is part of it."""
    convert, released = (options_of(command, capsys) for command in ("convert", "release"))
    assert convert - released == {"--no-report"}
    assert {"--shape", "--opset", "--workspace", "--int8-target"} <= released


def test_options_of_a_conversion_reach_the_files_of_a_release(tmp_path: Path):
    out = str(tmp_path / "out")
    words = ["release", str(saved(tmp_path / "tiny.pth")), "--out", out, "--to", "onnx"]
    assert main([*words, "--precision", "fp32", "--shape", "1x3x24x32", "--opset", "18"]) == 0
    (model,) = (onnx.load(path) for path in (tmp_path / "out").glob("*.onnx"))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 24, 32]
    assert model.opset_import[0].version == 18
    assert main([*words, "--force", "--min", "1x3x8x8"]) == 1  # which wants two more


@pytest.mark.parametrize("command", ["convert", "release", "verify"])
def test_the_last_line_is_the_address_of_the_report(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "tiny.pth")
    made = ["convert", "tiny.pth", "--out", "out", "--to", "pth", "--precision", "fp32"]
    words = {
        "convert": made,
        "release": ["release", *made[1:]],
        "verify": ["verify", "tiny.pth", "out/2x_tiny_fp32.pth"],
    }[command]
    if command == "verify":
        assert main(made) == 0
        capsys.readouterr()
    assert main(words) == 0
    page = tmp_path / "out" / ("verify.html" if command == "verify" else "report.html")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [f"open this in a browser: {page}", page.as_uri()]
    assert page.is_file()
    assert main([*words, *(["--force"] if command != "verify" else []), "--json"]) == 0
    assert "open this" not in capsys.readouterr().out
