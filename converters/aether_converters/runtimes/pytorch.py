"""A checkpoint, run by PyTorch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from aether_converters.errors import ModelError
from aether_converters.runtimes.streaming import (
    can_stream,
    rows_per_band,
    stream,
    streaming_bytes,
    time_per_pixel,
)
from aether_converters.runtimes.upscaler import (
    PRECISIONS,
    Format,
    Image,
    Streamer,
    Upscaler,
    precision_name,
)
from aether_core import AetherConfig, AetherNet
from aether_spandrel.constants import Constants
from aether_spandrel.inference import FastAetherNet, build_network
from aether_spandrel.model_folder import read_model
from aether_spandrel.network import Network, float_weights, fuse

if TYPE_CHECKING:  # importing it takes seconds, which files do without
    from spandrel import ImageModelDescriptor

TUNED: Final = "int8_plan"
"""The entry of the metadata that says so; see `int8.keeping`."""

LONGEST_REASON: Final = 200  # characters; torch lists all that it knows

DTYPES: Final = ("fp32", "bf16", "fp16")
"""In which PyTorch computes a network, whatever its file holds."""

LOADED: Final = Path("the loaded AetherNet")
"""What errors call a network that came from no file that is known."""


def open_checkpoint(
    path: Path, format: Format, device: str, constants: Constants, dtype: str = "fp32"
) -> Upscaler:
    """A checkpoint on a device of PyTorch, such as `cpu` or `cuda`, computed in one of `DTYPES`.

    Raises:
        CheckpointError: It cannot be read or is no AetherNet.
        ModelError: The device is not there, or the network cannot be computed in the dtype.
    """
    checkpoint, network = read_model(path, **constants)
    path = checkpoint.path or path
    refuse_dtype(dtype, path, fits_float16=network.fits_float16)
    upscaler = _running(_moved(fuse(network), device, path).to(PRECISIONS[dtype]), path)
    return replace(
        upscaler,
        format=format,
        # What int8 tuning has left lies as far from its source as its weights are rounded.
        precision="int8" if TUNED in checkpoint.metadata else precision_name(network.dtype),
    )


def of_descriptor(descriptor: ImageModelDescriptor[Any]) -> Upscaler:
    """A network that spandrel has loaded, on the device and in the dtype in which it is now.

    Raises:
        ModelError: It is no fused AetherNet.
    """
    network = descriptor.model
    if not (isinstance(network, AetherNet) and network.config.fused):
        raise ModelError(
            "this loaded model is no AetherNet, and how far its pixels see is not known",
            expected="what aether_spandrel.load gives, or spandrel's ModelLoader for an AetherNet",
            found=type(network).__name__,
            advice="call it with a tensor, as spandrel has it, or export it to ONNX",
        )
    return _running(network, LOADED)


def _running(network: AetherNet, path: Path) -> Upscaler:
    """A fused network as it is, which came from `path`."""
    config = network.config
    weight = network.conv_first.weight
    device = weight.device
    runner = _Runner(path, network, device, weight.dtype)
    return Upscaler(
        path=path,
        format="pth",
        precision=precision_name(weight.dtype),
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        receptive_radius=config.receptive_radius,
        global_context=config.global_context,
        fixed_size=None,
        bytes_per_pixel=activation_bytes(config),
        details={"tensors": len(network.state_dict())},
        run=runner.run,
        streamer=Streamer(
            rows=rows_per_band,
            memory=partial(streaming_bytes, config),
            # Other devices have no caches that a wide band outgrows.
            time=time_per_pixel if device.type == "cpu" else lambda _: 1.0,
            run=runner.run_bands,
        )
        if can_stream(config)
        else None,
    )


def _moved(network: Network, device: str, path: Path) -> AetherNet:
    refuse_device(device, path)
    return build_network(network.config, float_weights(network), FastAetherNet).to(device)


def refuse_dtype(dtype: str, path: Path, *, fits_float16: bool) -> None:
    """Raise ModelError where a network cannot be computed in a dtype."""
    if dtype not in DTYPES:
        raise ModelError(
            "there is no such dtype to compute in",
            file=path,
            expected=", ".join(DTYPES),
            found=dtype,
        )
    if dtype == "fp16" and not fits_float16:
        raise ModelError(
            "this network cannot be computed in fp16: its values leave the range",
            file=path,
            advice="--dtype bf16 or --dtype fp32",
        )


def refuse_device(device: str, path: Path) -> None:
    """Raise ModelError where PyTorch computes nothing on a device."""
    try:
        place = torch.device(device)
        if place.type == "cpu" and place.index:
            raise _unusable(device, path, "there is one CPU")
        torch.ones(1, device=place).add(1).cpu()
    # torch says in many ways that it was built without a device, or that the driver is missing.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        RuntimeError,
        TypeError,
        ValueError,
        ImportError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _unusable(device, path, reason[:LONGEST_REASON]) from error


def _unusable(device: str, path: Path, reason: str) -> ModelError:
    return ModelError(
        f"PyTorch cannot use the device {device}",
        file=path,
        found=reason,
        advice="run it with --device cpu, or install PyTorch for this device",
    )


class _Runner:
    """A network on its device and in its dtype, which takes and gives arrays."""

    def __init__(
        self, path: Path, model: AetherNet, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Run `model`, which came from `path`."""
        self._path = path
        self._model = model
        self._device = device
        self._dtype = dtype

    def run(self, image: Image) -> Image:
        """The whole picture at once."""
        with self._explained(f"{image.shape[3]} x {image.shape[2]} px"):
            return self._array(self._model(self._tensor(image)))

    def run_bands(self, images: Iterable[Image]) -> Iterator[Image]:
        """Bands of rows, from top to bottom."""
        bands = stream(self._model, map(self._tensor, images))
        while True:
            with self._explained("bands of rows"):
                band = next(bands, None)
            if band is None:
                return
            yield self._array(band)

    def _tensor(self, image: Image) -> Tensor:
        # torch warns of arrays that it may not write to.
        values = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
        return values.to(self._device, self._dtype)

    def _array(self, output: Tensor) -> Image:
        return output.contiguous().cpu().float().numpy()

    @contextmanager
    def _explained(self, size: str) -> Generator[None]:
        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if "alloc" not in str(error) and "out of memory" not in str(error):
                raise
            raise ModelError(
                f"memory ran out on {self._device} with {size}",
                file=self._path,
                advice="use smaller tiles, with --tile or --memory",
            ) from error


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
