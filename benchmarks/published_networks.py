"""AetherNet as it was published, operator by operator in plain PyTorch: what ours is measured by.

And the networks of others that it is measured beside.

Keys, order of the operators and memory layout are the published ones, nothing is made faster. G1
is built with or without fusing, G5f fused. G1's normalisation and linear maps see channels last,
between two permutations; G5f is in (N, C, H, W) throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from spandrel.architectures.Compact import Compact
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.SPAN import SPAN
from torch import Tensor, nn


class ReparamConv(nn.Module):
    """A large and a small depthwise convolution, or the one that they fuse into."""

    def __init__(self, channels: int, kernel: int, small: int, *, fused: bool) -> None:
        """Build one or both."""
        super().__init__()
        self.fused = fused
        if fused:
            self.fused_conv = _depthwise(channels, kernel, bias=True)
        else:
            self.lk_conv = _depthwise(channels, kernel, bias=False)
            self.sk_conv = _depthwise(channels, small, bias=False)
            self.lk_bias = nn.Parameter(torch.zeros(channels))
            self.sk_bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if self.fused:
            return self.fused_conv(x)
        large = self.lk_conv(x) + self.lk_bias.view(1, -1, 1, 1)
        return large + (self.sk_conv(x) + self.sk_bias.view(1, -1, 1, 1))


def _depthwise(channels: int, kernel: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class G1FeedForward(nn.Module):
    """fc2(GELU(gate) * main), channels last."""

    def __init__(self, width: int, hidden: int) -> None:
        """Build the three linear maps."""
        super().__init__()
        self.fc1_gate = nn.Linear(width, hidden)
        self.fc1_main = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, H, W, C) to the same shape."""
        return self.fc2(F.gelu(self.fc1_gate(x)) * self.fc1_main(x))


class G1Block(nn.Module):
    """Depthwise convolution, layer norm, feed-forward, residual."""

    def __init__(self, width: int, hidden: int, kernel: int, *, fused: bool) -> None:
        """Build the block."""
        super().__init__()
        self.conv = ReparamConv(width, kernel, 3, fused=fused)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.ffn = G1FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.conv(x).permute(0, 2, 3, 1)
        return x + self.ffn(self.norm(y)).permute(0, 3, 1, 2)


class G1(nn.Module):
    """G1 for RGB, 2x."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        mlp_ratio: float = 2.0,
        lk_kernel: int = 11,
        fused: bool,
    ) -> None:
        """Build it and draw its weights, as the published constructor does."""
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.conv_first = _conv3(3, embed_dim)
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(G1Block(embed_dim, hidden, lk_kernel, fused=fused) for _ in range(depth))
            )
            for depth in depths
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _conv3(embed_dim, embed_dim)
        self.conv_before_upsample = nn.Sequential(_conv3(embed_dim, 64), nn.LeakyReLU(0.01))
        self.upsample = nn.Sequential(_conv3(64, 256), nn.PixelShuffle(2))
        self.conv_last = _conv3(64, 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [0, 1] to (N, 3, 2 * H, 2 * W)."""
        first = self.conv_first(x - 0.5)
        y = first
        for stage in self.layers:
            y = stage(y)
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.conv_after_body(y) + first
        return self.conv_last(self.upsample(self.conv_before_upsample(y))) + 0.5


class DeploymentNorm(nn.Module):
    """What is left of it after fusing: scale and shift, two passes."""

    def __init__(self, width: int) -> None:
        """Draw them around one and zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, 1, 1).uniform_(0.8, 1.2))
        self.bias = nn.Parameter(torch.empty(1, width, 1, 1).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.weight + self.bias


class G5FeedForward(nn.Module):
    """conv_out(SiLU(temperature * gate) * main): three passes beside the convolutions."""

    def __init__(self, width: int, hidden: int) -> None:
        """Build the three convolutions."""
        super().__init__()
        self.temperature = nn.Parameter(torch.empty(1).uniform_(0.8, 1.2))
        self.conv_gate = nn.Conv2d(width, hidden, 1)
        self.conv_main = nn.Conv2d(width, hidden, 1)
        self.conv_out = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        gate = F.silu(self.conv_gate(x) * self.temperature)
        return self.conv_out(gate * self.conv_main(x))


class ChannelAttention(nn.Module):
    """Squeeze and excitation without biases."""

    def __init__(self, width: int) -> None:
        """Build both convolutions."""
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(width, width // 8, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width // 8, width, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.fc(F.adaptive_avg_pool2d(x, 1))


class G5Block(nn.Module):
    """Seven passes beside the convolutions, the attention's not counted: 2 + 3 here, 2 below."""

    def __init__(self, width: int, hidden: int, kernel: int, res_scale: float) -> None:
        """Build the block."""
        super().__init__()
        self.conv = ReparamConv(width, kernel, 5, fused=True)
        self.norm = DeploymentNorm(width)
        self.ffn = G5FeedForward(width, hidden)
        self.channel_attn = ChannelAttention(width)
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.channel_attn(self.ffn(self.norm(self.conv(x))))
        return x + y * self.res_scale


class QuantFusion(nn.Module):
    """The convolution that combines the stages, and the published correction after it."""

    def __init__(self, width: int) -> None:
        """Build both."""
        super().__init__()
        self.fusion_conv = nn.Conv2d(width, width, 1)
        self.error_comp = nn.Parameter(torch.empty(1, width, 1, 1).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return self.fusion_conv(x) + self.error_comp


class SubPixel(nn.Module):
    """Convolution and shuffle, 2x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build it."""
        super().__init__()
        self.blocks = nn.Sequential(_conv3(inputs, 4 * outputs), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outputs, 2 * H, 2 * W)."""
        return self.blocks(x)


class G5f(nn.Module):
    """G5f for RGB, 2x, fused, with channel attention."""

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        mlp_ratio: float = 1.5,
        lk_kernel: int = 13,
    ) -> None:
        """Build it with random weights."""
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.register_buffer("scale_tensor", torch.tensor(2))
        self.mean: Tensor
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))
        res_scale = 0.2 if embed_dim <= 64 else 0.1
        self.conv_first = _conv3(3, embed_dim)
        self.stages = nn.ModuleList(
            nn.Sequential(*(G5Block(embed_dim, hidden, lk_kernel, res_scale) for _ in range(depth)))
            for depth in depths
        )
        share, rest = divmod(embed_dim, len(depths))
        self.fusion_convs = nn.ModuleList(
            nn.Conv2d(embed_dim, share + (stage < rest), 1) for stage in range(len(depths))
        )
        self.quant_fusion_layer = QuantFusion(embed_dim)
        self.norm = DeploymentNorm(embed_dim)
        self.conv_after_body = _conv3(embed_dim, embed_dim)
        self.conv_before_upsample = nn.Sequential(_conv3(embed_dim, embed_dim), nn.LeakyReLU(0.01))
        width = max(32, embed_dim & ~1)
        self.upsample = SubPixel(embed_dim, width)
        self.conv_last = _conv3(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) in [0, 1] to (N, 3, 2 * H, 2 * W)."""
        first = self.conv_first(x - self.mean)
        y = first
        features: list[Tensor] = []
        for stage, narrow in zip(self.stages, self.fusion_convs, strict=True):
            y = stage(y)
            features.append(narrow(y))
        y = self.norm(self.quant_fusion_layer(torch.cat(features, dim=1))) + first
        y = self.conv_after_body(y) + y
        return self.conv_last(self.upsample(self.conv_before_upsample(y))) + self.mean


def visible(network: nn.Module) -> nn.Module:
    """The network with weights that show in its output, as training leaves them."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
            elif "ffn.fc" in name:
                parameter.mul_(8.0)
    return network.eval()


def fused_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """G1's training tensors with the small kernel added to the middle of the large one."""
    fused = {key: tensor for key, tensor in state.items() if "lk_" not in key and "sk_" not in key}
    for key in [key for key in state if key.endswith("lk_conv.weight")]:
        block = key.removesuffix("lk_conv.weight")
        large, small = state[key], state[f"{block}sk_conv.weight"]
        margin = (large.shape[-1] - small.shape[-1]) // 2
        padded = nn.functional.pad(small, [margin] * 4)
        fused[f"{block}fused_conv.weight"] = large + padded
        fused[f"{block}fused_conv.bias"] = state[f"{block}lk_bias"] + state[f"{block}sk_bias"]
    return fused


OTHERS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=2),
    "Compact": lambda: Compact(num_feat=64, num_conv=16, upscale=2),
    "PLKSR": lambda: PLKSR(dim=64, n_blocks=28, kernel_size=17, upscaling_factor=2),
    "RealPLKSR": lambda: RealPLKSR(dim=64, n_blocks=28, kernel_size=17, upscaling_factor=2),
}
"""Spandrel's own, as the community trains them, 2x."""
