"""The published arithmetic of G1, step by step in float64, sharing no code with the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def g1(state_dict: Mapping[str, Tensor], image: Tensor, img_range: float = 1.0) -> Tensor:
    """Upscale (N, C, H, W) as section 3 of the reference of published revisions describes it."""
    weights = {key: tensor.double() for key, tensor in state_dict.items()}

    def conv(x: Tensor, name: str) -> Tensor:
        kernel = weights[f"{name}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        bias = weights.get(f"{name}.bias")
        return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=groups)

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return (x - mean) / (variance + eps).sqrt() * weight[:, None, None] + bias[:, None, None]

    def linear(x: Tensor, name: str) -> Tensor:
        product = torch.einsum("nchw,dc->ndhw", x, weights[f"{name}.weight"])
        return product + weights[f"{name}.bias"][:, None, None]

    def block(x: Tensor, name: str) -> Tensor:
        if f"{name}.conv.fused_conv.weight" in weights:
            y = conv(x, f"{name}.conv.fused_conv")
        else:
            y = conv(x, f"{name}.conv.lk_conv") + conv(x, f"{name}.conv.sk_conv")
            y = (
                y
                + (weights[f"{name}.conv.lk_bias"] + weights[f"{name}.conv.sk_bias"])[:, None, None]
            )
        y = norm(y, f"{name}.norm", 1e-6)
        gate = linear(y, f"{name}.ffn.fc1_gate")
        gate = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))  # GELU
        return x + linear(gate * linear(y, f"{name}.ffn.fc1_main"), f"{name}.ffn.fc2")

    mean = 0.5 if image.shape[1] == 3 else 0.0
    first = conv((image.double() - mean) * img_range, "conv_first")
    body = first
    for name in dict.fromkeys(
        ".".join(key.split(".")[:3]) for key in weights if key.startswith("layers.")
    ):
        body = block(body, name)
    body = conv(norm(body, "norm", 1e-5), "conv_after_body") + first
    body = F.leaky_relu(conv(body, "conv_before_upsample.0"), 0.01)
    for key in weights:
        if key.startswith("upsample.") and key.endswith(".weight"):
            body = conv(body, key.removesuffix(".weight"))
            body = F.pixel_shuffle(body, 3 if weights[key].shape[0] == 576 else 2)
    return conv(body, "conv_last") / img_range + mean
