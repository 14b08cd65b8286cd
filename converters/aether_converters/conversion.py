"""One checkpoint in, verified artefacts out."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, cast, get_args

import safetensors.torch
import torch
from torch import Tensor
from typing_extensions import Unpack

from aether_converters.atomic import complete_or_nothing, refuse_existing
from aether_converters.engine_files import write_engine
from aether_converters.errors import ConversionError, require
from aether_converters.exhibit import (
    MOST_SCENES,
    Exhibit,
    SceneViews,
    exhibit_of,
)
from aether_converters.macs import network_macs
from aether_converters.model_card import ModelCard, card_in
from aether_converters.proof import Pair, prove
from aether_converters.quantisation import TARGETS, QuantisationPlan, Target, simulate
from aether_converters.quantising import Int8Options, Quantised, quantise_network
from aether_converters.report_files import PAGE, refuse_other_report, write_report
from aether_converters.sample import PICTURE
from aether_converters.sensitivity import Cost
from aether_converters.tensorrt_backend import load_backend
from aether_converters.tensorrt_build import BuildProgress, EngineOptions
from aether_converters.upscalers import (
    FORMATS,
    PRECISIONS,
    Format,
    Upscaler,
    open_upscaler,
)
from aether_converters.verification import ArtefactReport, Reference, verify_artefact
from aether_core import AetherNet, build_network
from aether_spandrel.checkpoint import Checkpoint, read_checkpoint
from aether_spandrel.constants import Constants
from aether_spandrel.inspection import CheckpointInfo, describe_network
from aether_spandrel.network import Network, float_weights, fuse, read_network
from aether_spandrel.publishing import fused_state_dict

FloatPrecision = Literal["fp32", "fp16"]
Precision = Literal["fp32", "fp16", "int8"]
USUAL_PRECISIONS: Final[tuple[FloatPrecision, ...]] = get_args(FloatPrecision)
COUNTED_SIDE: Final = 256  # px, of the input for which a report states multiply-accumulates
CHECKED_SIDE: Final = 64  # px, of the input for which multiply-accumulates are counted
Shape = tuple[int, int, int, int]
Progress = Callable[[str], None]

NAME_NOISE: Final = re.compile(
    r"^\d+x(?=[a-z])"
    r"|(?:^|[_\-. ])(?:\d+x|x\d+|fp16|fp32|bf16|fp64|float16|float32|fused|unfused)(?=$|[_\-. ])",
    re.IGNORECASE,
)
"""Parts of a file's name that the artefact's own name states anew."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint that is converted.

    Attributes:
        path: The file.
        sha256: Of the file, in hexadecimal.
        checkpoint: As read.
        network: As inferred, in the form and dtype in which it is stored.
        card: Whose it is, as far as the file or its user says so.
    """

    path: Path
    sha256: str
    checkpoint: Checkpoint = field(repr=False)
    network: Network
    card: ModelCard = field(default_factory=ModelCard)

    @cached_property
    def fused(self) -> Network:
        """The network with fused kernels, everything else folded into its weights."""
        return fuse(self.network)

    @cached_property
    def published(self) -> Mapping[str, Tensor]:
        """The fused tensors in the layout of the network's own revision."""
        return fused_state_dict(self.network)

    @cached_property
    def info(self) -> CheckpointInfo:
        """Facts about the file."""
        return describe_network(self.checkpoint, self.network)

    @cached_property
    def effort(self) -> Effort:
        """What the fused network has to compute."""
        config = self.fused.config
        size = (COUNTED_SIDE, COUNTED_SIDE)
        return Effort(
            macs=network_macs(config, size),
            size=size,
            receptive_radius=config.receptive_radius,
            global_context=config.global_context,
        )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a network has to compute.

    Attributes:
        macs: Multiply-accumulates for an input of `size`.
        size: (H, W) in px.
        receptive_radius: Input px in each direction that an output pixel can depend on.
        global_context: Whether it depends on the whole picture beyond that.
    """

    macs: int
    size: tuple[int, int]
    receptive_radius: int
    global_context: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion or verification found: the source, and each artefact.

    An artefact that could not be run where it was made has neither passed nor failed.

    Attributes:
        kind: Whether the artefacts were made, or only compared.
        source: The checkpoint.
        source_sha256: Of its file, in hexadecimal.
        card: Whose it is, as far as anybody said so.
        effort: What it has to compute.
        artefacts: What was measured of each.
        scenes: What the source makes of the parts of pictures that a report shows.
        costs: By int8 target, what each layer costs, where that was asked for.
    """

    kind: Literal["conversion", "verification"]
    source: CheckpointInfo
    source_sha256: str
    card: ModelCard
    effort: Effort
    artefacts: tuple[ArtefactReport, ...]
    scenes: tuple[SceneViews, ...] = ()
    costs: Mapping[str, tuple[Cost, ...]] = field(default_factory=dict[str, tuple[Cost, ...]])

    @property
    def passed(self) -> bool:
        """Whether every artefact equals its source within its limit."""
        return all(artefact.passed for artefact in self.artefacts)

    @property
    def failed(self) -> bool:
        """Whether an artefact differs from its source by more than its limit."""
        return any(artefact.problem for artefact in self.artefacts)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON-ready values."""
        return {
            "kind": self.kind,
            "passed": self.passed,
            "source": {**self.source.as_dict(), "sha256": self.source_sha256},
            "card": self.card.as_dict(),
            "effort": asdict(self.effort),
            "scenes": [scene.as_dict() for scene in self.scenes],
            "artefacts": [artefact.as_dict() for artefact in self.artefacts],
            "sensitivity": {
                target: [cost.as_dict() for cost in costs] for target, costs in self.costs.items()
            },
        }


def _silent(_step: str) -> None:
    pass


def read_source(path: str | Path, **constants: Unpack[Constants]) -> Source:
    """Read a checkpoint to be converted or compared with; constants as for `load`.

    Raises:
        CheckpointError: The file cannot be read or is no AetherNet.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return Source(
        path=path,
        sha256=digest.hexdigest(),
        checkpoint=checkpoint,
        network=read_network(checkpoint, **constants),
        card=card_in(checkpoint.metadata),
    )


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    to: Sequence[Format] = FORMATS,
    precision: Sequence[Precision] = USUAL_PRECISIONS,
    shape: Shape | None = None,
    name: str | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
    int8: Int8Options | None = None,
    engine: EngineOptions | None = None,
    build_progress: BuildProgress | None = None,
    report: bool = False,
    pictures: Sequence[str | Path] = (),
    card: ModelCard | None = None,
    **constants: Unpack[Constants],
) -> Report:
    """Convert a checkpoint to fused artefacts, each compared with the source before it appears.

    An artefact that differs from its source by more than its limit is not kept; the report says
    so, and the others are not affected.

    Args:
        source: A `.pth`, `.pt`, `.ckpt` or `.safetensors` checkpoint.
        out: Folder of the artefacts, made if it is missing; by default that of the source.
        to: Formats to write.
        precision: Precisions in which each is written; int8 where the format can hold it.
        shape: (N, C, H, W) of a static ONNX graph; None for dynamic batch, height and width.
        name: The model's name within the file names; by default taken from the source's.
        force: Replace files that exist. The source itself is never replaced.
        strict: Refuse a source about which there is any doubt; see `CheckpointInfo.warnings`.
        progress: Called with a few words before each step.
        int8: How the network becomes int8, if `precision` names it.
        engine: What a TensorRT engine is to be, if `to` names `trt`.
        build_progress: Called while an engine is built; see `build_plan`.
        report: Write `report.html` and `report.json` into `out` too, with parts of pictures and
            speed. A report is replaced by a newer one.
        pictures: Picture files and folders that the report shows; by default a bundled one.
        card: Whose the model is; what it leaves open is taken from the source's metadata.
        **constants: Values that no tensor carries, such as `res_scale=0.15`; see
            `aether_spandrel.load`. They become part of the weights.

    Returns:
        The figures of every artefact.

    Raises:
        CheckpointError: The source cannot be read, is no AetherNet, or is doubtful and `strict`
            is set.
        ConversionError: A target exists, the options do not fit the network, or a file cannot be
            written.
        EngineError: TensorRT cannot be used here, or refuses the model.
        MissingExtraError: A format needs a package that is not installed.
    """
    say = progress or _silent
    say("reading the checkpoint")
    origin = read_source(source, **constants)
    origin = replace(origin, card=(card or ModelCard()).or_else(origin.card))
    if strict:
        origin.info.refuse_doubts()
    if engine is not None and "trt" not in to:
        raise ConversionError(
            "options for TensorRT engines were given, and no engine is to be written",
            found=f"--to {','.join(to)}",
            advice="add trt to --to, or leave the options away",
        )
    engine = _chosen_engine(engine) if "trt" in to else None
    folder = Path(out) if out is not None else origin.path.parent
    variants = _variants(origin, to, precision, int8)
    int8 = int8 or Int8Options()
    targets: dict[Path, Variant] = {
        folder / file_name(origin, v.format, v.label, shape=shape, name=name, engine=engine): v
        for v in variants
    }
    for target in targets:
        if target.exists() and target.samefile(origin.path):
            raise ConversionError(
                "the artefact would replace its own source",
                file=target,
                advice="choose another folder with --out, or another --name",
            )
        refuse_existing(target, force=force)
    if report:
        refuse_other_report(folder, force=force)
    if "onnx" in to or engine is not None:
        require("onnx")
        require("onnxruntime")
    _check_shape(origin, shape)
    exhibit = _exhibit(origin, _shown_pairs(origin, pictures)) if report else None
    say("running the source network")
    reference = Reference(origin.network, path=origin.path, exhibit=exhibit)

    @functools.cache
    def quantised(runner: Target) -> Quantised:
        return quantise_network(origin.network, runner, int8, say)

    @functools.cache
    def graph(precision: Precision, runner: Target | None) -> bytes:
        if runner is not None:
            return _integer_bytes(origin, quantised(runner), shape)
        return WRITERS["onnx"](origin, cast(FloatPrecision, precision), shape)

    @functools.cache
    def compared_with(runner: Target | None) -> Reference:
        if runner is None:
            return reference
        made = quantised(runner)
        return _as_trained(origin, made.network, made.plan, exhibit) or reference

    artefacts: list[ArtefactReport] = []
    for target, variant in targets.items():
        say(target.name)
        if variant.format in GRAPHS:
            content = graph(variant.precision, variant.target)
        else:
            held = cast(FloatPrecision, variant.precision)
            content = WRITERS[variant.format](origin, held, shape)
        if engine is not None and variant.format == "trt":
            written = write_engine(
                content,
                target,
                engine,
                compared_with(variant.target),
                precision=variant.precision,
                force=force,
                progress=build_progress,
            )
        else:
            source_of = compared_with(variant.target)
            written = _write(content, source_of, target, variant.format, force=force)
        if variant.target is not None:
            made = quantised(variant.target)
            written = _with_quantisation(written, variant.target, made)
        artefacts.append(written)
    runners = dict.fromkeys(v.target for v in variants if v.target is not None)
    found = Report(
        kind="conversion",
        source=origin.info,
        source_sha256=origin.sha256,
        card=origin.card,
        effort=origin.effort,
        artefacts=tuple(artefacts),
        scenes=reference.scene_views,
        costs={runner: costs for runner in runners if (costs := quantised(runner).costs)},
    )
    if report:
        say(PAGE)
        write_report(found, folder, force=force)
    return found


def _exhibit(source: Source, pairs: Sequence[Pair]) -> Exhibit:
    effort = source.effort
    pixels = effort.size[0] * effort.size[1]
    return exhibit_of(pairs, source.network.config.scale, effort.macs / pixels)


def _shown_pairs(source: Source, pictures: Sequence[str | Path]) -> list[Pair]:
    """What a report shows; nothing of a network that maps no pictures to pictures."""
    from aether_converters.upscaling import PICTURE_CHANNELS, comparison_pairs

    config = source.network.config
    channels = (config.in_chans, config.out_chans)
    if channels not in PICTURE_CHANNELS:
        return []
    return comparison_pairs(
        pictures or [PICTURE], None, channels=channels, scale=config.scale, most=MOST_SCENES
    )


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


def _variants(
    source: Source,
    formats: Sequence[Format],
    precisions: Sequence[Precision],
    int8: Int8Options | None,
) -> list[Variant]:
    """Which files are written, in order.

    Raises:
        ConversionError: No format holds int8, or int8 options were given in vain.
    """
    if "int8" in precisions and not GRAPHS & set(formats):
        raise ConversionError(
            "none of the chosen formats holds int8",
            file=source.path,
            expected="onnx or trt",
            found=", ".join(formats),
            advice="add onnx to --to",
        )
    if int8 is not None and "int8" not in precisions:
        raise ConversionError(
            "options for int8 were given, and no int8 file is to be written",
            file=source.path,
            found=f"--precision {','.join(precisions)}",
            advice="add int8 to --precision, or leave the options away",
        )
    targets = (int8 or Int8Options()).targets
    found: list[Variant] = []
    for kind in formats:
        for held in precisions:
            if held != "int8":
                found.append(Variant(format=kind, precision=held))
            elif kind == "trt":
                found.append(Variant(format=kind, precision=held, target="tensorrt"))
            elif kind in GRAPHS:
                found += [Variant(format=kind, precision=held, target=t) for t in targets]
    return found


def _with_quantisation(
    report: ArtefactReport, target: Target, quantised: Quantised
) -> ArtefactReport:
    """The report with what is in int8, and whence the ranges come."""
    facts: dict[str, int | str] = {
        "int8_target": target,
        "int8_layers": len(quantised.plan.inputs),
        "int8_share": f"{quantised.share:.1%} of the multiply-accumulates",
        "ranges": "; ".join(quantised.notes),
    }
    return replace(report, details={**report.details, **facts})


def _first_finding(content: bytes) -> str:
    """What TensorRT would not run in int8 as it is written, in words; empty if it runs all."""
    import onnx

    from aether_converters.quantisation_check import tensorrt_findings

    findings = tensorrt_findings(onnx.load_from_string(content))
    for finding in findings:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        return f"TensorRT: {finding.node}: {finding.text} ({finding.verdict}){more}"
    return ""


def _checked_integers(upscaler: Upscaler) -> dict[str, int | str]:
    """What of an int8 ONNX file runs in int8, with TensorRT and with onnxruntime on this CPU."""
    import onnx

    from aether_converters.quantisation_check import cpu_integer_share, integer_share

    content = upscaler.path.read_bytes()
    height, width = upscaler.fixed_size or (CHECKED_SIDE, CHECKED_SIDE)
    shape = (1, upscaler.channels[0], height, width)
    shares = {
        "int8_share_tensorrt": integer_share(onnx.load_from_string(content), shape),
        "int8_share_cpu": cpu_integer_share(upscaler.path, shape),
    }
    return {
        **{name: "unknown" if share is None else f"{share:.1%}" for name, share in shares.items()},
        "tensorrt": _first_finding(content) or "takes every int8 layer as it is",
    }


def _chosen_engine(options: EngineOptions | None) -> EngineOptions:
    """The options with the TensorRT that is there, found before anything else takes time.

    Raises:
        MissingExtraError: There is none.
        EngineError: It cannot work here.
    """
    options = options or EngineOptions()
    return replace(options, backend=load_backend(options.backend).name)


def _write(
    content: bytes, reference: Reference, target: Path, kind: Format, *, force: bool
) -> ArtefactReport:
    with complete_or_nothing(target, force=force) as partial:
        partial.path.write_bytes(content)
        report = verify_artefact(open_upscaler(partial.path, format=kind), reference)
        if not report.passed:
            partial.discard()
    return replace(report, path=target)


def verify(
    source: str | Path,
    artefacts: Sequence[str | Path],
    *,
    pictures: Sequence[str | Path] = (),
    originals: str | Path | None = None,
    differences: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **constants: Unpack[Constants],
) -> Report:
    """Compare artefacts with the checkpoint they were made from.

    Args:
        source: The checkpoint.
        artefacts: `.pth`, `.safetensors`, `.onnx` or `.engine` files, ours or other people's.
        pictures: Picture files and folders to compare on, beside the built-in pictures.
        originals: Folder with what the pictures should become, under the same names.
        differences: Folder for a picture of each difference, amplified.
        report: Folder for `report.html` and `report.json`, with parts of the pictures and speed.
        progress: Called with a few words before each step.
        **constants: Values that no tensor of the checkpoint carries; see `aether_spandrel.load`.

    Returns:
        The figures of every artefact; `passed` says whether all are within their limits.

    Raises:
        CheckpointError: A checkpoint cannot be read or is no AetherNet.
        ModelError: An ONNX file cannot be run.
        ConversionError: The source gives no picture, or an artefact or original has another size.
        ImageError: A picture cannot be read, or has no original.
        MissingExtraError: The runtime of a format is not installed.
    """
    say = progress or _silent
    say("running the source network")
    origin = read_source(source, **constants)
    pairs: list[Pair] = []
    if pictures:
        for module in ("PIL", "tifffile", "imagecodecs"):
            require(module)
        from aether_converters.upscaling import comparison_pairs

        config = origin.network.config
        pairs = comparison_pairs(
            pictures, originals, channels=(config.in_chans, config.out_chans), scale=config.scale
        )
    elif originals is not None or differences is not None:
        raise ConversionError(
            "there are no pictures to compare on", advice="name them with --pictures"
        )
    exhibit = None
    if report is not None:
        refuse_other_report(Path(report), force=False)
        exhibit = _exhibit(origin, pairs or _shown_pairs(origin, ()))
    reference = Reference(
        origin.network, [pair.image for pair in pairs], path=origin.path, exhibit=exhibit
    )
    expected = [reference.run(pair.image) for pair in pairs]
    artefact_reports: list[ArtefactReport] = []
    for artefact in map(Path, artefacts):
        say(artefact.name)
        upscaler = open_upscaler(artefact)
        figures = verify_artefact(upscaler, _trained_for(upscaler, origin, exhibit) or reference)
        if upscaler.format == "onnx" and upscaler.precision == "int8":
            figures = replace(figures, details={**figures.details, **_checked_integers(upscaler)})
        if upscaler.fixed_size is None and not figures.not_run:
            places = _difference_places(differences, artefact)
            figures = replace(figures, pictures=prove(upscaler.run, pairs, expected, places))
        artefact_reports.append(figures)
    found = Report(
        kind="verification",
        source=origin.info,
        source_sha256=origin.sha256,
        card=origin.card,
        effort=origin.effort,
        artefacts=tuple(artefact_reports),
        scenes=reference.scene_views,
    )
    if report is not None:
        write_report(found, Path(report), force=False)
    return found


def _trained_for(upscaler: Upscaler, origin: Source, exhibit: Exhibit | None) -> Reference | None:
    """What an int8 file of ours with the ranges of its training is compared with, as on writing."""
    if upscaler.format != "onnx" or upscaler.precision != "int8":
        return None
    import onnx

    model = onnx.load(str(upscaler.path), load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props}
    target: Target | None = next((t for t in TARGETS if t == said.get("int8_target")), None)
    layers = set(re.findall(r"[\w.]+", said.get("int8_layers", "")))
    if target is None or not origin.network.ranges.usable or not layers:
        return None
    made = quantise_network(origin.network, target, Int8Options(everything=True))
    return _as_trained(origin, made.network, made.plan.only(layers), exhibit)


def _as_trained(
    origin: Source, network: AetherNet, plan: QuantisationPlan, exhibit: Exhibit | None
) -> Reference | None:
    """A network that was trained for int8 is what it is with its rounding; None if it was not."""
    if not plan.trained:
        return None
    model = simulate(network, plan)
    return Reference(origin.network, path=origin.path, model=model, exhibit=exhibit)


def _difference_places(folder: str | Path | None, artefact: Path) -> Callable[[str], Path] | None:
    """Where an artefact's difference pictures go, by the picture's name."""
    if folder is None:
        return None
    return lambda name: Path(folder) / f"{artefact.stem}_{name}_difference.png"


def file_name(
    source: Source,
    kind: Format,
    precision: str,
    *,
    shape: Shape | None = None,
    name: str | None = None,
    engine: EngineOptions | None = None,
) -> str:
    """The artefact's name in the community's habit, such as `2x_name_fp16.onnx`."""
    stem = name or model_name(source.path) or "aether"
    size = f"_{shape[2]}x{shape[3]}" if shape and kind in GRAPHS else ""
    ending = engine.ending if engine and kind == "trt" else f".{kind}"
    return f"{source.network.config.scale}x_{stem}_{precision}{size}{ending}"


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
        "mlp_ratio": config.ffn_dim / config.embed_dim,
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
    return {name: values[name] for name in network.revision.arguments}


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


def _torch_bytes(source: Source, precision: FloatPrecision, shape: Shape | None) -> bytes:
    del shape  # a property of graphs alone
    buffer = io.BytesIO()
    torch.save(
        {
            "state_dict": _stored_weights(source, precision),
            "metadata": describe_artefact(source, precision),
        },
        buffer,
    )
    return buffer.getvalue()


def _safetensors_bytes(source: Source, precision: FloatPrecision, shape: Shape | None) -> bytes:
    del shape
    metadata = {"format": "pt", **_as_text(describe_artefact(source, precision))}
    return _with_sorted_header(safetensors.torch.save(_stored_weights(source, precision), metadata))


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header in order; the library shuffles it each time."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _onnx_bytes(source: Source, precision: FloatPrecision, shape: Shape | None) -> bytes:
    from aether_converters.onnx_graph import build_onnx

    config = source.fused.config
    model = build_onnx(
        build_network(config, float_weights(source.fused)),
        channels=(config.in_chans, config.out_chans),
        scale=config.scale,
        precision=precision,
        shape=shape,
        metadata=_as_text(describe_artefact(source, precision)),
    )
    return model.SerializeToString()


def _integer_bytes(source: Source, quantised: Quantised, shape: Shape | None) -> bytes:
    from aether_converters.integer_graph import quantise
    from aether_converters.onnx_graph import build_onnx

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
    if plan.target == "tensorrt" and (finding := _first_finding(content)):
        raise ConversionError(
            "the int8 file would not run in int8 as it is written",
            file=source.path,
            found=finding,
            advice="leave that layer out with --keep-float, and report it",
        )
    return content


WRITERS: Final[Mapping[Format, Callable[[Source, FloatPrecision, Shape | None], bytes]]] = {
    "pth": _torch_bytes,
    "safetensors": _safetensors_bytes,
    "onnx": _onnx_bytes,
}
"""How each format is written."""


GRAPHS: Final[frozenset[Format]] = frozenset({"onnx", "trt"})
"""Formats that are made from the ONNX graph, and may have a fixed size."""


def _check_shape(source: Source, shape: Shape | None) -> None:
    channels = source.network.config.in_chans
    if shape is not None and (min(shape) < 1 or shape[1] != channels):
        raise ConversionError(
            "the shape does not fit the network",
            file=source.path,
            expected=f"Nx{channels}xHxW, each at least 1",
            found="x".join(map(str, shape)),
            advice=f"such as --shape 1x{channels}x720x1280",
        )
