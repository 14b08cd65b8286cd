"""What a checkpoint is, without building its network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from aether_core import AetherConfig
from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from aether_spandrel.network import Network, read_network


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Facts about one checkpoint file.

    Attributes:
        path: The file.
        revision: Which published revision, such as G1.
        preset: The published size it has, or None.
        config: The inferred configuration.
        fused: Whether the two kernels of each block are already one.
        qat: Whether quantisation-aware training left its entries in the file.
        dtype: In which dtype the weights are stored, such as float16.
        parameters: Number of weights.
        wrapper: The keys under which the state dict was found; empty if it was bare.
        assumed: Value and reason by name for each constant that the file does not carry.
        warnings: What a user should know before relying on the file.
    """

    path: Path
    revision: str
    preset: str | None
    config: AetherConfig
    fused: bool
    qat: bool
    dtype: str
    parameters: int
    wrapper: str
    assumed: dict[str, str]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values."""
        return {**asdict(self), "path": str(self.path)}


def inspect(path: str | Path) -> CheckpointInfo:
    """Facts about a checkpoint file.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet.
    """
    checkpoint = read_checkpoint(path)
    return describe_network(checkpoint, read_network(checkpoint))


def describe_network(checkpoint: Checkpoint, network: Network) -> CheckpointInfo:
    """Facts about a checkpoint and the network read from it."""
    return CheckpointInfo(
        path=checkpoint.path or Path(),
        revision=network.revision.name,
        preset=network.preset,
        config=network.config,
        fused=network.config.fused,
        qat=bool(checkpoint.qat_entries),
        dtype=str(network.dtype).removeprefix("torch."),
        parameters=sum(tensor.numel() for tensor in network.state_dict.values()),
        wrapper=checkpoint.wrapper,
        assumed=dict(network.assumed),
        warnings=tuple(_warnings(checkpoint, network)),
    )


def _warnings(checkpoint: Checkpoint, network: Network) -> list[str]:
    found: list[str] = []
    if checkpoint.alternatives:
        found.append(
            f"the file holds several state dicts: {checkpoint.wrapper} was taken, "
            f"{', '.join(checkpoint.alternatives)} left aside"
        )
    broken = [k for k, t in network.state_dict.items() if not bool(torch.isfinite(t).all())]
    if broken:
        found.append(
            f"{len(broken)} tensors hold NaN or Inf, first {broken[0]}: "
            "the training diverged or the file is damaged"
        )
    return found
