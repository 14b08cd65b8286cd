"""Keys and shapes alone tell an AetherNet from every other architecture, and all its fields."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aether_core import SCALES, AetherNet, aether_small
from aether_spandrel import AetherNetArch, CheckpointError
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.folding import fuse_state_dict
from aether_spandrel.network import Network, read_network
from tests.support.tiny import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the other architectures' packages
    import spandrel_extra_arches
    from spandrel import MAIN_REGISTRY, Architecture
    from spandrel_extra_arches import EXTRA_REGISTRY

    assert spandrel_extra_arches  # installed, or nothing below is tested

OTHERS: dict[str, Architecture[Any]] = {
    support.architecture.id: support.architecture
    for registry in (MAIN_REGISTRY, EXTRA_REGISTRY)
    for support in registry.architectures()
    if support.architecture.id != "AetherNet"
}

# What the constructors of these need; the others take their defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "AuraSR": {
        "dim": 16,
        "image_size": 64,
        "input_image_size": 16,
        "style_network": {"dim_in": 32, "dim_out": 32, "depth": 2},
    },
    "MMRealSR": {"num_in_ch": 3, "num_out_ch": 3},
    "NAFNet": {"middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "SAFMN": {"dim": 36},
    "SAFMNBCIE": {"dim": 36},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3},
    "SRFormer": {"img_size": 48, "window_size": 24},
    "Swin2SR": {"img_size": 64, "window_size": 8},
    "SwinIR": {"img_size": 64, "window_size": 8},
}


def model_classes(architecture: Architecture[Any]) -> list[type[nn.Module]]:
    """The network classes of an architecture, from its declared type parameter."""
    (parameter,) = typing.get_args(type(architecture).__orig_bases__[0])  # type: ignore[attr-defined]
    return list(typing.get_args(parameter)) or [parameter]


def other_state_dicts(name: str) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in model_classes(OTHERS[name]):
            found.append(model(**ARGUMENTS.get(name, {})).state_dict())
    return found


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_architecture_is_taken_for_an_aethernet(name: str):
    states = other_state_dicts(name)
    assert states
    for state in states:
        assert OTHERS[name].detect(state), "the sample must be a real one"
        assert not AetherNetArch().detect(state)
        with pytest.raises(CheckpointError, match="of another architecture"):
            AetherNetArch().load(state)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_no_aethernet_is_taken_for_another_architecture(scale: int, fused: bool):
    state = tiny(scale=scale, fused_init=fused).state_dict()
    assert AetherNetArch().detect(state)
    assert [name for name, other in OTHERS.items() if other.detect(state)] == []


@pytest.mark.parametrize("content", [{}, {"a": 1}, {1: torch.zeros(1)}, {"conv_first.weight": 3}])
def test_detection_of_odd_dictionaries_is_a_plain_no(content: dict[Any, Any]):
    assert not AetherNetArch().detect(content)


def read(state: Mapping[str, Tensor], **metadata: object) -> Network:
    return read_network(Checkpoint(state_dict=state, metadata=metadata))


@pytest.mark.parametrize(
    "changes",
    [
        *({"scale": scale} for scale in SCALES),
        {"in_chans": 1},
        {"in_chans": 4},
        {"embed_dim": 24},
        {"embed_dim": 64, "mlp_ratio": 1.0},  # as wide as the head
        {"mlp_ratio": 2.5},
        {"depths": (1,)},
        {"depths": (3, 1, 2)},
        {"depths": (1,) * 12},  # two-digit stage numbers
        {"depths": (11,)},
        {"lk_kernel": 13, "sk_kernel": 5},
        {"lk_kernel": 3, "sk_kernel": 1},
        {"lk_kernel": 1, "sk_kernel": 1},
    ],
    ids=str,
)
def test_every_field_is_inferred(changes: dict[str, Any]):
    network = tiny(**changes)
    config = network.config
    found = read(network.state_dict()).config
    for name in ("in_chans", "embed_dim", "depths", "ffn_dim", "lk_kernel", "sk_kernel", "scale"):
        assert getattr(found, name) == getattr(config, name), name
    assert not found.fused
    fused = read(fuse_state_dict(network.state_dict())).config
    assert fused.fused
    assert (fused.lk_kernel, fused.depths) == (config.lk_kernel, config.depths)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_the_stored_dtype_is_told(dtype: torch.dtype):
    assert read({k: v.to(dtype) for k, v in tiny().state_dict().items()}).dtype == dtype


def test_presets_are_recognised():
    with torch.device("meta"):
        assert read(aether_small(scale=3).state_dict()).preset == "small"
    assert read(tiny().state_dict()).preset is None


def test_img_range_of_the_metadata_is_folded_into_the_weights():
    network: AetherNet = tiny(img_range=255.0)
    image = torch.rand(1, 3, 8, 8)
    found = read(network.state_dict(), arch_config={"img_range": 255.0})
    assert found.config.img_range == 1.0
    assert "img_range" not in found.assumed
    folded = tiny()
    folded.load_state_dict(dict(found.state_dict))
    torch.testing.assert_close(folded(image), network(image), atol=1e-5, rtol=0)


def test_an_assumed_img_range_is_named_with_its_reason():
    assert read(tiny().state_dict()).assumed == {
        "img_range": "1, the default of G1: no tensor carries it and the file's metadata "
        "do not name it",
        "mean": "0.5, for 3 channels: G1 stores none",
    }


Damage = Callable[[dict[str, Tensor]], object]


def without(key: str) -> Damage:
    return lambda state: state.pop(key)


def replaced(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> Damage:
    return lambda state: state.update({key: torch.zeros(*shape, dtype=dtype)})


@pytest.mark.parametrize(
    ("damage", "key", "problem"),
    [
        (without("norm.bias"), "norm.bias", "a tensor is missing"),
        (without("layers.0.0.conv.sk_bias"), "layers.0.0.conv.sk_bias", "missing"),
        (replaced("conv_first.weight", 16, 3, 5, 5), "conv_first.weight", "does not fit"),
        (replaced("conv_first.weight", 0, 3, 3, 3), "conv_first.weight", "no usable shape"),
        (replaced("conv_first.weight", 16), "conv_first.weight", "no usable shape"),
        (replaced("conv_first.weight", 16, 17, 3, 3), None, "between 1 and 16, got 17"),
        (replaced("layers.0.0.conv.lk_conv.weight", 16, 1, 6, 6), None, "lk_kernel must be odd"),
        (replaced("layers.1.0.conv.lk_conv.weight", 16, 1, 9, 9), None, "does not fit"),
        (replaced("upsample.0.weight", 320, 64, 3, 3), "upsample.0.weight", "no supported scale"),
        (replaced("layers.5.0.norm.weight", 16), "layers.5.0", "blocks are missing"),
        (replaced("layers.0.900.norm.weight", 16), "layers.0.900", "blocks are missing"),
        (replaced("layers.0.12345.norm.weight", 16), "layers.0.12345", "no AetherNet of this"),
        (replaced("extra.weight", 16), "extra.weight", "no AetherNet of this configuration"),
        (
            replaced("norm.weight", 16, dtype=torch.int64),
            "norm.weight",
            "of a type that no network is read in",
        ),
    ],
)
def test_tensors_that_form_no_network_are_named(damage: Damage, key: str | None, problem: str):
    state = dict(tiny().state_dict())
    damage(state)
    assert AetherNetArch().detect(state)
    with pytest.raises(CheckpointError) as caught:
        AetherNetArch().load(state)
    assert problem in str(caught.value)
    assert caught.value.advice
    if key:
        assert caught.value.key is not None
        assert caught.value.key.startswith(key)
