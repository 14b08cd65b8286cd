"""Writes a checkpoint, and says whether what was read from it is what was written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from aether_spandrel.checkpoint import Checkpoint


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def same(found: Checkpoint, state: dict[str, Tensor]) -> bool:
    """Whether the tensors are these, bit for bit and in this order."""
    return list(found.state_dict) == list(state) and all(
        torch.equal(found.state_dict[key], state[key]) for key in state
    )
