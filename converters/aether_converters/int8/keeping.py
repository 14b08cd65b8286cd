"""What a tuning has learnt, kept in a checkpoint: weights on their grids, and the plan as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor

from aether_converters.int8.plan import (
    HEAD,
    PIECES,
    SUM,
    TARGETS,
    Grid,
    QuantisationPlan,
    Target,
    by_sign,
    can_join,
    layers_of,
    most_pieces,
    recentred,
)
from aether_converters.runtimes.pytorch import TUNED as ENTRY
from aether_core import RGB_MEAN, AetherNet
from aether_spandrel.errors import CheckpointError, reason

GRIDS: Final = ("inputs", "outputs", "activations")


def plan_text(plan: QuantisationPlan) -> str:
    """A plan as JSON; the same for the same plan."""
    grids = {
        place: {name: _entry(grid) for name, grid in getattr(plan, place).items()}
        for place in GRIDS
    }
    joined = plan.joined and _entry(plan.joined)
    trained = sorted(plan.trained)
    return json.dumps({"target": plan.target, **grids, "trained": trained, "joined": joined})


def _entry(grid: Grid) -> list[float]:
    return [grid.scale, grid.zero_point, grid.signed, grid.pieces]


def kept_plan(metadata: Mapping[str, object], network: AetherNet) -> QuantisationPlan | None:
    """The plan that an earlier tuning left in a checkpoint of this fused network, if one did.

    Raises:
        CheckpointError: There is one, and it is none of this network.
    """
    text = metadata.get(ENTRY)
    if text is None:
        return None
    try:
        return _parsed(str(text), network)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "what int8 tuning left in the file cannot be used",
            key=ENTRY,
            found=reason(error),
            advice="tune again from the checkpoint that it was made from",
        ) from error


def _parsed(text: str, network: AetherNet) -> QuantisationPlan:
    said = cast("dict[str, Any]", json.loads(text))
    target: Target | None = next((t for t in TARGETS if t == said["target"]), None)
    if target is None:
        raise ValueError(f"no target {said['target']}")
    grids = {
        place: {str(name): _grid(*entry) for name, entry in said[place].items()} for place in GRIDS
    }
    divided = most_pieces(network)
    for place, name, grid in [(p, n, grid) for p in GRIDS for n, grid in grids[p].items()]:
        most = _pieces_allowed(place, name, grid, divided) if target == "cpu" else 1
        if not 1 <= grid.pieces <= most:
            raise ValueError(f"{grid.pieces} pieces of {name}")
    unknown = (grids["inputs"].keys() | grids["outputs"].keys()) - layers_of(network).keys()
    parts = {name for name, _ in cast(Any, network).named_modules()}
    unknown |= grids["activations"].keys() - parts
    if unknown or not grids["inputs"]:
        raise ValueError(f"no layer {min(unknown, default='in int8')}")
    joined = _grid(*said["joined"]) if said.get("joined") else None
    can = target == "cpu" and SUM in grids["inputs"] and can_join(recentred(network))
    if joined is not None and not (can and joined.pieces == 1):
        raise ValueError(f"nothing can be joined in {SUM}")
    return QuantisationPlan(
        target=target,
        inputs=grids["inputs"],
        outputs=grids["outputs"],
        activations=grids["activations"],
        trained=frozenset(said.get("trained", ())) & grids["inputs"].keys(),
        joined=joined,
    )


def _pieces_allowed(place: str, layer: str, grid: Grid, divided: Mapping[str, int]) -> int:
    if place == "inputs":
        return PIECES if layer == HEAD and by_sign(grid) else 1
    return 1 if grid.signed or place != "outputs" else divided.get(layer, 1)


def _grid(scale: float, zero_point: int, signed: bool, pieces: int = 1) -> Grid:
    grid = Grid(float(torch.tensor(float(scale))), int(zero_point), bool(signed), int(pieces))
    low, high = grid.limits
    if not (math.isfinite(grid.scale) and grid.scale > 0 and low <= grid.zero_point <= high):
        raise ValueError(f"no grid of step {scale} around {zero_point}")
    return grid


def kept_weights(network: AetherNet) -> dict[str, Tensor]:
    """The state dict of a network as every program reads it: around the usual mean."""
    moved = not isinstance(network.mean, Tensor) and network.mean not in (0.0, RGB_MEAN)
    usual = recentred(network, back=True) if moved else network
    return {key: tensor.detach().contiguous() for key, tensor in usual.state_dict().items()}
