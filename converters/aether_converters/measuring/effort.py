"""What a network has to compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from aether_converters.graphs.macs import network_macs
from aether_core import AetherConfig

COUNTED_SIDE: Final = 256  # px, of the input for which a report states multiply-accumulates


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a network has to compute.

    Attributes:
        macs: Multiply-accumulates for an input of `size`.
        size: (H, W) in px.
        receptive_radius: Input px in each direction that an output pixel can depend on.
        global_context: Whether it depends on the whole picture beyond that.
    """

    macs: int
    size: tuple[int, int]
    receptive_radius: int
    global_context: bool


@cache
def effort_of(config: AetherConfig) -> Effort:
    """What a fused network of this configuration has to compute."""
    size = (COUNTED_SIDE, COUNTED_SIDE)
    return Effort(
        macs=network_macs(config, size),
        size=size,
        receptive_radius=config.receptive_radius,
        global_context=config.global_context,
    )
