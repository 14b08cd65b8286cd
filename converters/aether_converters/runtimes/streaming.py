"""A picture of any height through the network in bands of rows, with no row computed twice.

Tiles compute their overlap again, and it grows with the depth of the network. Here each convolution
keeps the few rows of its input that the next band needs, so the result is that of the whole
picture, zero padding included, in the memory of some rows.

Every step is a generator over bands, tensors (1, C, rows, W) from top to bottom; between blocks
their channels are in parts, as a network computes them (`aether_spandrel.inference`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aether_core import AetherConfig, AetherNet, Block
from aether_spandrel.inference import convolved, in_parts, joined, mixed, part_widths, upscaled

Bands = Iterator[Tensor]
Parts = list[Tensor]
Step = Callable[[Tensor], Tensor]

BAND_PIXELS: Final = 2**16
"""Input px of a band: with more no network runs faster, and with less it costs some %."""

HEAD_BYTES: Final = 2**26
"""What the head makes of the rows that it takes at a time, many times wider than the body."""


def can_stream(config: AetherConfig) -> bool:
    """Whether rows depend on near rows alone, and no attention looks at them in passing."""
    return not (config.global_context or config.spatial_attn)


def rows_per_band(width: int) -> int:
    """Rows of a band of this width."""
    return max(BAND_PIXELS // width, 1)


def time_per_pixel(width: int) -> float:
    """What a px of a picture of this width takes on a CPU, beside one of a very narrow picture.

    Wide pictures have low bands, of which few rows are new to a convolution. Fitted to AetherNet
    small on two cores of Zen 4: 17.9, 19.1, 19.2 and 23.4 s for each MP at 1224, 2113, 3085 and
    6000 px.
    """
    return 1 + width / 14_000


def streaming_bytes(config: AetherConfig, width: int) -> int:
    """Peak memory of streaming a picture of this width, in bytes.

    What convolutions keep for the next band, what skips and stage fusion keep until the body has
    caught up, and the widest that a band becomes.
    """
    band = rows_per_band(width)
    delay = config.blocks * (config.lk_kernel // 2)  # rows by which the body lags
    kept = 2 * delay * config.embed_dim
    kept += (delay + 2 * band) * config.embed_dim
    kept += (delay + band) * sum(config.fusion_widths)
    body = band * (4 * config.embed_dim + 3 * config.ffn_dim)
    head = _rows_in_head(config, width) * _head_widths(config)
    return 4 * width * (kept + max(body, head))


def _head_widths(config: AetherConfig) -> int:
    """Values that the head holds for an input px.

    A sub-pixel convolution's result twice, and what it is made of; the last one's are pixels.
    """
    pixels, before = 1, config.head_dim
    widest = config.embed_dim + before
    for factor, after in config.upsampler[:-1]:
        pixels *= factor**2
        widest = max(widest, (2 * after + before) * pixels)
        before = after
    return max(widest, before * pixels + 2 * config.out_chans * config.scale**2)


def _rows_in_head(config: AetherConfig, width: int) -> int:
    rows = HEAD_BYTES // (4 * width * _head_widths(config)) - 2 * _head_margin(config)
    return max(rows, _head_margin(config))


def _head_margin(config: AetherConfig) -> int:
    """Rows above and below on which a row depends in the head, counted as whole ones."""
    return 2 + len(config.upsampler)


def stream(network: AetherNet, bands: Iterable[Tensor]) -> Bands:
    """Upscale a picture band by band.

    Args:
        network: Fused, in eval mode, of a configuration that `can_stream`.
        bands: (1, in_chans, rows, W) each, from top to bottom, of any number of rows.

    Yields:
        (1, out_chans, rows, scale * W), together scale * H rows, not clipped.
    """
    config = network.config
    first = _convolved(map(_channels_last, map(network.centred, bands)), network.conv_first)
    features, skip = _now_and_later(map(_channels_last, first), _itself)
    body = _body(network, features)
    normalise: Step = network.norm if network.norm is not None else nn.Identity()
    if config.body_order == "norm-conv-add":
        body = _sum(_convolved(map(normalise, body), network.conv_after_body), skip)
    else:
        if config.body_order == "add-norm-conv":
            before, skip = _now_and_later(_sum(body, skip), _itself)
            before = map(normalise, before)
        else:
            before, skip = _now_and_later(_sum(map(normalise, body), skip), _itself)
        body = _sum(_convolved(before, network.conv_after_body), skip)
    for window, above, below in _overlapping(_split(body, config), _head_margin(config)):
        pixels = upscaled(network, window)
        last = pixels.shape[2] - config.scale * below
        yield network.restored(pixels[:, :, config.scale * above : last])


def _body(network: AetherNet, bands: Bands) -> Bands:
    """All stages, combined."""
    fusion = network.config.stage_fusion
    radius = network.config.lk_kernel // 2
    dtype = network.conv_after_body.weight.dtype
    stages: list[Bands] = []
    parts: Iterator[Parts] = (in_parts(band, part_widths(network.config, band)) for band in bands)
    for index, stage in enumerate(network.layers):
        for block in cast("Iterable[Block]", stage):
            parts = _windows(parts, radius, partial(_mixed, block, radius))
        if fusion != "none":
            narrow: Step = network.fusion_convs[index] if fusion == "project" else nn.Identity()
            if index + 1 < len(network.layers):
                parts, kept = _now_and_later(parts, partial(_narrowed, narrow, dtype))
                stages.append(kept)
            else:
                stages.append(map(partial(_narrowed, narrow, dtype), parts))
    if not stages:
        return (joined(band).to(dtype) for band in parts)
    return (network.fusion_conv(torch.cat(rows, dim=1)) for rows in _aligned(stages))


def _narrowed(narrow: Step, dtype: torch.dtype, parts: Parts) -> Tensor:
    return narrow(joined(parts).to(dtype))


Band = TypeVar("Band", Tensor, Parts)


def _now_and_later(
    bands: Iterator[Band], step: Callable[[Band], Tensor]
) -> tuple[Iterator[Band], Bands]:
    """The bands, and what `step` makes of each for whom takes it after the former was taken.

    `itertools.tee` would hold dozens of bands that both have taken.
    """
    waiting: deque[Tensor] = deque()

    def now() -> Iterator[Band]:
        for band in bands:
            waiting.append(step(band))
            yield band

    def later() -> Bands:
        while waiting:
            yield waiting.popleft()

    return now(), later()


def _itself(band: Tensor) -> Tensor:
    return band


def _mixed(block: Block, radius: int, window: Parts) -> Parts:
    """The block on the rows of a window but the first and the last."""
    inner = [part[:, :, radius : part.shape[2] - radius] for part in window]
    return mixed(block, inner, convolved(block.conv, window, padding=(0, radius)))


def _margin(convolution: nn.Conv2d) -> int:
    return cast(int, convolution.padding[0])


def _across(convolution: nn.Conv2d, window: Parts) -> Parts:
    """A convolution that pads to the left and right alone."""
    weight, bias, padding = convolution.weight, convolution.bias, (0, _margin(convolution))
    return [F.conv2d(part, weight, bias, padding=padding) for part in window]


def _convolved(bands: Bands, convolution: nn.Conv2d) -> Bands:
    single = ([band] for band in bands)
    found = _windows(single, _margin(convolution), partial(_across, convolution))
    return (parts[0] for parts in found)


def _windows(
    bands: Iterator[Parts], radius: int, step: Callable[[Parts], Parts]
) -> Iterator[Parts]:
    """The step on every row, which sees `radius` rows above and below; outside they are zero.

    The bands are used up.
    """
    if not radius:
        yield from map(step, bands)
        return
    kept: Parts | None = None
    for band in bands:
        before = kept or [_zeros(part, radius) for part in band]
        # What waits must hold no band, or there would be one of each layer: hence the lists.
        windows = [[torch.cat([rows, band.pop(0)], dim=2) for rows in before]]
        del before
        if windows[0][0].shape[2] <= 2 * radius:
            kept = windows.pop()
        else:
            last = [part[:, :, -2 * radius :] for part in windows[0]]
            kept = [rows.clone(memory_format=torch.channels_last) for rows in last]
            del last
            yield step(windows.pop())
    if kept is not None:
        yield step([torch.cat([rows, _zeros(rows, radius)], dim=2) for rows in kept])


def _overlapping(bands: Bands, radius: int) -> Iterator[tuple[Tensor, int, int]]:
    """The bands with `radius` rows more above and below, and how many are more than the band.

    The head is short and its parts are joined, so that it computes few rows again rather than
    keep those of every part. There are fewer, or none, where the picture ends.
    """
    kept: Tensor | None = None
    above = 0
    for band in bands:
        window = band if kept is None else torch.cat([kept, band], dim=2)
        done = window.shape[2] - radius  # rows whose result nothing that comes changes
        if done > above:
            yield window, above, radius
            above, start = min(radius, done), max(done - radius, 0)
            kept = window[:, :, start:].clone(memory_format=torch.channels_last)
        else:
            kept = window
    if kept is not None:
        yield kept, above, 0


def _zeros(like: Tensor, rows: int) -> Tensor:
    return _channels_last(like.new_zeros(*like.shape[:2], rows, like.shape[3]))


def _channels_last(band: Tensor) -> Tensor:
    return band.contiguous(memory_format=torch.channels_last)


def _split(bands: Bands, config: AetherConfig) -> Bands:
    """The same rows, as few at a time as the head takes."""
    for band in bands:
        yield from band.split(_rows_in_head(config, band.shape[3]), dim=2)


def _sum(bands: Bands, skip: Bands) -> Bands:
    return (before + after for before, after in _aligned([skip, bands]))


def _aligned(sources: Sequence[Bands]) -> Iterator[list[Tensor]]:
    """The same rows of every source, as many at a time as the last gives, which lags most."""
    *early, last = sources
    ahead: list[Tensor | None] = [None] * len(early)
    for band in last:
        rows = band.shape[2]
        parts: list[Tensor] = []
        for index, source in enumerate(early):
            there = ahead[index]
            while there is None or there.shape[2] < rows:
                more = next(source)
                there = more if there is None else torch.cat([there, more], dim=2)
            parts.append(there[:, :, :rows])
            ahead[index] = there[:, :, rows:]
        yield [*parts, band]
