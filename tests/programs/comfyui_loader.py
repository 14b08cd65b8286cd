"""Runs AetherNet files in ComfyUI's own upscaling nodes and compares with `aether_spandrel.load`.

    python tests/programs/comfyui_loader.py COMFYUI_SOURCE MODEL...

COMFYUI_SOURCE is a checkout of ComfyUI (tried with 0.3.64), MODEL a `.pth` or `.safetensors` file
of an RGB model. The Python is one that has ComfyUI's requirements and this package installed from
its wheel: nothing here registers AetherNet with spandrel, the package's start-up hook has to.

Prints one line per model. The exit status is 1 when ComfyUI does not list or load a model, or
computes something else than `aether_spandrel.load`. ComfyUI reads tensors alone, so a `.pth` whose
metadata alone say `res_scale` fails here, rightly: `aethernet convert` first.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

import aether_spandrel

# Max abs difference, RGB in [0, 1]. Both run the same float32 network; ComfyUI hands it the picture
# in another memory layout, for which torch may add up in another order.
LIMIT: Final = 1e-5
SIZE: Final = (37, 53)  # (H, W) in px: one tile of ComfyUI, no multiple of anything
RGB: Final = 3


class UpscaleModel(Protocol):
    """The members of spandrel's descriptor that are printed."""

    @property
    def architecture(self) -> Architecture: ...
    @property
    def scale(self) -> int: ...
    @property
    def tags(self) -> list[str]: ...


class Architecture(Protocol):
    """A row of spandrel's registry."""

    @property
    def id(self) -> str: ...


class NodeOutput(Protocol):
    """What a node of ComfyUI returns: its outputs by position."""

    def __getitem__(self, index: int, /) -> Any: ...


class LoaderNode(Protocol):
    """ComfyUI's node "Load Upscale Model"."""

    def execute(self, model_name: str) -> NodeOutput: ...


class UpscaleNode(Protocol):
    """ComfyUI's node "Upscale Image (using Model)"."""

    def execute(self, upscale_model: UpscaleModel, image: Tensor) -> NodeOutput: ...


@dataclass(frozen=True, kw_only=True)
class ComfyUI:
    """The parts of an imported ComfyUI that a workflow uses to upscale."""

    models: Path  # the folder upscale_models
    loader: LoaderNode
    upscaler: UpscaleNode

    def offers(self, name: str) -> bool:
        """Whether a file of the folder stands in the node's list of models."""
        return name in importlib.import_module("folder_paths").get_filename_list("upscale_models")

    def load(self, name: str) -> UpscaleModel:
        """What the node "Load Upscale Model" gives for a file of the folder."""
        return self.loader.execute(name)[0]

    def upscale(self, model: UpscaleModel, picture: Tensor) -> Tensor:
        """A picture (N, H, W, 3) in [0, 1], enlarged by "Upscale Image (using Model)"."""
        return self.upscaler.execute(model, picture)[0]


def import_comfyui(source: Path, base: Path) -> ComfyUI:
    """ComfyUI's nodes from a checkout, on the CPU, with `base` as its base directory.

    ComfyUI reads its options while its modules are imported, so they are set in between.
    """
    sys.path.insert(0, str(source))
    options = importlib.import_module("comfy.cli_args").args
    options.cpu = True
    options.base_directory = str(base)
    nodes = importlib.import_module("comfy_extras.nodes_upscale_model")
    models = base / "models" / "upscale_models"
    models.mkdir(parents=True)
    return ComfyUI(
        models=models, loader=nodes.UpscaleModelLoader, upscaler=nodes.ImageUpscaleWithModel
    )


def picture() -> Tensor:
    """A synthetic picture, (1, H, W, 3) in [0, 1]: two gradients, rings and a little noise."""
    height, width = SIZE
    y = torch.linspace(0, 1, height).reshape(-1, 1)
    x = torch.linspace(0, 1, width).reshape(1, -1)
    rings = 0.5 + 0.5 * torch.sin(60 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    smooth = torch.stack([x.expand(height, width), y.expand(height, width), rings], dim=-1)
    noise = torch.rand(smooth.shape, generator=torch.Generator().manual_seed(0))
    return (0.9 * smooth + 0.1 * noise).unsqueeze(0)


def check(comfyui: ComfyUI, path: Path, number: int) -> Mapping[str, str]:
    """One line of the table: what ComfyUI says of a model, and how far it is from ours."""
    name = f"{number}_{path.name}"  # two models may have one name
    shutil.copyfile(path, comfyui.models / name)
    if not comfyui.offers(name):
        return {"model": path.name, "outcome": "FAIL: not in ComfyUI's list"}
    model = comfyui.load(name)
    line = {
        "model": path.name,
        "architecture": model.architecture.id,
        "tags": ",".join(model.tags),
        "scale": f"{model.scale}x",
    }
    ours = aether_spandrel.load(path)
    if ours.input_channels != RGB:
        return {**line, "outcome": f"FAIL: ComfyUI gives RGB, not {ours.input_channels} channels"}
    image = picture()
    upscaled = comfyui.upscale(model, image)
    with torch.inference_mode():
        expected = ours(image.movedim(-1, 1)).movedim(1, -1).clamp(0, 1)  # ComfyUI clips as well
    if upscaled.shape != expected.shape:
        shapes = f"{tuple(upscaled.shape)}, expected {tuple(expected.shape)}"
        return {**line, "outcome": f"FAIL: {shapes}"}
    difference = float((upscaled - expected).abs().max())
    outcome = "pass" if difference <= LIMIT else f"FAIL: limit {LIMIT:.0e}"
    return {**line, "max diff": f"{difference:.1e}", "outcome": outcome}


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Lines of named cells as text in columns."""
    columns = ("model", "architecture", "tags", "scale", "max diff", "outcome")
    rows = [columns, *(tuple(line.get(column, "-") for column in columns) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    padded = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(row.rstrip() for row in padded)


def main() -> int:
    """Check the models of the command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, metavar="COMFYUI_SOURCE")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        comfyui = import_comfyui(arguments.source, Path(base))
        lines = [check(comfyui, path, i) for i, path in enumerate(arguments.models)]
    sys.stdout.write(table(lines) + "\n")
    return int(any(line["outcome"] != "pass" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
