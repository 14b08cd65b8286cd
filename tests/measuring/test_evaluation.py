"""Figures of quality are those of scikit-image and of papers, whatever is done to get them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

import aether_converters
from aether_converters import evaluate, open_upscaler, upscale
from aether_converters.command_line.main import main
from aether_converters.errors import ImageError
from aether_converters.measuring import perceptual
from aether_converters.measuring import quality as quality_module
from aether_converters.measuring.evaluation import Comparing
from aether_converters.measuring.quality import Quality, mean_quality, quality
from aether_converters.pictures.shrinking import SHRINKING
from aether_spandrel.errors import AetherError
from tests.support.tiny import tiny

# Untyped.
COLOR: Any = importlib.import_module("skimage.color")
METRICS: Any = importlib.import_module("skimage.metrics")
ALEXNET: Any = importlib.import_module("torchvision.models").alexnet


def scene(seed: int, height: int = 64, width: int = 80) -> NDArray[np.uint8]:
    """(H, W, 3): soft shapes with noise on them, so that no figure is near its end."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 5 + seed % 3, 6)))
    soft = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    noisy = soft[0].permute(1, 2, 0).numpy() * 255 + rng.normal(0, 4, (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def planes(picture: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(np.atleast_3d(picture), -1, 0)


def by_scikit_image(found: Any, original: Any, crop: int) -> Quality:
    inside = slice(crop, -crop) if crop else slice(None)
    found, original = found[inside, inside], original[inside, inside]
    gaussian: dict[str, Any] = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 255,
    }
    y_found, y_original = (COLOR.rgb2ycbcr(picture)[..., 0] for picture in (found, original))
    return Quality(
        psnr=float(METRICS.peak_signal_noise_ratio(original, found, data_range=255)),
        ssim=float(METRICS.structural_similarity(original, found, channel_axis=2, **gaussian)),
        psnr_y=float(METRICS.peak_signal_noise_ratio(y_original, y_found, data_range=255)),
        ssim_y=float(METRICS.structural_similarity(y_original, y_found, **gaussian)),
    )


@pytest.mark.parametrize("seed", range(10))
def test_figures_agree_with_scikit_image(seed: int, monkeypatch: pytest.MonkeyPatch):
    original = scene(seed)
    rng = np.random.default_rng(100 + seed)
    damage = rng.normal(0, 1 + 3 * seed, original.shape)
    found = np.clip(original + damage, 0, 255).astype(np.uint8)
    crop = seed % 4
    expected = by_scikit_image(found, original, crop)
    whole = quality(planes(found), planes(original), crop)
    monkeypatch.setattr(quality_module, "BAND", 7)  # pictures of many bands
    in_bands = quality(planes(found), planes(original), crop)
    for name, value in vars(expected).items():
        assert getattr(whole, name) == pytest.approx(value, abs=1e-4), name
        assert getattr(in_bands, name) == pytest.approx(value, abs=1e-4), name


def test_sixteen_bits_and_grey_have_the_figures_of_eight_bits_and_rgb():
    original, found = scene(0), scene(1)
    expected = quality(planes(found), planes(original), 2)
    deep = quality(
        planes(found).astype(np.uint16) * 257, planes(original).astype(np.uint16) * 257, 2
    )
    for name, value in vars(expected).items():
        assert getattr(deep, name) == pytest.approx(value, abs=1e-9), name
    grey = [picture[..., :1] for picture in (found, original)]
    thrice = [np.repeat(picture, 3, axis=2) for picture in grey]
    one, three = (quality(planes(a), planes(b), 0) for a, b in (grey, thrice))
    for name, value in vars(one).items():
        assert getattr(three, name) == pytest.approx(value, abs=1e-9), name


def test_equal_pictures_have_no_psnr_and_a_crop_leaves_something():
    picture = planes(scene(0))
    assert quality(picture, picture, 0) == Quality(psnr=None, ssim=1.0, psnr_y=None, ssim_y=1.0)
    with pytest.raises(ImageError, match="nothing of the picture is left to compare"):
        quality(picture, picture, 32)
    some = Quality(psnr=30.0, ssim=0.5, psnr_y=32.0, ssim_y=0.75)
    other = Quality(psnr=40.0, ssim=0.7, psnr_y=None, ssim_y=0.25)
    assert mean_quality([some, other]) == Quality(psnr=35.0, ssim=0.6, psnr_y=None, ssim_y=0.5)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_bicubic_as_matlab_is_antialiased_keys_with_mirrored_borders(factor: int):
    picture = planes(scene(3, 96, 72)).astype(np.uint16) * 257
    found = SHRINKING["bicubic-matlab"](picture, factor)
    margin = 4 * factor
    # Mirrored so far that torch, which leaves out what lies beyond the border, sees all of it.
    mirrored = np.pad(picture, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    values = torch.from_numpy(mirrored.astype(np.float64))[None]
    size = [side // factor for side in mirrored.shape[1:]]
    expected = F.interpolate(values, size, mode="bicubic", antialias=True)[0, :, 4:-4, 4:-4]
    np.testing.assert_allclose(found, expected.numpy().clip(0, 65535), atol=0.51)


def test_area_and_pillow_shrink_as_they_are_called():
    picture = scene(4)
    area = SHRINKING["area"](planes(picture), 2)
    expected = picture.reshape(32, 2, 40, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(area, np.rint(planes(expected)))
    pillow = SHRINKING["bicubic-pillow"](planes(picture), 4)
    expected = Image.fromarray(picture).resize((20, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pillow, planes(np.asarray(expected)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and five originals, one of odd size and one grey."""
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    (tmp_path / "Set5" / "HR").mkdir(parents=True)
    for number, name in enumerate(("baby", "bird", "butterfly", "head", "woman")):
        picture = scene(number, 40 + number % 2, 49)
        shown = picture[..., 0] if name == "head" else picture
        Image.fromarray(shown).save(tmp_path / "Set5" / "HR" / f"{name}.png")
    return tmp_path


def test_figures_are_those_of_what_the_command_writes(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    found = evaluate([folder / "model.pth"], Comparing(originals=folder / "Set5" / "HR"))
    assert (found.set_name, found.originals, found.expected) == ("Set5", 5, 5)
    (file,) = found.files
    assert list(file.pictures) == ["baby", "bird", "butterfly", "head", "woman"]
    original = scene(1, 41, 49)[:40, :48]
    small = SHRINKING["bicubic-matlab"](planes(original), 2)
    large = upscale(open_upscaler(folder / "model.pth"), np.moveaxis(small, 0, -1))
    expected = by_scikit_image(large, original, 2)
    for name, value in vars(expected).items():
        assert getattr(file.pictures["bird"], name) == pytest.approx(value, abs=1e-4), name
    arguments = ["evaluate", str(folder / "model.pth"), "--originals", str(folder / "Set5" / "HR")]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(found.as_dict()))
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Set5" in shown
    assert f"{file.mean.psnr_y:.2f} dB" in shown if file.mean else False


def test_low_resolution_pictures_are_found_by_their_names(folder: Path):
    originals = folder / "Set5" / "HR"
    (folder / "LR").mkdir()
    for path in originals.iterdir():
        picture = np.asarray(Image.open(path))[:40, :48]
        small = SHRINKING["area"](planes(picture), 2)
        ending = {"baby": "baby", "bird": "birdx2"}.get(path.stem, f"{path.stem}_x2")
        Image.fromarray(np.moveaxis(small, 0, -1).squeeze()).save(folder / "LR" / f"{ending}.png")
    model = open_upscaler(folder / "model.pth")
    given = evaluate([model], Comparing(originals=originals, lowres=folder / "LR"))
    made = evaluate([model], Comparing(originals=originals, shrinking="area"))
    assert given.files == made.files
    (folder / "LR" / "baby.png").unlink()
    Image.fromarray(scene(1, 9, 9)).save(folder / "LR" / "birdx2.png")
    given = evaluate([model], Comparing(originals=originals, lowres=folder / "LR"))
    assert [str(fault).split("\n")[0].rpartition(": ")[2] for fault in given.faults] == [
        "there is no low-resolution picture for this original",
        "the original is not of the size of the enlarged picture",
    ]
    assert len(given.files[0].pictures) == 3


def test_what_is_kept_is_not_computed_again_and_what_changed_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    computed: list[int] = []

    def counted(*arguments: Any) -> Quality:
        computed.append(1)
        return quality(*arguments)

    monkeypatch.setattr("aether_converters.measuring.evaluation.quality", counted)
    kept = folder / "figures.jsonl"
    comparing = Comparing(originals=folder / "Set5" / "HR")

    def run() -> Any:
        computed.clear()
        return evaluate([folder / "model.pth"], comparing, kept=kept).as_dict(), len(computed)

    first, count = run()
    assert count == 5
    assert run() == (first, 0)
    kept.write_bytes(kept.read_bytes()[:-20])  # a run that was killed while it wrote
    assert run() == (first, 1)
    assert run() == (first, 0)
    Image.fromarray(scene(9, 40, 48)).save(folder / "Set5" / "HR" / "baby.png")
    assert run()[1] == 1
    torch.save(tiny(seed=1).state_dict(), folder / "model.pth")
    assert run()[1] == 5


@pytest.mark.parametrize(
    "content", [b"my notes", b'{"a": 1}\n', b"\x89PNG\r\n\x1a\n", b'{"key": {}}\nnotes', b"\0"]
)
def test_figures_are_added_to_no_file_that_holds_anything_else(folder: Path, content: bytes):
    kept = folder / "mine"
    kept.write_bytes(content)
    with pytest.raises(AetherError, match="this file holds something else than kept figures"):
        evaluate([folder / "model.pth"], Comparing(originals=folder / "Set5" / "HR"), kept=kept)
    assert kept.read_bytes() == content


@pytest.mark.parametrize("quality", ['"high"', "{}", '{"psnr": "x"}', "[]", "NaN"])
def test_a_line_of_no_figures_is_passed_over(folder: Path, quality: str):
    kept = folder / "kept.jsonl"
    kept.write_text(f'{{"key": {{}}, "quality": {quality}}}\n')
    found = evaluate([folder / "model.pth"], Comparing(originals=folder / "Set5" / "HR"), kept=kept)
    assert not found.faults


def test_files_stand_side_by_side_and_faults_stay_with_theirs(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    aether_converters.convert(folder / "model.pth", folder, to=["onnx"], precision=["fp16"])
    (folder / "broken.pth").write_bytes(b"nothing")
    (folder / "Set5" / "HR" / "woman.png").write_bytes(b"nothing")
    files = [str(folder / name) for name in ("model.pth", "broken.pth")]
    files += map(str, folder.glob("*.onnx"))
    assert main(["evaluate", *files, "--originals", str(folder / "Set5"), "--json"]) == 1
    capsys.readouterr()
    assert main(["evaluate", *files, "--originals", str(folder / "Set5" / "HR"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    exact, rounded = told["files"]
    assert len(told["faults"]) == 3  # the file, and a picture for each of the others
    assert exact["mean"]["psnr"] == pytest.approx(rounded["mean"]["psnr"], abs=0.1)
    assert exact["pictures"].keys() == rounded["pictures"].keys()
    assert (exact["precision"], rounded["precision"]) == ("fp32", "fp16")


SETS = {
    "Set5/HR": "Set5",
    "data/set14": "Set14",
    "B100": "BSD100",
    "BSDS100/original": "BSD100",
    "Urban100": "Urban100",
    "DIV2K_valid_HR": "DIV2K valid",
    "photos": None,
    "Set50": None,
}


@pytest.mark.parametrize("folder_name", SETS)
def test_known_sets_are_known_by_their_folders(tmp_path: Path, folder_name: str):
    known = Comparing(originals=tmp_path / folder_name).known_set
    assert (known and known.name) == SETS[folder_name]


def test_a_part_of_a_known_set_is_said_to_be_one(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "Set5" / "HR" / "woman.png").unlink()
    arguments = ["evaluate", str(folder / "model.pth"), "--originals", str(folder / "Set5" / "HR")]
    assert main(arguments) == 0
    assert "Set5 has 5 pictures, and here are 4" in capsys.readouterr().err


def test_another_way_of_shrinking_is_refused(tmp_path: Path):
    with pytest.raises(ImageError, match="pictures are not made smaller in this way"):
        Comparing(originals=tmp_path, shrinking="lanczos")


# LPIPS


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps weights that it has fetched; what is not there cannot be had."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    perceptual.lpips_network.cache_clear()
    return tmp_path / "torch" / "hub" / "checkpoints"


def put_alexnet(weights: Path) -> None:
    """Random ones, the classifier all zeros that take no room."""
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = ALEXNET().state_dict()
    drawn = {
        name: 0.1 * torch.randn(tensor.shape)
        if name.startswith("features")
        else torch.zeros(1).expand(tensor.shape)
        for name, tensor in empty.items()
    }
    weights.mkdir(parents=True)
    torch.save(drawn, weights / "alexnet-owt-7be5be79.pth")


def test_lpips_is_that_of_its_own_package(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
):
    put_alexnet(weights)
    comparing = Comparing(originals=folder / "Set5" / "HR", lpips=True)
    found = evaluate([folder / "model.pth"], comparing, kept=folder / "kept")
    (file,) = found.files
    original = scene(1, 41, 49)[:40, :48]
    small = SHRINKING["bicubic-matlab"](planes(original), 2)
    large = upscale(open_upscaler(folder / "model.pth"), np.moveaxis(small, 0, -1))
    theirs = importlib.import_module("lpips")
    inside = [theirs.im2tensor(picture[2:-2, 2:-2]) for picture in (large, original)]
    with torch.inference_mode():
        expected = float(theirs.LPIPS(net="alex", verbose=False)(*inside))
    assert file.pictures["bird"].lpips == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    assert evaluate([folder / "model.pth"], comparing, kept=folder / "kept").files == found.files
    arguments = ["evaluate", str(folder / "model.pth"), "--originals", str(folder / "Set5" / "HR")]
    assert main([*arguments, "--lpips"]) == 0
    assert f"{expected:.4f}" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "LPIPS" not in capsys.readouterr().out


def test_equal_pictures_do_not_differ_and_small_ones_are_refused(weights: Path):
    put_alexnet(weights)
    picture = planes(scene(1))
    assert perceptual.lpips(picture, picture, 4) == 0
    with pytest.raises(ImageError, match="too small for LPIPS"):
        perceptual.lpips(picture[:, :30], picture[:, :30], 0)


@pytest.mark.usefixtures("weights")
def test_weights_that_cannot_be_had_are_told(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["evaluate", str(folder / "model.pth"), "--originals", str(folder / "Set5" / "HR")]
    assert main([*arguments, "--lpips"]) == 1
    told = capsys.readouterr().err
    assert told.count("the weights of AlexNet") == 1
    assert "233 MB" in told
