"""What a GPU launches and moves for a picture, counted by tracing, does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from aether_core import AetherConfig, AetherNet
from aether_spandrel import AetherNetArch
from benchmarks.gpu_cost import (
    PAGE,
    Gpu,
    Launch,
    documented,
    launches,
    milliseconds,
    tables,
)
from tests.support import golden_cases

DTYPES = [torch.float32, torch.float16]
SMALL, LARGE = 16, 1024  # px of a side; a large picture has more pixels than weights have values

# By normalisation, channel attention and spatial attention: kernels of a block, and the values
# that it reads and writes for a pixel, in widths of the body (E), in widths of the feed-forward (F)
# and alone. The depthwise convolution and its bias are 4 E, three matrix products 3 E + 3 F, the
# activation 2 F, the product 3 F, the skip 3 E; a LayerNorm 2 E and two values of float32, channel
# attention 1 E, spatial attention 2 E + 14, of two attentions the first 2 E more.
BLOCKS = {
    ("layernorm", False, False): (11, 16, 8, 0),
    ("layernorm", True, True): (25, 21, 8, 14),
    ("deployment", False, False): (10, 14, 8, 0),
    ("deployment", True, False): (17, 15, 8, 0),
    ("deployment", True, True): (24, 19, 8, 14),
    # Rare: three passes over the picture, and statistics that half precision casts twice.
    ("per image", False, False): (20, 22, 8, 0),
}

AROUND = {
    "g1-train-2x": 53,
    "g1-fused-4x": 55,
    "g1-train-3x-gray": 48,
    "g1-qat-fakequant-2x": 53,
    "g2a-train-4x": 70,
    "g2b-train-2x": 59,
    "g2b-fused-4x": 61,
    "g2c-train-3x": 63,
    "g2d-fused-2x": 63,
    "g3-train-2x": 63,
    "g3-fused-layernorm-4x": 63,
    "g4-train-2x": 62,
    "g4-fused-4x": 64,
    "g5b-train-2x": 63,
    "g5a-fused-4x": 65,
    "g5e-train-3x": 62,
    "g5f-train-2x": 60,
    "g5f-fused-4x": 62,
    "g5f-wide-fused-2x": 60,
    "g5f-qat-2x": 60,
    "g5f-release-metadata-2x": 60,
    "g5s-train-4x": 62,
}
"""Kernels of each case outside of its blocks. Fewer are no gain where weights are no longer put
into channels-last order, for then the picture has lost it."""

WEIGHT_CASTS = 6
"""Kernels by which half precision casts the last convolutions' weights, to join them, and back."""

CASTS = 2  # kernels by which half precision casts the deviation of an image


@cache
def network(case: str) -> AetherNet:
    return AetherNetArch().load(golden_cases.state_dict(golden_cases.CASES[case])).model


@cache
def traced(case: str, side: int, dtype: torch.dtype = torch.float32) -> Sequence[Launch]:
    """A square picture; a trace takes a while, and several tests look at the same one."""
    return launches(network(case), side, side, dtype)


def kind_of(config: AetherConfig) -> tuple[str, bool, bool]:
    norm = "per image" if config.sample_norm else config.norm_type
    return norm, config.channel_attn, config.spatial_attn


def casts(config: AetherConfig, dtype: torch.dtype) -> int:
    return CASTS if config.sample_norm and dtype != torch.float32 else 0


def of_block(found: Iterable[Launch], index: int | None) -> list[Launch]:
    return [launch for launch in found if launch.block == index]


def moved(found: Iterable[Launch]) -> int:
    return sum(launch.moved for launch in found)


@pytest.fixture(params=golden_cases.CASES, scope="module")
def case(request: pytest.FixtureRequest) -> str:
    return request.param


# Both of the module: pytest then runs the tests of one trace after another, in one process.
@pytest.fixture(params=DTYPES, ids=str, scope="module")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def test_a_block_launches_and_moves_no_more(case: str, dtype: torch.dtype):
    config = network(case).config
    kernels, widths, hidden, alone = BLOCKS[kind_of(config)]
    expected = dtype.itemsize * (widths * config.embed_dim + hidden * config.ffn_dim + alone)
    if config.norm_type == "layernorm":
        expected += 2 * torch.float32.itemsize
    kernels += casts(config, dtype)
    small, large = (traced(case, side, dtype) for side in (SMALL, LARGE))
    for index in range(config.blocks):
        assert len(of_block(large, index)) == kernels
        more = moved(of_block(large, index)) - moved(of_block(small, index))
        assert more / (LARGE**2 - SMALL**2) == expected


def test_what_surrounds_the_blocks_launches_no_more(case: str, dtype: torch.dtype):
    expected = AROUND[case] + casts(network(case).config, dtype)
    if dtype != torch.float32:
        expected += WEIGHT_CASTS
    assert len(of_block(traced(case, SMALL, dtype), None)) == expected


def test_no_whole_picture_is_cast(case: str, dtype: torch.dtype):
    for launch in traced(case, LARGE, dtype):
        if launch.operator != "native_layer_norm":
            assert all(found == dtype or size < LARGE**2 for found, size in launch.results), launch
        else:
            assert launch.results[0][0] == dtype


@pytest.mark.parametrize("kind", BLOCKS, ids=str)
def test_bfloat16_costs_what_float16_does(kind: tuple[str, bool, bool]):
    def otherwise(launch: Launch) -> Launch:
        dtypes = {torch.float16: torch.bfloat16}
        results = tuple((dtypes.get(dtype, dtype), size) for dtype, size in launch.results)
        return replace(launch, results=results)

    case = next(case for case in golden_cases.CASES if kind_of(network(case).config) == kind)
    half = traced(case, SMALL, torch.float16)
    assert traced(case, SMALL, torch.bfloat16) == [otherwise(launch) for launch in half]


def test_nothing_but_the_picture_is_copied(case: str):
    """In colour it becomes channels-last, in grey its first features do; weights are smaller."""
    copied = [
        launch.results[0][1] // LARGE**2
        for launch in traced(case, LARGE)
        if launch.operator in ("clone", "contiguous", "copy_", "_to_copy") and launch.block is None
    ]
    config = network(case).config
    assert sum(copied) == (3 if config.in_chans == 3 else config.embed_dim)


def test_operations_are_those_that_torch_counts(case: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("aether_spandrel.inference.fused_linear", lambda *_: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    picture = torch.zeros(1, network(case).config.in_chans, SMALL, SMALL)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(case)(picture)
    assert sum(launch.flops for launch in traced(case, SMALL)) == counted.get_total_flops()


def launch(*, moved: int, flops: int = 0, depthwise: bool = False) -> Launch:
    return Launch(
        operator="", block=None, moved=moved, flops=flops, depthwise=depthwise, results=()
    )


@pytest.mark.parametrize(
    ("kernel", "float32", "float16"),
    [
        (launch(moved=10**9), 1000, 1000),
        (launch(moved=1, flops=10**12), 1000, 500),
        (launch(moved=1, flops=10**12, depthwise=True), 1000, 1000),
        (launch(moved=3 * 10**9, flops=10**12), 3000, 3000),
    ],
)
def test_a_kernel_takes_the_longer_of_moving_and_computing(
    kernel: Launch, float32: float, float16: float
):
    gpu = Gpu(float32=1, tensor=2, bandwidth=1)
    assert milliseconds([kernel], gpu, torch.float32) == pytest.approx(float32)
    assert milliseconds([kernel, kernel], gpu, torch.float16) == pytest.approx(2 * float16)


def test_the_documented_tables_are_those_computed():
    assert documented(PAGE.read_text("utf-8")) == tables()
