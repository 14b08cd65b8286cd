"""AetherNet computed fast: what `aether_core` computes, in less time and memory.

Between blocks channels are in parts, a list of tensors (N, c, H, W) of one channels-last order
each. Blocks work strip by strip in the memory of what their convolution gave; linear maps of a
strip's pixels are products of (pixels, C). All of it is for inference: what trains, traces or
chooses dtypes by itself sees the core's own operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from aether_core import (
    AetherConfig,
    AetherNet,
    Block,
    ChannelAttention,
    ChannelNorm,
    Conv2d,
    GatedFFN,
    InputRange,
    Linear,
    ReparamConv,
    SampleNorm,
    SpatialAttention,
)
from aether_spandrel.errors import CheckpointError
from aether_spandrel.folding import joined_weights


class FastAetherNet(AetherNet):
    """The network of a configuration as programs run it: the same keys, weights and results."""

    def forward(self, x: Tensor) -> Tensor:
        """Upscale a batch of images; see `AetherNet.forward`."""
        if not may_overwrite(self, x):
            return super().forward(x)
        # Again for grey pictures, whose one channel does not tell the order.
        features = channels_last(self.conv_first(channels_last(self.centred(x))))
        if features.dtype != x.dtype:  # autocast chooses it for each operator, and no memory
            return super().forward(x)
        return self.restored(upscaled(self, self.after_body(self.fast_body(features), features)))

    def fast_body(self, x: Tensor) -> Tensor:
        """`body` of channels-last x."""
        fusion = self.config.stage_fusion
        parts = in_parts(x, part_widths(self.config, x))
        stages: list[Tensor] = []
        for index, stage in enumerate(self.layers):
            for block in cast("Iterable[Block]", stage):
                parts = self.fast_block(block, parts)
            if fusion != "none" or index + 1 == len(self.layers):
                x = joined(parts).to(x.dtype)
            if fusion == "raw":
                stages.append(x)
            elif fusion == "project":
                stages.append(self.fusion_convs[index](x))
        return self.fusion_conv(torch.cat(stages, dim=1)) if stages else x

    def fast_block(self, block: Block, parts: Parts) -> Parts:
        """One block of channels in parts."""
        return mixed(block, parts, convolved(block.conv, parts))


Parts = list[Tensor]
Kind = TypeVar("Kind", bound=AetherNet)


def build_network(
    config: AetherConfig, state_dict: Mapping[str, Tensor], kind: type[Kind] = AetherNet
) -> Kind:
    """The network of `config` with the tensors of `state_dict` as its weights, in eval mode.

    No weight is drawn or copied: the network shares the tensors it is given.

    Args:
        config: What it computes.
        state_dict: Every tensor of it.
        kind: `FastAetherNet` to be run; `AetherNet` where operators are looked at.

    Raises:
        CheckpointError: Keys or shapes do not match the configuration.
    """
    with torch.device("meta"):
        network = kind(config)
    left = dict(state_dict)
    # What load_state_dict(strict=True, assign=True) does, without its bookkeeping.
    for prefix, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules()):
        entries: Mapping[str, Tensor] = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        for name, expected in entries.items():
            key = f"{prefix}.{name}" if prefix else name
            tensor = left.pop(key, None)
            if tensor is None or tensor.shape != expected.shape:
                raise CheckpointError(
                    "a tensor is not that of this network",
                    key=key,
                    expected=f"shape {tuple(expected.shape)}",
                    found="nothing" if tensor is None else f"shape {tuple(tensor.shape)}",
                )
            if isinstance(expected, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            setattr(module, name, tensor)
    if left:
        raise CheckpointError("the network has no such tensor", key=next(iter(left)))
    return network.eval()


# When


_is_compiling: Final[Callable[[], bool]] = getattr(torch.compiler, "is_compiling", lambda: False)
"""Whether torch.compile or torch.export is looking; torch 2.1 cannot say."""


def may_overwrite(network: AetherNet, x: Tensor) -> bool:
    """Whether steps may share memory: eager inference of a fused float network in one dtype."""
    if isinstance(x, torch.fx.Proxy) or _is_compiling():
        return False
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return False
    if network.training or not network.config.fused:
        return False
    differentiated = torch.is_grad_enabled()
    if differentiated and x.requires_grad:
        return False
    for module in network.modules():
        if isinstance(module, InputRange):
            return False
        for weight in module.parameters(recurse=False):
            if weight.dtype != x.dtype or (differentiated and weight.requires_grad):
                return False
    return True


# Channels in parts


CPU: Final = torch.backends.cpu.get_cpu_capability()
"""The instructions that torch uses, such as AVX512."""

CPU_KERNELS: Final[Mapping[str, range]] = {"AVX512": range(9, 16), "AVX2": range(9, 100)}
"""Sides in px of the kernels that gain by parts, by instructions."""

PART: Final = 16  # channels


def part_widths(config: AetherConfig, x: Tensor) -> list[int]:
    """Into how many channels each to part x, so that its depthwise convolutions are fast.

    oneDNN writes out the multiplications of a kernel for as many channels as it is given, which is
    likely to be more code than the CPU caches: for a part it runs 1.5 (AVX2) to 4 times (AVX-512)
    as fast.
    """
    channels = config.embed_dim
    kernels = next((CPU_KERNELS[name] for name in CPU_KERNELS if CPU.startswith(name)), range(0))
    if x.device.type != "cpu" or config.lk_kernel not in kernels:
        return [channels]
    return [min(PART, channels - start) for start in range(0, channels, PART)]


def in_parts(x: Tensor, widths: Sequence[int]) -> Parts:
    """The channels of channels-last x (N, C, H, W) in parts of these widths, channels-last too.

    On a CPU they are in float32 at least: depthwise convolutions of other dtypes are slow there.
    """
    dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
    return [
        part.to(dtype, memory_format=torch.channels_last, copy=len(widths) > 1)
        for part in _split(x, widths, dim=1)
    ]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The channels of all parts, in their dtype."""
    return torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]


def channels_last(x: Tensor) -> Tensor:
    """The same (N, C, H, W) with the channels of each pixel side by side in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def _split(x: Tensor, widths: Sequence[int], dim: int) -> Sequence[Tensor]:
    return cast("Sequence[Tensor]", x.split(widths, dim=dim))


# A block


def convolved(
    conv: ReparamConv, parts: Sequence[Tensor], padding: tuple[int, int] | None = None
) -> Parts:
    """The fused depthwise convolution of channels in parts (N, c, H, W).

    Args:
        conv: Of a block.
        parts: Its input.
        padding: Zeros above and below, and at both sides, in px; None for those that keep the size.
    """
    dtype, widths = parts[0].dtype, [part.shape[1] for part in parts]
    layer = conv.fused_conv
    kernels = _split(layer.weight.to(dtype), widths, 0)
    biases = _split(cast(Tensor, layer.bias).to(dtype), widths, 0)
    return [
        _in_fast_order(
            partial(
                F.conv2d,
                weight=kernel,
                bias=bias,
                padding=padding or kernel.shape[-1] // 2,
                groups=len(kernel),
            ),
            part,
        )
        for part, kernel, bias in zip(parts, kernels, biases, strict=True)
    ]


def _in_fast_order(depthwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A large depthwise convolution of channels-last x in the order in which it is fast there.

    On CUDA that is channels-first: cuDNN takes 2 to 7 times as long in channels-last order, the
    way there and back included. The result is channels-last.
    """
    if x.device.type != "cuda":
        return depthwise(x)
    return channels_last(depthwise(x.contiguous()))


STRIP_BYTES: Final = 3 * 2**20
"""Of one hidden activation of a feed-forward: what a few of them take fits into a cache."""


def mixed(block: Block, parts: Parts, convolved: Parts) -> Parts:
    """What a block makes of its convolution's result, in the memory of that, strip by strip.

    Args:
        block: In eval mode.
        parts: Its input.
        convolved: What its convolution gave; it is overwritten.
    """
    widths = [part.shape[1] for part in parts]
    if isinstance(block.norm, SampleNorm):
        convolved = in_parts(block.norm(joined(convolved)), widths)
    # Not every backend keeps the order; strips of another one would be copies.
    convolved = [channels_last(y) for y in convolved]
    norm = block.norm if isinstance(block.norm, ChannelNorm) else None
    gates = list(_gates(block))
    ffn: RowMap | None = None
    pixels = max(STRIP_BYTES // (4 * block.ffn.fc2.in_features), 16)
    for before, after in zip(_strips(parts, pixels), _strips(convolved, pixels), strict=True):
        rows = joined(after)
        ffn = ffn or _row_map(block.ffn, rows)
        rows = ffn(rows if norm is None else _normalised(norm, rows), rows)
        if gates and rows is after[0]:  # where they belong already
            continue
        for old, new, out in zip(before, _split(rows, widths, 1), after, strict=True):
            if gates:
                out.copy_(new)
            else:
                torch.add(old, new, out=out)
    for gate in gates[:-1]:
        for y, weight in zip(convolved, gate(convolved), strict=True):
            y.mul_(weight)
    for gate in gates[-1:]:
        for x, y, weight in zip(parts, convolved, gate(convolved), strict=True):
            torch.addcmul(x, y, weight, out=y)
    return convolved


def _strips(parts: Sequence[Tensor], pixels: int) -> Iterator[tuple[Tensor, ...]]:
    """Views (about `pixels`, c) of channels-last parts (N, c, H, W); all pixels, off the CPU."""
    rows = [part.permute(0, 2, 3, 1).reshape(-1, part.shape[1]) for part in parts]  # views
    count = max(round(len(rows[0]) / pixels), 1) if rows[0].device.type == "cpu" else 1
    return zip(*(part.tensor_split(count) for part in rows), strict=True)


def _normalised(norm: ChannelNorm, rows: Tensor) -> Tensor:
    """Pixels (pixels, C), each normalised over its channels, in the dtype of `rows`."""
    weight, bias = norm.weight.to(rows.dtype), norm.bias.to(rows.dtype)
    return F.layer_norm(rows, norm.normalized_shape, weight, bias, norm.eps)


Gate = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From parts (N, c, H, W) to what each is to be multiplied by."""


def _gates(block: Block) -> Iterator[Gate]:
    """The attentions of a block, in their order."""
    if block.channel_attn is not None:
        yield partial(_channel_gates, block.channel_attn)
    if block.spatial_attn is not None:
        yield partial(_spatial_gates, block.spatial_attn)


def _channel_gates(attention: ChannelAttention, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights (N, c, 1, 1) of channels."""
    means = joined([part.mean(dim=(2, 3), keepdim=True) for part in parts])
    weights = _in_own_dtype(attention.fc, means)
    return _split(weights, [part.shape[1] for part in parts], dim=1)


def _spatial_gates(attention: SpatialAttention, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights (N, 1, H, W) of pixels, the same for each part."""
    pooled = attention.pooled(joined(parts))
    return [torch.sigmoid(_in_own_dtype(attention.conv, pooled))] * len(parts)


def _in_own_dtype(layers: nn.Module, x: Tensor) -> Tensor:
    """What layers make of x, computed in the dtype of their weights and given in that of x."""
    return layers(x.to(next(layers.parameters()).dtype)).to(x.dtype)


# Linear maps


RowMap = Callable[[Tensor, Tensor], Tensor]
"""Maps (pixels, C) to the same shape and dtype, if it can in the memory of the second argument."""

FUSED_ACTIVATIONS: Final[Mapping[object, tuple[object, ...]]] = {
    F.gelu: ("gelu", [], "none"),
    F.silu: ("swish", [], ""),
}
"""What oneDNN calls them."""


def fused_linear(dtype: torch.dtype, device: torch.device) -> Any | None:
    """The operator for linear maps and what follows them that torch.compile too takes on a CPU."""
    needed = {torch.float32: "AVX", torch.bfloat16: "AVX512"}.get(dtype)
    if needed is None or not CPU.startswith(needed):
        return None
    if device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _row_map(ffn: GatedFFN, rows: Tensor) -> RowMap:
    """What maps rows such as these, in the dtype of the weights where that is fast."""
    dtype = ffn.fc2.weight.dtype
    if rows.device.type == "cpu" and dtype == torch.float16:
        dtype = rows.dtype
    map_rows = _fused_map(ffn, dtype) or partial(_map_rows, ffn)
    if rows.dtype == dtype:
        return map_rows
    return lambda rows, _: map_rows(narrow := rows.to(dtype), narrow).to(rows.dtype)


def _fused_map(ffn: GatedFFN, dtype: torch.dtype) -> RowMap | None:
    fused = fused_linear(dtype, ffn.fc2.weight.device)
    if fused is None:
        return None
    (gate, gate_bias), (main, main_bias), (last, last_bias) = (
        (layer.weight.detach().to(dtype), layer.bias.detach().to(dtype))
        for layer in (ffn.fc1_gate, ffn.fc1_main, ffn.fc2)
    )
    activation = FUSED_ACTIVATIONS[ffn.activation]

    def map_rows(rows: Tensor, _: Tensor) -> Tensor:
        hidden = fused(rows, gate, gate_bias, *activation)
        hidden = fused.binary(rows, hidden, main, main_bias, "mul")
        return fused(hidden, last, last_bias, "none", [], "")

    return map_rows


def _map_rows(ffn: GatedFFN, rows: Tensor, out: Tensor) -> Tensor:
    product = ffn.activation(_product(ffn.fc1_gate, rows)).mul_(_product(ffn.fc1_main, rows))
    return _product(ffn.fc2, product, out)


def _product(layer: Linear, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Map (pixels, C_in) to (pixels, C_out) in their dtype, in `out` if it is given."""
    weight, bias = layer.weight.to(rows.dtype), layer.bias.to(rows.dtype)
    return torch.addmm(bias, rows, weight.t(), out=out)


# The head


def upscaled(network: AetherNet, x: Tensor) -> Tensor:
    """`head` of the network, without a tensor as wide as its last sub-pixel convolution gives."""
    x = network.conv_before_upsample(x)
    if not network.upsample:
        return network.conv_last(x)
    *before, convolution, shuffle = network.upsample
    for step in before:
        x = step(x)
    return _last_step(x, cast(Conv2d, convolution), shuffle, network.conv_last)


def _last_step(x: Tensor, convolution: Conv2d, shuffle: nn.Module, last: Conv2d) -> Tensor:
    """What last(shuffle(convolution(x))) gives.

    Nothing but a shuffle stands between the two linear maps, so that they are one convolution at
    the size of x. It takes a few channels to a few: at 2x an eighth of the multiplications.

    Args:
        x: (N, C_in, H, W).
        convolution: 3x3, to (N, width * factor**2, H, W).
        shuffle: To (N, width, factor * H, factor * W).
        last: 3x3, to (N, C_out, factor * H, factor * W).
    """
    factor = getattr(shuffle, "upscale_factor", 1)
    weight, bias = joined_weights(
        convolution.weight,
        cast(Tensor, convolution.bias),
        factor,
        last.weight,
        cast(Tensor, last.bias),
    )
    y = shuffle(F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), padding=2))
    # The last convolution pads with zeros, where the one that stands for both has what the first
    # would give outside the picture; so the outermost pixels are computed one by the other.
    seen = 2 if factor > 1 else 3  # px of x that an outermost pixel depends on
    for dim, size in ((2, x.shape[2]), (3, x.shape[3])):
        width = min(seen, size)
        ends = torch.cat([x.narrow(dim, 0, width), x.narrow(dim, size - width, width)])
        first, second = last(shuffle(convolution(ends))).chunk(2)
        y.narrow(dim, 0, 1).copy_(first.narrow(dim, 0, 1))
        y.narrow(dim, y.shape[dim] - 1, 1).copy_(second.narrow(dim, second.shape[dim] - 1, 1))
    return y
