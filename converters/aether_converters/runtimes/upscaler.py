"""A model file as one thing that can be called: an image in, the upscaled image out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from aether_converters.errors import ModelError

Format = Literal["pth", "safetensors", "onnx", "trt", "ncnn"]


FORMATS: Final[tuple[Format, ...]] = ("pth", "safetensors", "onnx")
"""Those that are written unless others are asked for."""


SUFFIXES: Final[Mapping[str, Format]] = {
    ".pth": "pth",
    ".pt": "pth",
    ".ckpt": "pth",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".engine": "trt",
    ".param": "ncnn",
}
"""Which format a file's name promises."""


Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Streamer:
    """How a model upscales a picture of any height in bands of rows.

    Attributes:
        rows: Rows of a band for a picture of so many px in width.
        memory: Peak memory for a picture of so many px in width, in bytes.
        time: What a px of a picture of so many px in width takes, relative to another width.
        run: (1, C_in, rows, W) float32 bands in [0, 1], from top to bottom, to
            (1, C_out, rows, scale * W) bands, together scale * H rows.
    """

    rows: Callable[[int], int]
    memory: Callable[[int], int]
    time: Callable[[int], float]
    run: Callable[[Iterable[Image]], Iterator[Image]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Sizes (H, W) in px that a model takes, both ends included."""

    least: tuple[int, int]
    most: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Upscaler:
    """A model file, opened and ready to run.

    Attributes:
        path: The file.
        format: In which format it was read.
        precision: In which its weights are stored: fp32, fp16, bf16 or fp64.
        channels: Of input and output.
        scale: Upscaling factor.
        receptive_radius: Input px in each direction that an output pixel can depend on, or by which
            tiles overlap where that is too many; see `sees`.
        global_context: Whether it depends on the whole image beyond that, so that tiles change it.
        looks_at_all: Names of what in it depends on the whole image, as far as they are known.
        fixed_size: (H, W) in px of the only input that it accepts, or None if any will do.
        steps: (height, width) in px, of which tiles start at multiples and sizes are multiples.
        takes: Whether it accepts a size (H, W) that is no multiple of `steps` as it is, too.
        bytes_per_pixel: Estimated memory of its activations, in bytes per input px.
        details: Facts about the file for a report, such as opset and nodes.
        run: (N, C_in, H, W) float32 in [0, 1] to (N, C_out, scale * H, scale * W) float32, not
            clipped.
        streamer: Upscales large pictures without overlap, if the model allows it.
        size_ranges: Sizes that it accepts, or none if `fixed_size` or any will do.
        companions: Further files without which it is no model.
        sees: Input px in each direction that an output pixel can depend on, where that is more than
            `receptive_radius`; else 0.
        computed_by: What computes it, in words; empty where that is not known.
    """

    path: Path
    format: Format
    precision: str
    channels: tuple[int, int]
    scale: int
    receptive_radius: int
    global_context: bool
    fixed_size: tuple[int, int] | None
    bytes_per_pixel: int
    details: Mapping[str, int | str]
    run: Callable[[Image], Image] = field(repr=False)
    streamer: Streamer | None = None
    size_ranges: tuple[SizeRange, ...] = ()
    looks_at_all: tuple[str, ...] = ()
    steps: tuple[int, int] = (1, 1)
    takes: Callable[[tuple[int, int]], bool] = field(default=lambda _: False, repr=False)
    companions: tuple[Path, ...] = ()
    sees: int = 0
    computed_by: str = ""

    def accepted_size(self, height: int, width: int) -> tuple[int, int] | None:
        """The smallest size (H, W) in px that it accepts and that holds (height, width), or None.

        Pictures that are smaller than an accepted size have to be filled up.
        """
        ranges = self.size_ranges
        if self.fixed_size is not None:
            ranges = (SizeRange(least=self.fixed_size, most=self.fixed_size),)
        elif not ranges:
            return self._in_steps(height, width)
        fitting = [
            (max(height, least_height), max(width, least_width))
            for (least_height, least_width), (most_height, most_width) in (
                (limits.least, limits.most) for limits in ranges
            )
            if height <= most_height and width <= most_width
        ]
        return min(fitting, key=math.prod, default=None)

    def _in_steps(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.steps
        rounded = -(-height // rows) * rows, -(-width // columns) * columns
        size = height, width
        return size if rounded == size or self.takes(size) else rounded


def format_of(path: Path) -> Format:
    """The model format that a file's name promises.

    Raises:
        ModelError: The name has no ending that we know.
    """
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ModelError(
            "this is not the name of a model file",
            file=path,
            expected=", ".join(SUFFIXES),
            found=path.suffix or "no ending",
            advice="name the model before the pictures, or rename it as its format is called",
        )
    return found


PRECISIONS: Final[Mapping[str, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp64": torch.float64,
}
"""Floating-point types by the names that the community's files use."""


def precision_name(dtype: torch.dtype) -> str:
    """The community's name of a floating-point type, such as fp16."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
