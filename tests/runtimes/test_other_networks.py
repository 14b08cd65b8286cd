"""Networks of other architectures that spandrel knows: they are run, and not converted."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
from spandrel.architectures.LaMa.__arch.LaMa import LaMa
from spandrel.architectures.SAFMN.__arch.safmn import SAFMN
from spandrel.architectures.SPAN.__arch.span import SPAN
from torch import nn

from aether_converters import ModelError, open_upscaler, upscale, verify
from aether_converters.command_line.main import main
from aether_converters.measuring.benchmark import benchmark
from aether_converters.pictures.tiling import plan_tiles, upscale_image
from aether_converters.runtimes import devices
from aether_converters.runtimes.other_networks import Sight
from aether_spandrel.architectures import architecture_of, load_other
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.errors import CheckpointError
from tests.support.tiny import tiny


def compact(blocks: int = 2) -> nn.Module:
    return SRVGGNetCompact(num_feat=8, num_conv=blocks, upscale=2)


def esrgan(blocks: int = 1) -> nn.Module:
    return RRDBNet(num_filters=8, num_blocks=blocks, scale=4)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "RealESRGAN Compact": compact,
    "ESRGAN": esrgan,
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
    "ESRGAN of halved pictures": lambda: RRDBNet(
        num_filters=8, num_blocks=1, scale=4, shuffle_factor=2, in_nc=12, plus=True
    ),
}


def saved(network: nn.Module, folder: Path) -> Path:
    torch.manual_seed(0)
    for weight in network.parameters():
        # As drawn, they leave a picture all but grey, in which no seam would be seen.
        nn.init.normal_(weight, std=0.15)
    torch.save({"params": network.state_dict()}, folder / "other.pth")
    return folder / "other.pth"


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(0).random((3, height, width), np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_give_what_spandrel_gives_for_the_whole_picture(name: str, tmp_path: Path):
    path = saved(NETWORKS[name](), tmp_path)
    upscaler = open_upscaler(path)
    descriptor = ModelLoader().load_from_file(path)
    assert isinstance(descriptor, ImageModelDescriptor)
    picture = noise(123, 145)
    expected = descriptor(torch.from_numpy(picture)[None])[0].numpy()
    assert expected.std() > 0.02
    assert not upscaler.looks_at_all
    plan = plan_tiles(upscaler, 123, 145, tile=2 * upscaler.receptive_radius + 20)
    assert len(plan) >= 4
    found = upscale_image(upscaler, picture, plan)
    assert np.abs(found - expected).max() < 2e-4
    whole = upscale_image(upscaler, picture, plan_tiles(upscaler, 123, 145))
    assert np.abs(whole - expected).max() < 1e-6


def test_a_narrower_overlap_than_what_it_sees_leaves_seams(tmp_path: Path):
    """So that the test before this one could have failed."""
    upscaler = open_upscaler(saved(esrgan(), tmp_path))
    picture = noise(123, 145)
    whole = upscale_image(upscaler, picture, plan_tiles(upscaler, 123, 145))
    found = upscale_image(upscaler, picture, plan_tiles(upscaler, 123, 145, tile=40, overlap=1))
    assert np.abs(found - whole).max() > 1e-2


def test_the_command_says_which_network_it_is_and_what_computes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = saved(compact(), tmp_path)
    Image.effect_noise((24, 16), 80).convert("RGB").save(tmp_path / "photo.png")
    assert main(["upscale", str(path), str(tmp_path / "photo.png"), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "other.pth is no AetherNet but RealESRGAN Compact, 2x\n"
        "computed by PyTorch on the CPU, in fp32\n"
    )
    assert Image.open(tmp_path / "photo_2x.png").size == (48, 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_spandrel_has_loaded_is_called_with_arrays(name: str, tmp_path: Path):
    path = saved(NETWORKS[name](), tmp_path)
    loaded: Any = ModelLoader().load_from_file(path)
    picture = np.rint(255 * noise(43, 55)).astype(np.uint8).transpose(1, 2, 0)
    found = upscale(loaded, picture)
    assert np.array_equal(found, upscale(path, picture))
    opened = open_upscaler(loaded)  # looked at once, for any number of calls
    assert opened.details["architecture"] == loaded.architecture.name
    tiles = upscale(opened, picture, tile=2 * opened.receptive_radius + 10).astype(int)
    assert np.abs(tiles - found).max() <= 1
    rounded = upscale(loaded.bfloat16(), picture)
    assert np.array_equal(rounded, upscale(path, picture, dtype="bf16"))
    assert not np.array_equal(rounded, found)


def test_threads_share_a_network_that_writes_into_itself_while_it_runs(tmp_path: Path):
    """SPAN joins the kernels of its branches anew for each picture."""
    loaded: Any = ModelLoader().load_from_file(saved(NETWORKS["SPAN"](), tmp_path))
    picture = np.rint(255 * noise(24, 24)).astype(np.uint8).transpose(1, 2, 0)
    alone = upscale(loaded, picture)
    opened = open_upscaler(loaded)
    with ThreadPoolExecutor(8) as threads:
        for model in (opened, loaded):
            for found in threads.map(partial(upscale, model), [picture] * 24):
                np.testing.assert_array_equal(found, alone)


def test_a_loaded_network_stays_where_it_is(tmp_path: Path):
    loaded: Any = ModelLoader().load_from_file(saved(compact(), tmp_path))
    with pytest.raises(ModelError, match="the model is open already") as refusal:
        open_upscaler(loaded, device="cpu", dtype="bf16")
    assert refusal.value.found == "device, dtype"


def test_a_loaded_network_that_takes_a_mask_is_refused():
    loaded: Any = ModelLoader().load_from_state_dict(LaMa(in_nc=4, out_nc=3).state_dict())
    with pytest.raises(CheckpointError, match="this network enlarges no pictures") as refusal:
        upscale(loaded, np.zeros((8, 8, 3), np.uint8))
    assert str(refusal.value.found).startswith("LaMa, ")


def test_a_deep_network_s_tiles_overlap_by_less_than_it_sees_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = saved(RRDBNet(num_filters=4, num_blocks=5, scale=4), tmp_path)
    upscaler = open_upscaler(path)
    assert (upscaler.receptive_radius, upscaler.sees) == (32, 80)
    Image.effect_noise((120, 16), 80).convert("RGB").save(tmp_path / "photo.png")
    command = ["upscale", str(path), str(tmp_path / "photo.png"), "--force", "--tile", "100"]
    assert main(command) == 0
    said = (
        "tiles overlap by 32 px of the 80 px that a pixel can depend on: more --memory makes them "
        "fewer, --overlap wider"
    )
    assert said in capsys.readouterr().out
    assert main([*command[:-1], "2000"]) == 0
    assert "overlap" not in capsys.readouterr().out


def test_what_may_look_at_the_whole_picture_is_named(tmp_path: Path):
    upscaler = open_upscaler(saved(SAFMN(dim=8, n_blocks=1, upscaling_factor=2), tmp_path))
    assert upscaler.global_context
    assert "adaptive_max_pool2d" in upscaler.looks_at_all
    assert upscaler.steps == (8, 8)
    assert upscale_image(upscaler, noise(13, 17), plan_tiles(upscaler, 13, 17)).shape == (3, 26, 34)


GRIDS: dict[str, tuple[nn.Module, int, bool]] = {
    "a step of 2 and back": (
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 2, 2)),
        2,
        False,
    ),
    "pooling twice": (
        nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=4)),
        4,
        False,
    ),
    "blocks of 3": (nn.Sequential(nn.PixelUnshuffle(3), nn.PixelShuffle(3)), 3, False),
    "enlarged alone": (nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1), nn.PixelShuffle(2)), 1, False),
    "what is stretched to a size": (
        nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Upsample(size=(24, 24), mode="bilinear")),
        0,
        True,
    ),
    "attention over a grid": (
        nn.Sequential(nn.PixelUnshuffle(4), nn.Flatten(2), nn.MultiheadAttention(36, 1)),
        0,
        True,
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_tiles_begin_where_the_grids_of_a_network_do(name: str):
    layers, steps, whole = GRIDS[name]
    picture = torch.rand(1, 3, 24, 24)
    with torch.inference_mode(), Sight(picture) as sight:
        value: Any = picture
        for layer in layers.children():
            value = layer(value, value, value) if "Attention" in str(layer) else layer(value)
    assert bool(sight.unknown) == whole
    assert whole or sight.steps == steps


def test_memory_is_planned_by_the_largest_tensor(tmp_path: Path):
    """48 channels before the shuffle, of which an operator's input, output and a copy live."""
    assert open_upscaler(saved(esrgan(), tmp_path)).bytes_per_pixel >= 3 * 4 * 8 * 16


def test_averaged_weights_are_taken_before_momentary_ones(tmp_path: Path):
    first, second = compact().state_dict(), compact().state_dict()
    torch.save({"params": first, "params_ema": second}, tmp_path / "both.pth")
    torch.save(second, tmp_path / "averaged.pth")
    picture = noise(16, 16)[None]
    both, averaged = (
        open_upscaler(tmp_path / f"{name}.pth").run(picture) for name in ("both", "averaged")
    )
    assert np.array_equal(both, averaged)


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "net_g.", "module._orig_mod."])
def test_what_trainers_put_in_front_of_keys_is_no_obstacle(front: str, tmp_path: Path):
    state = {f"{front}{key}": tensor for key, tensor in compact().state_dict().items()}
    save_file(state, tmp_path / "other.safetensors")
    upscaler = open_upscaler(tmp_path / "other.safetensors")
    assert upscaler.details["architecture"] == "RealESRGAN Compact"
    assert upscaler.format == "safetensors"


def test_networks_of_extra_architectures_run_where_they_are_installed():
    extra = pytest.importorskip("spandrel_extra_arches")
    restormer = pytest.importorskip("spandrel_extra_arches.architectures.Restormer")
    assert "Restormer" in extra.EXTRA_REGISTRY
    network = restormer.Restormer(
        dim=8, num_blocks=[1, 1, 1, 1], heads=[1, 1, 1, 1], num_refinement_blocks=1
    )
    assert architecture_of(Checkpoint.from_object(network.state_dict())) == "Restormer"


def test_an_aethernet_is_not_taken_for_another_network():
    assert architecture_of(Checkpoint.from_object(tiny().state_dict())) == ""


# Refusals


OTHER = (
    "{}: this is a network of another architecture\n"
    "  expected  an AetherNet\n"
    "  found     RealESRGAN Compact, as spandrel tells\n"
    "  next      aethernet upscale enlarges pictures with it; what is converted, verified and "
    "inspected here is AetherNet alone"
)


@pytest.mark.parametrize("command", ["convert {}", "release {} --out x", "verify {} x.onnx"])
def test_conversion_and_verification_name_the_architecture(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = saved(compact(), tmp_path)
    assert main([word.format(path) for word in command.split()]) == 1
    assert OTHER.format(path) in capsys.readouterr().err


def test_a_file_of_another_network_is_no_conversion(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    faults: list[Any] = []
    with pytest.raises(Exception, match="this was made from another network") as refusal:
        verify(tmp_path / "model.pth", [saved(compact(), tmp_path)], on_fault=faults.append)
    assert str(getattr(refusal.value, "found", "")).startswith("RealESRGAN Compact, ")


def test_values_that_are_set_are_those_of_an_aethernet(tmp_path: Path):
    with pytest.raises(CheckpointError, match="a network of another architecture"):
        open_upscaler(saved(compact(), tmp_path), res_scale=0.15)


def test_dtypes_that_spandrel_calls_unsafe_are_refused(tmp_path: Path):
    path = saved(SAFMN(dim=8, n_blocks=1, upscaling_factor=2), tmp_path)
    with pytest.raises(ModelError, match="cannot be computed in fp16"):
        open_upscaler(path, dtype="fp16")
    assert open_upscaler(path, dtype="bf16").computed_by == "PyTorch on the CPU, in bf16"
    assert open_upscaler(path, dtype="auto").computed_by == "PyTorch on the CPU, in fp32"


def test_bf16_is_refused_where_it_is_not_exact_enough(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot be computed in bf16"):
        devices.refuse_dtype("bf16", tmp_path, fits_float16=True, fits_bfloat16=False)


def test_it_is_measured_beside_other_files(tmp_path: Path):
    path = saved(compact(), tmp_path)
    found = benchmark([path], sizes=[(16, 16)], seconds=0.01, dtypes=["fp32", "bf16"])
    assert [(row.dtype, row.macs) for row in found.measurements] == [("fp32", None), ("bf16", None)]


def test_a_network_that_takes_a_mask_is_refused():
    state = LaMa(in_nc=4, out_nc=3).state_dict()
    with pytest.raises(CheckpointError, match="this network enlarges no pictures"):
        load_other(Checkpoint.from_object(state))


# Nothing in a file is executed, and nothing in it is believed


class Attack:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.witness),)


def test_code_beside_a_network_of_another_architecture_is_not_run(tmp_path: Path):
    witness = tmp_path / "attacked"
    content = {"params": compact().state_dict(), "epoch": Attack(witness)}
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="the file asks for more than tensors"):
        open_upscaler(tmp_path / "other.pth")
    assert not witness.exists()


def test_a_number_in_a_key_builds_no_layers():
    state = {**compact().state_dict(), "body.400000000.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="a key numbers more layers than the file holds"):
        load_other(Checkpoint.from_object(state))


def test_a_small_file_builds_no_large_network():
    """Its first layer has 20000 channels, so that the second would take 14 GB."""
    state = compact().state_dict()
    state["body.0.weight"] = torch.zeros(20_000, 3, 3, 3)
    with pytest.raises(CheckpointError, match="the network would be larger than its file"):
        load_other(Checkpoint.from_object(state))


def test_tensors_that_do_not_fit_say_what_spandrel_says():
    state = compact().state_dict()
    state["body.2.weight"] = torch.zeros(8, 5, 3, 3)
    with pytest.raises(CheckpointError, match="spandrel cannot build this network: RealESRGAN C"):
        load_other(Checkpoint.from_object(state))


def test_a_network_that_gives_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As an architecture with a mistake would be."""

    def forward(_network: nn.Module, picture: torch.Tensor) -> torch.Tensor:
        return picture.clone()

    path = saved(compact(), tmp_path)
    monkeypatch.setattr(SRVGGNetCompact, "forward", forward)
    with pytest.raises(ModelError, match="gives a picture of another size than spandrel says"):
        open_upscaler(path)
