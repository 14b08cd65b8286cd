"""Values that no tensor carries: where they come from, and that none is assumed in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from spandrel import ModelLoader
from torch import Tensor

import aether_spandrel
from aether_converters import convert
from aether_converters.command_line.main import main
from aether_spandrel import CheckpointError
from tests.support.published import draw
from tests.support.reference import published


@pytest.fixture
def state() -> dict[str, Tensor]:
    return draw("G5f", channel_attn=True, spatial_attn=True)


def image() -> Tensor:
    return torch.rand(1, 3, 11, 14, generator=torch.Generator().manual_seed(0))


def run(model: Any) -> Tensor:
    with torch.inference_mode():
        return model.model(image())


def assert_computes(
    model: Any, state: dict[str, Tensor], *, res_scale: float | None = None, img_range: float = 1.0
) -> None:
    expected = published("G5f", state, image(), res_scale=res_scale, img_range=img_range).float()
    torch.testing.assert_close(run(model), expected, atol=2e-5, rtol=1e-5)


PLACES: dict[str, tuple[str, dict[str, object]]] = {
    "beside the state dict": ("params", {"arch_config": {"res_scale": 0.37}}),
    "in metadata.arch_config": (
        "state_dict",
        {"metadata": {"arch_config": {"res_scale": 0.37}}},
    ),
    "in metadata": ("state_dict", {"metadata": {"res_scale": 0.37}}),
    "at the top": ("params", {"res_scale": 0.37}),
}
"""The wrapper of the state dict, and what stands beside it."""


@pytest.mark.parametrize("place", PLACES)
def test_metadata_win_over_the_default(state: dict[str, Tensor], tmp_path: Path, place: str):
    wrapper, beside = PLACES[place]
    torch.save({wrapper: state, **beside}, tmp_path / "a.pth")
    assert_computes(aether_spandrel.load(tmp_path / "a.pth"), state, res_scale=0.37)
    info = aether_spandrel.inspect(tmp_path / "a.pth")
    assert info.constants["res_scale"] == 0.37
    assert "res_scale" not in info.assumed


@pytest.mark.parametrize(
    "header", [{"arch_config": json.dumps({"res_scale": 0.37})}, {"res_scale": "0.37"}]
)
def test_the_safetensors_header_wins_over_the_default(
    state: dict[str, Tensor], tmp_path: Path, header: dict[str, str]
):
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", metadata=header)
    assert_computes(aether_spandrel.load(tmp_path / "a.safetensors"), state, res_scale=0.37)


def test_the_caller_wins_over_the_metadata(state: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save({"params": state, "arch_config": {"res_scale": 0.37}}, path)
    assert_computes(aether_spandrel.load(path, res_scale=0.15), state, res_scale=0.15)
    assert aether_spandrel.inspect(path, res_scale=0.15).constants["res_scale"] == 0.15


@pytest.mark.parametrize(("embed_dim", "default"), [(64, 0.2), (72, 0.1)])
def test_small_networks_have_a_default_of_their_own(tmp_path: Path, embed_dim: int, default: float):
    state = draw("G5f", embed_dim=embed_dim)
    torch.save(state, tmp_path / "a.pth")
    info = aether_spandrel.inspect(tmp_path / "a.pth")
    assert info.assumed["res_scale"] == (
        f"{default:g}, the default of G5f: no tensor carries it and the file's metadata do not "
        "name it"
    )
    assert_computes(aether_spandrel.load(tmp_path / "a.pth"), state, res_scale=default)


@pytest.mark.parametrize("value", ["abc", -1.0, 0.0, float("nan"), 1e9, [0.1], None, True])
def test_unusable_metadata_are_not_used_and_a_default_is_named(
    state: dict[str, Tensor], tmp_path: Path, value: object
):
    torch.save({"params": state, "arch_config": {"res_scale": value}}, tmp_path / "a.pth")
    assert_computes(aether_spandrel.load(tmp_path / "a.pth"), state)
    assert "res_scale" in aether_spandrel.inspect(tmp_path / "a.pth").assumed


def test_norm_eps_can_be_chosen_where_the_keys_do_not_tell(tmp_path: Path):
    state = draw("G5d")  # taken for G5e, which has another eps
    torch.save(state, tmp_path / "a.pth")
    expected = published("G5d", state, image()).float()
    found = run(aether_spandrel.load(tmp_path / "a.pth", norm_eps=1e-5))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    assert float((run(aether_spandrel.load(tmp_path / "a.pth")) - expected).abs().max()) > 1e-5


def test_error_comp_can_be_left_out_of_a_stripped_qat_file(tmp_path: Path):
    qat = draw("G5f", qat=True)
    stripped = {k: t for k, t in qat.items() if "fake_quant" not in k and "post_process" not in k}
    torch.save(stripped, tmp_path / "a.pth")
    expected = published("G5f", qat, image(), qat=True).float()
    found = run(aether_spandrel.load(tmp_path / "a.pth", error_comp=0))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_the_revision_can_be_chosen_where_the_keys_do_not_tell(tmp_path: Path):
    state = draw("G5a")
    torch.save(state, tmp_path / "a.pth")
    expected = published("G5a", state, image()).float()
    found = run(aether_spandrel.load(tmp_path / "a.pth", revision="G5a"))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_converted_files_need_no_metadata_and_survive_save_model(
    state: dict[str, Tensor], tmp_path: Path, kind: Any
):
    """spandrel drops all metadata; saving the loaded network drops every wrapper too."""
    aether_spandrel.install()
    torch.save(state, tmp_path / "a.pth")
    (artefact,) = convert(
        tmp_path / "a.pth", to=[kind], precision=["fp32"], res_scale=0.37, img_range=2.0
    ).artefacts
    loaded = ModelLoader().load_from_file(artefact.path)
    assert_computes(loaded, state, res_scale=0.37, img_range=2.0)
    torch.save(loaded.model.state_dict(), tmp_path / "saved.pth")
    again = ModelLoader().load_from_file(tmp_path / "saved.pth")
    assert torch.equal(run(again), run(loaded))
    assert aether_spandrel.inspect(tmp_path / "saved.pth").assumed == {}


def test_values_that_spandrel_would_not_know_are_named_with_the_command_that_helps(
    state: dict[str, Tensor], tmp_path: Path
):
    path = tmp_path / "a.pth"
    torch.save({"params": state, "arch_config": {"res_scale": 0.37}}, path)
    (note,) = aether_spandrel.inspect(path).notes
    assert note == (
        "spandrel, ChaiNNer and ComfyUI read tensors alone and would not know res_scale 0.37: "
        f"aethernet convert {path} --to safetensors makes a file that needs no such values"
    )


@pytest.mark.parametrize(
    ("constants", "problem"),
    [
        ({"res_scale": 0.0}, "res_scale is out of range"),
        ({"res_scale": float("nan")}, "res_scale is out of range"),
        ({"error_comp": 0.5}, "error_comp is out of range"),
        ({"norm_folded": 1}, "norm_folded has no part in this network of revision G5f"),
        ({"res_scael": 1.0}, "res_scael cannot be set to 1.0"),
        ({"res_scale": "much"}, "res_scale cannot be set to 'much'"),
        ({"revision": "G9"}, "this file cannot be of revision G9"),
    ],
)
def test_constants_that_make_no_sense_are_told(
    state: dict[str, Tensor], tmp_path: Path, constants: dict[str, Any], problem: str
):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        aether_spandrel.load(tmp_path / "a.pth", **constants)
    assert caught.value.problem == problem
    assert caught.value.file == tmp_path / "a.pth"


def test_constants_cannot_be_set_for_a_file_that_has_them_in_its_weights(
    state: dict[str, Tensor], tmp_path: Path
):
    torch.save(state, tmp_path / "a.pth")
    saved = aether_spandrel.load(tmp_path / "a.pth").model.state_dict()
    torch.save(saved, tmp_path / "saved.pth")
    with pytest.raises(CheckpointError, match="this file has it in its weights already"):
        aether_spandrel.load(tmp_path / "saved.pth", res_scale=0.2)


def test_the_command_line_sets_constants(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.pth"
    torch.save(state, path)
    assert main(["inspect", str(path), "--set", "res_scale=0.15", "--set", "img_range=2"]) == 0
    out = capsys.readouterr().out
    assert "  constant   img_range = 2\n  constant   res_scale = 0.15\n" in out
    assert main(["convert", str(path), "--to", "pth", "--set", "res_scale=0.15"]) == 0
    model = aether_spandrel.load(tmp_path / "2x_a_fp32.pth")
    assert_computes(model, state, res_scale=0.15)
    capsys.readouterr()
    assert main(["inspect", str(path), "--set", "res_scale=-1"]) == 1
    assert capsys.readouterr().err == (
        f"error: {path}: res_scale is out of range\n"
        "  expected  0.001 to 1000\n"
        "  found     -1\n"
        "  next      choose a value in this range\n"
    )
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--set", "res_scale"])
    assert "res_scale is not of the form res_scale=0.15 (NAME=VALUE)" in capsys.readouterr().err


def test_the_command_that_helps_repeats_what_was_set(state: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "my model.pth"
    torch.save(state, path)
    (note,) = aether_spandrel.inspect(path, res_scale=0.3).notes
    assert f"aethernet convert '{path}' --set res_scale=0.3 --to safetensors makes" in note
