"""The range of each layer's input, as quantisation-aware training has left it in a checkpoint.

A network of `aether_core.prepare_qat` stores the ranges of inputs themselves. Published files store
what each module *gave* (docs/reference.md#qat-and-int8), so that there an input has the range of
what gives it. All become symmetric: the largest absolute value. Weights need no entries, for their
ranges are read from the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aether_core import RANGE_ENTRY, AetherConfig

SMALLEST: Final = 1e-6
LARGEST: Final = 1e6
"""Between these lies every range of activations that can be meant."""

Entries = Mapping[str, Tensor]
Sources = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Which ranges a checkpoint gives.

    Attributes:
        usable: Largest absolute value of a layer's input, by the layer's name in the fused
            network under canonical keys, in order of the network.
        unusable: In words, why an entry is no such value, by the name of what it belongs to.
        of_inputs: Whether the file says it of the inputs themselves, as `aether_core.prepare_qat`
            does: then the layers that have one are those that were trained for int8.
    """

    usable: Mapping[str, float]
    unusable: Mapping[str, str]
    of_inputs: bool


def read_ranges(
    config: AetherConfig,
    entries: Entries,
    *,
    published_name: Callable[[str], str] = str,
    img_range: float = 1.0,
) -> Ranges:
    """The ranges among the entries of quantisation that a checkpoint holds; never raises.

    Args:
        config: Of the network.
        entries: By key, without prefix.
        published_name: From a module's canonical name to the file's.
        img_range: What the image was multiplied by in training and is no longer.
    """
    sources = input_sources(config)
    found: dict[str, float] = {}
    unusable: dict[str, str] = {}
    suffix = f"{RANGE_ENTRY}amax"
    for owner in (key.removesuffix(suffix) for key in entries if key.endswith(suffix)):
        layers = _layers_of(owner)
        value = _stored(entries, owner + RANGE_ENTRY)
        if not sources.keys() >= set(layers):
            value = "the network has no such layer"
        if isinstance(value, str):
            unusable[owner] = value
        else:
            found.update(dict.fromkeys(layers, value))
    if "conv_first" in found:
        found["conv_first"] /= img_range
    stored = bool(found or unusable)
    observed = {} if stored else _observed_inputs(entries, sources, published_name)
    for layer, value in observed.items():
        if isinstance(value, str):
            unusable[layer] = value
        else:
            found[layer] = value
    return Ranges(
        usable={layer: found[layer] for layer in sources if layer in found},
        unusable=unusable,
        of_inputs=stored,
    )


def input_sources(config: AetherConfig) -> dict[str, Sources]:
    """By each layer of the fused network: what gives its input, under canonical names.

    That is, in order of preference, the modules whose outputs are the input, or are its channels
    one after the other. Nothing stands for an input that no published file observes, or under a
    name that several values have. What activations and shuffles give is observed at themselves,
    or has the range of what they take.
    """
    sources: dict[str, Sources] = {"conv_first": ()}
    stream = ("conv_first",)
    stages: list[tuple[str, ...]] = []
    for stage, depth in enumerate(config.depths):
        for block in (f"layers.{stage}.{index}." for index in range(depth)):
            sources[f"{block}conv.fused_conv"] = (stream,)
            normalised = ((f"{block}norm",), (f"{block}norm_quant",))
            sources[f"{block}ffn.fc1_gate"] = sources[f"{block}ffn.fc1_main"] = normalised
            sources[f"{block}ffn.fc2"] = ((f"{block}ffn.quant_mul",),)
            if config.channel_attn:
                sources[f"{block}channel_attn.fc.0"] = sources[f"{block}channel_attn.fc.2"] = ()
            if config.spatial_attn:
                sources[f"{block}spatial_attn.conv"] = ()
            stream = (f"{block}quant_add",)
        stages.append(stream)
    if config.stage_fusion == "project":
        narrowed = [f"fusion_convs.{stage}" for stage in range(len(stages))]
        sources.update({name: (end,) for name, end in zip(narrowed, stages, strict=True)})
        stages = [(name,) for name in narrowed]
    if config.stage_fusion != "none":
        sources["fusion_conv"] = (tuple(name for stage in stages for name in stage),)
    sources["conv_after_body"] = (("norm",),) if config.body_order == "norm-conv-add" else ()
    sources["conv_before_upsample.0"] = ()
    before: Sources = ((f"conv_before_upsample.{int(config.head_activation)}",),)
    for index in range(len(config.upsampler)):
        sources[f"upsample.{2 * index}"] = before
        before = ((f"upsample.{2 * index}",),)
    sources["conv_last"] = (*before, ("upsample_quant",))
    return sources


def _layers_of(owner: str) -> tuple[str, ...]:
    """The layers that an input range of `prepare_qat` belongs to, in the fused network."""
    if re.fullmatch(r"layers\.\d+\.\d+\.ffn", owner):
        return f"{owner}.fc1_gate", f"{owner}.fc1_main"
    fused = re.fullmatch(r"layers\.\d+\.\d+\.conv", owner)
    return (f"{owner}.fused_conv" if fused else owner,)


def _stored(entries: Entries, prefix: str) -> float | str:
    """A range of `prepare_qat`, or why it is none."""
    if _number(entries.get(f"{prefix}enabled")) == 0:
        return "its quantisation is switched off"
    if _number(entries.get(f"{prefix}batches")) == 0:
        return "no batch was seen"
    amax = _number(entries[f"{prefix}amax"])
    return _checked(amax, amax)


def _observed_inputs(
    entries: Entries, sources: Mapping[str, Sources], published_name: Callable[[str], str]
) -> dict[str, float | str]:
    """By layer: the range that published observers give for its input, or why they give none."""
    zero_points = [t for key, t in entries.items() if key.endswith(".zero_point")]
    reduced = all((_number(t) or 0) <= REDUCED for t in zero_points)
    found: dict[str, float | str] = {}
    for layer, alternatives in sources.items():
        for modules in alternatives:
            parts = [
                _observed(entries, published_name(module), REDUCED if reduced else 255)
                for module in modules
            ]
            values = [part for part in parts if isinstance(part, float)]
            reasons = [part for part in parts if isinstance(part, str)]
            if None not in parts:
                found[layer] = reasons[0] if reasons else max(values)
                break
    return found


REDUCED: Final = 127
"""Largest unsigned activation of kernels that add in 16 bits, which older x86 converters used.

No entry says so; but zero points of signed activations then lie near 64 and not near 128.
"""


def _observed(entries: Entries, module: str, largest: float) -> float | str | None:
    """What a module of a published file gave: a range, why there is none, or None if unobserved."""
    observer = f"{module}.activation_post_process."
    for place in (observer, f"{observer}activation_post_process."):
        if f"{place}min_val" in entries and f"{place}max_val" in entries:
            low, high = (_number(entries[f"{place}{end}_val"]) for end in ("min", "max"))
            if low is not None and high is not None and low > high:
                return "its observer saw no batch"
            return _checked(low, high)
    for place in (f"{module}.", observer):
        if f"{place}scale" in entries and f"{place}zero_point" in entries:
            scale, zero = (_number(entries[f"{place}{end}"]) for end in ("scale", "zero_point"))
            if scale is None or zero is None:
                return _checked(scale, zero)
            if scale <= 0:
                return f"its step is {scale:g}, not above zero"
            return _checked(-zero * scale, (largest - zero) * scale)
    return None


def _checked(low: float | None, high: float | None) -> float | str:
    """The largest absolute value of a range, or why it cannot be used."""
    if low is None or high is None:
        return "it is not a single number"
    if math.isnan(low) or math.isnan(high):
        return "it is NaN"
    if high < 0 and low == high:
        return f"it is {high:g}, below zero"
    amax = max(abs(low), abs(high))
    if not SMALLEST <= amax <= LARGEST:
        return f"it is {amax:g}, where {SMALLEST:g} to {LARGEST:g} can be meant"
    return amax


def _number(tensor: Tensor | None) -> float | None:
    if tensor is None or tensor.is_meta or tensor.is_complex() or tensor.numel() != 1:
        return None
    return float(tensor.double()) if tensor.layout == torch.strided else None
