"""Draws the golden checkpoints of `tests/golden`: their tensors, inputs and expected outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FOLDER = Path(__file__).parent.parent / "golden"
CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((FOLDER / "cases.json").read_text())
}


def image(case: dict[str, Any]) -> Tensor:
    """The input, (1, C, H, W) float32 in [0, 1]."""
    return torch.as_tensor(_sample(case["input_seed"], case["input_shape"]), dtype=torch.float32)


def expected(case: dict[str, Any]) -> Tensor:
    """The output, (1, C, scale * H, scale * W) float32, not clipped."""
    with np.load(FOLDER / "outputs.npz") as outputs:
        return torch.as_tensor(outputs[case["id"]])


def state_dict(case: dict[str, Any]) -> dict[str, Tensor]:
    """The bare state dict, in file order."""
    return {entry["key"]: _tensor(entry) for entry in case["tensors"]}


def checkpoint(case: dict[str, Any]) -> dict[str, Any]:
    """What the case's file holds: the state dict in its wrapper, with its metadata."""
    if case["wrap"] == "state_dict+metadata":
        return {"state_dict": state_dict(case), "metadata": case["metadata"]}
    return dict(state_dict(case))


def _tensor(entry: dict[str, Any]) -> Tensor:
    dtype = getattr(torch, entry["dtype"])
    if "value" in entry:
        return torch.tensor(entry["value"], dtype=dtype).reshape(entry["shape"])
    sample = _sample(entry["seed"], entry["shape"])
    drawn = np.asarray(entry["lo"] + (entry["hi"] - entry["lo"]) * sample, dtype=np.float32)
    return torch.as_tensor(drawn).to(dtype).reshape(entry["shape"])


def _sample(seed: int, shape: list[int]) -> NDArray[np.float64]:
    return np.random.RandomState(seed).random_sample(tuple(shape))
