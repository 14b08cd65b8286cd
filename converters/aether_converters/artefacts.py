"""What a checkpoint becomes: formats, precisions, names, and who writes them."""

from __future__ import annotations

import io
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from torch import Tensor

from aether_converters.errors import ConversionError
from aether_converters.graphs.ncnn_graph import NcnnPair, build_ncnn
from aether_converters.int8.keeping import ENTRY, kept_weights, plan_text
from aether_converters.int8.plan import Target
from aether_converters.int8.planning import Int8Options, Quantised
from aether_converters.runtimes.ncnn import require_ncnn
from aether_converters.runtimes.upscaler import PRECISIONS, Format
from aether_converters.source import Source
from aether_converters.wanted import FloatPrecision, Precision, Shape, Wanted
from aether_spandrel.inference import build_network
from aether_spandrel.network import Network, float_weights

NAME_NOISE: Final = re.compile(
    r"^\d+x(?=[a-z])"
    r"|(?:^|[_\-. ])(?:\d+x|x\d+|fp16|fp32|bf16|fp64|float16|float32|fused|unfused"
    r"|int8(?:_cpu)?)(?=$|[_\-. ])",
    re.IGNORECASE,
)
"""Parts of a file's name that the artefact's own name states anew."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One file to write.

    Attributes:
        format: Of the file.
        precision: Of weights and arithmetic.
        target: Who will run it in int8; None in other precisions.
    """

    format: Format
    precision: Precision
    target: Target | None = None

    @property
    def label(self) -> str:
        """The precision within the file's name."""
        return "int8_cpu" if self.target == "cpu" else self.precision


def planned_files(source: Source, wanted: Wanted, folder: Path) -> dict[Path, Variant]:
    """Which files a conversion writes, in order.

    Raises:
        ConversionError: No format holds int8, or int8 options were given in vain.
    """
    _refuse_int8_in_vain(source, wanted)
    return {folder / file_name(source, variant, wanted): variant for variant in _variants(wanted)}


def _variants(wanted: Wanted) -> Iterator[Variant]:
    targets = (wanted.int8 or Int8Options()).targets
    for kind in wanted.to:
        for held in wanted.precision:
            if held != "int8":
                yield Variant(format=kind, precision=held)
            elif kind == "trt":
                yield Variant(format=kind, precision=held, target="tensorrt")
            elif kind in HOLD_INT8:
                yield from (Variant(format=kind, precision=held, target=t) for t in targets)


def _refuse_int8_in_vain(source: Source, wanted: Wanted) -> None:
    if "int8" in wanted.precision and not HOLD_INT8 & set(wanted.to):
        raise ConversionError(
            "none of the chosen formats holds int8",
            file=source.path,
            expected="onnx, trt or pth",
            found=", ".join(wanted.to),
            advice="add onnx to --to",
        )
    if wanted.int8 is not None and "int8" not in wanted.precision:
        raise ConversionError(
            "options for int8 were given, and no int8 file is to be written",
            file=source.path,
            found=f"--precision {','.join(wanted.precision)}",
            advice="add int8 to --precision, or leave the options away",
        )


def file_name(source: Source, variant: Variant, wanted: Wanted) -> str:
    """The artefact's name in the community's habit, such as `2x_name_fp16.onnx`."""
    stem = wanted.name or model_name(source.path) or "aether"
    shape, engine = wanted.shape, wanted.engine
    size = f"_{shape[2]}x{shape[3]}" if shape and variant.format in GRAPHS else ""
    ending = ENDINGS.get(variant.format, (f".{variant.format}",))[0]
    if engine and variant.format == "trt":
        ending = engine.ending
    return f"{source.network.config.scale}x_{stem}_{variant.label}{size}{ending}"


ENDINGS: Final[Mapping[Format, tuple[str, ...]]] = {"ncnn": (".param", ".bin")}
"""Of formats that are not called by their ending, or of which a model is several files."""


def files_of(target: Path, variant: Variant) -> tuple[Path, ...]:
    """All files that make up an artefact, `target` first."""
    return (target, *map(target.with_suffix, ENDINGS.get(variant.format, ())[1:]))


def model_name(path: Path) -> str:
    """What the file is called, without what the artefact's own name states anew."""
    stem = path.name.removesuffix(".safetensors.index.json")
    return NAME_NOISE.sub("", path.stem if stem == path.name else stem).strip("_-. ")


def describe_artefact(source: Source, precision: str) -> dict[str, object]:
    """What an artefact says about itself, in plain types; the same for the same source."""
    config = source.fused.config
    return {
        # A name may hold halves of characters, which no text in a file can.
        "model_name": model_name(source.path).encode("utf-8", "replace").decode(),
        "architecture": "AetherNet",
        "revision": source.network.revision.name,
        "scale": config.scale,
        "in_chans": config.in_chans,
        "out_chans": config.out_chans,
        "img_range": config.img_range,
        # Left out of a QAT network, it is zero in the file.
        **({"error_comp": 1.0} if source.network.revision.qat_drops_error_comp else {}),
        "precision": precision,
        "fused": True,
        "receptive_radius": config.receptive_radius,
        "arch_config": _arch_config(source.fused),
        "source_sha256": source.sha256,
        "aether_spandrel": version("aether-spandrel"),
        "torch": str(torch.__version__),
        **source.card.as_metadata(),
    }


def _arch_config(network: Network) -> dict[str, object]:
    """The arguments of the published constructor that make this network."""
    config = network.config
    values: dict[str, object] = {
        "in_chans": config.in_chans,
        "out_chans": config.out_chans,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "mlp_ratio": _mlp_ratio(config.ffn_dim, config.embed_dim),
        "drop_rate": 0.0,
        "drop": 0.0,
        "drop_path_rate": 0.0,
        "lk_kernel": config.lk_kernel,
        "sk_kernel": config.sk_kernel,
        "scale": config.scale,
        "img_range": config.img_range,
        "fused_init": network.revision.builds_fused,
        "use_channel_attn": config.channel_attn,
        "use_spatial_attn": config.spatial_attn,
        "norm_type": config.norm_type,
        # What differs from the revision's default is part of the weights.
        "res_scale": network.defaults.get("res_scale", 1.0),
    }
    names = network.revision.arguments
    if config.out_chans != config.in_chans and "out_chans" not in names:
        # No key tells of this argument; but only a constructor that has it makes such a network.
        names = (*names, "out_chans")
    return {name: values[name] for name in names}


def _mlp_ratio(ffn_dim: int, embed_dim: int) -> float:
    """The ratio of which `int(embed_dim * ratio)` is ffn_dim, as constructors compute it."""
    ratio = ffn_dim / embed_dim
    rounded_down = int(embed_dim * ratio) < ffn_dim
    return math.nextafter(ratio, math.inf) if rounded_down else ratio


def _as_text(metadata: Mapping[str, object]) -> dict[str, str]:
    """Metadata for formats that store text alone."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


def _stored_weights(source: Source, precision: str) -> dict[str, Tensor]:
    """The fused tensors in a precision.

    Raises:
        ConversionError: A weight overflows it.
    """
    stored: dict[str, Tensor] = {}
    for key, tensor in source.published.items():
        if not tensor.is_floating_point():
            stored[key] = tensor.contiguous()
            continue
        stored[key] = tensor.to(PRECISIONS[precision]).contiguous()
        if not bool(torch.isfinite(stored[key]).all()) and bool(torch.isfinite(tensor).all()):
            raise ConversionError(
                f"a weight overflows {precision}",
                file=source.path,
                key=key,
                expected=f"values of at most {torch.finfo(PRECISIONS[precision]).max:g}",
                found=f"{float(tensor.abs().max()):g}",
                advice="convert with --precision fp32",
            )
    return stored


def _torch_bytes(
    source: Source, precision: FloatPrecision, shape: Shape | None
) -> tuple[bytes, ...]:
    del shape  # a property of graphs alone
    buffer = io.BytesIO()
    torch.save(
        {
            "state_dict": _stored_weights(source, precision),
            "metadata": describe_artefact(source, precision),
        },
        buffer,
    )
    return (buffer.getvalue(),)


def _safetensors_bytes(
    source: Source, precision: FloatPrecision, shape: Shape | None
) -> tuple[bytes, ...]:
    del shape
    metadata = {"format": "pt", **_as_text(describe_artefact(source, precision))}
    content = safetensors.torch.save(_stored_weights(source, precision), metadata)
    return (_with_sorted_header(content),)


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header in order; the library shuffles it each time."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _onnx_bytes(
    source: Source, precision: FloatPrecision, shape: Shape | None
) -> tuple[bytes, ...]:
    from aether_converters.graphs.onnx_graph import build_onnx

    config = source.fused.config
    model = build_onnx(
        build_network(config, float_weights(source.fused)),
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        precision=precision,
        shape=shape,
        metadata=_as_text(describe_artefact(source, precision)),
    )
    return (model.SerializeToString(),)


def _ncnn_bytes(
    source: Source, precision: FloatPrecision, shape: Shape | None
) -> tuple[bytes, ...]:
    del shape
    pair = _ncnn_pair(source, half=precision == "fp16")
    return pair.param, pair.weights


def _ncnn_pair(source: Source, *, half: bool) -> NcnnPair:
    config = source.fused.config
    network = build_network(config, float_weights(source.fused))
    try:
        return build_ncnn(network, channels=config.in_chans, half=half)
    except ConversionError as error:
        raise error.in_file(source.path) from None


def _refuse_without_ncnn(source: Source) -> None:
    require_ncnn()
    _ncnn_pair(source, half=False)


REFUSALS: Final[Mapping[Format, Callable[[Source], None]]] = {"ncnn": _refuse_without_ncnn}
"""What raises, before anything is written, that a format cannot hold a network or be written."""


def kept_bytes(source: Source, quantised: Quantised) -> bytes:
    """A checkpoint of tuned weights with their plan, from which int8 files can be made again."""
    buffer = io.BytesIO()
    metadata = {**describe_artefact(source, "int8"), ENTRY: plan_text(quantised.plan)}
    torch.save({"state_dict": kept_weights(quantised.network), "metadata": metadata}, buffer)
    return buffer.getvalue()


def integer_graph_bytes(source: Source, quantised: Quantised, shape: Shape | None) -> bytes:
    """The ONNX graph in int8.

    Raises:
        ConversionError: TensorRT would not run it in int8 as it is written.
    """
    from aether_converters.graphs.onnx_graph import build_onnx
    from aether_converters.int8.check import first_finding
    from aether_converters.int8.graph import quantise

    config, plan = source.fused.config, quantised.plan
    metadata = {
        **describe_artefact(source, "int8"),
        "int8_target": plan.target,
        "int8_layers": list(plan.inputs),
        "int8_trained_layers": sorted(plan.trained),
    }
    model = build_onnx(
        quantised.network,
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        shape=shape,
        metadata=_as_text(metadata),
        layer_by_layer=True,
    )
    content = quantise(model, plan).SerializeToString()
    if plan.target == "tensorrt" and (finding := first_finding(content)):
        raise ConversionError(
            "the int8 file would not run in int8 as it is written",
            file=source.path,
            found=finding,
            advice="leave that layer out with --keep-float, and report it",
        )
    return content


Writer = Callable[[Source, FloatPrecision, Shape | None], tuple[bytes, ...]]

WRITERS: Final[Mapping[Format, Writer]] = {
    "pth": _torch_bytes,
    "safetensors": _safetensors_bytes,
    "onnx": _onnx_bytes,
    "ncnn": _ncnn_bytes,
}
"""How each format is written: the contents of its files, in the order of `ENDINGS`."""


GRAPHS: Final[frozenset[Format]] = frozenset({"onnx", "trt"})
"""Formats that are made from the ONNX graph, and may have a fixed size."""

HOLD_INT8: Final[frozenset[Format]] = frozenset({"onnx", "trt", "pth"})
"""Formats that hold int8; a `.pth` keeps what was tuned, to be converted again."""


def refuse_other_shape(source: Source, shape: Shape | None) -> None:
    """Raise ConversionError if a static shape does not fit the network."""
    channels = source.network.config.in_chans
    if shape is not None and (min(shape) < 1 or shape[1] != channels):
        raise ConversionError(
            "the shape does not fit the network",
            file=source.path,
            expected=f"Nx{channels}xHxW, each at least 1",
            found="x".join(map(str, shape)),
            advice=f"such as --shape 1x{channels}x720x1280",
        )
