"""From a checkpoint to the one network that the project runs: recognise, rename, check, fold.

The table of revisions says what to do; nothing here asks for a revision's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor
from typing_extensions import Unpack

from aether_core import (
    REVISION_KEY,
    RGB_MEAN,
    SCALES,
    AetherConfig,
    AetherNet,
    revision_codes,
)
from aether_spandrel import folding
from aether_spandrel.checkpoint import FLOAT_DTYPES, Checkpoint, is_beside
from aether_spandrel.constants import (
    Constants,
    Facts,
    default_constants,
    resolve_constants,
    split_revision,
)
from aether_spandrel.errors import CheckpointError
from aether_spandrel.folding import fuse_state_dict, is_fused
from aether_spandrel.half_precision import Headroom, divide_main, headroom
from aether_spandrel.ranges import Ranges, read_ranges
from aether_spandrel.revisions import (
    REVISIONS,
    Entries,
    Revision,
    find_revision,
    named_revision,
    rounded,
)

MOST_BLOCKS: Final = 256  # the largest published network has 64


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as read: which revision, which configuration, its tensors under canonical keys.

    Attributes:
        revision: The row of `REVISIONS` that matched.
        config: The configuration inferred, fused or not as the file is.
        state_dict: Canonical key to tensor; the weights of `AetherNet(config)`. What was folded
            is float32, the rest as stored.
        published: The tensors as they were published, by canonical key, such that the revision's
            default constants are right for them. Empty for a file in our own layout.
        names: Canonical to published key.
        dtype: The floating-point dtype in which most weights are stored.
        constants: Value by name of each constant that matters to this file.
        defaults: Value by name that each of them has for a program that reads tensors alone.
        given: What the caller set.
        assumed: Value and reason by name for what neither tensor, metadata nor caller gave.
        fits_float16: Whether it can run in float16, whatever picture comes in.
        ranges: What quantisation-aware training says of the inputs of the fused network's layers.
        half_fused: Blocks whose kernels are fused while those of others are not.
        counts: Keys of single numbers that a tool left among the tensors; they are left aside.
    """

    revision: Revision
    config: AetherConfig
    state_dict: Mapping[str, Tensor] = field(repr=False)
    published: Mapping[str, Tensor] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    dtype: torch.dtype
    constants: Mapping[str, float]
    defaults: Mapping[str, float]
    given: Mapping[str, float | str]
    assumed: Mapping[str, str]
    fits_float16: bool
    ranges: Ranges
    half_fused: int = 0
    counts: tuple[str, ...] = ()

    @property
    def preset(self) -> str | None:
        """The published size that this configuration is, or None."""
        config = self.config
        for name, size in self.revision.presets.items():
            if (size.embed_dim, size.depths, size.lk_kernel, size.ffn_dim) == (
                config.embed_dim,
                config.depths,
                config.lk_kernel,
                config.ffn_dim,
            ):
                return name
        return None


def is_aethernet(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds an AetherNet of a known revision."""
    return bool(named_revision(checkpoint.state_dict) or find_revision(checkpoint.entries))


def read_network(checkpoint: Checkpoint, **constants: Unpack[Constants]) -> Network:
    """Infer the configuration of a checkpoint, check every key and shape against it, and fold.

    Constants that are given win over those of the file's metadata, those over the revision's
    defaults. All become part of the weights, so that no later step needs to know them.

    Raises:
        CheckpointError: The checkpoint is no AetherNet of a known revision, its tensors do not
            form one network, or a constant is out of range or has no part in it; key, expected
            and found are named.
    """
    try:
        return _read_network(checkpoint, *split_revision(constants))
    except CheckpointError as error:
        if checkpoint.path is None or error.file is not None:
            raise
        named = error.in_file(checkpoint.path)
        if SHARD_NAME.search(checkpoint.path.name):
            named.advice = "this is one part of a checkpoint: name the .index.json beside it"
        raise named from error.__cause__


SHARD_NAME: Final = re.compile(r"-\d{5}-of-\d{5}\.")
"""Found in the names of the parts of a checkpoint in several files."""


def _read_network(
    checkpoint: Checkpoint, chosen: str | None, given: Mapping[str, float]
) -> Network:
    dtype = _main_dtype(checkpoint.state_dict)
    revision = named_revision(checkpoint.state_dict)
    if revision is not None:
        return _read_canonical(revision, checkpoint, dtype, given)
    revision = _recognised(checkpoint, chosen)
    names = _canonical_names(revision, checkpoint.state_dict)
    config, tensors, counts = _inferred(revision, checkpoint, names)
    left_aside = frozenset(counts)
    names = {key: name for key, name in names.items() if name not in left_aside}
    facts = Facts(revision=revision, config=config, tensors=tensors, qat=checkpoint.qat)
    values, assumed = resolve_constants(facts, checkpoint.metadata, given)
    assumed |= _assumed_beside(revision, checkpoint, config, chosen)
    settled = _settle(facts, values)
    folded = _fold(facts, settled, values)
    ranges = _published_ranges(revision, checkpoint, names, config, values)
    room = _room(folded, config, ranges)
    settled, folded = (divide_main(state, room.divisors) for state in (settled, folded))
    half_fused = _half_fused(config, tensors)
    if half_fused:
        folded = fuse_state_dict(folded)
        config = replace(config, fused=True)
    return Network(
        revision=revision,
        config=config,
        state_dict=_as_network(config, folded),
        published={
            canonical: settled[canonical].reshape(checkpoint.state_dict[name].shape)
            if canonical in settled
            else checkpoint.state_dict[name]
            for canonical, name in names.items()
        },
        names=names,
        dtype=dtype,
        constants=values,
        defaults=default_constants(facts),
        given=given if chosen is None else {**given, "revision": chosen},
        assumed=assumed,
        fits_float16=room.fits,
        half_fused=half_fused,
        ranges=ranges,
        counts=counts,
    )


def _recognised(checkpoint: Checkpoint, chosen: str | None) -> Revision:
    """The revision whose keys these are, or the one of the same keys that was chosen."""
    revision = find_revision(checkpoint.entries)
    if revision is None:
        raise _no_aethernet(checkpoint)
    if REVISION_KEY in checkpoint.state_dict:
        raise CheckpointError(
            "this file names a revision that this version does not know",
            key=REVISION_KEY,
            advice="install a newer aether-spandrel, the way this one was installed",
        )
    return revision if chosen is None else _chosen_revision(chosen, revision)


def _inferred(
    revision: Revision, checkpoint: Checkpoint, names: Mapping[str, str]
) -> tuple[AetherConfig, dict[str, Tensor], tuple[str, ...]]:
    """Configuration, the network's tensors by their usual names, and the keys of mere counts."""
    unused = re.compile(revision.unused)
    tensors = {
        canonical: tensor
        for canonical, name in names.items()
        for tensor in [checkpoint.state_dict[name]]
        if not unused.search(name) or is_beside(name, tensor)
    }
    try:
        _check_scale_buffers(checkpoint.state_dict, infer_scale(tensors))
        config = _infer_config(revision, tensors)
        shapes = _published_shapes(revision, config, tensors)
        counts = _counts(shapes, tensors)
        checked = _checked(shapes, tensors, ignored=counts)
    except CheckpointError as error:
        if error.key is not None:
            error.key = checkpoint.prefix + _published_name(revision, names, error.key)
        raise
    return config, checked, tuple(name for key, name in names.items() if key in counts)


def _assumed_beside(
    revision: Revision, checkpoint: Checkpoint, config: AetherConfig, chosen: str | None
) -> dict[str, str]:
    """What is taken for granted beside the constants, and why."""
    assumed: dict[str, str] = {}
    if not revision.stored_mean:
        mean = RGB_MEAN if config.in_chans == 3 else 0.0
        assumed["mean"] = f"{mean:g}, for {config.in_chans} channels: {revision.name} stores none"
    if (
        chosen is None
        and revision.doubt is not None
        and (doubt := revision.doubt(checkpoint.entries))
    ):
        assumed["revision"] = f"{revision.name}: {doubt}"
    return assumed


def _half_fused(config: AetherConfig, tensors: Mapping[str, Tensor]) -> int:
    """How many blocks are fused already in a network that is not."""
    if config.fused:
        return 0
    return sum(folding.is_fused_block(tensors, b) for b in folding.block_prefixes(tensors))


def _published_ranges(
    revision: Revision,
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    config: AetherConfig,
    values: Mapping[str, float],
) -> Ranges:
    """What training for int8 left, found under the revision's own names."""
    return read_ranges(
        config,
        checkpoint.qat_entries,
        published_name=lambda module: _published_name(
            revision, names, f"{module}.weight"
        ).removesuffix(".weight"),
        img_range=values["img_range"],
    )


def _room(state: Entries, config: AetherConfig, ranges: Ranges) -> Headroom:
    """The room for float16, which is not made where it would change what fc2's range is of."""
    room = headroom(state, config)
    kept = {b: d for b, d in room.divisors.items() if f"{b}ffn.fc2" not in ranges.usable}
    return Headroom(kept, fits=room.fits and len(kept) == len(room.divisors))


def _read_canonical(
    revision: Revision, checkpoint: Checkpoint, dtype: torch.dtype, given: Mapping[str, float]
) -> Network:
    """A file that names its revision: our own layout, in which every constant is folded."""
    if given:
        raise CheckpointError(
            f"{next(iter(given))} cannot be set: this file has it in its weights already",
            advice="set it for the file that this one was made from",
        )
    tensors = dict(checkpoint.state_dict)
    config = _infer_config(revision, tensors, canonical=True)
    counts = _counts(_shapes_of(config), tensors)
    checked = _checked(_shapes_of(config), tensors, ignored={REVISION_KEY, *counts})
    ranges = read_ranges(config, checkpoint.qat_entries)
    room = _room(checked, config, ranges)
    return Network(
        revision=revision,
        config=config,
        state_dict=_as_network(config, divide_main(checked, room.divisors)),
        published={},
        names={},
        dtype=dtype,
        constants={},
        defaults={},
        given={},
        assumed={},
        fits_float16=room.fits,
        ranges=ranges,
        counts=tuple(counts),
    )


def _chosen_revision(name: str, found: Revision) -> Revision:
    """The row of that name, which must have the same blocks as the one that was found."""
    names = [row.name for row in REVISIONS if row.anchor == found.anchor]
    if name not in names:
        raise CheckpointError(
            f"this file cannot be of revision {name}",
            expected=f"one of {', '.join(names)}",
            found=f"keys of {found.name}",
            advice="leave revision away, or choose one of these",
        )
    return next(row for row in REVISIONS if row.name == name)


def _no_aethernet(checkpoint: Checkpoint) -> CheckpointError:
    from aether_spandrel.architectures import architecture_of  # all of spandrel, for an error alone

    if other := architecture_of(checkpoint):
        return CheckpointError(
            "this is a network of another architecture",
            expected="an AetherNet",
            found=f"{other}, as spandrel tells",
            advice="aethernet upscale enlarges pictures with it; what is converted, verified and "
            "inspected here is AetherNet alone",
        )
    return CheckpointError(
        "this is not an AetherNet checkpoint of a known revision",
        expected="conv_first and conv_last, and blocks under layers.0.0 (G1) or stages.0.0 "
        "(G2 to G5)",
        found=", ".join(key[:60] for key in list(checkpoint.state_dict)[:4]) + " ...",
        advice="if another program loads it, it is another architecture",
    )


# Keys


def _canonical_names(revision: Revision, tensors: Entries) -> dict[str, str]:
    """Canonical key to published key, in file order."""
    names: dict[str, str] = {}
    for name in tensors:
        canonical = name
        for pattern, replacement in revision.renames:
            canonical = re.sub(pattern, replacement, canonical)
        if canonical in names:
            raise CheckpointError(
                "two keys stand for the same tensor",
                key=name[:100],
                found=names[canonical][:100],
                advice="the file mixes two networks: save it again from one training run",
            )
        names[canonical] = name
    return _number_upsampler(names) if revision.renames else names


def _published_name(revision: Revision, names: Mapping[str, str], canonical: str) -> str:
    """The key as the file has it, or would have it."""
    if canonical in names:
        return names[canonical]
    for ours, theirs in revision.published_names:
        canonical = canonical.replace(ours, theirs)
    return canonical


UPSAMPLER: Final = re.compile(r"^upsample\.(\d{1,3})x?\.(weight|bias)$")


def _number_upsampler(names: dict[str, str]) -> dict[str, str]:
    """The upsampler's convolutions at even positions, as in an `nn.Sequential` with shuffles."""
    found = sorted({int(match[1]) for name in names if (match := UPSAMPLER.match(name))})
    position = {number: 2 * index for index, number in enumerate(found)}
    return {
        UPSAMPLER.sub(lambda m: f"upsample.{position[int(m[1])]}.{m[2]}", canonical): name
        for canonical, name in names.items()
    }


# Configuration


def _infer_config(revision: Revision, tensors: Entries, *, canonical: bool = False) -> AetherConfig:
    embed_dim, in_chans = _shape(tensors, "conv_first.weight", 4)[:2]
    out_chans = _shape(tensors, "conv_last.weight", 4)[0]
    first = "layers.0.0."
    fused = is_fused(tensors)
    kernel = "fused_conv" if folding.is_fused_block(tensors, first) else "lk_conv"
    lk_kernel = _shape(tensors, f"{first}conv.{kernel}.weight", 4)[-1]
    sk_kernel = min(3, lk_kernel)
    if not fused:
        unfused = next(key for key in tensors if key.endswith(".lk_conv.weight"))
        sk_kernel = _shape(tensors, unfused.replace(".lk_conv.", ".sk_conv."), 4)[-1]
    if canonical:  # what is folded has no norm in its blocks
        sample_norm = revision.sample_norm and f"{first}norm.weight" in tensors
        layer_norm = f"{first}norm.weight" in tensors and not sample_norm
    else:
        sample_norm = revision.sample_norm and not fused
        layer_norm = _has_layer_norm(tensors, first)
    scale = infer_scale(tensors)
    head_dim = _shape(tensors, "conv_before_upsample.0.weight", 4)[0]
    fixed_head = not revision.renames
    try:
        return AetherConfig(
            in_chans=in_chans,
            out_chans=out_chans,
            embed_dim=embed_dim,
            depths=_infer_depths(tensors),
            ffn_dim=_shape(tensors, f"{first}ffn.fc1_gate.weight")[0],
            lk_kernel=lk_kernel,
            # A fused file has lost the small kernel's size, which no longer matters.
            sk_kernel=sk_kernel,
            scale=scale,
            fused=fused,
            revision="" if fixed_head else revision.name,
            activation=revision.activation,
            norm_type="layernorm" if layer_norm else "deployment",
            sample_norm=sample_norm,
            block_norm_eps=revision.norm_eps if sample_norm else revision.layer_norm_eps[0],
            body_norm_eps=revision.norm_eps if sample_norm else revision.layer_norm_eps[1],
            channel_attn=f"{first}channel_attn.fc.0.weight" in tensors,
            spatial_attn=f"{first}spatial_attn.conv.weight" in tensors,
            stage_fusion=revision.stage_fusion,
            body_order=revision.body_order,
            head_dim=head_dim,
            head_widths=None if fixed_head else _infer_head_widths(tensors),
            head_activation=revision.head_activation,
            stored_mean=revision.stored_mean,
        )
    except ValueError as error:
        raise CheckpointError(
            f"the tensors' shapes describe no AetherNet: {error}",
            advice="the file is damaged or of an unknown revision",
        ) from None


def _has_layer_norm(tensors: Entries, block: str) -> bool:
    """Whether a block has a LayerNorm: a flat weight without running statistics."""
    weight = tensors.get(f"{block}norm.weight")
    return weight is not None and weight.dim() == 1 and f"{block}norm.running_var" not in tensors


def _infer_depths(tensors: Entries) -> tuple[int, ...]:
    pattern = re.compile(r"layers\.(\d{1,4})\.(\d{1,4})\.")
    found = {(int(m[1]), int(m[2])) for key in tensors if (m := pattern.match(key))}
    depths: list[int] = []
    while (len(depths), 0) in found:
        stage, depth = len(depths), 1
        while (stage, depth) in found:
            depth += 1
        depths.append(depth)
    expected = {(i, j) for i, depth in enumerate(depths) for j in range(depth)}
    if stray := sorted(found - expected):
        raise CheckpointError(
            "blocks are missing between those that are there",
            key=f"layers.{stray[0][0]}.{stray[0][1]}",
            expected=f"blocks numbered without gaps, here depths {tuple(depths)}",
            found="a block beyond them",
            advice="the file is incomplete: save it again",
        )
    if sum(depths) > MOST_BLOCKS:
        raise CheckpointError(
            "the network is deeper than any that can be used",
            expected=f"at most {MOST_BLOCKS} blocks",
            found=f"{sum(depths)} blocks",
            advice="the file is forged or damaged",
        )
    return tuple(depths)


def _upsampler_keys(tensors: Entries) -> list[str]:
    keys = [key for key in tensors if key.startswith("upsample.") and key.endswith(".weight")]
    return sorted(keys, key=lambda key: (len(key), key))


def infer_scale(tensors: Entries) -> int:
    """Upscaling factor from the upsampler's convolutions (docs/reference.md#upsampler).

    None means 1, one means 1, 2 or 3 by its widening, n >= 2 mean 2**n.

    Raises:
        CheckpointError: The widening is one that no supported scale has.
    """
    keys = _upsampler_keys(tensors)
    inputs = [_shape(tensors, key, 4)[1] for key in [*keys, "conv_last.weight"]]
    factors: list[int] = []
    for key, width in zip(keys, inputs[1:], strict=True):
        widened = _shape(tensors, key, 4)[0]
        factors.append({1: 1, 4: 2, 9: 3}.get(widened // width, 0) if widened % width == 0 else 0)
    if factors == [1]:
        return 1
    for scale, steps in SCALES.items():
        if steps == tuple(factors):
            return scale
    raise CheckpointError(
        "the upsampler belongs to no supported scale",
        key=", ".join(keys)[:200],
        expected=f"the convolutions of one of the scales {tuple(SCALES)}",
        found=", ".join(str(tuple(tensors[key].shape)) for key in keys)[:200],
        advice="the file mixes two networks or is damaged",
    )


def _infer_head_widths(tensors: Entries) -> tuple[int, ...]:
    """Width after each step of the upsampler: what the next convolution takes."""
    keys = [*_upsampler_keys(tensors), "conv_last.weight"]
    return tuple(_shape(tensors, key, 4)[1] for key in keys[1:])


def _check_scale_buffers(tensors: Entries, scale: int) -> None:
    for key in ("scale", "scale_tensor"):
        if key in tensors and (stored := rounded(tensors[key], most=1)) != [scale]:
            raise CheckpointError(
                "the stored scale is not that of the upsampler",
                key=key,
                expected=str(scale),
                found=str(stored[0]) if stored else "no whole number",
                advice="the file mixes two networks: save it again from one training run",
            )


# Shapes

Shapes = Mapping[str, tuple[int, ...]]


@lru_cache(maxsize=4)
def _shapes_of(config: AetherConfig) -> Mapping[str, tuple[int, ...]]:
    """Every key and shape of the network that a configuration describes, but its name."""
    with torch.device("meta"):  # one block of each stage, which are alike
        expected = AetherNet(replace(config, depths=(1,) * len(config.depths))).state_dict()
    found = {key: tuple(t.shape) for key, t in expected.items() if key != REVISION_KEY}
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in found.items():
        first = folding.BLOCK.match(key)
        if first is None:
            shapes[key] = shape
        elif key not in shapes:
            block = {
                k.removeprefix(first[0]): s for k, s in found.items() if k.startswith(first[0])
            }
            stage = first[0].removesuffix("0.")
            for index in range(config.depths[int(stage.split(".")[1])]):
                shapes.update({f"{stage}{index}.{name}": s for name, s in block.items()})
    return MappingProxyType(shapes)


def _published_shapes(
    revision: Revision, config: AetherConfig, tensors: Entries
) -> dict[str, tuple[int, ...]]:
    """The shapes of `_shapes_of` and those of what will be folded into them."""
    shapes = dict(_shapes_of(config))
    kernel = config.lk_kernel
    norms = ["norm."]
    for block in folding.block_prefixes(shapes):
        norms.append(f"{block}norm.")
        if revision.temperature != "none":
            shapes[block + "ffn.temperature"] = ()
        for key in OPTIONAL_BIASES:
            if block + key not in tensors:
                shapes.pop(block + key, None)
        if folding.is_fused_block(tensors, block) and not config.fused:
            for name in ("lk_conv.weight", "sk_conv.weight", "lk_bias", "sk_bias"):
                del shapes[f"{block}conv.{name}"]
            shapes[f"{block}conv.fused_conv.weight"] = (config.embed_dim, 1, kernel, kernel)
            shapes[f"{block}conv.fused_conv.bias"] = (config.embed_dim,)
    if revision.error_comp != "none":
        shapes["error_comp"] = (sum(config.fusion_widths),)
        if revision.error_comp == "after":
            shapes["error_comp"] = (config.embed_dim,)
    if config.norm_type == "deployment":
        for norm in norms:
            shapes[f"{norm}weight"] = shapes[f"{norm}bias"] = (config.embed_dim,)
            if not revision.sample_norm and _needs_statistics(revision, tensors, norm):
                for name in folding.STATISTICS:
                    shapes[norm + name] = (config.embed_dim,)
    return shapes


OPTIONAL_BIASES: Final = (
    "channel_attn.fc.0.bias",
    "channel_attn.fc.2.bias",
    "spatial_attn.conv.bias",
)
"""Biases that some revisions lack, and which are then zero."""


def _needs_statistics(revision: Revision, tensors: Entries, norm: str) -> bool:
    """Whether running statistics belong to a norm: always before fusing, afterwards where kept."""
    fused = _is_fused_norm(tensors, norm)
    return not fused or revision.kept_statistics or f"{norm}running_var" in tensors


def _is_fused_norm(tensors: Entries, norm: str) -> bool:
    """Whether the convolution before a norm is fused; all of them, for the one after the body."""
    block = norm.removesuffix("norm.")
    return folding.is_fused_block(tensors, block) if block else is_fused(tensors)


def _counts(shapes: Shapes, tensors: Entries) -> frozenset[str]:
    """Keys of what counts something, as profilers leave it in each module; no weight is such.

    That is a single whole number, or one that has overflowed, whose name no tensor of the network
    has. What training changes does not stay whole.
    """
    names = {key.rpartition(".")[2] for key in shapes} | SCALAR_NAMES
    return frozenset(
        key
        for key, tensor in tensors.items()
        if key not in shapes
        and key.rpartition(".")[2] not in names
        and len(key) < LONGEST_COUNT_NAME
        and COUNT_NAME.fullmatch(key)
        and tensor.numel() == 1
        and not tensor.is_meta
        and _is_count(tensor)
    )


SCALAR_NAMES: Final = frozenset(("temperature", "error_comp", "scale", "scale_tensor"))
"""Single numbers that have a meaning in some revision, and so never are a tool's."""


LONGEST_COUNT_NAME: Final = 200  # characters
COUNT_NAME: Final = re.compile(r"(\w+\.)*[a-zA-Z_]\w*", re.ASCII)
"""The key of a buffer that a tool adds to a module: names of Python, with dots between them."""

COUNT_DTYPES: Final = (*FLOAT_DTYPES, torch.int64, torch.int32, torch.bool)


def _is_count(number: Tensor) -> bool:
    if number.dtype not in COUNT_DTYPES or number.layout != torch.strided:
        return False
    value = float(number)
    return not math.isfinite(value) or (value >= 0.0 and value.is_integer())


def _checked(
    shapes: Shapes, tensors: Entries, *, ignored: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tensors in the shapes that a configuration asks for, in whichever form they are stored.

    Raises:
        CheckpointError: A tensor is missing, is too many, does not fit, or holds no floats.
    """
    checked: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        tensor = tensors.get(key)
        if tensor is None:
            raise CheckpointError(
                "a tensor is missing",
                key=key,
                expected=f"shape {shape}",
                found="nothing",
                advice="the file is incomplete: save it again",
            )
        if tuple(tensor.shape) not in _stored_forms(shape):
            raise CheckpointError(
                "a tensor does not fit the others",
                key=key,
                expected=f"shape {shape}",
                found=f"shape {tuple(tensor.shape)}",
                advice="the file mixes two networks: save it again from one training run",
            )
        if tensor.dtype not in FLOAT_DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                "the numbers of a tensor are of a type that no network is read in",
                key=key,
                expected=", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES),
                found=str(tensor.dtype).removeprefix("torch."),
                advice="use the file of the same training in one of these",
            )
        checked[key] = tensor.reshape(shape)
    if stray := [key for key in tensors if key not in shapes and key not in ignored]:
        raise CheckpointError(
            "the file holds a tensor that no AetherNet of this configuration has",
            key=stray[0][:100],
            found=f"{len(stray)} such keys",
            advice="the network was altered, or the file mixes two networks",
        )
    return checked


def _stored_forms(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """A shape and those in which files store it: linear maps and vectors as 1x1 convolutions do."""
    forms: Mapping[int, tuple[int, ...]] = {
        0: (1,),
        1: (1, *shape, 1, 1),
        2: (*shape, 1, 1),
    }
    other = forms.get(len(shape))
    return (shape,) if other is None else (shape, other)


def _shape(tensors: Entries, key: str, dims: int | None = None) -> tuple[int, ...]:
    """The shape of a tensor that must exist, have `dims` dimensions and hold something."""
    tensor = tensors.get(key)
    shape = None if tensor is None else tuple(tensor.shape)
    if not shape or (dims is not None and len(shape) != dims) or min(shape) < 1:
        raise CheckpointError(
            "a tensor is missing or has no usable shape",
            key=key,
            expected=f"{dims} dimensions" if dims else "a non-empty tensor",
            found="nothing" if shape is None else f"shape {shape}",
            advice="the file is incomplete or damaged: save it again",
        )
    return shape


# Folding


def _settle(facts: Facts, values: Mapping[str, float]) -> dict[str, Tensor]:
    """The tensors as published, such that the revision's default constants are right for them."""
    state = folding.fold_img_range(
        facts.tensors, values["img_range"], range_first=facts.revision.range_first
    )
    if facts.res_scale is not None:
        state = folding.scale_residuals(state, values["res_scale"] / facts.res_scale)
    if values.get("error_comp") == 0.0:
        state = folding.without_error_comp(state)
    if facts.revision.temperature == "ignored":
        state = folding.with_unit_temperature(state)
    return state


def affine_norms(
    revision: Revision, config: AetherConfig, state: Entries, constants: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Scale and shift, (embed_dim) float64, of each running-statistics norm, by its prefix."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if config.norm_type == "layernorm" or config.sample_norm:
        return found
    for norm in ("norm.", *(f"{block}norm." for block in folding.block_prefixes(state))):
        fused = _is_fused_norm(state, norm) and not revision.kept_statistics
        live = not (fused and constants.get("norm_folded", 0.0) == 1.0)
        eps = constants.get("norm_eps", revision.norm_eps)
        found[norm] = folding.affine_norm(state, norm, eps, live_statistics=live)
    return found


def _fold(facts: Facts, state: Entries, values: Mapping[str, float]) -> dict[str, Tensor]:
    """What the revision computes beside its convolutions, in their weights."""
    revision = facts.revision
    folded = dict(state)
    if revision.temperature != "none":
        folded = folding.fold_temperature(folded, divides=revision.temperature == "divides")
    if facts.res_scale is not None:
        folded = folding.scale_residuals(folded, facts.res_scale)
    if revision.error_comp != "none":
        folded = folding.fold_error_comp(folded, before=revision.error_comp == "before")
    if revision.stored_mean:
        folded = folding.fold_output_mean(folded)
    for norm, (scale, shift) in affine_norms(revision, facts.config, state, values).items():
        block = norm.removesuffix("norm.")
        if block:
            folded = folding.fold_block_norm(folded, block, scale, shift)
        elif revision.body_order == "norm-add-conv":
            folded = folding.fold_fusion_norm(folded, scale, shift)
        else:
            # The convolution after it pads with zeros, so that only the norm's statistics fold.
            folded |= {"norm.weight": scale.float(), "norm.bias": shift.float()}
    return folded


def _as_network(config: AetherConfig, tensors: Entries) -> dict[str, Tensor]:
    """Exactly the entries of the network, in its order; absent biases are zero."""
    state = {REVISION_KEY: revision_codes(config.revision)} if config.revision else {}
    for key, shape in _shapes_of(config).items():
        state[key] = tensors[key] if key in tensors else torch.zeros(shape)
    return state


def _main_dtype(tensors: Entries) -> torch.dtype:
    sizes = dict.fromkeys(FLOAT_DTYPES, 0)
    for tensor in tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def fuse(network: Network) -> Network:
    """The network with each block's two kernels fused, in float32."""
    if network.config.fused:
        return network
    return replace(
        network,
        config=replace(network.config, fused=True),
        state_dict=fuse_state_dict(float_weights(network)),
    )


def float_weights(network: Network) -> dict[str, Tensor]:
    """The network's tensors in float32; those that are float32 already are shared, not copied."""
    return {
        key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        for key, tensor in network.state_dict.items()
    }
