"""A checkpoint, run by PyTorch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from aether_converters.runtimes.devices import explained, place_for
from aether_converters.runtimes.streaming import (
    can_stream,
    rows_per_band,
    stream,
    streaming_bytes,
    time_per_pixel,
)
from aether_converters.runtimes.upscaler import (
    LOADED,
    PRECISIONS,
    Format,
    Image,
    Streamer,
    Upscaler,
    precision_name,
)
from aether_core import AetherConfig, AetherNet
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.inference import FastAetherNet, build_network
from aether_spandrel.model_folder import model_file, network_of
from aether_spandrel.network import Network, float_weights, fuse, is_aethernet

TUNED: Final = "int8_plan"
"""The entry of the metadata that says so; see `int8.keeping`."""


def open_checkpoint(
    path: Path, format: Format, device: str, constants: Constants, dtype: str = "fp32"
) -> Upscaler:
    """A checkpoint on a device of PyTorch, such as `cpu` or `cuda`, computed in one of `DTYPES`.

    Either may be `auto`.

    Raises:
        CheckpointError: It cannot be read or is no AetherNet.
        ModelError: The device is not there, or the network cannot be computed in the dtype.
    """
    checkpoint = read_checkpoint(model_file(path))
    if not constants and not is_aethernet(checkpoint):
        from aether_converters.runtimes.other_networks import open_other  # and all of spandrel
        from aether_spandrel.architectures import architecture_of

        if architecture_of(checkpoint):
            return open_other(checkpoint, path, format, device, dtype)
    network = network_of(checkpoint, path, **constants)
    path = checkpoint.path or path
    place = place_for(path, device, dtype, fits_float16=network.fits_float16)
    upscaler = _running(_moved(fuse(network), place.device).to(PRECISIONS[place.dtype]), path)
    return replace(
        upscaler,
        format=format,
        computed_by=place.words,
        # What int8 tuning has left lies as far from its source as its weights are rounded.
        precision="int8" if TUNED in checkpoint.metadata else precision_name(network.dtype),
    )


def of_network(network: AetherNet) -> Upscaler:
    """A fused network that has been loaded, on the device and in the dtype in which it is now."""
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
        computes=partial(_digest, network),
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


def _digest(network: AetherNet) -> str:
    """Of all that decides what a network gives: its configuration, its tensors, and where it is."""
    found = hashlib.sha256(repr(network.config).encode())
    for key, tensor in network.state_dict().items():
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        found.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _moved(network: Network, device: str) -> AetherNet:
    return build_network(network.config, float_weights(network), FastAetherNet).to(device)


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
        with explained(self._path, self._device, f"{image.shape[3]} x {image.shape[2]} px"):
            return self._array(self._model(self._tensor(image)))

    def run_bands(self, images: Iterable[Image]) -> Iterator[Image]:
        """Bands of rows, from top to bottom."""
        bands = stream(self._model, map(self._tensor, images))
        while True:
            with explained(self._path, self._device, "bands of rows"):
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
