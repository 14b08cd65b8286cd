"""AetherNet as an architecture of spandrel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
)
from typing_extensions import override

from aether_core import AetherNet, build_network
from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from aether_spandrel.errors import CheckpointError
from aether_spandrel.revisions import (
    Network,
    find_revision,
    float_weights,
    fuse,
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
        return find_revision(Checkpoint.from_object(state_dict).state_dict) is not None
    except CheckpointError:
        return False


def describe(arch: AetherNetArch, network: Network) -> ImageModelDescriptor[AetherNet]:
    """Spandrel's descriptor of a network, fused, with float32 weights."""
    was_fused = network.config.fused
    fused = fuse(network)
    config = fused.config
    model = build_network(config, float_weights(fused))
    tags = [
        *([network.preset] if network.preset else []),
        f"{config.embed_dim}dim",
        f"{config.blocks}b",
        "fused" if was_fused else "unfused",
        str(network.dtype).removeprefix("torch."),
    ]
    return ImageModelDescriptor(
        model,
        model.state_dict(),
        architecture=arch,
        purpose="Restoration" if config.scale == 1 else "SR",
        tags=tags,
        supports_half=True,
        supports_bfloat16=True,
        scale=config.scale,
        input_channels=config.in_chans,
        output_channels=config.in_chans,
        size_requirements=SizeRequirements(),
        tiling=ModelTiling.SUPPORTED,
    )


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add AetherNet to a registry of spandrel, by default the one every `ModelLoader` uses.

    Calling it again changes nothing.
    """
    if "AetherNet" not in registry:
        registry.add(ArchSupport.from_architecture(AetherNetArch()))


def load(path: str | Path) -> ImageModelDescriptor[AetherNet]:
    """Load a checkpoint file as spandrel's descriptor: fused, float32, eval mode, on the CPU.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet; file, cause and next step
            are named.
    """
    return describe(AetherNetArch(), read_network(read_checkpoint(path)))
