"""Weights as integers of 8 bits: the step of each row, and what kernels make of two neighbours.

A CPU without VNNI multiplies unsigned by signed bytes two at a time and adds the two in 16 bits,
which end at 32767: 255 * 127 + 255 * 127 does not fit, and is cut off without a word. Where weights
are *paired*, no two that are added there have one sign and more than 128 together. Their row has a
longer step for it, by a tenth in most. Weights of a training stay as they are, and are unsigned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from aether_core import weight_scales

WEIGHT_LIMIT: Final = 127
PAIR_LIMIT: Final = 128  # 255 * 128 < 2 ** 15


def neighbours(shape: Sequence[int]) -> Tensor:
    """For each weight of a row, which other one is added to it in 16 bits; itself if none is.

    Kernels take the channels of one place after the other, two at a time.

    Args:
        shape: Of a layer's weight, (C_out, C_in, ...).

    Returns:
        Indices (K) into a flattened row.
    """
    channels, places = shape[1], math.prod(shape[2:])
    order = torch.arange(channels * places).reshape(channels, places).t().flatten()
    pairs = order[: len(order) // 2 * 2].reshape(-1, 2)
    beside = torch.arange(len(order))
    beside[pairs] = pairs.flip(1)
    return beside


def row_steps(rows: Tensor, beside: Tensor | None) -> Tensor:
    """The step of each row (R, K): its largest weight is 127 of them, or two neighbours are 128.

    Args:
        rows: Weights.
        beside: See `neighbours`; None for weights that are not paired.
    """
    steps = weight_scales(rows)
    if beside is None:
        return steps
    return torch.maximum(steps, _sums(rows, beside).amax(dim=1) / PAIR_LIMIT)


def limited(values: Tensor, beside: Tensor | None) -> Tensor:
    """The nearest integers that a kernel can add, for weights (R, K) in steps."""
    integers = values.round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    if beside is None:
        return integers
    excess = (_sums(integers, beside) - PAIR_LIMIT).clamp(min=0)
    cut = torch.where(_larger(integers, beside), (excess / 2).ceil(), (excess / 2).floor())
    return integers - integers.sign() * cut


def settled(integers: Tensor, beside: Tensor | None) -> Tensor:
    """The same rows (R, K) as long as their steps allow, so that `row_steps` finds these again."""
    loads = integers.abs() + PAIR_LIMIT - WEIGHT_LIMIT
    if beside is not None:
        loads = torch.maximum(loads, _sums(integers, beside)) * _larger(integers, beside)
    most = loads.argmax(dim=1, keepdim=True)
    missing = PAIR_LIMIT - loads.gather(1, most)
    return integers.scatter_add(1, most, missing * integers.gather(1, most).sign())


def quantised_weight(weight: Tensor, *, paired: bool) -> tuple[Tensor, Tensor]:
    """The int8 weights (C_out, ...) and the step of each output channel, (C_out) float32.

    Those that are not paired are rounded as `aether_core.prepare_qat` rounds them, so that what was
    trained is what is written.
    """
    rows = weight.detach().float().flatten(1)
    beside = neighbours(weight.shape) if paired else None
    steps = row_steps(rows, beside)
    if beside is None:
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        ends = (-WEIGHT_LIMIT, WEIGHT_LIMIT)
        integers = torch.fake_quantize_per_channel_affine(rows, steps, zeros, 0, *ends)
        integers = (integers / steps[:, None]).round()
    else:
        integers = settled(limited(rows / steps[:, None], beside), beside)
    return integers.reshape(weight.shape).to(torch.int8), steps


def overflows(integers: Tensor) -> bool:
    """Whether int8 weights (C_out, C_in, ...) are more than 16 bits hold where they are added."""
    rows = integers.int().flatten(1)
    return bool((_sums(rows, neighbours(integers.shape)) > PAIR_LIMIT).any())


def unsigned(integers: Tensor) -> Tensor:
    """int8 weights as uint8 around 128, for which kernels add in 32 bits, and take longer."""
    return (integers.int() + 128).to(torch.uint8)


def _sums(rows: Tensor, beside: Tensor) -> Tensor:
    """What each weight and its neighbour are together, where both have one sign; 0 elsewhere."""
    others = rows[:, beside]
    alone = beside == torch.arange(len(beside), device=beside.device)
    return torch.where((rows * others > 0) & ~alone, (rows + others).abs(), 0)


def _larger(rows: Tensor, beside: Tensor) -> Tensor:
    """Whether a weight is the larger of two neighbours, or alone."""
    places = torch.arange(len(beside), device=beside.device)
    sizes, others = rows.abs(), rows[:, beside].abs()
    return (sizes > others) | ((sizes == others) & (places <= beside))
