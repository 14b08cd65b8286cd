"""The table of published revisions: one row each, in the order in which they are looked for.

AetherNet was published in a dozen incompatible revisions that name neither themselves nor their
configuration. A row says by which keys and shapes a revision is recognised and what its network
computes; `network.py` reads files by these fields and never asks for a row's name. In words, the
rows stand in docs/reference.md, and a test holds both together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import torch
from torch import Tensor

from aether_core import REVISION_KEY, BodyOrder, StageFusion

Entries = Mapping[str, Tensor]
Condition = Callable[[Entries], bool]


# Conditions on the entries of a file, QAT entries among them


def has(*keys: str) -> Condition:
    """Every one of the keys is there."""
    return lambda entries: all(key in entries for key in keys)


def lacks(*keys: str) -> Condition:
    """None of the keys is there."""
    return lambda entries: not any(key in entries for key in keys)


def has_like(pattern: str) -> Condition:
    """A key is there in which the regular expression is found."""
    compiled = re.compile(pattern)
    return lambda entries: any(compiled.search(key) for key in entries)


def lacks_like(pattern: str) -> Condition:
    """No key is there in which the regular expression is found."""
    found = has_like(pattern)
    return lambda entries: not found(entries)


def has_values(key: str, *values: int) -> Condition:
    """The key is there and holds these numbers."""

    def holds(entries: Entries) -> bool:
        return rounded(entries.get(key), most=len(values)) == list(values)

    return holds


def rounded(tensor: Tensor | None, *, most: int) -> list[int] | None:
    """The whole numbers that a small tensor holds, or None if it holds anything else.

    Rounded, for programs that mix two networks average every entry.
    """
    if tensor is None or tensor.is_meta or tensor.is_complex() or tensor.numel() > most:
        return None
    numbers = tensor.double().flatten()
    if not bool(torch.isfinite(numbers).all()) or bool((numbers.abs() > 1e6).any()):
        return None
    return [round(float(number)) for number in numbers]


def has_dims(key: str, dims: int) -> Condition:
    """The key is there with so many dimensions."""
    return lambda entries: key in entries and entries[key].dim() == dims


def wider(key: str, than: str) -> Condition:
    """The first tensor has more channels (axis 1) than the other has outputs (axis 0)."""

    def holds(entries: Entries) -> bool:
        a, b = entries.get(key), entries.get(than)
        if a is None or b is None or a.dim() < 2 or b.dim() < 1:
            return False
        return a.shape[1] > b.shape[0]

    return holds


def all_ones(suffix: str) -> Condition:
    """There are keys that end so, and each holds exactly 1."""

    def holds(entries: Entries) -> bool:
        found = [tensor for key, tensor in entries.items() if key.endswith(suffix)]
        return bool(found) and all(not t.is_meta and bool((t == 1).all()) for t in found)

    return holds


def every(*conditions: Condition) -> Condition:
    """All of the conditions hold."""
    return lambda entries: all(condition(entries) for condition in conditions)


def some(*conditions: Condition) -> Condition:
    """At least one of the conditions holds."""
    return lambda entries: any(condition(entries) for condition in conditions)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published size, by the fields that tell it from the others."""

    embed_dim: int
    depths: tuple[int, ...]
    mlp_ratio: float
    lk_kernel: int

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward."""
        return int(self.embed_dim * self.mlp_ratio)


@dataclass(frozen=True, kw_only=True)
class Revision:
    """How one published revision is recognised, and what its network computes.

    Attributes:
        name: This project's name of it.
        recognised: Whether entries are of this revision, given that no row before it matched.
        anchor: Key of the first block that every file has, up to what differs between forms;
            whatever stands before it in a file is a prefix that a program added.
        renames: Pattern and replacement from published to canonical keys; those that apply are
            applied in turn.
        published_names: Canonical and published parts of keys, for messages.
        unused: Keys without effect on the result.
        norm_eps: Of running or per-image statistics.
        layer_norm_eps: Of a LayerNorm in the blocks, and of the one after the body.
        sample_norm: Unfused normalisations take each image's own statistics.
        stale_statistics: A fused file keeps running statistics that are folded already.
        kept_statistics: Fusing leaves statistics in use, as published.
        activation: Of the gate.
        temperature: What the gate's temperature does to it.
        res_scale: Factor of a block's result where the file does not say; None if there is none.
        small_res_scale: The same for an embed_dim of at most `SMALL_DIM`.
        error_comp: Where the stage fusion adds it: to its input or its result.
        qat_drops_error_comp: Under quantisation-aware training it is left out.
        stage_fusion: How stages are combined.
        body_order: See `AetherConfig`.
        range_first: The input is divided by img_range before the mean is subtracted; otherwise
            it is multiplied afterwards.
        head_activation: Whether a LeakyReLU stands before the upsampler.
        stored_mean: Whether the mean is stored.
        arguments: Of the published constructor.
        builds_fused: The published constructor makes the fused network when asked for it.
        presets: Published sizes by name.
        doubt: What keys cannot tell about a file that is taken for this revision; "" if nothing.
    """

    name: str
    recognised: Condition
    anchor: str = "stages.0.0.ffn.conv_gate."
    renames: tuple[tuple[str, str], ...] = ()
    published_names: tuple[tuple[str, str], ...] = ()
    unused: str
    norm_eps: float = 1e-5
    layer_norm_eps: tuple[float, float] = (1e-5, 1e-5)
    sample_norm: bool = False
    stale_statistics: bool = False
    kept_statistics: bool = False
    activation: Literal["gelu", "silu"] = "silu"
    temperature: Literal["none", "divides", "multiplies", "ignored"] = "multiplies"
    res_scale: float | None = None
    small_res_scale: float | None = None
    error_comp: Literal["none", "before", "after"] = "after"
    qat_drops_error_comp: bool = False
    stage_fusion: StageFusion = "project"
    body_order: BodyOrder = "add-norm-conv"
    range_first: bool = False
    head_activation: bool = True
    stored_mean: bool = True
    arguments: tuple[str, ...] = ()
    builds_fused: bool = False
    presets: Mapping[str, Preset] = field(default_factory=dict[str, Preset])
    doubt: Callable[[Entries], str] | None = None

    def computes_like(self, other: Revision) -> bool:
        """Whether the same fused tensors mean the same network in both."""
        return all(getattr(self, name) == getattr(other, name) for name in ARITHMETIC)


ARITHMETIC: Final = (
    "activation",
    "error_comp",
    "stage_fusion",
    "body_order",
    "head_activation",
    "stale_statistics",
    "kept_statistics",
)
"""Fields that decide what fused tensors compute, constants being at their defaults."""

LONGEST_NAME: Final = 16  # characters of a revision's name

SMALL_DIM: Final = 64  # embed_dim; smaller ones have another res_scale: docs/reference.md#presets

STAGED_KEYS: Final = (
    (r"^stages\.", "layers."),
    (r"\.ffn\.conv_gate\.", ".ffn.fc1_gate."),
    (r"\.ffn\.conv_main\.", ".ffn.fc1_main."),
    (r"\.ffn\.conv_out\.", ".ffn.fc2."),
    (r"\.conv\.(lk|sk)_conv\.bias$", r".conv.\1_bias"),
    (r"^quant_fusion_layer\.(?:fusion_)?conv\.", "fusion_conv."),
    (r"^quant_fusion_layer\.error_comp$", "error_comp"),
    (r"^conv_before_upsample\.(weight|bias)$", r"conv_before_upsample.0.\1"),
    (r"^upsample\.(?:blocks|upsample)\.(?:up_)?(\w+?)(?:\.0)?\.(weight|bias)$", r"upsample.\1.\2"),
)
"""Published keys from G2 on, as canonical ones (docs/reference.md#keys-and-shapes)."""

STAGED_NAMES: Final = (
    ("layers.", "stages."),
    (".ffn.fc1_gate.", ".ffn.conv_gate."),
    (".ffn.fc1_main.", ".ffn.conv_main."),
    (".ffn.fc2.", ".ffn.conv_out."),
    ("fusion_conv.", "quant_fusion_layer.fusion_conv."),
    ("error_comp", "quant_fusion_layer.error_comp"),
)
"""Canonical parts of keys, as published from G2 on."""

ARGUMENTS: Final = (
    "in_chans",
    "embed_dim",
    "depths",
    "mlp_ratio",
    "drop_path_rate",
    "lk_kernel",
    "sk_kernel",
    "scale",
    "img_range",
)
"""Of every published constructor (docs/reference.md#files)."""

BOOKKEEPING: Final = (
    r"^(scale|scale_tensor|pt_version|model_version)$|(^|\.)norm\.num_batches_tracked$"
)

QUANTISED: Final = r"\.(activation_post_process\.|zero_point$)"
"""Found in the keys of training for int8 and of int8 files (docs/reference.md#qat-and-int8)."""


def _sizes(
    mlp_ratio: float, lk_kernel: int, **shapes: tuple[int, tuple[int, ...]]
) -> dict[str, Preset]:
    return {
        name: Preset(embed_dim=dim, depths=depths, mlp_ratio=mlp_ratio, lk_kernel=lk_kernel)
        for name, (dim, depths) in shapes.items()
    }


def _doubt_of_g2c(entries: Entries) -> str:
    if has("fusion_convs.1.weight")(entries) or has_like(r"\.channel_attn\.")(entries):
        return ""
    return "with one stage and no channel attention, G2b has the same keys and leaves " + (
        "fusion_convs.0 unused"
    )


def _doubt_of_g5e(entries: Entries) -> str:
    if lacks("norm.running_mean")(entries):
        return ""
    return "G5d has the same keys and another eps, 1e-5, which --set norm_eps chooses"


def _doubt_of_g5f(entries: Entries) -> str:
    fused = has("stages.0.0.conv.fused_conv.weight")(entries)
    if fused and lacks("norm.running_mean")(entries):
        return ""
    return (
        "G5a has the same keys before fusing, and adds the skip before it normalises; "
        "--set revision=G5a chooses it"
    )


G1: Final = Revision(
    name="G1",
    recognised=has("conv_first.weight", "layers.0.0.ffn.fc1_gate.weight", "conv_last.weight"),
    anchor="layers.0.0.ffn.fc1_gate.",
    unused=r"$.",
    layer_norm_eps=(1e-6, 1e-5),
    activation="gelu",
    temperature="none",
    error_comp="none",
    stage_fusion="none",
    body_order="norm-conv-add",
    stored_mean=False,
    arguments=(*ARGUMENTS, "drop_rate", "fused_init"),
    builds_fused=True,
    presets={
        **_sizes(2.0, 11, small=(96, (4,) * 4), medium=(128, (6,) * 6)),
        **_sizes(2.5, 13, large=(180, (8,) * 8)),
    },
)

STAGED: Final = has("conv_first.weight", "stages.0.0.ffn.conv_gate.weight", "conv_last.weight")

G2D: Final = Revision(
    name="G2d",
    recognised=STAGED,
    renames=STAGED_KEYS,
    published_names=STAGED_NAMES,
    unused=BOOKKEEPING,
    stale_statistics=True,
    error_comp="before",
    arguments=(*ARGUMENTS, "drop", "fused_init", "use_channel_attn", "use_spatial_attn"),
    presets=_sizes(2.0, 11, small=(96, (4,) * 4), medium=(128, (6,) * 4), large=(180, (8,) * 5)),
)
G2C: Final = replace(
    G2D,
    name="G2c",
    recognised=every(
        STAGED, some(has("norm.num_batches_tracked"), has_dims("stages.0.0.ffn.temperature", 0))
    ),
    temperature="divides",
    doubt=_doubt_of_g2c,
)
G2B: Final = replace(
    G2C,
    name="G2b",
    recognised=every(
        G2C.recognised,
        some(
            wider("quant_fusion_layer.error_comp", than="conv_first.weight"),
            has_dims("stages.0.0.channel_attn.fc.0.weight", 2),
        ),
    ),
    unused=rf"{BOOKKEEPING}|^fusion_convs\.",
    stage_fusion="raw",
    doubt=None,
)
G2A: Final = replace(
    G2C,
    name="G2a",
    recognised=every(STAGED, lacks("norm.running_mean"), has_dims("norm.weight", 4)),
    sample_norm=True,
    stale_statistics=False,
    doubt=None,
)
G3: Final = replace(
    G2D,
    name="G3",
    recognised=every(STAGED, has("scale")),
    res_scale=1.0,
    arguments=(*G2D.arguments, "norm_type", "res_scale"),
    presets={
        "tiny": Preset(embed_dim=64, depths=(3,) * 3, mlp_ratio=2.0, lk_kernel=11),
        **G2D.presets,
    },
)
G4: Final = replace(
    G3,
    name="G4",
    recognised=every(
        STAGED,
        some(
            has("quant_fusion_layer.conv.weight"),
            has_like(r"^upsample\.upsample\."),
            has("stages.0.0.conv.lk_conv.bias"),
        ),
    ),
    stale_statistics=False,
    kept_statistics=True,
    activation="gelu",
    res_scale=0.1,
    small_res_scale=0.2,
    error_comp="after",
    head_activation=False,
    presets=_sizes(
        2.0,
        13,
        tiny=(64, (3,) * 3),
        small=(96, (6,) * 4),
        medium=(128, (6,) * 4),
        large=(180, (8,) * 5),
    ),
)
G5A: Final = replace(
    G3,
    name="G5a",
    recognised=every(
        STAGED,
        has("scale_tensor", "norm.running_mean"),
        lacks("model_version"),
        lacks_like(r"\.lk_conv\.weight$"),
    ),
    res_scale=0.1,
    small_res_scale=0.2,
    error_comp="after",
    presets={
        **_sizes(
            1.5,
            13,
            tiny=(64, (3,) * 3),
            small=(96, (4,) * 4),
            medium=(128, (6,) * 4),
            large=(180, (8,) * 5),
        ),
        **_sizes(1.5, 7, mobile=(64, (2,) * 4)),
        **_sizes(1.75, 15, pro=(192, (8,) * 5)),
        **_sizes(2.0, 21, extreme=(256, (12,) * 5)),
    },
)
G5B: Final = replace(
    G5A,
    name="G5b",
    recognised=every(STAGED, has("scale_tensor"), has_values("model_version", 3, 1, 0)),
)
G5F: Final = replace(
    G5A,
    name="G5f",
    recognised=every(STAGED, has("scale_tensor")),
    norm_eps=1e-4,
    stale_statistics=False,
    qat_drops_error_comp=True,
    body_order="norm-add-conv",
    range_first=True,
    doubt=_doubt_of_g5f,
)
G5E: Final = replace(
    G5F,
    name="G5e",
    recognised=every(STAGED, has("scale_tensor", "model_version")),
    doubt=_doubt_of_g5e,
)
G5D: Final = replace(
    G5E,
    name="G5d",
    recognised=every(
        STAGED,
        has_values("model_version", 3, 1, 1),
        has_like(r"\.ffn\.quant_mul_scalar\."),
    ),
    norm_eps=1e-5,
    doubt=None,
)
G5C: Final = replace(
    G5D,
    name="G5c",
    # It never trained its temperature, and has none of the quantisation stubs of its successors.
    recognised=every(
        STAGED,
        has_values("model_version", 3, 1, 1),
        lacks_like(r"\.ffn\.(act_quant|temp_quant)\."),
        some(has_like(QUANTISED), all_ones(".ffn.temperature")),
    ),
    temperature="ignored",
    qat_drops_error_comp=False,
)
G5S: Final = replace(
    G5F,
    name="G5s",
    recognised=every(STAGED, has("scale_tensor", "upsample.blocks.0.0.weight")),
    arguments=(*G5F.arguments, "out_chans"),
    doubt=None,
)

REVISIONS: Final = (G1, G4, G5S, G5B, G5D, G5C, G5E, G5A, G5F, G3, G2A, G2B, G2C, G2D)
"""The revisions that are read, in detection order (docs/reference.md#told-apart)."""

ANCHORS: Final = tuple(dict.fromkeys(revision.anchor for revision in REVISIONS))
"""Keys of which every AetherNet has one, and no other network any."""


MODULES: Final = re.compile(
    r"(conv_(first|after_body|before_upsample|last)|layers|stages|norm|fusion_convs?"
    r"|quant_fusion_layer|upsample)\."
)
"""How the keys of all large tensors of an AetherNet begin, published or in our own layout."""


def find_revision(entries: Entries) -> Revision | None:
    """The revision whose entries these are, or None if they are no AetherNet's; never raises."""
    return next((row for row in REVISIONS if row.recognised(entries)), None)


def named_revision(entries: Entries) -> Revision | None:
    """The revision that a file of ours names, which holds canonical keys; None if it names none."""
    codes = rounded(entries.get(REVISION_KEY), most=LONGEST_NAME) or []
    name = "".join(chr(code) if 0 < code < 128 else "?" for code in codes)
    return next((row for row in REVISIONS if row.name == name), None)
