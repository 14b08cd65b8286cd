"""Large images in tiles give the result of the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aether_converters import ModelError, Upscaler, convert, open_upscaler
from aether_converters.measuring.verification import structured_image
from aether_converters.pictures.tiling import plan_tiles, split_axis, upscale_image
from tests.support.tiny import tiny


@given(length=st.integers(1, 500), overlap=st.integers(0, 40), core=st.integers(1, 60))
def test_spans_cover_each_pixel_once_and_see_the_overlap_around_it(
    length: int, overlap: int, core: int
):
    spans = split_axis(length, 2 * overlap + core, overlap)
    assert [s.keep_start for s in spans] == [0, *(s.keep_stop for s in spans[:-1])]
    assert spans[-1].keep_stop == length
    for span in spans:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= length
        assert span.stop - span.start == min(length, 2 * overlap + core)
        assert span.keep_start - span.start >= overlap or span.keep_start == span.start == 0
        assert span.stop - span.keep_stop >= overlap or span.keep_stop == span.stop == length


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Upscaler]:
    folder = tmp_path_factory.mktemp("models")
    torch.save(tiny().state_dict(), folder / "tiny.pth")
    kinds: Any = ["pth", "safetensors", "onnx"]
    report = convert(folder / "tiny.pth", folder, to=kinds, precision=["fp32"])
    static = convert(
        folder / "tiny.pth", folder, to=["onnx"], precision=["fp32"], shape=(1, 3, 56, 64)
    )
    return {
        **{artefact.format: open_upscaler(artefact.path) for artefact in report.artefacts},
        "static onnx": open_upscaler(static.artefacts[0].path),
    }


@pytest.mark.parametrize("kind", ["pth", "safetensors", "onnx", "static onnx"])
@pytest.mark.parametrize("size", [(150, 131), (61, 200), (64, 64)])
def test_tiled_and_whole_results_agree(
    models: dict[str, Upscaler], kind: str, size: tuple[int, int]
):
    image = structured_image(3, *size)
    whole = models["pth"].run(image)[0]
    plan = plan_tiles(models[kind], *size, tile=50)
    assert len(plan) > 1
    tiled = upscale_image(models[kind], image[0], plan)
    np.testing.assert_allclose(tiled, whole, atol=1e-4, rtol=0)


def test_every_format_knows_the_receptive_radius(models: dict[str, Upscaler]):
    # conv_first 1, three blocks of 7x7 kernels 9, conv_after_body 1, head 3.
    assert {upscaler.receptive_radius for upscaler in models.values()} == {14}


def test_nothing_beyond_the_receptive_radius_is_seen(models: dict[str, Upscaler]):
    upscaler = models["pth"]
    radius = upscaler.receptive_radius
    black = np.zeros((1, 3, 5, 61), np.float32)
    spot = np.where(np.arange(61) == 30, np.float32(1.0), black)
    changed = np.abs(upscaler.run(spot) - upscaler.run(black)).max(axis=(0, 1, 2)) > 1e-6
    assert not changed[: 2 * (30 - radius)].any()
    assert not changed[2 * (30 + radius) + 2 :].any()


def test_less_overlap_shows_so_the_default_is_not_wasted(models: dict[str, Upscaler]):
    image = structured_image(3, 90, 90)
    whole = models["pth"].run(image)[0]
    plan = plan_tiles(models["pth"], 90, 90, tile=40, overlap=1)
    assert np.abs(upscale_image(models["pth"], image[0], plan) - whole).max() > 1e-3


def test_an_image_smaller_than_a_fixed_tile_is_filled_up(models: dict[str, Upscaler]):
    image = structured_image(3, 40, 33)
    upscaler = models["static onnx"]
    plan = plan_tiles(upscaler, 40, 33)
    assert len(plan) == 1
    output = upscale_image(upscaler, image[0], plan)
    whole = models["pth"].run(image)[0]
    assert output.shape == (3, 80, 66)
    inside = 2 * upscaler.receptive_radius
    np.testing.assert_allclose(
        output[:, :-inside, :-inside], whole[:, :-inside, :-inside], atol=1e-4
    )


@pytest.mark.parametrize("memory", [2**20, 2**24, 2**30])
def test_memory_bounds_the_tile_down_to_what_the_overlap_needs(
    models: dict[str, Upscaler], memory: int
):
    upscaler = models["onnx"]
    plan = plan_tiles(upscaler, 3000, 2000, memory=memory)
    height = plan.rows[0].stop - plan.rows[0].start
    width = plan.columns[0].stop - plan.columns[0].start
    least = 2 * upscaler.receptive_radius + 32
    assert height * width * upscaler.bytes_per_pixel <= max(
        memory, least**2 * upscaler.bytes_per_pixel
    )


def test_a_long_strip_uses_the_memory_that_a_square_would(models: dict[str, Upscaler]):
    upscaler = replace(models["onnx"], bytes_per_pixel=1000)
    plan = plan_tiles(upscaler, 100, 5000, memory=300_000_000)
    assert len(plan) == 2


def test_a_tile_without_room_for_its_overlap_is_refused(models: dict[str, Upscaler]):
    path: Path = models["pth"].path
    with pytest.raises(ModelError) as caught:
        plan_tiles(models["pth"], 100, 100, tile=28)
    assert str(caught.value) == (
        f"{path}: the tiles are too small: a tile of 28 px leaves nothing between overlaps "
        "of 14 px\n"
        "  expected  tiles of more than 28 px\n"
        "  next      try --tile 42, or accept faint seams with --overlap 7"
    )


@pytest.mark.parametrize("memory", [2**20, 2**24])
def test_columns_are_as_wide_as_little_memory_allows(models: dict[str, Upscaler], memory: int):
    upscaler = models["pth"]
    assert upscaler.streamer is not None
    plan = plan_tiles(upscaler, 6000, 4000, memory=memory)
    (row,) = plan.rows
    assert (row.start, row.stop) == (0, 6000)
    width = plan.columns[0].stop - plan.columns[0].start
    least = 2 * upscaler.receptive_radius + 32
    assert width == least or upscaler.streamer.memory(width) <= memory
    assert upscaler.streamer.memory(width + 1) > memory


def as_fast_as_any(_width: int) -> float:
    return 1.0


def test_with_memory_columns_are_as_wide_as_takes_the_least_time(models: dict[str, Upscaler]):
    upscaler = models["pth"]
    assert upscaler.streamer is not None
    assert len(plan_tiles(upscaler, 1000, 500)) == 1
    # (1 + 6000 / 14000) * 6000 px are more than those of columns and their overlap of 28 px.
    assert len(plan_tiles(upscaler, 4000, 6000)) > 1
    far = replace(upscaler, receptive_radius=1000)  # of which columns would compute more again
    assert len(plan_tiles(far, 4000, 6000)) == 1
    even = replace(upscaler, streamer=replace(upscaler.streamer, time=as_fast_as_any))
    assert len(plan_tiles(even, 4000, 6000)) == 1


@pytest.mark.parametrize("memory", [2**20, 2**30])
def test_a_large_picture_in_columns_and_bands_equals_the_whole(
    models: dict[str, Upscaler], memory: int
):
    upscaler = models["pth"]
    image = structured_image(3, 641, 450)
    plan = plan_tiles(upscaler, 641, 450, memory=memory)
    assert plan.bands
    assert (len(plan) > 1) == (memory == 2**20)
    assert (plan.band_count > 1) == (memory == 2**30)  # what a user is told
    pixels: list[int] = []
    found = upscale_image(upscaler, image[0], plan, on_pixels=pixels.append)
    np.testing.assert_allclose(found, upscaler.run(image)[0], atol=1e-5, rtol=0)
    assert sum(pixels) == 4 * 641 * 450
