"""AetherNet, a fast super-resolution network, in one file that needs torch alone.

Large depthwise kernels are trained as two parallel branches and fused into one for inference;
a gated feed-forward follows each. Sub-pixel convolutions (Shi et al., arXiv:1609.05158) upscale.
Re-parameterisation follows the idea of RepVGG (Ding et al., arXiv:2101.03697), the gate that of
GLU variants (Shazeer, arXiv:2002.05202).

Top to bottom: configuration, quantisation, leaf blocks, block, network, presets, fusing,
quantisation-aware training. Keys of the state dict are the published ones. Nothing here is for
speed alone: what programs run is `aether_spandrel.inference`, which computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast

import torch
import torch.distributed
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PRESETS",
    "RANGE_ENTRY",
    "REVISION_KEY",
    "RGB_MEAN",
    "SCALES",
    "AetherConfig",
    "AetherNet",
    "Block",
    "InputRange",
    "aether",
    "aether_large",
    "aether_medium",
    "aether_small",
    "freeze_ranges",
    "fuse_model",
    "input_scale",
    "prepare_qat",
    "quantised_layers",
    "set_quantised",
    "weight_scales",
]

SQUEEZE: Final = 8  # channel attention narrows embed_dim by this factor
ATTENTION_KERNEL: Final = 7  # px, side of spatial attention's kernel
RGB_MEAN: Final = 0.5  # subtracted for three channels only, and stored in no checkpoint

SCALES: Final[Mapping[int, tuple[int, ...]]] = {
    1: (),
    2: (2,),
    3: (3,),
    4: (2, 2),
    8: (2,) * 3,
    16: (2,) * 4,
}
"""Supported upscaling factors, each with the PixelShuffle factors that make it up."""

MOST_CHANNELS: Final = 16  # of a picture; RGB has 3
LARGEST_KERNEL: Final = 99  # px; the largest published one has 21
LARGEST_WIDTH: Final = 8192  # channels inside; the largest published network has 512

REVISION_KEY: Final = "revision"
"""Buffer that names the revision (ASCII codes), where keys and shapes alone do not tell it."""

RANGE_ENTRY: Final = ".input_range."
"""Found in the keys of what quantisation-aware training learns; the rest is a float network."""

BodyOrder = Literal["norm-conv-add", "add-norm-conv", "norm-add-conv"]
StageFusion = Literal["none", "raw", "project"]


@dataclass(frozen=True, kw_only=True)
class AetherConfig:
    """Every hyperparameter of an AetherNet, checked on construction.

    The defaults are the network as it is trained today; the fields from `revision` on describe
    what other published revisions compute.

    Raises:
        ValueError: A field is out of range; the message names it.
    """

    in_chans: int = 3  #: Channels of the input, such as 1 (grey), 3 (RGB) or 4 (RGBA).
    out_chans: int = 0  #: Channels of the output; 0 stands for `in_chans`.
    embed_dim: int = 128  #: Width of the body.
    depths: tuple[int, ...] = (6,) * 6  #: Blocks per stage.
    ffn_dim: int = 256  #: Hidden width of the feed-forward, published as `embed_dim * mlp_ratio`.
    lk_kernel: int = 11  #: Side of the large depthwise kernel in px, odd.
    sk_kernel: int = 3  #: Side of the small one in px, odd, at most `lk_kernel`; once fused, idle.
    scale: int = 4  #: Upscaling factor, a key of `SCALES`.
    img_range: float = 1.0  #: Largest value that inner layers see for an input in [0, 1].
    fused: bool = False  #: Whether both kernels of a block are already one.
    drop_rate: float = 0.0  #: Dropout probability after the feed-forward, in training only.
    #: Probability of leaving out the last block, in training only; it rises linearly from 0.
    drop_path_rate: float = 0.0
    revision: str = ""  #: Stored with the weights; empty where their keys say enough.
    activation: Literal["gelu", "silu"] = "gelu"  #: Of the gate, GELU being the exact form.
    #: `layernorm` over the channels of a pixel, or `deployment`: running statistics, which are
    #: part of the convolution before them, so that the network has no such layer.
    norm_type: Literal["layernorm", "deployment"] = "layernorm"
    sample_norm: bool = False  #: Deployment norms take the statistics of each image instead.
    block_norm_eps: float = 1e-6  #: Added to the variance in the blocks' normalisation.
    body_norm_eps: float = 1e-5  #: Added to the variance in the normalisation after the body.
    channel_attn: bool = False  #: Whether blocks weigh channels by squeeze and excitation.
    spatial_attn: bool = False  #: Whether blocks weigh pixels.
    #: How stages are combined, `none` (the last one counts), `raw` (all, by one linear map) or
    #: `project` (each narrowed first).
    stage_fusion: StageFusion = "none"
    #: How normalisation N, convolution C and the skip from the first features f follow the body b:
    #: C(N(b)) + f, or s = b + f, C(N(s)) + s, or s = N(b) + f, C(s) + s.
    body_order: BodyOrder = "norm-conv-add"
    head_dim: int = 64  #: Width before the upsampler.
    #: Width after each convolution of the upsampler and its shuffle; None for `head_dim`
    #: throughout. At scale 1 an entry is a convolution without a shuffle.
    head_widths: tuple[int, ...] | None = None
    head_activation: bool = True  #: Whether a LeakyReLU stands before the upsampler.
    #: Whether the input's mean is stored as the buffer `mean`, and the output's in the last bias.
    stored_mean: bool = False

    def __post_init__(self) -> None:
        """Check every field against its range."""
        if not self.out_chans:
            object.__setattr__(self, "out_chans", self.in_chans)
        for name, channels in (("in_chans", self.in_chans), ("out_chans", self.out_chans)):
            if not 1 <= channels <= MOST_CHANNELS:
                raise ValueError(f"{name} must lie between 1 and {MOST_CHANNELS}, got {channels}")
        body, ffn, head, after = self.embed_dim, self.ffn_dim, self.head_dim, self.head_widths
        if body < 1 or ffn < 1:
            raise ValueError(f"embed_dim and ffn_dim must be positive, got {body} and {ffn}")
        if (widest := max(body, ffn, head, *(after or ()))) > LARGEST_WIDTH:
            raise ValueError(
                f"embed_dim, ffn_dim, head_dim and head_widths must be at most {LARGEST_WIDTH}, "
                f"got {widest}"
            )
        if self.channel_attn and body < SQUEEZE:
            raise ValueError(f"embed_dim must be at least {SQUEEZE} with channel_attn, got {body}")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(
                f"depths must name at least one stage of at least one block, got {self.depths}"
            )
        large, small = self.lk_kernel, self.sk_kernel
        for name, kernel in (("lk_kernel", large), ("sk_kernel", small)):
            if kernel < 1 or kernel % 2 == 0:
                raise ValueError(f"{name} must be odd and positive, got {kernel}")
            if kernel > LARGEST_KERNEL:
                raise ValueError(f"{name} must be at most {LARGEST_KERNEL}, got {kernel}")
        if small > large:
            raise ValueError(f"sk_kernel must not exceed lk_kernel, got {small} > {large}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {tuple(SCALES)}, got {self.scale}")
        if head < 1 or min(after or (1,)) < 1:
            raise ValueError(f"head_dim and head_widths must be positive, got {head} and {after}")
        steps = len(SCALES[self.scale])
        if after is not None and steps and len(after) != steps:
            raise ValueError(f"scale {self.scale} takes {steps} head_widths, got {after}")
        if not 0.0 < self.img_range < float("inf"):
            raise ValueError(f"img_range must be positive and finite, got {self.img_range}")
        for name, rate in (("drop_rate", self.drop_rate), ("drop_path_rate", self.drop_path_rate)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {rate}")

    @property
    def blocks(self) -> int:
        """Number of blocks over all stages."""
        return sum(self.depths)

    @property
    def upsampler(self) -> tuple[tuple[int, int], ...]:
        """Shuffle factor and width after it of each convolution of the upsampler."""
        factors = SCALES[self.scale]
        if self.head_widths is None:
            return tuple((factor, self.head_dim) for factor in factors)
        return tuple(zip(factors or (1,) * len(self.head_widths), self.head_widths, strict=True))

    @property
    def fusion_widths(self) -> tuple[int, ...]:
        """Channels that each stage contributes to the stage fusion; empty without one."""
        stages = len(self.depths)
        if self.stage_fusion == "none":
            return ()
        if self.stage_fusion == "raw":
            return (self.embed_dim,) * stages
        width, rest = divmod(self.embed_dim, stages)
        return tuple(width + (stage < rest) for stage in range(stages))

    @property
    def global_context(self) -> bool:
        """Whether each output pixel depends on the whole image, so that tiles change the result."""
        return self.channel_attn or self.sample_norm

    @property
    def receptive_radius(self) -> int:
        """Input px in each direction that an output pixel can depend on through convolutions."""
        block = self.lk_kernel // 2 + (ATTENTION_KERNEL // 2 if self.spatial_attn else 0)
        # Those before, within and after the upsampler see finer px, so that whole ones are safe.
        head = 2 + len(self.upsampler)
        return 1 + self.blocks * block + 1 + head


INT8_LIMIT: Final = 127  # what the largest absolute value becomes; activations also use -128
SMALLEST_SCALE: Final = 1e-12  # instead of 0, for a range or an output channel of zeros


def input_scale(amax: Tensor) -> Tensor:
    """The step of symmetric int8 activations of at most `amax`, in float32."""
    return (amax.float() / INT8_LIMIT).clamp(min=SMALLEST_SCALE)


def weight_scales(weight: Tensor) -> Tensor:
    """The int8 step of each output channel of a weight (C_out, ...): (C_out), in float32."""
    return input_scale(weight.detach().flatten(1).abs().amax(dim=1))


class InputRange(nn.Module):
    """Symmetric int8 fake quantisation of a layer's input and weights, and the range it learns.

    With one step `input_scale(amax)` for the input, one for each output channel of the weights
    (`weight_scales`) and zero points of 0, a layer computes
    conv(round(x / step) * step, round(w / steps) * steps) + b: what an int8 convolution with a
    float bias computes. Gradients pass where nothing saturates.

    The largest absolute value of a batch is only noted while the batch is computed. It enters the
    range before the next one, so that activation checkpointing, which computes layers again,
    sees the same range both times and one reduction serves all layers of all processes.

    All entries are float32, counts and switches too: trainers' averages of networks (EMA) leave
    integers as they were at the start, and an averaged network would look as if it had seen none.
    """

    momentum: float  #: Of the moving average, in [0, 1).
    warmup: int  #: In batches, at least 1.
    amax: Tensor  #: () float32, the range, an average over the first batches, then a moving one.
    seen: Tensor  #: () float32, the largest absolute value of the batch that is to enter it next.
    batches: Tensor  #: () float32, how many have; nothing is quantised before `warmup` have.
    enabled: Tensor  #: () float32, 0 or 1, whether the layer is quantised.
    frozen: Tensor  #: () float32, 0 or 1, whether the range stays as it is.

    def __init__(self, momentum: float, warmup: int, device: torch.device) -> None:
        """A range that has seen nothing, enabled."""
        super().__init__()
        self.momentum, self.warmup = momentum, warmup
        for name in ("amax", "seen", "batches", "enabled", "frozen"):
            start = torch.tensor(float(name == "enabled"), dtype=torch.float32, device=device)
            self.register_buffer(name, start)

    def forward(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """The input and the weights that meet it, quantised if that is due, in their own dtypes."""
        if self.training:
            low, high = torch.aminmax(x.detach())
            self.seen.copy_(torch.maximum(self.seen, torch.maximum(-low, high).float()))
        active = self.enabled.bool() & (self.batches >= self.warmup)
        return (
            torch.where(active, _quantised_input(x, self.amax), x),
            *[torch.where(active, _quantised_weight(weight), weight) for weight in weights],
        )

    @torch.no_grad()
    def advance(self) -> None:
        """Take what was seen into the range; infinities and NaN, as AMP may meet them, are not."""
        counts = (self.seen > 0) & torch.isfinite(self.seen) & ~self.frozen.bool()
        share = torch.clamp(1 / (self.batches + 1), min=1 - self.momentum)
        moved = self.amax + (self.seen - self.amax) * share
        self.amax.copy_(torch.where(counts, moved, self.amax))
        self.batches.add_(counts)
        self.seen.zero_()


def _quantised_input(x: Tensor, amax: Tensor) -> Tensor:
    zero = torch.zeros_like(amax, dtype=torch.int32)
    return torch.fake_quantize_per_tensor_affine(
        _wide(x), input_scale(amax), zero, -INT8_LIMIT - 1, INT8_LIMIT
    ).to(x.dtype)


def _quantised_weight(weight: Tensor) -> Tensor:
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        _wide(weight), scales, zeros, 0, -INT8_LIMIT, INT8_LIMIT
    ).to(weight.dtype)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least, in which sums and steps are exact enough for half ones."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class Quantisable(nn.Module):
    """A part of the network whose input `prepare_qat` can quantise."""

    input_range: InputRange | None  #: What quantises it; None in a float network.

    def __init__(self) -> None:
        """Build it without an input range."""
        super().__init__()
        self.input_range = None


class Conv2d(nn.Conv2d, Quantisable):
    """A convolution that starts uninitialised; `init_weights` or a checkpoint fills it."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C_in, H, W)."""
        weight = self.weight
        if self.input_range is not None:
            input, weight = self.input_range(input, weight)
        return self._conv_forward(input, weight, self.bias)


class Linear(nn.Linear, Quantisable):
    """A linear map that starts uninitialised, applied to channels as a 1x1 convolution."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        weight = self.weight
        if self.input_range is not None:
            input, weight = self.input_range(input, weight)
        return F.conv2d(input, weight[:, :, None, None], self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each pixel over its channels; the shape is kept."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SampleNorm(nn.Module):
    """Normalisation of each image by its own mean and unbiased variance over C, H and W."""

    def __init__(self, channels: int, eps: float) -> None:
        """Build the affine map that follows, uninitialised."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        y = (x - mean) / sample_deviation(x, self.eps)
        return scale_and_shift(y, self.weight, self.bias)


@torch.fx.wrap
def sample_deviation(x: Tensor, eps: float) -> Tensor:
    """sqrt(variance + eps) of each image over C, H and W: (N, C, H, W) to (N, 1, 1, 1).

    Only the N deviations are squared, and in float32 at least: a variance leaves the range of
    float16 at a deviation of 256 already.
    """
    deviation = x.std(dim=(1, 2, 3), keepdim=True)
    deviation = deviation.to(torch.promote_types(x.dtype, torch.float32))
    return torch.sqrt(deviation * deviation + eps).to(x.dtype)


class Affine(nn.Module):
    """What remains of a running-statistics normalisation: a scale and a shift per channel."""

    def __init__(self, channels: int) -> None:
        """Build it uninitialised."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return scale_and_shift(x, self.weight, self.bias)


NO_EPS: Final = 1e-20
"""Lost beside a variance of 1; some versions of torch (2.11) refuse 0."""


@torch.fx.wrap
def subtract_mean(x: Tensor, mean: Tensor) -> Tensor:
    """The difference x - mean, (N, C, H, W) and a value a channel.

    As a normalisation by fixed statistics, which converters to other formats keep: some lose the
    constant of a subtraction.
    """
    mean = mean.flatten()
    return F.batch_norm(x, mean, torch.ones_like(mean), eps=NO_EPS)


@torch.fx.wrap
def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The affine map x * scale + shift, by channel; in the form of `subtract_mean`."""
    scale, shift = scale.to(x.dtype), shift.to(x.dtype)
    zeros = torch.zeros_like(scale)
    return F.batch_norm(x, zeros, torch.ones_like(scale), scale, shift, eps=NO_EPS)


class ReparamConv(Quantisable):
    """A large and a small depthwise convolution in parallel, or the single one they fuse into."""

    def __init__(self, channels: int, lk_kernel: int, sk_kernel: int, *, fused: bool) -> None:
        """Build the training branches, or the fused convolution."""
        super().__init__()
        self.fused = fused
        if fused:
            self.fused_conv = _depthwise(channels, lk_kernel, bias=True)
        else:
            self.lk_conv = _depthwise(channels, lk_kernel, bias=False)
            self.sk_conv = _depthwise(channels, sk_kernel, bias=False)
            self.lk_bias = nn.Parameter(torch.empty(channels))
            self.sk_bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W), zero-padded to the same size."""
        if self.input_range is not None:
            x, kernel = self.input_range(x, self._kernel())
            padding = kernel.shape[-1] // 2
            return F.conv2d(x, kernel, self._bias(), padding=padding, groups=len(kernel))
        if self.fused:
            return self.fused_conv(x)
        large, small = self.lk_conv, self.sk_conv
        return F.conv2d(
            x, large.weight, self.lk_bias, padding=large.padding, groups=large.groups
        ) + F.conv2d(x, small.weight, self.sk_bias, padding=small.padding, groups=small.groups)

    def _kernel(self) -> Tensor:
        """The one kernel (C, 1, K, K) that computes the sum of both, taken in float32 at least."""
        if self.fused:
            return self.fused_conv.weight
        large, small = _wide(self.lk_conv.weight), _wide(self.sk_conv.weight)
        margin = (large.shape[-1] - small.shape[-1]) // 2
        return (large + F.pad(small, (margin,) * 4)).to(self.lk_conv.weight.dtype)

    def _bias(self) -> Tensor:
        if self.fused:
            return cast(Tensor, self.fused_conv.bias)
        return (_wide(self.lk_bias) + _wide(self.sk_bias)).to(self.lk_bias.dtype)

    def fuse(self) -> None:
        """Replace both branches by the one convolution that equals their sum."""
        if self.fused:
            return
        fused = _depthwise(self.lk_bias.numel(), self.lk_conv.kernel_size[0], bias=True)
        fused.weight = nn.Parameter(self._kernel().detach())
        fused.bias = nn.Parameter(self._bias().detach())
        del self.lk_conv, self.sk_conv, self.lk_bias, self.sk_bias
        self.fused_conv = fused
        self.fused = True


def _depthwise(channels: int, kernel: int, *, bias: bool) -> Conv2d:
    return Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias)


ACTIVATIONS: Final = {"gelu": F.gelu, "silu": F.silu}


class GatedFFN(Quantisable):
    """fc2(activation(gate(x)) * main(x)), on the channels of each pixel."""

    def __init__(self, config: AetherConfig) -> None:
        """Build the three linear maps."""
        super().__init__()
        self.fc1_gate = Linear(config.embed_dim, config.ffn_dim)
        self.fc1_main = Linear(config.embed_dim, config.ffn_dim)
        self.fc2 = Linear(config.ffn_dim, config.embed_dim)
        self.activation = ACTIVATIONS[config.activation]
        self.drop_rate = config.drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if self.input_range is None:
            gate, main = self.fc1_gate(x), self.fc1_main(x)
        else:  # both see the same input, quantised once
            x, gate, main = self.input_range(x, self.fc1_gate.weight, self.fc1_main.weight)
            gate = F.conv2d(x, gate[:, :, None, None], self.fc1_gate.bias)
            main = F.conv2d(x, main[:, :, None, None], self.fc1_main.bias)
        y = self.fc2(self.activation(gate) * main)
        if self.training and self.drop_rate:
            y = F.dropout(y, self.drop_rate)
        return y


class ChannelAttention(nn.Module):
    """Squeeze and excitation (Hu et al., arXiv:1709.01507): channels weighed by their means."""

    def __init__(self, channels: int) -> None:
        """Build the two linear maps; ReLU and sigmoid have no weights."""
        super().__init__()
        squeezed = channels // SQUEEZE
        self.fc = nn.Sequential(
            Linear(channels, squeezed), nn.ReLU(), Linear(squeezed, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.fc(x.mean(dim=(2, 3), keepdim=True))


class SpatialAttention(nn.Module):
    """Pixels weighed by the largest and the mean value of their channels (arXiv:1807.06521)."""

    def __init__(self) -> None:
        """Build the one convolution."""
        super().__init__()
        self.conv = Conv2d(2, 1, ATTENTION_KERNEL, padding=ATTENTION_KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * torch.sigmoid(self.conv(self.pooled(x)))

    def pooled(self, x: Tensor) -> Tensor:
        """What it looks at: (N, 2, H, W)."""
        return torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        return torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)


def _norm(config: AetherConfig, eps: float) -> nn.Module | None:
    """The normalisation of a configuration; None where it is part of a convolution."""
    if config.norm_type == "layernorm":
        return ChannelNorm(config.embed_dim, eps=eps)
    return SampleNorm(config.embed_dim, eps) if config.sample_norm else None


class Block(nn.Module):
    """Depthwise convolution, normalisation, gated feed-forward and attention, with a residual."""

    def __init__(self, config: AetherConfig, drop_path: float) -> None:
        """Build one block of a network of this configuration."""
        super().__init__()
        width = config.embed_dim
        self.conv = ReparamConv(width, config.lk_kernel, config.sk_kernel, fused=config.fused)
        self.norm = _norm(config, config.block_norm_eps)
        self.ffn = GatedFFN(config)
        self.channel_attn = ChannelAttention(width) if config.channel_attn else None
        self.spatial_attn = SpatialAttention() if config.spatial_attn else None
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, embed_dim, H, W) to the same shape."""
        y = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        y = self.ffn(y)
        if self.channel_attn is not None:
            y = self.channel_attn(y)
        if self.spatial_attn is not None:
            y = self.spatial_attn(y)
        if self.training and self.drop_path:
            keep = 1.0 - self.drop_path
            y = y * (y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(keep) / keep)
        return x + y


class AetherNet(nn.Module):
    """AetherNet of a given configuration, uninitialised; see `aether` for one ready to train."""

    def __init__(self, config: AetherConfig) -> None:
        """Build the layers without drawing any random number."""
        super().__init__()
        self.register_load_state_dict_post_hook(_forgive_ranges)
        self.config = config
        width, channels = config.embed_dim, config.in_chans
        if config.revision:
            self.register_buffer(REVISION_KEY, revision_codes(config.revision))
        self.mean: Tensor | float
        if config.stored_mean:
            self.register_buffer("mean", torch.empty(1, channels, 1, 1))
        else:
            self.mean = RGB_MEAN if channels == 3 else 0.0
        self.conv_first = Conv2d(channels, width, 3, padding=1)
        steps = max(config.blocks - 1, 1)
        rates = iter(config.drop_path_rate * i / steps for i in range(config.blocks))
        self.layers = nn.ModuleList(
            nn.Sequential(*(Block(config, next(rates)) for _ in range(depth)))
            for depth in config.depths
        )
        if config.stage_fusion == "project":
            self.fusion_convs = nn.ModuleList(
                Linear(width, narrowed) for narrowed in config.fusion_widths
            )
        if config.stage_fusion != "none":
            self.fusion_conv = Linear(sum(config.fusion_widths), width)
        self.norm = _norm(config, config.body_norm_eps)
        if self.norm is None and config.body_order == "add-norm-conv":
            # The convolution after it pads with zeros, so a shift before it cannot be part of it.
            self.norm = Affine(width)
        self.conv_after_body = Conv2d(width, width, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(
            Conv2d(width, config.head_dim, 3, padding=1),
            *([nn.LeakyReLU(0.01)] if config.head_activation else []),
        )
        upsample: list[nn.Module] = []
        before = config.head_dim
        for factor, after in config.upsampler:
            upsample.append(Conv2d(before, after * factor**2, 3, padding=1))
            upsample.append(nn.PixelShuffle(factor) if factor > 1 else nn.Identity())
            before = after
        self.upsample = nn.Sequential(*upsample)
        self.conv_last = Conv2d(before, config.out_chans, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale a batch of images.

        Args:
            x: (N, in_chans, H, W), values in [0, 1], any H, W >= 1, in the dtype of the weights.

        Returns:
            (N, out_chans, scale * H, scale * W), about [0, 1], not clipped.
        """
        features = self.conv_first(self.centred(x))
        return self.restored(self.head(self.after_body(self.body(features), features)))

    def centred(self, x: Tensor) -> Tensor:
        """Pixels as the first convolution takes them: around zero."""
        if isinstance(self.mean, Tensor):
            x = subtract_mean(x, self.mean)
        elif self.mean:
            x = x - self.mean
        return x * self.config.img_range if self.config.img_range != 1.0 else x

    def body(self, x: Tensor) -> Tensor:
        """All stages, combined: (N, embed_dim, H, W) to the same shape."""
        stages: list[Tensor] = []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            if self.config.stage_fusion == "raw":
                stages.append(x)
            elif self.config.stage_fusion == "project":
                stages.append(self.fusion_convs[index](x))
        return self.fusion_conv(torch.cat(stages, dim=1)) if stages else x

    def after_body(self, body: Tensor, features: Tensor) -> Tensor:
        """Normalisation, convolution and skip, in the order of the configuration."""
        if self.config.body_order == "norm-conv-add":
            return self.conv_after_body(self._normalised(body)) + features
        if self.config.body_order == "add-norm-conv":
            body = body + features
            return self.conv_after_body(self._normalised(body)) + body
        body = self._normalised(body) + features
        return self.conv_after_body(body) + body

    def _normalised(self, body: Tensor) -> Tensor:
        return body if self.norm is None else self.norm(body)

    def head(self, x: Tensor) -> Tensor:
        """Upscale what the body gives: (N, embed_dim, H, W) to (N, out_chans, scale * H, ...)."""
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))

    def restored(self, y: Tensor) -> Tensor:
        """Pixels from what the last convolution gives."""
        if self.config.img_range != 1.0:
            y = y / self.config.img_range
        return y if self.config.stored_mean or not self.mean else y + self.mean

    def init_weights(self) -> None:
        """Draw fresh weights from torch's global generator, for training."""
        for module in self.modules():
            if isinstance(module, ReparamConv) and not module.fused:
                nn.init.zeros_(module.lk_bias)
                nn.init.zeros_(module.sk_bias)
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.Conv2d.reset_parameters(module)

    def fuse_model(self) -> AetherNet:
        """Fuse every block's two kernels into one, in place; a fused network stays as it is."""
        for module in self.modules():
            if isinstance(module, ReparamConv):
                module.fuse()
        self.config = replace(self.config, fused=True)
        return self


def revision_codes(revision: str) -> Tensor:
    """The name of a revision as the buffer that stores it: (length) int64 ASCII codes."""
    # On the CPU whatever the default device, so that it has its value without being loaded.
    return torch.tensor(list(revision.encode("ascii")), dtype=torch.int64, device="cpu")


def aether(
    in_chans: int = 3,
    embed_dim: int = 128,
    depths: tuple[int, ...] = (6,) * 6,
    mlp_ratio: float = 2.0,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.1,
    lk_kernel: int = 11,
    sk_kernel: int = 3,
    scale: int = 4,
    img_range: float = 1.0,
    fused_init: bool = False,
) -> AetherNet:
    """A freshly initialised AetherNet in training mode; arguments as published.

    `fused_init` builds the fused form at once, to receive fused weights. See `AetherConfig` for
    ranges and units, and for what is raised outside of them.
    """
    config = AetherConfig(
        in_chans=in_chans,
        embed_dim=embed_dim,
        depths=tuple(depths),
        ffn_dim=int(embed_dim * mlp_ratio),
        lk_kernel=lk_kernel,
        sk_kernel=sk_kernel,
        scale=scale,
        img_range=img_range,
        fused=fused_init,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return _initialised(config)


def _initialised(config: AetherConfig) -> AetherNet:
    network = AetherNet(config)
    network.init_weights()
    return network


PRESETS: Final[Mapping[str, AetherConfig]] = {
    "small": AetherConfig(embed_dim=96, depths=(4,) * 4, ffn_dim=192, lk_kernel=11),
    "medium": AetherConfig(embed_dim=128, depths=(6,) * 6, ffn_dim=256, lk_kernel=11),
    "large": AetherConfig(embed_dim=180, depths=(8,) * 8, ffn_dim=450, lk_kernel=13),
}
"""The published sizes; scale and channels are the caller's choice."""


def _preset(name: str, scale: int, in_chans: int, img_range: float, drop: float) -> AetherNet:
    size = replace(PRESETS[name], scale=scale, in_chans=in_chans)
    return _initialised(replace(size, img_range=img_range, drop_path_rate=drop))


def aether_small(
    scale: int = 4, in_chans: int = 3, img_range: float = 1.0, drop_path_rate: float = 0.1
) -> AetherNet:
    """AetherNet small: embed_dim 96, four stages of four blocks, 11x11 kernels."""
    return _preset("small", scale, in_chans, img_range, drop_path_rate)


def aether_medium(
    scale: int = 4, in_chans: int = 3, img_range: float = 1.0, drop_path_rate: float = 0.1
) -> AetherNet:
    """AetherNet medium: embed_dim 128, six stages of six blocks, 11x11 kernels."""
    return _preset("medium", scale, in_chans, img_range, drop_path_rate)


def aether_large(
    scale: int = 4, in_chans: int = 3, img_range: float = 1.0, drop_path_rate: float = 0.1
) -> AetherNet:
    """AetherNet large: embed_dim 180, eight stages of eight blocks, 13x13 kernels."""
    return _preset("large", scale, in_chans, img_range, drop_path_rate)


def fuse_model(model: AetherNet) -> AetherNet:
    """`model.fuse_model()`: fuses in place and returns the same network."""
    return model.fuse_model()


SHARED: Final = ("fc1_gate", "fc1_main", "lk_conv", "sk_conv", "fused_conv")
"""Layers that take the input range of the part that they belong to."""


def prepare_qat(
    model: AetherNet, *, skip: Iterable[str] = (), momentum: float = 0.99, warmup: int = 100
) -> AetherNet:
    """The same network, in place, with int8 fake quantisation: training then learns to bear it.

    Every convolution and linear map quantises its input and its weights (see `InputRange`), both
    in training and in eval mode. Ranges are learnt in training mode only, and are part of the
    state dict: `<layer>.input_range.amax` and what is needed to resume. Layers that are quantised
    already stay as they are. A block's two kernels are quantised as the one that they fuse into.

    Args:
        model: In the training or the fused form, on its device.
        skip: Names of layers that stay float, as `quantised_layers` gives them; `*` stands for
            any text, such as `layers.*.conv` for all depthwise convolutions.
        momentum: Of the ranges' moving average, in [0, 1).
        warmup: Batches from which ranges are averaged before anything is quantised, at least 1.

    Raises:
        ValueError: An argument is out of range, or no layer is called as `skip` says.
    """
    if not 0.0 <= momentum < 1.0 or warmup < 1:
        raise ValueError(
            f"momentum must lie in [0, 1) and warmup be at least 1, got {momentum} and {warmup}"
        )
    parts = {
        name: part
        for name, part in cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
        if isinstance(part, Quantisable) and name.rpartition(".")[2] not in SHARED
    }
    skipped = _matching(parts, skip)
    fresh = not quantised_layers(model)
    for name, part in parts.items():
        if part.input_range is None and name not in skipped:
            device = next(part.parameters()).device
            part.input_range = InputRange(momentum, warmup, device).train(part.training)
    if fresh:
        model.register_forward_pre_hook(_advance_ranges)
        model.register_forward_hook(_share_ranges)
    return model


def quantised_layers(model: nn.Module) -> dict[str, InputRange]:
    """The input range of each layer that has one, by the layer's name, in order of the network.

    A feed-forward's name stands for its first two maps, which have the same input.
    """
    return {
        name: part.input_range
        for name, part in cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
        if isinstance(part, Quantisable) and part.input_range is not None
    }


def set_quantised(model: nn.Module, enabled: bool, layers: Iterable[str] = ("*",)) -> None:
    """Switch quantisation of all or some layers on or off; their ranges are learnt either way.

    Args:
        model: After `prepare_qat`.
        enabled: Whether they are quantised from now on.
        layers: Names as `quantised_layers` gives them; `*` stands for any text.

    Raises:
        ValueError: No layer is called so.
    """
    ranges = quantised_layers(model)
    for name in _matching(ranges, layers):
        ranges[name].enabled.fill_(enabled)


def freeze_ranges(model: nn.Module, frozen: bool = True) -> None:
    """Let all ranges stay as they are, as for the last part of a training, or move again.

    Raises:
        ValueError: A layer is still warming up, and would never be quantised.
    """
    for name, layer in quantised_layers(model).items():
        if frozen and int(layer.batches) < layer.warmup:
            raise ValueError(
                f"{name} cannot be frozen after {int(layer.batches)} of {layer.warmup} batches: "
                "train on, or give prepare_qat a shorter warmup"
            )
        layer.frozen.fill_(frozen)


def _matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    names, found = list(names), set[str]()
    for pattern in patterns:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(f"no layer is called {pattern}, only {', '.join(names)}")
        found |= matching
    return found


def _advance_ranges(model: nn.Module, _: object) -> None:
    """Before a batch: take the one before into the ranges."""
    if model.training:
        for layer in quantised_layers(model).values():
            layer.advance()


@torch.no_grad()
def _share_ranges(model: nn.Module, *_: object) -> None:
    """After a batch: what any process has seen, all have, so that their ranges stay equal."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if model.training and distributed:
        layers = list(quantised_layers(model).values())
        seen = torch.stack([layer.seen for layer in layers])
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
        for layer, most in zip(layers, seen, strict=True):
            layer.seen.copy_(most)


def _forgive_ranges(model: nn.Module, keys: Any) -> None:
    """Let strict loading take a QAT checkpoint as a float network, and start QAT from a float one.

    Ranges that are there in part are a mistake and stay one.
    """
    expected = sum(len(layer.state_dict()) for layer in quantised_layers(model).values())
    missing = [key for key in keys.missing_keys if RANGE_ENTRY in key]
    if not expected:
        keys.unexpected_keys[:] = [k for k in keys.unexpected_keys if RANGE_ENTRY not in k]
    elif len(missing) == expected:
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in missing]
