"""What a conversion does to pictures: figures that others measure alike, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import metrics

from aether_converters import ConversionError, verify
from aether_converters.measuring.proof import prove, psnr, ssim
from aether_converters.pictures.comparison import Pair
from aether_converters.reports.report import Report
from aether_spandrel.errors import AetherError
from aether_spandrel.inference import FastAetherNet
from tests.support.tiny import tiny

Image32 = NDArray[np.float32]


def noisy(seed: int, amount: float) -> tuple[Image32, Image32]:
    random = np.random.default_rng(seed)
    smooth = np.cumsum(random.standard_normal((1, 3, 40, 50)), axis=3) / 20 + 0.5
    smooth = np.clip(smooth, 0, 1).astype(np.float32)
    other = np.clip(smooth + amount * random.standard_normal(smooth.shape), 0, 1)
    return smooth, other.astype(np.float32)


def test_psnr_and_ssim_are_those_of_scikit_image():
    a, b = noisy(0, 0.05)
    measured: Any = cast(Any, metrics)
    first, second = (torch.from_numpy(x).double() for x in (a, b))
    expected = measured.peak_signal_noise_ratio(a[0], b[0], data_range=1.0)
    assert psnr(first, second) == pytest.approx(expected, abs=1e-4)
    # scikit-image pads, and averages what lies 5 px inside.
    similarity = measured.structural_similarity(
        a[0].astype(np.float64),
        b[0].astype(np.float64),
        data_range=1.0,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(first, second) == pytest.approx(similarity, abs=1e-4)
    assert psnr(first, first) is None
    assert ssim(first, first) == pytest.approx(1.0)


def test_a_loss_is_how_much_further_from_the_original_the_artefact_lies(tmp_path: Path):
    truth, source = noisy(1, 0.02)
    artefact = source + np.float32(0.03)
    (proof,) = prove(
        lambda _: artefact,
        [Pair(name="a", image=source, original=truth)],
        [source],
        lambda name: tmp_path / f"{name}.png",
    )
    assert proof.source_psnr is not None
    assert proof.original_psnr is not None
    loss = proof.source_psnr - proof.original_psnr
    assert loss > 1
    assert proof.loss == pytest.approx(loss)
    shown = np.asarray(Image.open(tmp_path / "a.png"))
    assert abs(int(np.median(shown)) - round(255 * (0.5 + 16 * 0.03))) <= 1
    with pytest.raises(ConversionError, match="not of the size"):
        prove(
            lambda _: artefact, [Pair(name="a", image=source, original=truth[:, :, 1:])], [source]
        )


def test_verify_pairs_pictures_with_their_originals_by_name(tmp_path: Path):
    model = tmp_path / "model.pth"
    torch.save(tiny().state_dict(), model)
    for folder, side in (("small", 24), ("large", 48)):
        (tmp_path / folder).mkdir()
        picture = Image.linear_gradient("L").convert("RGB").resize((side, side))
        picture.save(tmp_path / folder / f"a.{'png' if folder == 'small' else 'webp'}")
    report = verify(
        model,
        [model],
        pictures=[tmp_path / "small"],
        originals=tmp_path / "large",
        differences=tmp_path / "differences",
    )
    (proof,) = report.artefacts[0].pictures
    assert proof.picture == "a"
    assert proof.loss == pytest.approx(0, abs=1e-3)
    assert (tmp_path / "differences" / "model_a_difference.png").exists()
    (tmp_path / "large" / "a.webp").unlink()
    with pytest.raises(AetherError, match="this picture has no original"):
        verify(model, [model], pictures=[tmp_path / "small"], originals=tmp_path / "large")
    with pytest.raises(AetherError, match="no pictures to compare on"):
        verify(model, [model], differences=tmp_path / "differences")


def compared(folder: Path) -> tuple[Path, Path]:
    """A model, and a folder with one picture."""
    model = folder / "model.pth"
    torch.save(tiny().state_dict(), model)
    (folder / "small").mkdir()
    Image.linear_gradient("L").convert("RGB").resize((24, 20)).save(folder / "small" / "a.png")
    return model, folder / "small"


def test_files_with_the_same_tensors_are_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    states = [tiny(seed).state_dict() for seed in (0, 0, 7)]
    paths = [tmp_path / f"{name}.pth" for name in ("source", "twin", "other")]
    for path, state in zip(paths, states, strict=True):
        torch.save(state, path)
    Image.effect_noise((30, 20), 80).convert("RGB").save(tmp_path / "photo.png")
    runs: list[FastAetherNet] = []
    forward = FastAetherNet.forward

    def counted(network: FastAetherNet, picture: torch.Tensor) -> torch.Tensor:
        runs.append(network)
        return forward(network, picture)

    monkeypatch.setattr(FastAetherNet, "forward", counted)

    def verified(*files: Path) -> Report:
        runs.clear()
        return verify(paths[0], files, pictures=[tmp_path / "photo.png"])

    verified(paths[0])
    alone = len(runs)
    found = verified(paths[0], paths[1], paths[2])
    assert len(runs) > alone > 0
    once = len(runs)
    first, twin, other = found.artefacts
    assert (twin.psnr, twin.ssim, twin.pictures) == (first.psnr, first.ssim, first.pictures)
    assert other.psnr is not None
    assert other.pictures != first.pictures
    verified(paths[0], paths[2])
    assert len(runs) == once


def test_difference_pictures_replace_older_ones_and_nothing_else(tmp_path: Path):
    model, pictures = compared(tmp_path)
    place = tmp_path / "differences" / "model_a_difference.png"
    for _ in range(2):
        verify(model, [model], pictures=[pictures], differences=place.parent)
    Image.new("RGB", (9, 9)).save(place)
    for there in (b"precious", place.read_bytes()):
        place.write_bytes(there)
        with pytest.raises(ConversionError, match="exists already, and is kept") as refusal:
            verify(model, [model], pictures=[pictures], differences=place.parent)
        assert refusal.value.advice == "choose another folder with --differences"
        assert place.read_bytes() == there


def test_two_difference_pictures_of_one_name_are_refused_before_anything_is_computed(
    tmp_path: Path,
):
    model, pictures = compared(tmp_path)
    (tmp_path / "other").mkdir()
    for copied in (tmp_path / "other" / "model.pth", tmp_path / "other" / "a.png"):
        source = model if copied.suffix == ".pth" else pictures / "a.png"
        copied.write_bytes(source.read_bytes())
    ways = [
        ([model, tmp_path / "other" / "model.pth"], [pictures]),
        ([model], [pictures / "a.png", tmp_path / "other" / "a.png"]),
    ]
    for artefacts, named in ways:
        with pytest.raises(ConversionError, match="two pictures would be written to one file"):
            verify(model, artefacts, pictures=named, differences=tmp_path / "d")
        assert not (tmp_path / "d").exists()


def test_a_report_that_is_kept_is_told_with_an_option_that_verify_has(tmp_path: Path):
    model, _ = compared(tmp_path)
    (tmp_path / "verify.json").write_text("{}")
    with pytest.raises(ConversionError, match="exists already, and is kept") as refusal:
        verify(model, [model], report=tmp_path)
    assert refusal.value.advice == "choose another folder with --report"
