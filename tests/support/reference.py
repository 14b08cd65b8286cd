"""The published arithmetic, step by step in float64, sharing no code with the network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def g1(state_dict: Mapping[str, Tensor], image: Tensor, img_range: float = 1.0) -> Tensor:
    """Upscale (N, C, H, W) with G1, as docs/reference.md#g1-step-by-step says."""
    weights = _float_weights(state_dict)
    mean = 0.5 if image.shape[1] == 3 else 0.0
    first = _conv(weights, (image.double() - mean) * img_range, "conv_first")
    body = first
    for name in _modules(weights, r"layers\.\d+\.\d+"):
        y = _layer_norm(weights, _reparam_conv(weights, body, f"{name}.conv"), f"{name}.norm", 1e-6)
        gate = _gelu(_conv(weights, y, f"{name}.ffn.fc1_gate"))
        main = _conv(weights, y, f"{name}.ffn.fc1_main")
        body = body + _conv(weights, gate * main, f"{name}.ffn.fc2")
    body = _conv(weights, _layer_norm(weights, body, "norm", 1e-5), "conv_after_body") + first
    body = F.leaky_relu(_conv(weights, body, "conv_before_upsample.0"), 0.01)
    return _upsample(weights, body) / img_range + mean


@dataclass(frozen=True)
class _Rules:
    """One row of the tables of docs/reference.md#g2-to-g5-step-by-step and #norms."""

    # The class default for embed_dim <= 64 and above; None: the revision has no res_scale.
    res_scale: tuple[float, float] | None
    temperature: Literal["divide", "multiply", "ignore"] = "multiply"
    activation: Literal["silu", "gelu"] = "silu"
    norm_eps: float = 1e-5  # DeploymentNorm; the layer norm has 1e-5 in every revision
    stats_of_sample: bool = False  # DeploymentNorm of unfused files; else the running ones
    stale_stats: bool = True  # a fused file keeps the running stats that are folded already
    raw_features: bool = False  # the stages reach the fusion without their fusion_convs
    error_comp: Literal["before", "after"] = "after"  # the convolution of the fusion
    error_comp_in_qat: bool = True
    norm_before_skip: bool = False
    divide_range: bool = False  # x / r - m and (y + m) * r; else (x - m) * r and y / r + m
    leaky_relu: bool = True


_G2A = _Rules(None, temperature="divide", stats_of_sample=True, error_comp="before")
_G2C = replace(_G2A, stats_of_sample=False)
_G2D = replace(_G2C, temperature="multiply")
_G5A = _Rules((0.2, 0.1))
_G5C = replace(
    _G5A, temperature="ignore", stale_stats=False, norm_before_skip=True, divide_range=True
)
_G5D = replace(_G5C, temperature="multiply", error_comp_in_qat=False)
_G5E = replace(_G5D, norm_eps=1e-4)
RULES = {
    "G2a": _G2A,
    "G2b": replace(_G2C, raw_features=True),
    "G2c": _G2C,
    "G2d": _G2D,
    "G3": replace(_G2D, res_scale=(1.0, 1.0)),
    "G4": replace(_G5A, activation="gelu", stale_stats=False, leaky_relu=False),
    "G5a": _G5A,
    "G5b": _G5A,
    "G5c": _G5C,
    "G5d": _G5D,
    "G5e": _G5E,
    "G5f": _G5E,
    "G5s": _G5E,
}


def published(
    revision: str,
    state_dict: Mapping[str, Tensor],
    image: Tensor,
    *,
    res_scale: float | None = None,
    img_range: float = 1.0,
    qat: bool = False,
) -> Tensor:
    """Upscale (N, C, H, W) as docs/reference.md#g2-to-g5-step-by-step says.

    `state_dict` has the published keys, unfused or fused; entries of observers are ignored.
    Without `res_scale` the blocks use the default of the revision. With `qat` the result is that
    of the float network during QAT: G5d and later leave `error_comp` out.
    """
    if res_scale is not None and (revision == "G1" or RULES[revision].res_scale is None):
        raise ValueError(f"{revision} has no res_scale")
    if revision == "G1":
        return g1(state_dict, image, img_range)
    rules = RULES[revision]
    weights = _float_weights(state_dict)
    if res_scale is None:
        narrow, wide = rules.res_scale or (1.0, 1.0)
        res_scale = narrow if len(weights["conv_first.weight"]) <= 64 else wide

    mean, x = weights["mean"], image.double()
    x = x / img_range - mean if rules.divide_range else (x - mean) * img_range
    first = _conv(weights, x, "conv_first")

    body, features = first, list[Tensor]()
    for stage, fusion_conv in enumerate(_modules(weights, r"fusion_convs\.\d+")):
        for name in _modules(weights, rf"stages\.{stage}\.\d+"):
            body = body + res_scale * _residual(rules, weights, body, name)
        features.append(body if rules.raw_features else _conv(weights, body, fusion_conv))

    body = _fusion(rules, weights, torch.cat(features, dim=1), qat=qat)
    if rules.norm_before_skip:
        body = _norm(rules, weights, body, "norm") + first
        body = _conv(weights, body, "conv_after_body") + body
    else:
        body = body + first
        body = _conv(weights, _norm(rules, weights, body, "norm"), "conv_after_body") + body

    if rules.leaky_relu:
        body = F.leaky_relu(_conv(weights, body, "conv_before_upsample.0"), 0.01)
    else:
        body = _conv(weights, body, "conv_before_upsample")
    y = _upsample(weights, body)
    if mean.shape[1] != y.shape[1]:  # G5s with other output channels; all means are alike
        mean = mean[:, :1]
    return (y + mean) * img_range if rules.divide_range else y / img_range + mean


def _residual(rules: _Rules, weights: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    """What the block `name` adds to its input, before res_scale, (N, E, H, W)."""
    y = _norm(rules, weights, _reparam_conv(weights, x, f"{name}.conv"), f"{name}.norm")

    gate = _conv(weights, y, f"{name}.ffn.conv_gate")
    if rules.temperature == "divide":
        gate = gate / weights[f"{name}.ffn.temperature"]
    elif rules.temperature == "multiply":
        gate = gate * weights[f"{name}.ffn.temperature"]
    gate = _gelu(gate) if rules.activation == "gelu" else gate * torch.sigmoid(gate)
    y = _conv(weights, gate * _conv(weights, y, f"{name}.ffn.conv_main"), f"{name}.ffn.conv_out")

    if f"{name}.channel_attn.fc.0.weight" in weights:
        pooled = y.mean(dim=(2, 3), keepdim=True)
        hidden = torch.relu(_conv(weights, pooled, f"{name}.channel_attn.fc.0"))
        y = y * torch.sigmoid(_conv(weights, hidden, f"{name}.channel_attn.fc.2"))
    if f"{name}.spatial_attn.conv.weight" in weights:
        pooled = torch.cat([y.amax(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)], dim=1)
        y = y * torch.sigmoid(_conv(weights, pooled, f"{name}.spatial_attn.conv"))
    return y


def _norm(rules: _Rules, weights: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    """The norm of a block or of the body, (N, E, H, W): DeploymentNorm or layer norm."""
    fused = any(".fused_conv." in key for key in weights)
    has_stats = f"{name}.running_mean" in weights
    if weights[f"{name}.weight"].dim() == 1 and not has_stats:
        return _layer_norm(weights, x, name, 1e-5)
    if rules.stats_of_sample and not fused:
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        variance = x.var(dim=(1, 2, 3), correction=1, keepdim=True)
        x = (x - mean) / (variance + rules.norm_eps).sqrt()
    elif has_stats and not (fused and rules.stale_stats):
        mean = _channels(weights[f"{name}.running_mean"])
        variance = _channels(weights[f"{name}.running_var"])
        x = (x - mean) / (variance + rules.norm_eps).sqrt()
    return x * _channels(weights[f"{name}.weight"]) + _channels(weights[f"{name}.bias"])


def _fusion(rules: _Rules, weights: Mapping[str, Tensor], x: Tensor, *, qat: bool) -> Tensor:
    """`quant_fusion_layer` on the concatenated features, giving (N, E, H, W)."""
    error_comp = weights["quant_fusion_layer.error_comp"]
    if qat and not rules.error_comp_in_qat:
        error_comp = torch.zeros_like(error_comp)
    [name] = _modules(weights, r"quant_fusion_layer\.(fusion_)?conv")
    if rules.error_comp == "before":
        return _conv(weights, x + error_comp, name)
    return _conv(weights, x, name) + error_comp


def _upsample(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The upsampler and `conv_last`; how many channels the next convolution takes is the factor."""
    names = [*_modules(weights, r"upsample\..+(?=\.weight$)"), "conv_last"]
    for name, following in pairwise(names):
        x = _conv(weights, x, name)
        x = F.pixel_shuffle(x, math.isqrt(x.shape[1] // weights[f"{following}.weight"].shape[1]))
    return _conv(weights, x, "conv_last")


def _reparam_conv(weights: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    """The large and the small depthwise kernel, or both in one, (N, E, H, W)."""
    if f"{name}.fused_conv.weight" in weights:
        return _conv(weights, x, f"{name}.fused_conv")
    y = _conv(weights, x, f"{name}.lk_conv") + _conv(weights, x, f"{name}.sk_conv")
    if f"{name}.lk_bias" in weights:
        y = y + _channels(weights[f"{name}.lk_bias"]) + _channels(weights[f"{name}.sk_bias"])
    return y


def _conv(weights: Mapping[str, Tensor], x: Tensor, name: str) -> Tensor:
    """A convolution that keeps the size, dense or depthwise; a (D, C) kernel is a linear layer."""
    kernel = weights[f"{name}.weight"]
    kernel = kernel.reshape(*kernel.shape, *[1] * (4 - kernel.dim()))
    groups = x.shape[1] // kernel.shape[1]
    bias = weights.get(f"{name}.bias")
    return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=groups)


def _layer_norm(weights: Mapping[str, Tensor], x: Tensor, name: str, eps: float) -> Tensor:
    """Layer norm over the channels of (N, C, H, W)."""
    mean = x.mean(dim=1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
    x = (x - mean) / (variance + eps).sqrt()
    return x * _channels(weights[f"{name}.weight"]) + _channels(weights[f"{name}.bias"])


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def _channels(vector: Tensor) -> Tensor:
    """(C) or (1, C, 1, 1) as (C, 1, 1)."""
    return vector.reshape(-1, 1, 1)


def _modules(weights: Mapping[str, Tensor], pattern: str) -> list[str]:
    """The names at the start of keys that match, in the order of the numbers in them."""
    names = {found[0] for key in weights if (found := re.match(pattern, key))}
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _float_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries that compute something, in float64: those of QAT are left out."""
    return {
        key: tensor.double()
        for key, tensor in state_dict.items()
        if "fake_quant" not in key and "activation_post_process" not in key
    }
