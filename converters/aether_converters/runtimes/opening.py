"""Any model as one thing that can be called: an image in, the upscaled image out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from typing_extensions import Unpack

from aether_converters.errors import ModelError, require
from aether_converters.runtimes.devices import AUTO
from aether_converters.runtimes.providers import ProviderOptions, refuse_provider
from aether_converters.runtimes.pytorch import of_network, open_checkpoint
from aether_converters.runtimes.upscaler import (
    SUFFIXES,
    Format,
    Upscaler,
    format_of,
)
from aether_core import AetherNet
from aether_spandrel.constants import Constants
from aether_spandrel.model_folder import model_file

if TYPE_CHECKING:  # importing spandrel takes seconds, which files do without
    from spandrel import ImageModelDescriptor

Model: TypeAlias = "str | Path | Upscaler | ImageModelDescriptor[Any]"
"""A file, what `open_upscaler` gives, or what spandrel has loaded."""

HOLD_CONSTANTS: Final[Mapping[Format, str]] = {
    "onnx": "ONNX file",
    "trt": "engine",
    "ncnn": "NCNN file",
}
"""Formats whose files compute without being told any value, in words."""


def open_upscaler(
    model: Model,
    *,
    format: Format | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 0,
    provider: ProviderOptions | None = None,
    weights: Path | None = None,
    **constants: Unpack[Constants],
) -> Upscaler:
    """Open a `.pth`, `.safetensors`, `.onnx`, `.engine` or `.param` file to be run.

    Args:
        model: The file; or a folder as for `aether_spandrel.load`; or a network of any architecture
            that spandrel has loaded, which runs where it is and in its dtype. What is open already
            comes back as it is.
        format: Its format where the name does not tell.
        device: Where PyTorch runs it, such as `cpu` (the default) or `cuda`; for an engine the
            number of its GPU; for NCNN `cpu` or `vulkan`. `auto` is the fastest of PyTorch, and the
            CPU for NCNN.
        dtype: In which PyTorch computes: fp32 (the default), bf16 or fp16, or `auto` for fp16 where
            the network is safe in it and the device gains; other files have their own.
        threads: For onnxruntime and NCNN; 0 leaves them the choice. PyTorch has one number for all
            networks.
        provider: Where onnxruntime runs an ONNX file; by default the CPU.
        weights: The `.bin` file beside an NCNN `.param` file, where its name does not tell.
        **constants: Values that a checkpoint's tensors do not carry; see `aether_spandrel.load`.

    Raises:
        CheckpointError: It is a checkpoint that cannot be read, or takes something else than one
            picture of any size.
        ModelError: It is no super-resolution model that can be run, or the device or provider is
            not there, or the dtype is none for this network; or it is loaded already, and anything
            else is given.
        MissingExtraError: The runtime for this format is not installed.
    """
    if not isinstance(model, (str, Path)):
        given = {"format": format, "device": device, "dtype": dtype, "threads": threads or None}
        _refuse_said({**given, "provider": provider, "weights": weights, **constants})
        return model if isinstance(model, Upscaler) else _of_loaded(model)
    path = Path(model)
    device = "cpu" if device is None else device
    dtype = "fp32" if dtype is None else dtype
    named = path.suffix.lower() in SUFFIXES  # even a folder, which its own runtime refuses
    chosen = format or format_of(path if named else model_file(path))
    if chosen != "onnx" and provider is not None:
        refuse_provider(provider, path)
    if chosen not in HOLD_CONSTANTS:
        return open_checkpoint(path, chosen, device, constants, dtype)
    if dtype not in ("fp32", AUTO):
        raise ModelError(
            "a dtype is for PyTorch: other files compute in the one that they were written for",
            file=path,
            found=dtype,
            advice="run the .pth or .safetensors file, or convert it with --precision",
        )
    if constants:
        raise ModelError(
            f"an {HOLD_CONSTANTS[chosen]} has all its constants in it",
            file=path,
            found=f"--set {next(iter(constants))}",
            advice="set it for the checkpoint that the file was made from",
        )
    if chosen == "trt":
        from aether_converters.runtimes.tensorrt import open_engine

        return open_engine(path, device="cuda" if device == AUTO else device)
    if chosen == "ncnn":
        from aether_converters.runtimes.ncnn import open_ncnn

        place = "cpu" if device == AUTO else device
        return open_ncnn(path, weights=weights, device=place, threads=threads)
    if device not in ("cpu", AUTO):
        raise ModelError(
            "--device is for PyTorch: ONNX files run where --provider says",
            file=path,
            found=f"--device {device}",
            advice="try --provider cuda, or run the .pth or .safetensors file",
        )
    require("onnxruntime")
    from aether_converters.runtimes.onnx_runtime import open_onnx

    return open_onnx(path, threads=threads, provider=provider)


def _refuse_said(given: Mapping[str, object]) -> None:
    """Raise ModelError for what can only be said of a file that is to be opened."""
    if said := [name for name, value in given.items() if value is not None]:
        raise ModelError(
            "the model is open already, and stays as it is",
            expected="a file, where this is said",
            found=", ".join(said),
            advice="say it to open_upscaler, or move the loaded model before",
        )


def _of_loaded(model: ImageModelDescriptor[Any]) -> Upscaler:
    """What spandrel has loaded, on the device and in the dtype in which it is now."""
    network = getattr(model, "model", None)
    if isinstance(network, AetherNet) and network.config.fused:
        return of_network(network)
    from aether_converters.runtimes.other_networks import of_descriptor  # and all of spandrel

    return of_descriptor(model)
