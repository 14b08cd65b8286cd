"""AetherNet as an architecture of spandrel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
)
from typing_extensions import Unpack, override

from aether_core import AetherNet
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.errors import CheckpointError
from aether_spandrel.inference import FastAetherNet
from aether_spandrel.model_folder import read_model
from aether_spandrel.network import (
    Network,
    fuse,
    is_aethernet,
    read_network,
)


class AetherNetArch(Architecture[AetherNet]):
    """Detects and loads AetherNet state dicts of every revision that `aether_spandrel` reads."""

    def __init__(self) -> None:
        """Create the architecture, ready to be added to a registry."""
        super().__init__(id="AetherNet", name="AetherNet", detect=_detect)

    @override
    def load(self, state_dict: Mapping[str, Any]) -> ImageModelDescriptor[AetherNet]:
        """The fused network of a state dict, in float32 and eval mode; the dict is unchanged.

        Raises:
            CheckpointError: The tensors do not form one AetherNet.
        """
        return describe(self, read_network(Checkpoint.from_object(state_dict)))


def _detect(state_dict: Mapping[str, Any]) -> bool:
    try:
        return is_aethernet(Checkpoint.from_object(state_dict))
    except CheckpointError:
        return False


def describe(arch: AetherNetArch, network: Network) -> ImageModelDescriptor[AetherNet]:
    """Spandrel's descriptor of a network, fused, with float32 weights."""
    was_fused = network.config.fused
    fused = fuse(network)
    config = fused.config
    with torch.device("cpu"):
        model = FastAetherNet(config).eval().requires_grad_(False)
    tags = [
        network.revision.name,
        *([network.preset] if network.preset else []),
        f"{config.embed_dim}dim",
        f"{config.blocks}b",
        "fused" if was_fused else "unfused",
        str(network.dtype).removeprefix("torch."),
    ]
    return ImageModelDescriptor(
        model,
        # Copied into the model, in its dtype, so that a program may save over the file or change
        # the state dict while it keeps the model.
        dict(fused.state_dict),
        architecture=arch,
        purpose="Restoration" if config.scale == 1 else "SR",
        tags=tags,
        supports_half=network.fits_float16,
        supports_bfloat16=True,
        scale=config.scale,
        input_channels=config.in_chans,
        output_channels=config.out_chans,
        size_requirements=SizeRequirements(),
        # What pools over the whole image gives another result in a tile.
        tiling=ModelTiling.DISCOURAGED if config.global_context else ModelTiling.SUPPORTED,
    )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add AetherNet to a registry of spandrel, by default the one every `ModelLoader` uses.

    Calling it again changes nothing.
    """
    if "AetherNet" not in registry:
        registry.add(ArchSupport.from_architecture(AetherNetArch()))


def load(path: str | Path, **constants: Unpack[Constants]) -> ImageModelDescriptor[AetherNet]:
    """Load a checkpoint file as spandrel's descriptor: fused, float32, eval mode, on the CPU.

    It also reads what spandrel's own loader cannot: quantised tensors, metadata with Python
    objects, unknown wrappers, checkpoints in several files.

    Args:
        path: A `.pth`, `.pt`, `.ckpt`, `.safetensors` or `.index.json` file; or a folder as model
            hubs have it, with a `model.safetensors` that its `config.json` must not contradict.
        **constants: Values that no tensor carries, such as `res_scale=0.15`; they win over the
            file's metadata, and those over the default of its revision. See `Constants`.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet; file, cause and next step
            are named.
    """
    return describe(AetherNetArch(), read_model(path, **constants)[1])


# Where Python's start-up line found that this module is what imports spandrel.
_startup = sys.modules.get("aether_spandrel_startup")
if getattr(_startup, "pending", False):
    install()
