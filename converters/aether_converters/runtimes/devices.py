"""Where PyTorch computes, and in which dtype.

What is chosen is told in words, and what stood against something faster with it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from aether_converters.errors import ModelError
from aether_spandrel.errors import reason

DTYPES: Final = ("fp32", "bf16", "fp16")
"""In which PyTorch computes a network, whatever its file holds."""

AUTO: Final = "auto"

BEST_FIRST: Final = ("cuda", "mps")
"""Devices that are tried before the CPU; PyTorch calls AMD's cuda, too."""

FAST_HALF: Final = (8, 0)
"""Compute capability from which every NVIDIA GPU gains by float16. Of 7.5 there are some without
tensor cores, of which several compute NaN in it."""

LONGEST_REASON: Final = 200  # characters; torch lists all that it knows


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A device of PyTorch.

    Attributes:
        device: As PyTorch calls it.
        against: Why no faster one was taken, in words; empty if nothing is known of one.
    """

    device: str
    against: str = ""


def chosen_device(wanted: str) -> Chosen:
    """The device that was asked for as it is; for `auto` the first that computes, or the CPU."""
    if wanted != AUTO:
        return Chosen(device=wanted)
    against: list[str] = []
    for device in BEST_FIRST:
        if not _is_there(device):
            continue
        reason = why_unusable(device)
        if not reason:
            return Chosen(device=device)
        against.append(f"PyTorch cannot use {device}: {reason}")
    return Chosen(device="cpu", against="; ".join(against))


def _is_there(device: str) -> bool:
    """Whether PyTorch sees a device of a kind, without a look at whether it computes."""
    if device == "mps":
        return torch.backends.mps.is_available()
    return torch.cuda.is_available()


def why_unusable(device: str) -> str:
    """Why PyTorch computes nothing on a device, or nothing if it does."""
    try:
        place = torch.device(device)
    except RuntimeError:  # whose text lists all that any build of PyTorch could have
        return "PyTorch knows no device of this name"
    try:
        if place.type == "cpu" and place.index:
            return "there is one CPU"
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
        return reason(error, LONGEST_REASON)
    return ""


def device_in_words(device: str) -> str:
    """What a device is, such as `NVIDIA H200 (cuda)`."""
    kind = torch.device(device).type
    if kind == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return {"cpu": "the CPU", "mps": "Apple's GPU (mps)"}.get(kind, device)


def chosen_dtype(wanted: str, device: str, *, fits_float16: bool) -> str:
    """The dtype that was asked for; for `auto` fp16 where network and device allow, else fp32."""
    if wanted != AUTO:
        return wanted
    return "fp16" if fits_float16 and _gains_by_half(device) else "fp32"


def _gains_by_half(device: str) -> bool:
    """Whether float16 is known to be faster than float32 on a device."""
    if torch.device(device).type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= FAST_HALF


def computed_by(chosen: Chosen, dtype: str) -> str:
    """What computes a network, in words."""
    words = f"PyTorch on {device_in_words(chosen.device)}, in {dtype}"
    return f"{words}; {chosen.against}" if chosen.against else words


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and in what a network is computed.

    Attributes:
        device: As PyTorch calls it.
        dtype: One of `DTYPES`.
        words: Both for people, and why no faster device was taken.
    """

    device: str
    dtype: str
    words: str


def place_for(
    path: Path, device: str, dtype: str, *, fits_float16: bool, fits_bfloat16: bool = True
) -> Place:
    """Where and in what the network of a file is computed; device and dtype may be `auto`.

    Raises:
        ModelError: The device is not there, or the network cannot be computed in the dtype.
    """
    chosen = chosen_device(device)
    if device != AUTO:  # what was chosen has been tried
        refuse_device(device, path)
    dtype = chosen_dtype(dtype, chosen.device, fits_float16=fits_float16)
    refuse_dtype(dtype, path, fits_float16=fits_float16, fits_bfloat16=fits_bfloat16)
    return Place(device=chosen.device, dtype=dtype, words=computed_by(chosen, dtype))


def refuse_dtype(dtype: str, path: Path, *, fits_float16: bool, fits_bfloat16: bool = True) -> None:
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
    if dtype == "bf16" and not fits_bfloat16:
        raise ModelError(
            "this network cannot be computed in bf16: it is not exact enough",
            file=path,
            advice="--dtype fp32",
        )


def refuse_device(device: str, path: Path) -> None:
    """Raise ModelError where PyTorch computes nothing on a device."""
    if reason := why_unusable(device):
        raise ModelError(
            f"PyTorch cannot use the device {device}",
            file=path,
            expected="cpu, cuda or mps; cuda:1 is the second GPU",
            found=reason,
            advice="leave --device out to take what there is, or install PyTorch for this device",
        )


@contextmanager
def explained(path: Path, device: torch.device, size: str) -> Generator[None]:
    """What is computed inside is inference; memory that runs out is told as a ModelError.

    Args:
        path: Of the network.
        device: On which it is computed.
        size: Of the picture, in words.
    """
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
