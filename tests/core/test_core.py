"""The network: published keys, exact fusing, any size, clear errors, torch alone."""

from __future__ import annotations

import copy
import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import aether_core
from aether_core import (
    PRESETS,
    SCALES,
    AetherNet,
    aether,
    aether_large,
    aether_medium,
    aether_small,
    fuse_model,
)
from aether_spandrel import CheckpointError
from aether_spandrel.folding import fuse_state_dict, is_fused
from aether_spandrel.inference import build_network
from tests.support.reference import g1
from tests.support.tiny import tiny

BLOCK_KEYS = {
    False: {
        "conv.lk_conv.weight": (16, 1, 7, 7),
        "conv.sk_conv.weight": (16, 1, 3, 3),
        "conv.lk_bias": (16,),
        "conv.sk_bias": (16,),
    },
    True: {"conv.fused_conv.weight": (16, 1, 7, 7), "conv.fused_conv.bias": (16,)},
}
REST_OF_BLOCK = {
    "norm.weight": (16,),
    "norm.bias": (16,),
    "ffn.fc1_gate.weight": (32, 16),
    "ffn.fc1_gate.bias": (32,),
    "ffn.fc1_main.weight": (32, 16),
    "ffn.fc1_main.bias": (32,),
    "ffn.fc2.weight": (16, 32),
    "ffn.fc2.bias": (16,),
}
UPSAMPLERS = {1: (), 2: (256,), 3: (576,), 4: (256,) * 2, 8: (256,) * 3, 16: (256,) * 4}


def published_shapes(channels: int, scale: int, *, fused: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv_first.weight": (16, channels, 3, 3),
        "conv_first.bias": (16,),
        "norm.weight": (16,),
        "norm.bias": (16,),
        "conv_after_body.weight": (16, 16, 3, 3),
        "conv_after_body.bias": (16,),
        "conv_before_upsample.0.weight": (64, 16, 3, 3),
        "conv_before_upsample.0.bias": (64,),
        "conv_last.weight": (channels, 64, 3, 3),
        "conv_last.bias": (channels,),
    }
    for block in ("layers.0.0", "layers.0.1", "layers.1.0"):
        for key, shape in (BLOCK_KEYS[fused] | REST_OF_BLOCK).items():
            shapes[f"{block}.{key}"] = shape
    for index, width in enumerate(UPSAMPLERS[scale]):
        shapes[f"upsample.{2 * index}.weight"] = (width, 64, 3, 3)
        shapes[f"upsample.{2 * index}.bias"] = (width,)
    return shapes


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("scale", list(SCALES))
def test_keys_shapes_and_values_are_the_published_ones(scale: int, channels: int, fused: bool):
    network = tiny(scale=scale, in_chans=channels, fused_init=fused)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert shapes == published_shapes(channels, scale, fused=fused)
    image = torch.rand(2, channels, 9, 14)
    with torch.inference_mode():
        output = network(image)
    assert output.shape == (2, channels, 9 * scale, 14 * scale)
    expected = g1(network.state_dict(), image).float()
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_img_range_scales_what_the_layers_see_and_nothing_else(channels: int):
    network = tiny(in_chans=channels, img_range=255.0).double()
    image = torch.rand(1, channels, 8, 8, dtype=torch.float64)
    expected = g1(network.state_dict(), image, img_range=255.0)
    torch.testing.assert_close(network(image), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3), (17, 5), (31, 33)])
def test_any_size_is_taken_and_neighbours_in_the_batch_do_not_matter(size: tuple[int, int]):
    network = tiny(scale=3)
    batch = torch.rand(3, 3, *size)
    with torch.inference_mode():
        together = network(batch)
        alone = torch.cat([network(image[None]) for image in batch])
    assert together.shape == (3, 3, 3 * size[0], 3 * size[1])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("lk_kernel", "sk_kernel"), [(3, 1), (3, 3), (7, 5), (11, 3), (13, 7)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_fusing_is_exact(lk_kernel: int, sk_kernel: int, dtype: torch.dtype, tolerance: float):
    network = tiny(lk_kernel=lk_kernel, sk_kernel=sk_kernel).to(dtype)
    image = torch.rand(1, 3, 20, 24, dtype=dtype)
    unfused = network(image).detach()
    by_weights = build_network(
        dataclasses.replace(network.config, fused=True),
        fuse_state_dict(network.state_dict()),
    )
    fused = fuse_model(copy.deepcopy(network))
    assert fused.config.fused
    assert is_fused(fused.state_dict())
    limit = tolerance * float(unfused.abs().max())
    torch.testing.assert_close(by_weights(image), unfused, atol=limit, rtol=0)
    torch.testing.assert_close(fused(image), unfused, atol=limit, rtol=0)


def test_fusing_twice_changes_nothing():
    once = fuse_state_dict(tiny().state_dict())
    twice = fuse_state_dict(once)
    assert list(once) == list(twice)
    assert all(once[key] is twice[key] for key in once)
    network = fuse_model(tiny())
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    assert fuse_model(network) is network
    torch.testing.assert_close(dict(network.state_dict()), before, atol=0, rtol=0)


def test_fusing_leaves_the_state_dict_it_was_given_alone():
    state = tiny().state_dict()
    before = {key: tensor.clone() for key, tensor in state.items()}
    fuse_state_dict(state)
    torch.testing.assert_close(dict(state), before, atol=0, rtol=0)


def test_half_precision_kernels_are_summed_in_float32():
    state = {key: tensor.half() for key, tensor in tiny().state_dict().items()}
    fused = fuse_state_dict(state)
    exact = fuse_state_dict({key: tensor.double() for key, tensor in state.items()})
    kernel = "layers.0.0.conv.fused_conv.weight"
    assert fused[kernel].dtype == torch.float16
    assert torch.equal(fused[kernel], exact[kernel].half())


def test_a_missing_part_of_a_kernel_is_named():
    state = dict(tiny().state_dict())
    del state["layers.0.1.conv.sk_bias"]
    with pytest.raises(
        CheckpointError, match=r"fuse layers\.0\.1\.conv: .*\.conv\.sk_bias is missing"
    ):
        fuse_state_dict(state)


@pytest.mark.parametrize("side", [2, 9])
def test_a_small_kernel_that_does_not_fit_is_named(side: int):
    state = dict(tiny().state_dict())
    state["layers.0.1.conv.sk_conv.weight"] = torch.zeros(16, 1, side, side)
    message = f"(16, 1, {side}, {side}) does not fit into the large one (16, 1, 7, 7)"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        fuse_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lk_kernel": 10}, "lk_kernel must be odd and positive, got 10"),
        ({"sk_kernel": 2}, "sk_kernel must be odd and positive, got 2"),
        ({"lk_kernel": 5, "sk_kernel": 7}, "sk_kernel must not exceed lk_kernel, got 7 > 5"),
        ({"scale": 5}, "scale must be one of (1, 2, 3, 4, 8, 16), got 5"),
        ({"depths": ()}, "depths must name at least one stage of at least one block, got ()"),
        ({"depths": (2, 0)}, "depths must name at least one stage"),
        ({"in_chans": 17}, "in_chans must lie between 1 and 16, got 17"),
        ({"embed_dim": 0}, "embed_dim and ffn_dim must be positive, got 0 and 0"),
        ({"mlp_ratio": 0.001}, "embed_dim and ffn_dim must be positive, got 128 and 0"),
        ({"img_range": 0.0}, "img_range must be positive and finite, got 0.0"),
        ({"img_range": float("nan")}, "img_range must be positive and finite, got nan"),
        ({"drop_rate": 1.0}, "drop_rate must lie in [0, 1), got 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate must lie in [0, 1), got -0.1"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        aether(**arguments)


@pytest.mark.parametrize(
    ("preset", "factory", "parameters"),
    [
        ("small", aether_small, 1_388_963),
        ("medium", aether_medium, 4_554_115),
        ("large", aether_large, 18_268_127),
    ],
)
def test_presets_have_the_published_size(
    preset: str, factory: Callable[..., AetherNet], parameters: int
):
    with torch.device("meta"):
        network = factory(scale=2)
    config = network.config
    assert (config.embed_dim, config.depths) == (PRESETS[preset].embed_dim, PRESETS[preset].depths)
    assert config.scale == 2
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_network_that_receives_weights_draws_and_copies_none():
    source = tiny()
    state = torch.random.get_rng_state()
    network = build_network(source.config, source.state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    for key, tensor in network.state_dict().items():
        assert tensor.data_ptr() == source.state_dict()[key].data_ptr()
    assert not network.training


def test_dropout_and_stochastic_depth_act_in_training_only():
    network = tiny(drop_rate=0.5, drop_path_rate=0.5)
    image = torch.rand(4, 3, 8, 8)
    assert torch.equal(network(image), network(image))
    network.train()
    assert not torch.equal(network(image), network(image))
    assert [block.drop_path for block in network.modules() if hasattr(block, "drop_path")] == [
        0.0,
        0.25,
        0.5,
    ]


def test_a_fresh_network_trains():
    torch.manual_seed(0)
    network = aether(embed_dim=16, depths=(1, 1), lk_kernel=5, scale=2)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    target = torch.rand(2, 3, 24, 24)
    image = torch.nn.functional.avg_pool2d(target, 2)
    losses: list[float] = []
    for _ in range(30):
        loss = (network(image) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert losses[-1] < 0.8 * losses[0]


def test_the_file_is_the_definition_and_nothing_for_speed():
    source = Path(aether_core.__file__).read_text("utf-8")
    for trick in ("mkldnn", "device.type", "memory_format", "out="):
        assert trick not in source
    assert len(source.splitlines()) <= 900
    assert len(aether_core.__all__) <= 20


def test_the_file_needs_torch_alone(tmp_path: Path):
    source = Path(aether_core.__file__)
    (tmp_path / "aether_core.py").write_bytes(source.read_bytes())
    script = (
        "import sys, torch; before = set(sys.modules); import aether_core\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - set(sys.stdlib_module_names) - {'torch', 'aether_core'}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
