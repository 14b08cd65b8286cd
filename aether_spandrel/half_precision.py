"""Room for float16: no input may bring a gated feed-forward to overflow.

The product of gate and main is the one place of the network where two activations multiply, so
that large weights before it and small ones after it make a network that is fine in float32 and
infinite in float16. Powers of two move from the main map into fc2, row by row and column by
column: in float32 no bit of the result changes, and no pass over an image is added. Networks that
have the room already, all that are trained so far, keep their weights as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor

from aether_core import AetherConfig
from aether_spandrel.folding import block_prefixes

LARGEST: Final = 2.0**15
"""Bound of what a feed-forward holds; float16 ends at 65504, the rest is for rounding."""

DEVIATIONS: Final = 4.0
"""Root mean square over the channels of a pixel that is allowed for where nothing bounds it.

Layer normalisation bounds it by 1. Running statistics make it 1 on average over a training set.
"""

State = Mapping[str, Tensor]
FIRST_MAPS: Final = (".ffn.fc1_gate.weight", ".ffn.fc1_main.weight")


@dataclass(frozen=True)
class Headroom:
    """What a network needs to run in float16.

    Attributes:
        divisors: Powers of two, (ffn_dim) float32, by which the main map of a block is to be
            divided, by the block's prefix; blocks that need none are left out.
        fits: Whether weights and gates then stay within float16, whatever picture comes in.
    """

    divisors: Mapping[str, Tensor]
    fits: bool


def headroom(state: State, config: AetherConfig) -> Headroom:
    """The room that a network under canonical keys needs.

    With y = n * w + b of a pixel's normalised channels n, Cauchy-Schwarz bounds a linear map by
    |W y + c| <= ||W diag(w)|| ||n|| + |W b + c|; |gelu(g)| and |silu(g)| are at most |g|.
    """
    if any(tensor.is_meta for tensor in state.values()):
        return Headroom({}, fits=True)  # shapes alone, without weights
    divisors: dict[str, Tensor] = {}
    limit = torch.finfo(torch.float16).max
    fits = True
    for block in block_prefixes(state):
        if _has_room(state, block, config):
            continue
        gate = _bounds(state, block, "ffn.fc1_gate.", config)
        main = _bounds(state, block, "ffn.fc1_main.", config)
        fits = fits and float(gate.max()) <= limit
        product = torch.maximum(gate * main, main)
        if float(product.max()) > LARGEST:
            divisors[block] = torch.exp2(torch.log2(product / LARGEST).ceil().clamp(min=0.0))
    # The weights before the product are within their bounds already.
    weights = (
        tensor.flatten()
        for key, tensor in divide_main(state, divisors).items()
        if tensor.is_floating_point() and not key.endswith(FIRST_MAPS)
    )
    # No norm is cheaper than the Euclidean one, which is no less than the largest value.
    fits = fits and all(
        float(_norm(values)) <= limit or float(_norm(values, math.inf)) <= limit
        for values in weights
    )
    return Headroom(divisors, fits=fits)


def _has_room(state: State, block: str, config: AetherConfig) -> bool:
    """Whether a bound that takes each weight matrix as a whole is low enough already.

    ||W diag(w)|| <= max |w| ||W|| and ||W b + c|| <= ||W|| ||b|| + ||c||, Frobenius norms.
    """
    largest, shift = 1.0, 0.0
    if f"{block}norm.weight" in state:
        largest = float(_norm(state[f"{block}norm.weight"].float(), math.inf))
        shift = float(_norm(state[f"{block}norm.bias"].float()))
    gate, main = (
        float(_norm(state[f"{block}ffn.{name}.weight"].flatten().float()))
        * (largest * _length(config) + shift)
        + float(_norm(state[f"{block}ffn.{name}.bias"].float()))
        for name in ("fc1_gate", "fc1_main")
    )
    return max(gate, main, gate * main) <= LARGEST


def divide_main(state: State, divisors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Main maps divided and fc2 multiplied by the same powers of two: fc2 (g * m) unchanged."""
    changed = dict(state)
    for block, divisor in divisors.items():
        for name, factor in (
            ("ffn.fc1_main.weight", 1 / divisor[:, None]),
            ("ffn.fc1_main.bias", 1 / divisor),
            ("ffn.fc2.weight", divisor),
        ):
            tensor = state[block + name].float()
            matrix = tensor.flatten(1) if name.endswith("weight") else tensor.flatten()
            changed[block + name] = (matrix * factor).reshape(tensor.shape)
    return changed


def _bounds(state: State, block: str, layer: str, config: AetherConfig) -> Tensor:
    """The largest absolute value, (ffn_dim) float32, that each output of a linear map can have."""
    weight = state[f"{block}{layer}weight"].float()
    shift = state[f"{block}{layer}bias"].float()
    if f"{block}norm.weight" in state:
        shift = shift + weight @ state[f"{block}norm.bias"].float()
        weight = weight * state[f"{block}norm.weight"].float()
    return _norm(weight) * _length(config) + shift.abs()


def _length(config: AetherConfig) -> float:
    """The Euclidean norm that a pixel's normalised channels can have together."""
    bounded = config.norm_type == "layernorm"
    return math.sqrt(config.embed_dim) * (1.0 if bounded else DEVIATIONS)


def _norm(rows: Tensor, order: float = 2) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(rows, ord=order, dim=-1))
