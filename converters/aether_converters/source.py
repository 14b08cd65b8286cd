"""The checkpoint that is converted or compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor
from typing_extensions import Unpack

from aether_converters.card import ModelCard, card_in
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.inspection import CheckpointInfo, describe_network
from aether_spandrel.model_folder import read_model
from aether_spandrel.network import Network, fuse
from aether_spandrel.publishing import fused_state_dict


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that is converted.

    Attributes:
        path: The file.
        sha256: Of the file, in hexadecimal.
        checkpoint: As read.
        network: As inferred, in the form and dtype in which it is stored.
        card: Whose it is, as far as the file or its user says so.
    """

    path: Path
    sha256: str
    checkpoint: Checkpoint = field(repr=False)
    network: Network
    card: ModelCard = field(default_factory=ModelCard)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and those that it names if it is an index."""
        if self.path.suffix.lower() != ".json":
            return (self.path,)
        parts = json.loads(self.path.read_text("utf-8"))["weight_map"].values()
        return (self.path, *(self.path.parent / name for name in sorted(set(parts))))

    @cached_property
    def fused(self) -> Network:
        """The network with fused kernels, everything else folded into its weights."""
        return fuse(self.network)

    @cached_property
    def published(self) -> Mapping[str, Tensor]:
        """The fused tensors in the layout of the network's own revision."""
        return fused_state_dict(self.network)

    @cached_property
    def info(self) -> CheckpointInfo:
        """Facts about the file."""
        return describe_network(self.checkpoint, self.network)


def read_source(path: str | Path, **constants: Unpack[Constants]) -> Source:
    """Read a checkpoint to be converted or compared with; constants as for `load`.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet.
    """
    checkpoint, network = read_model(path, **constants)
    path = checkpoint.path or Path(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return Source(
        path=path,
        sha256=digest.hexdigest(),
        checkpoint=checkpoint,
        network=network,
        card=card_in(checkpoint.metadata),
    )
