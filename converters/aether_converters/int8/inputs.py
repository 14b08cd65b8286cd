"""What the layers of a network take when it is shown pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from aether_core import AetherNet
from aether_spandrel.inference import channels_last

Pictures = Tensor | Sequence[Tensor]
"""A batch (N, C, H, W) in [0, 1], or batches of pictures that differ in size."""


def one_by_one(pictures: Pictures) -> Sequence[Tensor]:
    """Each by itself, which decides the memory."""
    batches = [pictures] if isinstance(pictures, Tensor) else pictures
    return [batch[place : place + 1] for batch in batches for place in range(len(batch))]


def is_one_colour(picture: Tensor) -> bool:
    """Whether all of a picture (1, C, H, W) is alike."""
    return bool((picture == picture[:, :, :1, :1]).all())


def watch_inputs(
    network: AetherNet,
    pictures: Pictures,
    watchers: Mapping[str, Callable[[nn.Module, Tensor], None]],
) -> None:
    """Run a network on pictures; whoever watches a layer is shown it and what it takes."""

    def hook_of(watch: Callable[[nn.Module, Tensor], None]) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            watch(layer, inputs[0])

        return hook

    with torch.inference_mode(), ExitStack() as hooks:
        for name, watch in watchers.items():
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_pre_hook(hook_of(watch)).remove)
        for picture in one_by_one(pictures):
            network(channels_last(picture))
