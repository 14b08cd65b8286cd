"""Draws published state dicts of every revision: keys, shapes and dtypes in file order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["observer", "channel_observer", "histogram", "fake_quant", "channel_fake_quant"]


@dataclass(frozen=True)
class Revision:
    """What a revision can be configured to, and what is peculiar to its state dicts."""

    # What `draw` accepts, and its defaults.
    scales: tuple[int, ...] = (1, 2, 3, 4, 8, 16)
    norm_types: tuple[str, ...] = ("deployment", "layernorm")
    attention: bool = True  # channel_attn and spatial_attn, both from 8 channels on
    in_chans: tuple[int, ...] = (1, 3, 4)
    free_out_chans: bool = False  # else as many as in_chans
    embed_dim: int = 16
    depths: tuple[int, ...] = (1, 1)
    equal_stages: bool = False  # embed_dim must be a multiple of len(depths)
    fused_init: bool = False  # a file tells that its norms are not folded
    qat: bool = True
    mlp_ratio: float = 2.0

    # Keys and shapes: docs/reference.md#g2-to-g5
    buffers: tuple[str, ...] = ()  # in front of `mean`
    model_version: tuple[int, int, int] = (3, 1, 1)
    gray_mean: float = 0.5
    flat_keys: bool = False  # G4: biases in lk_conv and sk_conv, norms (E), no `.0` in the head
    running_stats: bool = True
    batches_tracked: bool = False
    fuse_folds: bool = True  # fusing takes the running stats into weight and bias
    fuse_deletes: bool = False  # and deletes them
    norm_eps: float = 1e-5
    temperature_shape: tuple[int, ...] = (1,)
    unit_temperature: bool = False
    linear_attention: bool = False  # channel_attn.fc (R, E), else (R, E, 1, 1)
    attention_bias: bool = False
    wide_fusion: bool = False  # the fusion takes E * S channels, else E
    half_head: bool = False  # conv_before_upsample gives E // 2 channels
    # docs/reference.md#upsampler, by the revision that brought the rule.
    upsampler: Literal["G2a", "G2b", "G2d", "G4", "G5c", "G5e"] = "G2d"
    nested_upsampler: bool = False  # blocks.N.0

    # What prepare_qat leaves behind: docs/reference.md#qat-and-int8
    activation_kind: Kind = "observer"
    weight_kind: Kind = "observer"
    unobserved: tuple[str, ...] = ()  # layers without entries
    root_stubs: tuple[str, ...] = ("quant",)
    block_stubs: tuple[str, ...] = ()
    fusion_stubs: tuple[str, ...] = ()


_G2B = Revision(
    scales=(2, 3, 4, 8, 16),
    norm_types=("deployment",),
    in_chans=(1, 3),
    gray_mean=0.0,
    batches_tracked=True,
    temperature_shape=(),
    linear_attention=True,
    attention_bias=True,
    wide_fusion=True,
    half_head=True,
    upsampler="G2b",
    activation_kind="histogram",
    weight_kind="channel_observer",
    root_stubs=("quant", "quant_add"),
    block_stubs=("ffn.quant_mul", "residual_quant", "quant_add"),
)
_G5A = Revision(
    mlp_ratio=1.5,
    buffers=("scale_tensor",),
    unobserved=("conv_first", "conv_last", "conv_before_upsample.0"),
    block_stubs=("residual_quant",),
)
_G5B = replace(
    _G5A, buffers=("scale_tensor", "pt_version", "model_version"), model_version=(3, 1, 0)
)
_G5C = replace(
    _G5B,
    fused_init=True,
    model_version=(3, 1, 1),
    fuse_deletes=True,
    unit_temperature=True,
    upsampler="G5c",
    unobserved=(),
    block_stubs=("norm_quant", "residual_quant"),
    fusion_stubs=("quant_add",),
)
_G5D = replace(
    _G5C,
    unit_temperature=False,
    root_stubs=("quant", "body_norm_quant", "quant_add"),
    block_stubs=(
        *("ffn.quant_mul", "ffn.act_quant", "ffn.quant_mul_scalar"),
        *("quant_mul_scalar", "quant_add", "norm_quant"),
    ),
    fusion_stubs=(),
)
_G5E = replace(
    _G5D,
    norm_eps=1e-4,
    upsampler="G5e",
    unobserved=("upsample.*",),
    root_stubs=("quant", "body_norm_quant", "quant_add", "upsample_quant"),
    block_stubs=(
        *("ffn.quant_mul", "ffn.act_quant", "ffn.temp_quant"),
        *("quant_mul_scalar", "quant_add", "norm_quant", "res_quant"),
    ),
    fusion_stubs=("quant_add",),
)
_G5F = replace(
    _G5E,
    buffers=("scale_tensor",),
    block_stubs=tuple(stub for stub in _G5E.block_stubs if stub != "quant_mul_scalar"),
    fusion_stubs=("quant_mul",),
)

# Every revision in the order of publication; G1 stands for G1a to G1e, G3 for G3b.
REVISIONS = {
    "G1": Revision(
        norm_types=("layernorm",),
        attention=False,
        activation_kind="fake_quant",
        weight_kind="channel_fake_quant",
        root_stubs=(),
    ),
    # Its upsampler, built for D channels, is fed E // 2: it runs only where both agree.
    "G2a": replace(
        _G2B,
        scales=(4, 8, 16),
        embed_dim=64,
        depths=(1,),
        running_stats=False,
        batches_tracked=False,
        fuse_folds=False,
        upsampler="G2a",
    ),
    "G2b": _G2B,
    "G2c": replace(
        _G2B,
        scales=(1, 2, 3, 4, 8, 16),  # the output of a 1x model is twice as large
        equal_stages=True,
        gray_mean=0.5,
        linear_attention=False,
        wide_fusion=False,
        unobserved=("*.fused_conv",),
    ),
    "G2d": Revision(norm_types=("deployment",), equal_stages=True, qat=False),
    "G3": Revision(
        buffers=("scale",),
        activation_kind="fake_quant",
        weight_kind="fake_quant",
        block_stubs=("residual_quant",),
    ),
    "G4": Revision(
        in_chans=(3,),
        flat_keys=True,
        fuse_folds=False,
        linear_attention=True,
        upsampler="G4",
        activation_kind="fake_quant",
        unobserved=("conv_first", "conv_last", "conv_before_upsample"),
        root_stubs=("quant", "add1", "add2"),
        block_stubs=("ffn.quant_mul", "quant_add", "residual_quant"),
    ),
    "G5a": _G5A,
    "G5b": _G5B,
    "G5c": _G5C,
    "G5d": _G5D,
    "G5e": _G5E,
    # Some of its constructors take a number of outputs.
    "G5f": replace(_G5F, free_out_chans=True),
    "G5s": replace(_G5F, free_out_chans=True, nested_upsampler=True, qat=False),
}


def draw(
    revision: str,
    *,
    seed: int = 0,
    embed_dim: int | None = None,
    depths: Sequence[int] | None = None,
    scale: int | None = None,
    in_chans: int = 3,
    out_chans: int | None = None,
    lk_kernel: int = 7,
    sk_kernel: int = 3,
    norm_type: str | None = None,
    channel_attn: bool = False,
    spatial_attn: bool = False,
    fused: bool = False,
    fused_init: bool = False,
    qat: bool = False,
    ffn_dim: int | None = None,
) -> dict[str, Tensor]:
    """A published state dict whose every used tensor shows in the output, in file order.

    One seed gives one network: with `fused` it is the same network after fusing, with
    `fused_init` the kernels are fused and the norms are not. With `qat` it is a training file of
    quantisation-aware training: fused, except for G1, with a representative set of entries of
    observers. What is left out has the default of the revision. Raises `ValueError` where the
    published network does not run or does not exist.
    """
    traits = REVISIONS[revision]
    embed_dim = traits.embed_dim if embed_dim is None else embed_dim
    depths = traits.depths if depths is None else depths
    if scale is None:
        scale = 2 if 2 in traits.scales else traits.scales[0]
    norm_type = traits.norm_types[0] if norm_type is None else norm_type
    out_chans = in_chans if out_chans is None else out_chans
    ffn_dim = int(embed_dim * traits.mlp_ratio) if ffn_dim is None else ffn_dim
    convs, last = _upsampler_widths(traits, embed_dim, scale)
    refused = {
        f"scale {scale}": scale not in traits.scales,
        f"norm_type {norm_type}": norm_type not in traits.norm_types,
        "attention": (channel_attn or spatial_attn) and not traits.attention,
        f"channel_attn with {embed_dim} channels": channel_attn and embed_dim < 8,
        f"in_chans {in_chans}": in_chans not in traits.in_chans,
        f"out_chans {out_chans}": out_chans != in_chans and not traits.free_out_chans,
        f"embed_dim {embed_dim}": (
            (revision == "G2a" and last != embed_dim // 2)
            or (traits.equal_stages and embed_dim % len(depths) != 0)
            or any(width == 0 for _, width in convs)
        ),
        f"{len(depths)} stages": revision == "G2a" and len(depths) != 1,
        "fused_init": fused_init and not traits.fused_init,
        "qat": qat and not traits.qat,
    }
    if any(refused.values()):
        raise ValueError(f"{revision} has no {[name for name, no in refused.items() if no]}")

    file = _File(
        traits,
        seed,
        layernorm=norm_type == "layernorm",
        fused=(revision != "G1") if qat else fused or fused_init,
        folded=traits.fuse_folds and not fused_init,
        qat=qat,
    )
    if revision == "G1":
        file.g1(embed_dim, depths, scale, in_chans, lk_kernel, sk_kernel, ffn_dim)
        return file.tensors

    file.buffers(scale, in_chans)
    file.layer("conv_first", embed_dim, in_chans, 3, 3)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = f"stages.{stage}.{index}"
            file.reparam_conv(f"{block}.conv", embed_dim, lk_kernel, sk_kernel)
            file.norm(f"{block}.norm", embed_dim)
            file.gated_ffn(f"{block}.ffn", embed_dim, ffn_dim)
            if channel_attn:
                file.channel_attn(f"{block}.channel_attn", embed_dim)
            if spatial_attn:
                file.spatial_attn(f"{block}.spatial_attn")
            file.stubs(block, (stub for stub in traits.block_stubs if "." not in stub))
    file.fusion(embed_dim, len(depths))
    file.norm("norm", embed_dim)
    file.layer("conv_after_body", embed_dim, embed_dim, 3, 3)
    head = embed_dim // 2 if traits.half_head else embed_dim
    if traits.flat_keys:
        file.layer("conv_before_upsample", head, embed_dim, 3, 3)
    else:
        file.layer("conv_before_upsample.0", head, embed_dim, 3, 3)
        file.stubs("conv_before_upsample", ["1"])  # LeakyReLU
    for index, (channels, width) in enumerate(convs):
        name = f"blocks.{2 * index}"
        if traits.flat_keys:
            name = "upsample.up_3x.0" if scale == 3 else f"upsample.up_{index}.0"
        elif traits.nested_upsampler:
            name = f"blocks.{index}.0"
        file.layer(f"upsample.{name}", width, channels, 3, 3)
    file.layer("conv_last", out_chans, last, 3, 3)
    file.stubs("", traits.root_stubs)
    return file.tensors


def _upsampler_widths(
    traits: Revision, embed_dim: int, scale: int
) -> tuple[list[tuple[int, int]], int]:
    """(in, out) of each convolution, and the D of docs/reference.md#upsampler."""
    rule, share = traits.upsampler, max(1, scale // 2)
    channels = embed_dim // 2 if traits.half_head else embed_dim
    last = max(32, (channels if rule == "G2b" else embed_dim) // share)
    if rule == "G4":
        last = embed_dim
    elif rule in ("G5c", "G5e"):
        last = max(32, embed_dim // share & ~1)
    if scale == 1:
        if rule == "G4":
            return [], last
        return [(channels, 4 * last if rule == "G2b" else last)], last
    if scale == 3:
        return [(channels, 9 * last)], last
    convs: list[tuple[int, int]] = []
    steps = scale.bit_length() - 1
    for step in range(1, steps + 1):
        width = channels // 2 & ~1 if rule == "G5c" else channels // 2
        if step == steps or traits.half_head:
            width = last
        convs.append((channels, 4 * width))
        channels = width
    return convs, last


class _File:
    """A state dict in the making: draws the tensors of one module after the other."""

    def __init__(
        self,
        traits: Revision,
        seed: int,
        *,
        layernorm: bool,
        fused: bool,
        folded: bool,
        qat: bool,
    ) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._traits = traits
        self._weights = torch.Generator().manual_seed(seed)
        self._observers = torch.Generator().manual_seed(seed)  # leaves the weights as without
        self._layernorm = layernorm
        self._fused = fused
        self._folded = fused and folded
        self._qat = qat

    def g1(
        self,
        embed_dim: int,
        depths: Sequence[int],
        scale: int,
        in_chans: int,
        lk_kernel: int,
        sk_kernel: int,
        ffn_dim: int,
    ) -> None:
        """The whole state dict of G1: docs/reference.md#g1."""
        self.layer("conv_first", embed_dim, in_chans, 3, 3)
        for block in (f"layers.{i}.{j}" for i, depth in enumerate(depths) for j in range(depth)):
            self.reparam_conv(f"{block}.conv", embed_dim, lk_kernel, sk_kernel)
            self.norm(f"{block}.norm", embed_dim)
            self.stubs(block, ["norm"])
            self.layer(f"{block}.ffn.fc1_gate", ffn_dim, embed_dim)
            self.layer(f"{block}.ffn.fc1_main", ffn_dim, embed_dim)
            self.layer(f"{block}.ffn.fc2", embed_dim, ffn_dim)
        self.norm("norm", embed_dim)
        self.stubs("", ["norm"])
        self.layer("conv_after_body", embed_dim, embed_dim, 3, 3)
        self.layer("conv_before_upsample.0", 64, embed_dim, 3, 3)
        self.stubs("conv_before_upsample", ["1"])
        for step in range(1 if scale == 3 else scale.bit_length() - 1):
            self.layer(f"upsample.{2 * step}", 576 if scale == 3 else 256, 64, 3, 3)
        self.layer("conv_last", in_chans, 64, 3, 3)

    def buffers(self, scale: int, in_chans: int) -> None:
        """What the network itself holds; `mean` is a Parameter in G4."""
        values = {
            "scale": scale,
            "scale_tensor": scale,
            "pt_version": (2, 7, 1),
            "model_version": self._traits.model_version,
        }
        for name in self._traits.buffers:
            self.tensors[name] = torch.tensor(values[name])
        value = self._traits.gray_mean if in_chans == 1 else 0.5
        self.tensors["mean"] = torch.full((1, in_chans, 1, 1), value)

    def layer(self, name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> None:
        """A convolution (out, in, k, k) or a linear layer (out, in)."""
        weight = self._kernel(*shape, gain=gain)
        self._put_layer(name, weight, self._bias(shape[0]) if bias else None)

    def reparam_conv(self, name: str, embed_dim: int, lk_kernel: int, sk_kernel: int) -> None:
        lk_bias, sk_bias = self._bias(embed_dim), self._bias(embed_dim)
        lk_weight = self._kernel(embed_dim, 1, lk_kernel, lk_kernel)
        sk_weight = self._kernel(embed_dim, 1, sk_kernel, sk_kernel)
        if self._fused:
            margin = (lk_kernel - sk_kernel) // 2
            weight = lk_weight + F.pad(sk_weight, [margin] * 4)
            self._put_layer(f"{name}.fused_conv", weight, lk_bias + sk_bias)
        elif self._traits.flat_keys:
            self._put_layer(f"{name}.lk_conv", lk_weight, lk_bias)
            self._put_layer(f"{name}.sk_conv", sk_weight, sk_bias)
        else:
            self.tensors[f"{name}.lk_bias"] = lk_bias
            self.tensors[f"{name}.sk_bias"] = sk_bias
            self._put_layer(f"{name}.lk_conv", lk_weight)
            self._put_layer(f"{name}.sk_conv", sk_weight)

    def norm(self, name: str, embed_dim: int) -> None:
        """Layer norm (E), or DeploymentNorm (1, E, 1, 1), in G4 (E)."""
        weight, bias = self._uniform(0.8, 1.2, embed_dim), self._bias(embed_dim)
        entries = {"weight": weight, "bias": bias}
        if self._traits.running_stats and not self._layernorm:
            mean, variance = self._bias(embed_dim), self._uniform(0.5, 1.5, embed_dim)
            if self._folded:
                scale = weight.double() / (variance.double() + self._traits.norm_eps).sqrt()
                entries["weight"], entries["bias"] = scale.float(), (bias - mean * scale).float()
            if not (self._folded and self._traits.fuse_deletes):
                entries |= {"running_mean": mean, "running_var": variance}
        flat = self._layernorm or self._traits.flat_keys
        for entry, tensor in entries.items():
            self.tensors[f"{name}.{entry}"] = tensor.reshape(-1 if flat else (1, -1, 1, 1))
        if self._traits.batches_tracked:
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(0)

    def gated_ffn(self, name: str, embed_dim: int, ffn_dim: int) -> None:
        temperature = self._uniform(0.7, 1.3, *self._traits.temperature_shape)
        if self._traits.unit_temperature:
            temperature = torch.ones_like(temperature)
        self.tensors[f"{name}.temperature"] = temperature
        self.layer(f"{name}.conv_gate", ffn_dim, embed_dim, 1, 1)
        self.layer(f"{name}.conv_main", ffn_dim, embed_dim, 1, 1)
        self.layer(f"{name}.conv_out", embed_dim, ffn_dim, 1, 1)
        block, _, _ = name.rpartition(".")
        self.stubs(block, (stub for stub in self._traits.block_stubs if stub.startswith("ffn.")))

    def channel_attn(self, name: str, embed_dim: int) -> None:
        hidden = embed_dim // 8
        trailing = () if self._traits.linear_attention else (1, 1)
        # Means over the picture are small, hence the gains. Of two rows with opposite signs the
        # ReLU always lets one through.
        rows = self._kernel((hidden + 1) // 2, embed_dim, *trailing, gain=4.0)
        weight = torch.cat([rows, -rows])[:hidden]
        bias = self._traits.attention_bias
        self._put_layer(f"{name}.fc.0", weight, self._bias(hidden) if bias else None)
        self.layer(f"{name}.fc.2", embed_dim, hidden, *trailing, bias=bias, gain=4.0)
        self._sigmoid(f"{name}.fc.3")
        if "ffn.quant_mul" in self._traits.block_stubs:
            self.stubs(name, ["quant_mul"])

    def spatial_attn(self, name: str) -> None:
        self.layer(f"{name}.conv", 1, 2, 7, 7, bias=False, gain=4.0)
        self._sigmoid(f"{name}.sigmoid")
        if "ffn.quant_mul" in self._traits.block_stubs:
            self.stubs(name, ["quant_mul"])

    def fusion(self, embed_dim: int, stages: int) -> None:
        """fusion_convs.i and quant_fusion_layer."""
        share, rest = divmod(embed_dim, stages)
        for stage in range(stages):
            width = share if self._traits.wide_fusion else share + (stage < rest)
            self.layer(f"fusion_convs.{stage}", width, embed_dim, 1, 1)
        name = "quant_fusion_layer"
        width = embed_dim * stages if self._traits.wide_fusion else embed_dim
        self.tensors[f"{name}.error_comp"] = self._uniform(-0.15, 0.15, 1, width, 1, 1)
        conv = "conv" if self._traits.flat_keys else "fusion_conv"
        self.layer(f"{name}.{conv}", embed_dim, width, 1, 1)
        self.stubs(name, self._traits.fusion_stubs)

    def stubs(self, parent: str, names: Iterable[str]) -> None:
        """What modules without weights hold during QAT: the state of their observer."""
        for name in names:
            module = f"{parent}.{name}" if parent else name
            self._observer(f"{module}.activation_post_process", self._traits.activation_kind, 1)

    def _put_layer(self, name: str, weight: Tensor, bias: Tensor | None = None) -> None:
        self.tensors[f"{name}.weight"] = weight
        if bias is not None:
            self.tensors[f"{name}.bias"] = bias
        if not any(fnmatch(name, pattern) for pattern in self._traits.unobserved):
            kind, channels = self._traits.weight_kind, weight.shape[0]
            self._observer(f"{name}.weight_fake_quant", kind, channels)
            kind = self._traits.activation_kind
            self._observer(f"{name}.activation_post_process", kind, channels)

    def _observer(self, name: str, kind: Kind, channels: int) -> None:
        """The state of an observer or of a fake quantisation: docs/reference.md#training-files."""
        if not self._qat:
            return
        per_channel = kind in ("channel_observer", "channel_fake_quant")
        if kind in ("fake_quant", "channel_fake_quant"):
            self._fake_quant(name, channels if per_channel else 1, torch.int64)
            name = f"{name}.activation_post_process"
        self.tensors[f"{name}.eps"] = torch.tensor([torch.finfo(torch.float32).eps])
        if kind == "histogram":
            self.tensors[f"{name}.histogram"] = self._observed(0.0, 9.0, 2048)
        shape = (channels,) if per_channel else ()
        self.tensors[f"{name}.min_val"] = self._observed(-1.6, -0.8, *shape)
        self.tensors[f"{name}.max_val"] = self._observed(0.8, 1.6, *shape)

    def _sigmoid(self, name: str) -> None:
        """A sigmoid rounds to 1/256 during QAT, whatever else is only observed."""
        if not self._qat:
            return
        name = f"{name}.activation_post_process"
        self._fake_quant(name, 1, torch.uint8)
        name = f"{name}.activation_post_process"
        self.tensors[f"{name}.scale"] = torch.tensor([1 / 256])
        self.tensors[f"{name}.zero_point"] = torch.zeros(1, dtype=torch.int32)

    def _fake_quant(self, name: str, channels: int, switches: torch.dtype) -> None:
        self.tensors[f"{name}.fake_quant_enabled"] = torch.ones(1, dtype=switches)
        self.tensors[f"{name}.observer_enabled"] = torch.ones(1, dtype=switches)
        self.tensors[f"{name}.scale"] = self._observed(0.008, 0.016, channels)
        self.tensors[f"{name}.zero_point"] = torch.zeros(channels, dtype=torch.int32)

    def _kernel(self, *shape: int, gain: float = 1.0) -> Tensor:
        """Uniform within sqrt(3 / fan_in), which keeps the variance, times `gain`."""
        bound = gain * sqrt(3 / prod(shape[1:]))
        return self._uniform(-bound, bound, *shape)

    def _bias(self, channels: int) -> Tensor:
        return self._uniform(-0.2, 0.2, channels)

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._weights)

    def _observed(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self._observers)
