"""Folders as model hubs have them: `model.safetensors`, and a `config.json` that describes it.

The tensors alone tell what the network is. The description is there for hubs and people; where it
contradicts the tensors, one of the two belongs to another model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final, cast

from typing_extensions import Unpack

from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.errors import CheckpointError
from aether_spandrel.network import Network, read_network
from aether_spandrel.opening import is_folder, read_file

MODEL: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"
LARGEST_CONFIG: Final = 2**20  # bytes

KIND: Final[Mapping[str, object]] = {"architectures": ["AetherNet"], "model_type": "aethernet"}
"""By what hubs and programs know that it is ours."""

TOLD_BY_TENSORS: Final = (
    *("scale", "in_chans", "out_chans", "embed_dim", "depths", "ffn_dim", "lk_kernel"),
    *("norm_type", "channel_attn", "spatial_attn"),
)
"""Fields of the configuration that are read from every file, and so can be compared."""


def read_model(path: str | Path, **constants: Unpack[Constants]) -> tuple[Checkpoint, Network]:
    """A checkpoint and its network, from a file or from a folder as model hubs have them.

    Raises:
        CheckpointError: There is no checkpoint, it cannot be read or is no AetherNet, or the
            folder's `config.json` cannot be used or contradicts it.
    """
    path = Path(path)
    checkpoint = read_checkpoint(model_file(path))
    return checkpoint, network_of(checkpoint, path, **constants)


def network_of(checkpoint: Checkpoint, path: Path, **constants: Unpack[Constants]) -> Network:
    """The network of a checkpoint that was read from a path: a file, or a folder with it.

    Raises:
        CheckpointError: It is no AetherNet, or the folder's `config.json` cannot be used or
            contradicts it.
    """
    network = read_network(checkpoint, **constants)
    if is_folder(path) and os.path.lexists(path / CONFIG):
        _compare(path / CONFIG, network)
    return network


def model_file(path: Path) -> Path:
    """The checkpoint that a path means: the one in a folder, or else the path itself.

    Raises:
        CheckpointError: It is a folder without one.
    """
    if not is_folder(path):
        return path
    for name in (MODEL, INDEX):
        if os.path.lexists(path / name):
            return path / name
    raise CheckpointError(
        "there is no checkpoint in this folder under the name that model hubs use",
        file=path,
        expected=f"{MODEL} or {INDEX}",
        advice="name the model's file itself",
    )


def config_text(network: Network) -> str:
    """What `config.json` says of a network."""
    values = {**KIND, "revision_name": network.revision.name, **asdict(network.config)}
    return json.dumps(values, indent=2) + "\n"


def _compare(file: Path, network: Network) -> None:
    """Raise CheckpointError if a `config.json` cannot be used, or describes another network."""
    content = read_file(file, most=LARGEST_CONFIG, kind=CheckpointError)
    try:
        read = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise _unusable(file, "something else") from error
    if not isinstance(read, dict):
        raise _unusable(file, type(read).__name__)
    said = cast("dict[str, object]", read)
    told = {**KIND, **{name: getattr(network.config, name) for name in TOLD_BY_TENSORS}}
    for name, value in told.items():
        wanted = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
        if name in said and (type(said[name]), said[name]) != (type(wanted), wanted):
            raise CheckpointError(
                "config.json describes another network than the tensors",
                file=file,
                key=name,
                expected=f"{wanted}, as in the tensors",
                found=f"{said[name]!r:.100}",
                advice="download both again, or name the file instead of the folder: its tensors "
                "alone tell what the network is",
            )


def _unusable(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        "this is no description of a model",
        file=file,
        expected="a JSON object",
        found=found,
        advice="download it again, or name the file instead of the folder",
    )
