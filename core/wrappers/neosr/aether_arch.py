"""AetherNet for neosr: copy this file to `neosr/archs/`, where its name makes it known.

It needs `aether_core`: install aether-spandrel, or copy `aether_core.py` beside `train.py`.
"""
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from collections.abc import Callable
from functools import wraps
from typing import Any

from neosr.archs.arch_util import net_opt
from neosr.utils.registry import ARCH_REGISTRY

from aether_core import AetherNet, aether, aether_large, aether_medium, aether_small, prepare_qat

# neosr tells a network its scale in no other way.
upscale, _ = net_opt()


def register(build: Callable[..., AetherNet]) -> None:
    """Register a network that takes the options of `build`, and those of `prepare_qat` as `qat`."""

    @wraps(build)
    def trainable(*, qat: dict[str, Any] | None = None, **options: Any) -> AetherNet:
        network = build(**{"scale": upscale, **options})
        return network if qat is None else prepare_qat(network, **qat)

    ARCH_REGISTRY.register(trainable)


for network in (aether, aether_small, aether_medium, aether_large):
    register(network)
