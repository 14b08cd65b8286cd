"""Algebra on weights: what a revision computes beside its convolutions, moved into them.

Every function takes a state dict under canonical keys, as read, and returns a new one; the argument
is left unchanged. Products are taken in float32 or better, and each function says why it is exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from aether_spandrel.errors import CheckpointError

BLOCK: Final = re.compile(r"layers\.\d+\.\d+\.")
STATISTICS: Final = ("running_mean", "running_var")

State = Mapping[str, Tensor]


def block_prefixes(keys: Iterable[str]) -> list[str]:
    """The prefixes of all blocks, such as `layers.0.0.`, in file order."""
    return list(dict.fromkeys(match[0] for key in keys if (match := BLOCK.match(key))))


def is_fused_block(state: State, block: str) -> bool:
    """Whether the two kernels of a block are already one."""
    return f"{block}conv.fused_conv.weight" in state


def fold_img_range(state: State, img_range: float, *, range_first: bool) -> dict[str, Tensor]:
    """The weights that make of img_range 1 what the network makes of another one.

    (x - m) * r enters conv_first linearly, and y / r + m leaves conv_last. With the range first,
    x / r - m = (x - m * r) / r, and (y + m) * r = y * r + m * r.
    """
    if img_range == 1.0:
        return dict(state)
    into, out_of = (1 / img_range, img_range) if range_first else (img_range, 1 / img_range)
    changes = {
        "conv_first.weight": _times(state["conv_first.weight"], into),
        "conv_last.weight": _times(state["conv_last.weight"], out_of),
        "conv_last.bias": _times(state["conv_last.bias"], out_of),
    }
    if range_first:
        changes["mean"] = _times(state["mean"], img_range)
    return {**state, **changes}


def scale_residuals(state: State, factor: float) -> dict[str, Tensor]:
    """Every block's result, before it is added to its input, multiplied by a positive factor.

    fc2 is the last linear map. Both attentions multiply their input by a gate; the gates stay as
    they were when the first linear map of each sees its input divided by the factor, since
    averages and maxima scale with it.
    """
    if factor == 1.0:
        return dict(state)
    changed = dict(state)
    for block in block_prefixes(state):
        for name in ("ffn.fc2.weight", "ffn.fc2.bias"):
            changed[block + name] = _times(state[block + name], factor)
        for name in ("channel_attn.fc.0.weight", "spatial_attn.conv.weight"):
            if block + name in state:
                changed[block + name] = _times(state[block + name], 1 / factor)
    return changed


def without_error_comp(state: State) -> dict[str, Tensor]:
    """The stage fusion's error_comp set to zero."""
    return {**state, "error_comp": torch.zeros_like(state["error_comp"])}


def with_unit_temperature(state: State) -> dict[str, Tensor]:
    """Every temperature set to one."""
    return {k: torch.ones_like(t) if _is_temperature(k) else t for k, t in state.items()}


def _is_temperature(key: str) -> bool:
    return key.endswith(".ffn.temperature")


def fold_temperature(state: State, *, divides: bool) -> dict[str, Tensor]:
    """Each gate's temperature in the linear map before it: T * (W x + b) = (T W) x + T b."""
    folded = {key: tensor for key, tensor in state.items() if not _is_temperature(key)}
    for block in block_prefixes(state):
        temperature = _precise(state[f"{block}ffn.temperature"]).reshape(())
        factor = 1 / temperature if divides else temperature
        for name in ("ffn.fc1_gate.weight", "ffn.fc1_gate.bias"):
            folded[block + name] = _times(state[block + name], factor)
    return folded


def fold_error_comp(state: State, *, before: bool) -> dict[str, Tensor]:
    """The constant that is added before or after the stage fusion, in its bias."""
    folded = {key: tensor for key, tensor in state.items() if key != "error_comp"}
    shift = _precise(state["error_comp"]).flatten()
    if before:
        shift = _precise(state["fusion_conv.weight"]).flatten(1) @ shift
    folded["fusion_conv.bias"] = (_precise(state["fusion_conv.bias"]) + shift).float()
    return folded


def affine_norm(
    state: State, norm: str, eps: float, *, live_statistics: bool
) -> tuple[Tensor, Tensor]:
    """Scale and shift, (E) float64, that a running-statistics norm is after training.

    (x - mean) / sqrt(var + eps) * w + b = x * w' + (b - mean * w') with w' = w / sqrt(var + eps).
    Statistics that are not live were folded by whoever wrote the file.
    """
    weight = _precise(state[f"{norm}weight"]).flatten()
    bias = _precise(state[f"{norm}bias"]).flatten()
    if not live_statistics or f"{norm}running_var" not in state:
        return weight, bias
    variance = _precise(state[f"{norm}running_var"]).flatten()
    weight = weight / torch.sqrt(variance + eps)
    return weight, bias - _precise(state[f"{norm}running_mean"]).flatten() * weight


def fold_block_norm(state: State, block: str, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """A block's normalisation in the depthwise convolution before it, fused or not.

    scale * (k * x + b) + shift = (scale k) * x + (scale b + shift), channel by channel.
    """
    conv = f"{block}conv."
    fused = is_fused_block(state, block)
    kernels = ("fused_conv.weight",) if fused else ("lk_conv.weight", "sk_conv.weight")
    biases = ("fused_conv.bias",) if fused else ("lk_bias", "sk_bias")
    folded = {
        conv + name: _times(state[conv + name], scale[:, None, None, None]) for name in kernels
    }
    for index, name in enumerate(biases):
        bias = _precise(state[conv + name]) * scale
        folded[conv + name] = (bias + shift if index == 0 else bias).float()
    return {**state, **folded}


def fold_fusion_norm(state: State, scale: Tensor, shift: Tensor) -> dict[str, Tensor]:
    """The normalisation after the stage fusion in its linear map: exact, as it pads nothing."""
    weight, bias = state["fusion_conv.weight"], state["fusion_conv.bias"]
    return {
        **state,
        "fusion_conv.weight": _times(weight, scale.reshape(-1, *([1] * (weight.dim() - 1)))),
        "fusion_conv.bias": (_precise(bias) * scale + shift).float(),
    }


def fold_output_mean(state: State) -> dict[str, Tensor]:
    """The mean that is added to the output in the bias of conv_last; one for all if they differ.

    A network with fewer outputs than inputs adds the mean of as many channels.
    """
    bias, mean = state["conv_last.bias"], _precise(state["mean"]).flatten()
    added = mean[: bias.numel()] if mean.numel() >= bias.numel() else mean[:1]
    return {**state, "conv_last.bias": (_precise(bias) + added).float()}


def fuse_kernels(state: State) -> dict[str, Tensor]:
    """Both kernels of each block as one, summed in float32."""
    wide = {k: t.float() if ".conv." in k and BLOCK.match(k) else t for k, t in state.items()}
    return fuse_state_dict(wide)


def is_fused(state_dict: State) -> bool:
    """Whether no block keeps its two training kernels apart."""
    return not any(key.endswith(".lk_conv.weight") for key in state_dict)


def fuse_state_dict(state_dict: State) -> dict[str, Tensor]:
    """A new state dict in which each block's two depthwise kernels are one.

    kernel = lk + sk zero-padded to the size of lk, bias = lk_bias + sk_bias. The sum is taken in
    float32 at least and stored in the dtype of the kernels. Other entries, their order and the
    argument stay as they are; fusing a fused state dict changes nothing.

    Raises:
        CheckpointError: A block lacks one of its four tensors, or their shapes do not fit.
    """
    fused: dict[str, Tensor] = {}
    parts = (".lk_conv.weight", ".sk_conv.weight", ".lk_bias", ".sk_bias")
    done: set[str] = set()
    for key, tensor in state_dict.items():
        part = next((part for part in parts if key.endswith(part)), None)
        if part is None:
            fused[key] = tensor
            continue
        prefix = key[: -len(part)] + "."
        if prefix not in done:
            done.add(prefix)
            fused.update(_fused_kernels(state_dict, prefix))
    return fused


def _fused_kernels(state: State, conv: str) -> dict[str, Tensor]:
    """The two tensors that replace the four training tensors under the prefix `conv`."""
    names = [conv + name for name in ("lk_conv.weight", "sk_conv.weight", "lk_bias", "sk_bias")]
    if missing := [name for name in names if name not in state]:
        raise CheckpointError(
            f"cannot fuse {conv.rstrip('.') or 'the block'}: {missing[0]} is missing",
            advice="fuse the whole state dict of one training",
        )
    large, small, large_bias, small_bias = (state[name] for name in names)
    margin, rest = divmod(large.shape[-1] - small.shape[-1], 2)
    fits = large.dim() == small.dim() == 4 and large.shape[:2] == small.shape[:2]
    if not fits or margin < 0 or rest:
        raise CheckpointError(
            f"cannot fuse {conv.rstrip('.') or 'the block'}: the small kernel "
            f"{tuple(small.shape)} does not fit into the large one {tuple(large.shape)}",
            advice="fuse the whole state dict of one training",
        )
    kernel = _wide(large) + F.pad(_wide(small), (margin,) * 4)
    bias = _wide(large_bias) + _wide(small_bias)
    return {
        f"{conv}fused_conv.weight": kernel.to(large.dtype).detach(),
        f"{conv}fused_conv.bias": bias.to(large_bias.dtype).detach(),
    }


def joined_weights(
    weight: Tensor, bias: Tensor, factor: int, last_weight: Tensor, last_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a 3x3 convolution, a shuffle and another 3x3 convolution, which are one together.

    An impulse in each channel shows the kernel: what it becomes is the kernel mirrored.

    Args:
        weight: (width * factor**2, C_in, 3, 3), of the first convolution.
        bias: (width * factor**2).
        factor: Of the shuffle.
        last_weight: (C_out, width, 3, 3).
        last_bias: (C_out).

    Returns:
        Weight (C_out * factor**2, C_in, 5, 5) and bias (C_out * factor**2) of the one convolution
        before the shuffle, in float32 at least.
    """
    # The bias is what one more channel, of ones, would give.
    constant = F.pad(_wide(bias)[:, None, None, None], (1, 1, 1, 1))
    impulses = torch.cat([_wide(weight), constant], dim=1).flip(2, 3).transpose(0, 1)
    impulses = F.pixel_shuffle(impulses, factor)  # (C_in + 1, width, 3 * factor, 3 * factor)
    taps = _wide(last_weight).flip(2, 3).transpose(0, 1).flatten(1)  # (width, C_out * 9)
    # A product of matrices, since convolutions would be rounded to TF32 on a GPU.
    spread = (impulses.flatten(2).transpose(1, 2) @ taps).transpose(1, 2)
    side = 3 * factor + 2
    spread = F.fold(spread, (side, side), kernel_size=3)  # (C_in + 1, C_out, side, side)
    spread = F.pixel_unshuffle(F.pad(spread, (factor - 1,) * 4), factor)
    joined = spread.transpose(0, 1).flip(2, 3)
    constant = joined[:, -1].sum(dim=(1, 2))
    return joined[:, :-1], constant + _wide(last_bias).repeat_interleave(factor**2)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _precise(tensor: Tensor) -> Tensor:
    return tensor.double()


def _times(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """A float32 product, rounded once."""
    return (tensor.double() * factor).float()
