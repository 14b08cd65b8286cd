"""Any model file as one thing that can be called: an image in, the upscaled image out."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from aether_converters.errors import ModelError, require
from aether_converters.providers import ProviderOptions
from aether_converters.streaming import (
    can_stream,
    rows_per_band,
    stream,
    streaming_bytes,
    time_per_pixel,
)
from aether_core import AetherConfig, build_network
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.network import float_weights, fuse, read_network

Format = Literal["pth", "safetensors", "onnx", "trt"]
FORMATS: Final[tuple[Format, ...]] = ("pth", "safetensors", "onnx")
"""Those that are written unless others are asked for."""

SUFFIXES: Final[Mapping[str, Format]] = {
    ".pth": "pth",
    ".pt": "pth",
    ".ckpt": "pth",
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".engine": "trt",
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
        receptive_radius: Input px in each direction that an output pixel can depend on.
        global_context: Whether it depends on the whole image beyond that, so that tiles change it.
        fixed_size: (H, W) in px of the only input that it accepts, or None if any will do.
        bytes_per_pixel: Estimated memory of its activations, in bytes per input px.
        details: Facts about the file for a report, such as opset and nodes.
        run: (N, C_in, H, W) float32 in [0, 1] to (N, C_out, scale * H, scale * W) float32, not
            clipped.
        streamer: Upscales large pictures without overlap, if the model allows it.
        size_ranges: Sizes that it accepts, or none if `fixed_size` or any will do.
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

    def accepted_size(self, height: int, width: int) -> tuple[int, int] | None:
        """The smallest size (H, W) in px that it accepts and that holds (height, width), or None.

        Pictures that are smaller than an accepted size have to be filled up.
        """
        ranges = self.size_ranges
        if self.fixed_size is not None:
            ranges = (SizeRange(least=self.fixed_size, most=self.fixed_size),)
        elif not ranges:
            return height, width
        fitting = [
            (max(height, least_height), max(width, least_width))
            for (least_height, least_width), (most_height, most_width) in (
                (limits.least, limits.most) for limits in ranges
            )
            if height <= most_height and width <= most_width
        ]
        return min(fitting, key=math.prod, default=None)


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
        )
    return found


def open_upscaler(
    path: str | Path,
    *,
    format: Format | None = None,
    device: str = "cpu",
    threads: int = 0,
    provider: ProviderOptions | None = None,
    **constants: Unpack[Constants],
) -> Upscaler:
    """Open a `.pth`, `.safetensors`, `.onnx` or `.engine` file to be run.

    Args:
        path: The file.
        format: Its format where the name does not tell.
        device: Where PyTorch runs it, such as `cpu` or `cuda`; for an engine the number of its GPU.
        threads: For onnxruntime; 0 leaves it the choice. PyTorch has one number for all networks.
        provider: Where onnxruntime runs an ONNX file; by default the CPU.
        **constants: Values that a checkpoint's tensors do not carry; see `aether_spandrel.load`.

    Raises:
        CheckpointError: It is a checkpoint that cannot be read.
        ModelError: It is no super-resolution model that can be run, or the device or provider is
            not there.
        MissingExtraError: The runtime for this format is not installed.
    """
    path = Path(path)
    chosen = format or format_of(path)
    if chosen not in ("onnx", "trt"):
        return _open_checkpoint(path, chosen, device, constants)
    if constants:
        raise ModelError(
            f"an {'ONNX file' if chosen == 'onnx' else 'engine'} has all its constants in it",
            file=path,
            found=f"--set {next(iter(constants))}",
            advice="set it for the checkpoint that the file was made from",
        )
    if chosen == "trt":
        from aether_converters.tensorrt_run import open_engine

        return open_engine(path, device=device)
    if device != "cpu":
        raise ModelError(
            "--device is for PyTorch: ONNX files run where --provider says",
            file=path,
            found=f"--device {device}",
            advice="try --provider cuda, or run the .pth or .safetensors file",
        )
    require("onnxruntime")
    from aether_converters.onnx_runtime import open_onnx

    return open_onnx(path, threads=threads, provider=provider)


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


def _open_checkpoint(path: Path, format: Format, device: str, constants: Constants) -> Upscaler:
    network = read_network(read_checkpoint(path), **constants)
    fused = fuse(network)
    config = fused.config
    try:
        model = build_network(config, float_weights(fused)).to(device)
    except (RuntimeError, AssertionError) as error:
        # torch says so when it was built without the device or the driver is missing.
        raise ModelError(
            f"PyTorch cannot use the device {device}",
            file=path,
            found=str(error).splitlines()[0],
            advice="run it with --device cpu, or install PyTorch for this device",
        ) from error

    def tensor(image: Image) -> Tensor:
        # torch warns of arrays that it may not write to.
        return torch.from_numpy(np.require(image, np.float32, ["C", "W"])).to(device)

    @contextmanager
    def explained(size: str) -> Generator[None]:
        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if "alloc" not in str(error) and "out of memory" not in str(error):
                raise
            raise ModelError(
                f"memory ran out on {device} with {size}",
                file=path,
                advice="use smaller tiles, with --tile or --memory",
            ) from error

    def run(image: Image) -> Image:
        with explained(f"{image.shape[3]} x {image.shape[2]} px"):
            return model(tensor(image)).contiguous().cpu().numpy()

    def run_bands(images: Iterable[Image]) -> Iterator[Image]:
        bands = stream(model, map(tensor, images))
        while True:
            with explained("bands of rows"):
                band = next(bands, None)
            if band is None:
                return
            yield band.contiguous().cpu().numpy()

    return Upscaler(
        path=path,
        format=format,
        precision=precision_name(network.dtype),
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        receptive_radius=config.receptive_radius,
        global_context=config.global_context,
        fixed_size=None,
        bytes_per_pixel=activation_bytes(config),
        details={"tensors": len(network.state_dict)},
        run=run,
        streamer=Streamer(
            rows=rows_per_band,
            memory=partial(streaming_bytes, config),
            # Other devices have no caches that a wide band outgrows.
            time=time_per_pixel if torch.device(device).type == "cpu" else lambda _: 1.0,
            run=run_bands,
        )
        if can_stream(config)
        else None,
    )


def activation_bytes(config: AetherConfig) -> int:
    """Peak memory of a float32 forward pass through PyTorch, in bytes per input px.

    In the body the first features, a block's input and its output live at the same time, beside
    what each stage leaves to the fusion; in the head the first features, the body's result, and a
    sub-pixel convolution with its shuffled copy.
    """
    body = 3 * config.embed_dim + 2 * sum(config.fusion_widths)
    pixels, heads = 1, [config.head_dim]
    for factor, width in config.upsampler:
        pixels *= factor**2
        heads.append(2 * width * pixels)
    head = 2 * config.embed_dim + config.head_dim + max(heads) + 2 * config.out_chans * pixels
    return 4 * max(body, head)
