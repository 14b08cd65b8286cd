"""Bands of rows give what the whole picture gives, in the memory of some rows."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from aether_converters.runtimes.streaming import can_stream, rows_per_band, stream, streaming_bytes
from aether_core import AetherNet
from aether_spandrel import AetherNetArch
from tests.support import golden_cases


def network(case: str) -> AetherNet:
    return AetherNetArch().load(golden_cases.state_dict(golden_cases.CASES[case])).model


def picture(model: AetherNet, height: int, width: int) -> Tensor:
    shape = (1, model.config.in_chans, height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(height))


def bands_of(image: Tensor, rows: int) -> Iterator[Tensor]:
    return (image[:, :, top : top + rows] for top in range(0, image.shape[2], rows))


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (40, 33), (101, 20)])
@pytest.mark.parametrize("case", golden_cases.CASES)
def test_bands_give_what_the_whole_gives(case: str, size: tuple[int, int]):
    model = network(case)
    if not can_stream(model.config):
        assert model.config.channel_attn or model.config.spatial_attn or model.config.sample_norm
        return
    image = picture(model, *size)
    with torch.inference_mode():
        expected = model(image)
        for rows in (1, 7, 64):
            found = torch.cat(list(stream(model, bands_of(image, rows))), dim=2)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["g1-fused-4x", "g2b-fused-4x"])
def test_bands_keep_the_dtype_of_the_network(case: str):
    model = network(case).to(torch.bfloat16)
    image = picture(model, 40, 33).to(torch.bfloat16)
    with torch.inference_mode():
        found = torch.cat(list(stream(model, bands_of(image, 7))), dim=2)
        torch.testing.assert_close(found, model(image), atol=0.05, rtol=0)


def test_results_come_as_soon_as_their_rows_are_known():
    model = network("g1-fused-4x")
    taken = 0

    def bands() -> Iterator[Tensor]:
        nonlocal taken
        for band in bands_of(picture(model, 200, 8), 10):
            taken += 10
            yield band

    with torch.inference_mode():
        given = 0
        for result in stream(model, bands()):
            given += result.shape[2]
            assert taken - given / model.config.scale <= model.config.receptive_radius + 10
    assert given == 200 * model.config.scale


def live_bytes() -> int:
    # Other tests leave sparse, quantised and meta tensors behind, which have no memory to count.
    tensors = [
        found
        for found in gc.get_objects()
        if type(found) is Tensor
        and found.layout is torch.strided
        and found.device.type == "cpu"
        and not found.is_quantized
    ]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.parametrize("case", ["g1-fused-4x", "g2b-fused-4x", "g3-train-2x"])
def test_what_is_kept_does_not_grow_with_the_height(case: str):
    model = network(case)

    def largest(height: int) -> int:
        image = picture(model, 1, 24)
        bands = (image.expand(-1, -1, 8, -1).clone() for _ in range(height // 8))
        before = live_bytes()
        return max(live_bytes() - before for _ in stream(model, bands))

    with torch.inference_mode():
        assert largest(480) <= 1.05 * largest(160)


def test_memory_is_bounded_for_wide_pictures_and_large_scales():
    assert streaming_bytes(network("g1-fused-4x").config, 4000) < 2**28
    assert rows_per_band(10**9) == 1
