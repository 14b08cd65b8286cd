"""What becomes of colours is a figure of its own, on patches that no photograph stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from aether_converters import convert, verify
from aether_converters.int8.planning import Int8Options
from aether_converters.measuring.colour import flat_patches, mean_shift, moved_colours
from tests.support.tiny import tiny


def test_flat_patches_have_every_primary_and_its_opposite():
    assert {"0/0/0", "255/255/255", "0/255/0", "255/0/255", "128/128/128"} < set(flat_patches(3))
    assert set(flat_patches(1)) == {"0", "255", "64", "128", "191"}
    assert all(np.ptp(patch, axis=(2, 3)).max() == 0 for patch in flat_patches(3).values())


def test_the_colour_that_moves_furthest_is_named():
    def greenish(picture: Any) -> Any:
        moved = picture.copy()
        moved[:, 1] -= 0.1 * (picture[:, 1] > 0.9) * (picture[:, 0] < 0.1) * (picture[:, 2] < 0.1)
        return moved

    patch, *others = moved_colours(greenish, lambda picture: picture, 3)
    assert patch.colour == "0/255/0"
    assert patch.shift == pytest.approx(25.5, rel=1e-5)
    assert patch.source == pytest.approx((0, 255, 0))
    assert patch.found == pytest.approx((0, 229.5, 0))
    assert max(other.shift for other in others) == 0


def test_noise_moves_no_colour():
    picture = np.full((1, 3, 64, 64), 0.5, np.float32)
    noise = np.random.default_rng(0).choice([-0.1, 0.1], (1, 3, 64, 32))
    found = picture + np.concatenate([noise, -noise], axis=3)
    assert mean_shift(found.astype(np.float32), picture) < 1e-6


def test_a_file_that_ruins_a_colour_is_not_kept(tmp_path: Path):
    network = tiny()
    torch.save(network.state_dict(), tmp_path / "2x_good.pth")
    with torch.no_grad():
        cast(Any, network.conv_last).bias[1] -= 0.026
    torch.save(network.state_dict(), tmp_path / "2x_green.pth")
    options = Int8Options(tune=0)
    (made,) = convert(
        tmp_path / "2x_green.pth", tmp_path, to=["onnx"], precision=["int8"], int8=options
    ).artefacts
    (found,) = verify(tmp_path / "2x_good.pth", [made.path]).artefacts
    assert found.colour is not None
    assert 6 < found.colour.shift < 9
    assert found.problem.startswith("colours move by")
    assert "--tune" in found.problem


def test_pictures_that_were_given_say_how_their_colours_move(tmp_path: Path):
    network = tiny()
    torch.save(network.state_dict(), tmp_path / "2x_tiny.pth")
    Image.linear_gradient("L").resize((32, 24)).convert("RGB").save(tmp_path / "photo.png")
    (made,) = convert(
        tmp_path / "2x_tiny.pth",
        tmp_path / "out",
        to=["onnx"],
        precision=["int8"],
        int8=Int8Options(tune=0),
    ).artefacts
    (found,) = verify(
        tmp_path / "2x_tiny.pth", [made.path], pictures=[tmp_path / "photo.png"]
    ).artefacts
    (proof,) = found.pictures
    assert 0 < proof.shift < 6
    colour = found.colour
    assert colour is not None
    assert found.as_dict()["colour"] == {
        "in_words": colour.in_words,
        "pictures": colour.pictures,
        "flat": colour.patches[0].shift,
        "patch": colour.patches[0].colour,
        "patches": [vars(patch) for patch in colour.patches],
    }
