"""The sample model that the package ships, and the script that trains it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

import aether_spandrel
import train_sample
from aether_converters import sample
from aether_core import AetherNet, prepare_qat
from aether_spandrel.errors import AetherError
from train_sample import (
    PHOTOGRAPHS,
    QAT_NAME,
    SAMPLE_NAME,
    Pixels,
    Plan,
    Progress,
    as_tensor,
    draw_batch,
    main,
    mean_gain,
    measure,
    sample_network,
    shrink,
    start_as_interpolation,
    train,
)

PLAN = Plan(steps=6, batch=2, patch=8, rate=1e-3, warmup=2, decay=0.5)
NOISE: Pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
ROOT = Path(sample.__file__).parent


# What is shipped


def test_the_sample_is_a_small_unfused_g1_that_nothing_is_doubted_about():
    info = aether_spandrel.inspect(sample.MODEL)
    assert (info.revision, info.config.scale, info.fused, info.dtype) == ("G1", 2, False, "float16")
    assert (info.config.embed_dim, info.config.depths) == (48, (2, 2, 2))
    assert not info.warnings
    assert sample.MODEL.stat().st_size < 1_000_000


def test_the_sample_beats_bicubic_by_a_decibel_on_pictures_it_has_not_seen():
    qualities = measure(aether_spandrel.load(sample.MODEL))
    assert mean_gain(qualities) >= 1.0
    assert min(quality.gain for quality in qualities) > 0.5


def test_the_picture_is_small_and_one_of_the_test_pictures_halved():
    data = pytest.importorskip("skimage.data")
    assert np.array_equal(np.asarray(Image.open(sample.PICTURE)), shrink(data.coffee(), 2))
    assert sample.PICTURE.stat().st_size < 150_000


def test_the_readme_names_every_photograph_with_author_and_licence():
    rows = (ROOT / "README.md").read_text("utf-8").splitlines()
    for name, (holder, licence) in PHOTOGRAPHS.items():
        assert f"| `{name}` | {holder} | {licence} |" in rows


# Where training begins


def test_a_fresh_network_enlarges_by_a_cubic_kernel():
    """By hand for one row: the three nearest px of -0.0703, 0.8672, 0.2266 to a sum of 1."""
    torch.manual_seed(0)
    network = start_as_interpolation(sample_network()).eval()
    small = (
        as_tensor(NOISE[None])[..., 16:24, 16:24].mean(dim=2, keepdim=True).expand(-1, -1, 8, -1)
    )
    with torch.inference_mode():
        found = network(small)[0, :, 8]  # (3, 16), px 2 i and 2 i + 1 lie left and right of i
    taps = torch.tensor([0.2266, 0.8672, -0.0703]) / 1.0235
    row = small[0, :, 4]
    left = row[:, 2:5] @ taps
    right = row[:, 2:5] @ taps.flip(0)
    torch.testing.assert_close(found[:, 6:8], torch.stack([left, right], dim=1), atol=1e-5, rtol=0)


# What is trained on


def test_a_patch_is_what_its_half_was_made_of():
    small, large = draw_batch([NOISE], PLAN, step=3)
    assert small.shape == (2, 3, 8, 8)
    assert large.shape == (2, 3, 16, 16)
    mean = torch.nn.functional.avg_pool2d(large, 2)
    assert (small - mean).abs().max() <= 0.5 / 255 + 1e-6


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = (draw_batch([NOISE], PLAN, step=3)[1] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_batch([NOISE], PLAN, step=4)[1])
    assert not torch.equal(first, draw_batch([NOISE], replace(PLAN, seed=1), step=3)[1])


def test_flat_parts_of_a_picture_are_passed_over():
    half_flat = np.full((40, 400, 3), 128, np.uint8)
    half_flat[:, :200] = np.tile(NOISE, (1, 5, 1))
    _, large = draw_batch([half_flat], replace(PLAN, batch=16), step=0)
    assert (large.flatten(1).std(dim=1) > 0).all()


# How it is trained


def fresh(*, qat: bool) -> AetherNet:
    torch.manual_seed(0)
    network = start_as_interpolation(sample_network())
    return prepare_qat(network, warmup=1) if qat else network


def weights(network: AetherNet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("qat", [False, True], ids=["float", "qat"])
def test_an_interrupted_training_ends_as_one_that_was_not(qat: bool, tmp_path: Path):
    lines: list[Progress] = []
    whole = weights(train(fresh(qat=qat), [NOISE], PLAN, tmp_path / "a", lines.append, every=2))
    assert [line.step for line in lines] == [2, 4, 6]

    def interrupt(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    state = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        train(fresh(qat=qat), [NOISE], PLAN, state, interrupt, every=2)
    lines.clear()
    resumed = weights(train(fresh(qat=qat), [NOISE], PLAN, state, lines.append, every=2))
    assert [line.step for line in lines] == [6]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "b"]  # nothing half-written


def test_training_lowers_the_loss(tmp_path: Path):
    plan = replace(PLAN, steps=30, rate=3e-3)
    losses: list[float] = []
    train(fresh(qat=False), [NOISE], plan, tmp_path / "state", lambda p: losses.append(p.loss), 10)
    assert losses[-1] < losses[0]


def test_a_training_does_not_go_on_with_other_settings(tmp_path: Path):
    state = tmp_path / "state"
    train(fresh(qat=False), [NOISE], replace(PLAN, steps=1), state, lambda _: None)
    with pytest.raises(AetherError) as refused:
        train(fresh(qat=False), [NOISE], replace(PLAN, steps=2), state, lambda _: None)
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{state}: this training was begun with other settings"
    assert lines[1].startswith("  expected  Plan(steps=2, ")
    assert lines[2].startswith("  found     Plan(steps=1, ")
    assert lines[3].startswith("  next      give the same options again")


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path):
    state = tmp_path / "state"
    state.write_bytes(b"no pickle")
    with pytest.raises(AetherError, match="this is no state of a training"):
        train(fresh(qat=False), [NOISE], PLAN, state, lambda _: None)


# The command line


@pytest.fixture
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    Image.fromarray(np.tile(NOISE, (4, 4, 1))).save(folder / "noise.png")
    return folder


def test_trained_fine_tuned_and_measured(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
):
    common = ["--out", str(tmp_path), "--photographs", str(photographs)]
    assert main([*common, "--steps", "4"]) == 0
    trained = tmp_path / SAMPLE_NAME
    assert aether_spandrel.inspect(trained).dtype == "float16"
    kept = safetensors.torch.load_file(sample.MODEL)
    assert safetensors.torch.load_file(trained).keys() == kept.keys()

    capsys.readouterr()
    assert main([*common, "--steps", "4", "--qat", str(sample.MODEL)]) == 0
    tuned = aether_spandrel.inspect(tmp_path / QAT_NAME)
    assert tuned.qat
    assert "conv_last" in tuned.ranges
    assert not any(name.endswith(".conv") for name in tuned.ranges)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-20:]] == [
        *(str(sample.MODEL), "float", "astronaut", "coffee", "chelsea", "rocket", "mean"),
        *(str(tmp_path / QAT_NAME), "float", "astronaut", "coffee", "chelsea", "rocket", "mean"),
        *("int8", "astronaut", "coffee", "chelsea", "rocket", "mean"),
    ]


def test_what_is_no_sample_model_is_not_fine_tuned(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, other)
    command = ["--out", str(tmp_path), "--photographs", str(photographs), "--qat", str(other)]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"{other}: this is no sample model\n")


def test_pictures_that_cannot_be_had_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["--out", str(tmp_path), "--photographs", str(tmp_path)]) == 1
    assert f"{tmp_path}: no pictures to train on" in capsys.readouterr().err

    monkeypatch.setattr(train_sample, "INSTALLED", Path("/nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))  # without apt-get
    assert main(["--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "the photographs of Debian's package lomiri-wallpapers-16.04 cannot be had" in message
    assert "apt-get install lomiri-wallpapers-16.04" in message
