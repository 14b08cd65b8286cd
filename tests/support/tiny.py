"""A small network that computes something: its output depends visibly on every weight."""

from __future__ import annotations

from typing import Any

import torch

from aether_core import AetherNet, aether


def tiny(seed: int = 0, **changes: Any) -> AetherNet:
    """Three blocks of 16 channels, 2x, unless the arguments of `aether` say otherwise."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1), "lk_kernel": 7, "scale": 2}
    network = aether(**{**arguments, **changes}).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif "ffn" in name:
                parameter.mul_(8.0)
            elif ".conv." in name:
                parameter.mul_(0.8)  # kernels of the size they are drawn with look untrained
    return network
