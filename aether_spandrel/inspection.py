"""What a checkpoint is, in facts, assumptions and doubts."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from typing_extensions import Unpack

from aether_core import AetherConfig
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.doubts import find_doubts
from aether_spandrel.errors import CheckpointError
from aether_spandrel.model_folder import read_model
from aether_spandrel.network import Network
from aether_spandrel.ranges import input_sources


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """Facts about one checkpoint file.

    Attributes:
        path: The file.
        revision: Which published revision, such as G5f.
        preset: The published size it has, or None.
        config: The inferred configuration.
        fused: Whether the two kernels of each block are already one.
        qat: Whether quantisation-aware training, or a conversion to int8, left its entries.
        int8: Whether weights are stored as int8.
        dtype: In which dtype the weights are stored, such as float16.
        parameters: Number of weights.
        wrapper: The keys under which the state dict was found; empty if it was bare.
        constants: Value by name of each constant that no tensor carries and that matters here.
        assumed: Value and reason by name for each constant that the file does not carry.
        ranges: Largest absolute value of the input of each layer of the fused network of which
            quantisation-aware training left it, by the layer's name.
        warnings: What a user should know before relying on the file.
        notes: What else is worth knowing, such as the command for programs that refuse the file.
    """

    path: Path
    revision: str
    preset: str | None
    config: AetherConfig
    fused: bool
    qat: bool
    int8: bool
    dtype: str
    parameters: int
    wrapper: str
    constants: dict[str, float]
    assumed: dict[str, str]
    ranges: dict[str, float]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values."""
        return {**asdict(self), "path": str(self.path)}

    def refuse_doubts(self) -> None:
        """Raise CheckpointError if there is any reason for doubt."""
        if self.warnings:
            raise CheckpointError(
                "the file is doubtful, and --strict refuses it",
                file=self.path,
                found="; ".join(self.warnings),
                advice="use another file, or leave --strict away",
            )


def inspect(path: str | Path, **constants: Unpack[Constants]) -> CheckpointInfo:
    """Facts about a checkpoint file, or one in a folder; all as for `load`.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet.
    """
    return describe_network(*read_model(path, **constants))


def describe_network(checkpoint: Checkpoint, network: Network) -> CheckpointInfo:
    """Facts about a checkpoint and the network read from it."""
    return CheckpointInfo(
        path=checkpoint.path or Path(),
        revision=network.revision.name,
        preset=network.preset,
        config=network.config,
        fused=network.config.fused and not network.half_fused,
        qat=checkpoint.qat,
        int8=bool(checkpoint.int8_weights),
        dtype="int8" if checkpoint.int8_weights else str(network.dtype).removeprefix("torch."),
        parameters=sum(t.numel() for t in network.state_dict.values() if t.is_floating_point()),
        wrapper=checkpoint.wrapper,
        constants=dict(network.constants),
        assumed=dict(network.assumed),
        ranges=dict(network.ranges.usable),
        warnings=find_doubts(checkpoint, network),
        notes=tuple(_notes(checkpoint, network)),
    )


def _notes(checkpoint: Checkpoint, network: Network) -> Iterator[str]:
    if checkpoint.averaged and checkpoint.alternatives:
        yield checkpoint.choice
    if checkpoint.int8_weights:
        yield (
            "its int8 weights were turned back into floats: what rounding them had lost stays "
            f"lost, and lies {int8_signal_to_noise(checkpoint):.1f} dB below the weights"
        )
    if checkpoint.qat:
        yield (
            f"{len(checkpoint.qat_entries)} entries of quantisation are kept apart; the network "
            f"computes in floats. They give the input ranges of {len(network.ranges.usable)} of "
            f"{len(input_sources(network.config))} layers"
        )
    if network.counts:
        yield (
            f"{len(network.counts)} single numbers among the tensors count something, as profilers "
            f"leave them, first {network.counts[0][:60]}: they are no part of the network"
        )
    for layer, reason in network.ranges.unusable.items():
        yield f"the input range of {layer} cannot be used: {reason}"
    settings = [f"--set {name}={value}" for name, value in network.given.items()]
    name = shlex.quote(str(checkpoint.path or "model.pth"))
    command = " ".join(["aethernet convert", name, *settings, "--to safetensors"])
    if checkpoint.refusals:
        yield (
            "spandrel's own loader, and so ChaiNNer, cannot read this file, since "
            f"{'; '.join(checkpoint.refusals)}: {command} makes one that they take"
        )
    unseen = [
        f"{name} {value:g}"
        for name, value in network.constants.items()
        if name not in network.assumed and value != network.defaults.get(name)
    ]
    if unseen:
        yield (
            "spandrel, ChaiNNer and ComfyUI read tensors alone and would not know "
            f"{', '.join(unseen)}: {command} makes a file that needs no such values"
        )


def int8_signal_to_noise(checkpoint: Checkpoint) -> float:
    """Energy of the int8 weights over that of what rounding took from them, in dB.

    Inf if no weight is stored as int8.
    """
    energies = [weight.signal_to_noise() for weight in checkpoint.int8_weights.values()]
    signal, noise = sum(s for s, _ in energies), sum(n for _, n in energies)
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else math.inf
