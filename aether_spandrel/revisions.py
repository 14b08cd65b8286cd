"""From a state dict to the configuration of its network, by keys and shapes alone.

`REVISIONS` has one row for each published revision that is read; the code below reads the row's
fields and never asks for its name. Section numbers refer to the reference of published revisions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from aether_core import PRESETS, SCALES, AetherConfig, AetherNet, fuse_state_dict, is_fused
from aether_spandrel.checkpoint import FLOAT_DTYPES, Checkpoint
from aether_spandrel.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Revision:
    """How one published revision is recognised and where it keeps what differs.

    Attributes:
        name: Our name of it.
        markers: Keys of which each must be present; no other architecture has them all.
        stages: Prefix of the stages; blocks are `{stages}.{i}.{j}`.
        gate: The block's key whose shape is (ffn_dim, embed_dim, ...).
        ignored: Keys without effect on inference, dropped while reading.
        img_range: Default that no tensor carries.
    """

    name: str
    markers: tuple[str, ...]
    stages: str
    gate: str
    ignored: re.Pattern[str]
    img_range: float


REVISIONS: Final = (
    Revision(
        name="G1",
        markers=("conv_first.weight", "layers.0.0.ffn.fc1_gate.weight", "conv_last.weight"),
        stages="layers",
        gate="ffn.fc1_gate.weight",
        ignored=re.compile(r"(^|\.)(quant|dequant|quant_mul|quant_add)\.(scale|zero_point)$"),
        img_range=1.0,
    ),
)
"""The revisions that are read, in detection order."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as read: which revision, which configuration, its tensors under canonical keys.

    Attributes:
        revision: The row of `REVISIONS` that matched.
        config: The configuration inferred.
        state_dict: Canonical key to tensor, in the stored dtype.
        dtype: The floating-point dtype in which most weights are stored.
        assumed: Value by name for each constant that no tensor and no metadata gave.
    """

    revision: Revision
    config: AetherConfig
    state_dict: Mapping[str, Tensor] = field(repr=False)
    dtype: torch.dtype
    assumed: Mapping[str, str]

    @property
    def preset(self) -> str | None:
        """The published size that this configuration is, or None."""
        sizes = ("embed_dim", "depths", "ffn_dim", "lk_kernel")
        for name, preset in PRESETS.items():
            if all(getattr(preset, size) == getattr(self.config, size) for size in sizes):
                return name
        return None


def find_revision(state_dict: Mapping[str, object]) -> Revision | None:
    """The revision whose keys these are, or None if they are no AetherNet's; never raises."""
    for revision in REVISIONS:
        if all(isinstance(state_dict.get(key), Tensor) for key in revision.markers):
            return revision
    return None


def read_network(checkpoint: Checkpoint) -> Network:
    """Infer the configuration of a checkpoint and check every key and shape against it.

    `img_range` is folded into the first and the last convolution, so that it is 1 afterwards and
    no file needs to carry it: conv_first sees (x - mean) * r, and y / r leaves conv_last.

    Raises:
        CheckpointError: The checkpoint is no AetherNet of a known revision, or its tensors do
            not form one network; key, expected and found are named.
    """
    try:
        return _read_network(checkpoint)
    except CheckpointError as error:
        if checkpoint.path is None:
            raise
        raise error.in_file(checkpoint.path) from None


def _read_network(checkpoint: Checkpoint) -> Network:
    revision = find_revision(checkpoint.state_dict)
    if revision is None:
        raise CheckpointError(
            "this is not an AetherNet checkpoint of a known revision",
            expected=" or ".join(", ".join(row.markers) for row in REVISIONS),
            found=", ".join(list(checkpoint.state_dict)[:4]) + " ...",
            advice="if another program loads it, it is another architecture",
        )
    tensors = {
        key: tensor
        for key, tensor in checkpoint.state_dict.items()
        if not revision.ignored.search(key)
    }
    config = _infer_config(revision, tensors)
    _check_tensors(config, tensors)
    img_range, assumed = _img_range(revision, checkpoint.metadata)
    return Network(
        revision=revision,
        config=config,
        state_dict=_fold_img_range(tensors, img_range),
        dtype=_main_dtype(tensors),
        assumed=assumed,
    )


def _infer_config(revision: Revision, tensors: Mapping[str, Tensor]) -> AetherConfig:
    embed_dim, in_chans = _shape(tensors, "conv_first.weight", 4)[:2]
    first = f"{revision.stages}.0.0"
    ffn_dim = _shape(tensors, f"{first}.{revision.gate}")[0]
    fused = is_fused(tensors)
    kernel = "fused_conv" if fused else "lk_conv"
    lk_kernel = _shape(tensors, f"{first}.conv.{kernel}.weight", 4)[-1]
    sk_kernel = lk_kernel if fused else _shape(tensors, f"{first}.conv.sk_conv.weight", 4)[-1]
    try:
        return AetherConfig(
            in_chans=in_chans,
            embed_dim=embed_dim,
            depths=_infer_depths(tensors, revision.stages),
            ffn_dim=ffn_dim,
            lk_kernel=lk_kernel,
            # A fused file has lost the small kernel's size, which no longer matters.
            sk_kernel=min(3, lk_kernel) if fused else sk_kernel,
            scale=infer_scale(tensors),
            fused=fused,
        )
    except ValueError as error:
        raise CheckpointError(
            f"the tensors' shapes describe no AetherNet: {error}",
            advice="the file is damaged or of an unknown revision",
        ) from None


def _infer_depths(tensors: Mapping[str, Tensor], stages: str) -> tuple[int, ...]:
    pattern = re.compile(rf"{re.escape(stages)}\.(\d{{1,4}})\.(\d{{1,4}})\.")
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
            key=f"{stages}.{stray[0][0]}.{stray[0][1]}",
            expected=f"blocks numbered without gaps, here depths {tuple(depths)}",
            found="a block beyond them",
            advice="the file is incomplete: save it again",
        )
    return tuple(depths)


def infer_scale(tensors: Mapping[str, Tensor]) -> int:
    """Upscaling factor from the upsampler's convolutions (section 2.3).

    None means 1, one means 2 or 3 by its widening, n >= 2 mean 2**n.

    Raises:
        CheckpointError: The widening is one that no supported scale has.
    """
    convolutions = [
        key for key in tensors if key.startswith("upsample.") and key.endswith(".weight")
    ]
    factors: list[int] = []
    for key in convolutions:
        widened, width = _shape(tensors, key, 4)[:2]
        factors.append({4: 2, 9: 3}.get(widened // width, 0) if widened % width == 0 else 0)
    for scale, steps in SCALES.items():
        if steps == tuple(factors):
            return scale
    raise CheckpointError(
        "the upsampler belongs to no supported scale",
        key=", ".join(convolutions),
        expected=f"the convolutions of one of the scales {tuple(SCALES)}",
        found=", ".join(str(tuple(tensors[key].shape)) for key in convolutions),
        advice="the file mixes two networks or is damaged",
    )


def _check_tensors(config: AetherConfig, tensors: Mapping[str, Tensor]) -> None:
    """Compare every key and shape with those of the network that the configuration describes."""
    with torch.device("meta"):
        expected = AetherNet(config).state_dict()
    for key, wanted in expected.items():
        if key not in tensors:
            raise CheckpointError(
                "a tensor is missing",
                key=key,
                expected=f"shape {tuple(wanted.shape)}",
                found="nothing",
                advice="the file is incomplete: save it again",
            )
        if tensors[key].shape != wanted.shape:
            raise CheckpointError(
                "a tensor does not fit the others",
                key=key,
                expected=f"shape {tuple(wanted.shape)}, for embed_dim {config.embed_dim}, "
                f"ffn_dim {config.ffn_dim} and kernel {config.lk_kernel}",
                found=f"shape {tuple(tensors[key].shape)}",
                advice="the file mixes two networks: save it again from one training run",
            )
        if tensors[key].dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                "a tensor is not floating point",
                key=key,
                expected=", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES),
                found=str(tensors[key].dtype).removeprefix("torch."),
                advice="use the float checkpoint of the same training",
            )
    if stray := [key for key in tensors if key not in expected]:
        raise CheckpointError(
            "the file holds a tensor that no AetherNet of this configuration has",
            key=stray[0],
            found=f"{len(stray)} such keys",
            advice="the network was altered, or the file mixes two networks",
        )


def _shape(tensors: Mapping[str, Tensor], key: str, dims: int | None = None) -> tuple[int, ...]:
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


def _img_range(revision: Revision, metadata: Mapping[str, object]) -> tuple[float, dict[str, str]]:
    arch_config = metadata.get("arch_config")
    value: object = None
    if isinstance(arch_config, Mapping):
        value = arch_config.get("img_range")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if value is None:
        value = metadata.get("img_range")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e6:
        return float(value), {}
    return revision.img_range, {
        "img_range": f"{revision.img_range:g}, the default of {revision.name}: "
        "no tensor carries it and the file's metadata do not name it"
    }


def _fold_img_range(tensors: Mapping[str, Tensor], img_range: float) -> dict[str, Tensor]:
    folded = dict(tensors)
    if img_range != 1.0:
        folded["conv_first.weight"] = tensors["conv_first.weight"] * img_range
        folded["conv_last.weight"] = tensors["conv_last.weight"] / img_range
        folded["conv_last.bias"] = tensors["conv_last.bias"] / img_range
    return folded


def _main_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    sizes = dict.fromkeys(FLOAT_DTYPES, 0)
    for tensor in tensors.values():
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
    return {key: tensor.to(torch.float32) for key, tensor in network.state_dict.items()}
