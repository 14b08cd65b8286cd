"""One checkpoint in, verified artefacts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from typing_extensions import Unpack

from aether_converters.artefacts import (
    GRAPHS,
    REFUSALS,
    WRITERS,
    Variant,
    files_of,
    integer_graph_bytes,
    kept_bytes,
    planned_files,
    refuse_other_shape,
)
from aether_converters.atomic import (
    all_complete_or_none,
    identities,
    refuse_existing,
    refuse_input,
)
from aether_converters.card import ModelCard
from aether_converters.engines import EngineRequest, write_engine
from aether_converters.errors import ConversionError, ModelError, require
from aether_converters.int8.plan import Target
from aether_converters.int8.planning import Int8Options, Quantised, quantise_network
from aether_converters.int8.trained import as_trained
from aether_converters.int8.tuning import untold
from aether_converters.measuring.effort import effort_of
from aether_converters.measuring.exhibit import RUNTIMES, exhibit_for, shown_pairs
from aether_converters.measuring.figures import ArtefactReport
from aether_converters.measuring.speed import with_speeds
from aether_converters.measuring.verification import Reference, verify_artefact
from aether_converters.reports.files import PAGE, refuse_other_report, write_report
from aether_converters.reports.report import Report
from aether_converters.runtimes.memory import refuse_beyond_memory
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.pytorch import activation_bytes
from aether_converters.source import Source, read_source
from aether_converters.tensorrt.backend import load_backend
from aether_converters.tensorrt.build import BuildProgress, EngineOptions
from aether_converters.tensorrt.sidecar import sidecar_path
from aether_converters.wanted import (
    Choices,
    FloatPrecision,
    Precision,
    Progress,
    Wanted,
    silent,
)

if TYPE_CHECKING:
    from aether_converters.measuring.evaluation import Evaluation


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    build_progress: BuildProgress | None = None,
    **choices: Unpack[Choices],
) -> Report:
    """Convert a checkpoint to fused artefacts, each compared with the source before it appears.

    An artefact that differs from its source by more than its limit is not kept; the report says
    so, and the others are not affected.

    Args:
        source: A `.pth`, `.pt`, `.ckpt` or `.safetensors` checkpoint.
        out: Folder of the artefacts, made if it is missing; by default that of the source.
        progress: Called with a few words before each step.
        build_progress: Called while an engine is built; see `build_plan`.
        **choices: What is to be made, by name: `to=["onnx"]`, `precision=["fp16"]`, `shape`,
            `opset`, `name`, `force`, `strict`, `int8`, `engine`, `report`, `pictures`, `originals`,
            `kept`, `card`, each as `Wanted` describes it; and values that no tensor carries, such
            as `res_scale=0.15`, which become part of the weights; see `aether_spandrel.load`.

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
    say, wanted = progress or silent, Wanted.of(choices)
    say("reading the checkpoint")
    origin = _source(source, wanted)
    wanted = replace(wanted, engine=_chosen_engine(wanted))
    folder = Path(out) if out is not None else origin.path.parent
    targets = planned_files(origin, wanted, folder)
    _refuse_in_advance(origin, wanted, targets, folder)
    pairs = shown_pairs(origin.network.config, wanted.pictures) if wanted.report else []
    exhibit = exhibit_for(origin.network.config, pairs) if wanted.report else None
    say("running the source network")
    workshop = _Workshop(
        origin=origin,
        wanted=wanted,
        reference=Reference(origin.network, path=origin.path, exhibit=exhibit),
        say=say,
        build_progress=build_progress,
    )
    artefacts = tuple(workshop.make(target, variant) for target, variant in targets.items())
    if exhibit is not None:
        say("measuring speed")
        artefacts = with_speeds(artefacts, exhibit.timed_size)
    runners = dict.fromkeys(v.target for v in targets.values() if v.target is not None)
    found = Report(
        kind="conversion",
        source=origin.info,
        source_sha256=origin.sha256,
        card=origin.card,
        effort=effort_of(origin.fused.config),
        artefacts=artefacts,
        scenes=workshop.reference.scene_views,
        evaluations=_evaluations(artefacts, wanted, say),
        costs={runner: costs for runner in runners if (costs := workshop.quantised(runner).costs)},
    )
    if wanted.report:
        say(PAGE)
        write_report(found, folder, force=wanted.force)
    return found


def _evaluations(
    artefacts: Sequence[ArtefactReport], wanted: Wanted, say: Progress
) -> tuple[Evaluation, ...]:
    """How near the artefacts come to originals; of those that run the same weights alike, one does.

    Raises:
        AetherError: A picture cannot be read, or a file cannot be run.
    """
    if not wanted.originals:
        return ()
    from aether_converters.measuring.evaluation import Comparing, evaluate

    different: dict[tuple[object, ...], Path] = {}
    for artefact in artefacts:
        if artefact.passed:
            alike = (RUNTIMES[artefact.format], artefact.precision, artefact.details.get(INT8_FOR))
            different.setdefault(alike, artefact.path)
    found: list[Evaluation] = []
    for folder in map(Path, wanted.originals if different else ()):
        say(f"evaluating on {folder.name}")
        kept = None if wanted.kept is None else Path(wanted.kept)
        evaluation = evaluate(list(different.values()), Comparing(originals=folder), kept=kept)
        if evaluation.faults:
            raise evaluation.faults[0]
        found.append(evaluation)
    return tuple(found)


INT8_FOR: Final = "int8_target"
"""The detail of an artefact in int8 that says who is to run it."""


def _source(path: str | Path, wanted: Wanted) -> Source:
    """The checkpoint with all that is said of it, refused if it is doubtful and must not be."""
    origin = read_source(path, **wanted.constants)
    origin = replace(origin, card=(wanted.card or ModelCard()).or_else(origin.card))
    if wanted.strict:
        origin.info.refuse_doubts()
    return origin


def _chosen_engine(wanted: Wanted) -> EngineOptions | None:
    """The options with the TensorRT that is there, found before anything else takes time.

    Raises:
        ConversionError: There are options, and no engine is to be written.
        MissingExtraError: There is no TensorRT.
        EngineError: It cannot work here.
    """
    if "trt" in wanted.to:
        options = wanted.engine or EngineOptions()
        return replace(options, backend=load_backend(options.backend).name)
    if wanted.engine is not None:
        raise ConversionError(
            "options for TensorRT engines were given, and no engine is to be written",
            found=f"--to {','.join(wanted.to)}",
            advice="add trt to --to, or leave the options away",
        )
    return None


def _refuse_in_advance(
    origin: Source, wanted: Wanted, targets: dict[Path, Variant], folder: Path
) -> None:
    """Raise what can be known before anything is computed."""
    inputs = identities((*origin.files, *wanted.reads))
    for target, variant in targets.items():
        beside = (sidecar_path(target),) if variant.format == "trt" else ()
        for file in (*files_of(target, variant), *beside):
            refuse_input(file, inputs)
            refuse_existing(file, force=wanted.force)
    if wanted.report:
        refuse_other_report(folder, "conversion", force=wanted.force)
    if GRAPHS & set(wanted.to):
        require("onnx")
        require("onnxruntime")
    _refuse_opset(wanted)
    _refuse_originals(wanted)
    for kind in wanted.to:
        if kind in REFUSALS:
            REFUSALS[kind](origin)
    refuse_other_shape(origin, wanted.shape)
    if wanted.shape is not None:
        batch, _, height, width = wanted.shape
        needed = activation_bytes(origin.fused.config) * batch * height * width
        size = "x".join(map(str, wanted.shape))
        refuse_beyond_memory(f"checking a file for {size}", needed, "a smaller --shape")


def _refuse_originals(wanted: Wanted) -> None:
    """Raise ImageError for a folder of originals without a picture."""
    if wanted.originals:
        from aether_converters.pictures.jobs import pictures_in

        for module in ("PIL", "tifffile", "imagecodecs"):
            require(module)
        for folder in map(Path, wanted.originals):
            next(pictures_in(folder, recursive=False))


def _refuse_opset(wanted: Wanted) -> None:
    """Raise ConversionError for an opset that does not exist, or is of no use."""
    if wanted.opset is None:
        return
    if "onnx" not in wanted.to:
        raise ConversionError(
            "an opset was given, and no ONNX file is to be written",
            found=f"--to {','.join(wanted.to)}",
            advice="add onnx to --to, or leave --opset away",
        )
    from aether_converters.graphs.opsets import refuse_opset

    refuse_opset(wanted.opset)


class _Workshop:
    """Makes each file of a conversion; what several need is made once."""

    def __init__(
        self,
        origin: Source,
        wanted: Wanted,
        reference: Reference,
        say: Progress,
        build_progress: BuildProgress | None,
    ) -> None:
        """Make nothing yet."""
        self.reference = reference
        self._origin, self._wanted = origin, wanted
        self._say, self._build_progress = say, build_progress
        self.quantised = cache(self._quantise)
        self._graph = cache(self._make_graph)
        self._compared_with = cache(self._choose_reference)

    def make(self, target: Path, variant: Variant) -> ArtefactReport:
        """Write one file, compare it with its source, and keep it if it passes."""
        self._say(target.name)
        if variant.format == "trt":
            report = write_engine(target, self._engine_request(variant))
        else:
            report = self._write(target, variant)
        if variant.target is None:
            return report
        return _with_quantisation(report, variant.target, self.quantised(variant.target))

    def _write(self, target: Path, variant: Variant) -> ArtefactReport:
        contents = self._contents(variant)
        # A checkpoint is a float network; only graphs round what trained ranges round.
        graph = variant.format in GRAPHS
        reference = self._compared_with(variant.target) if graph else self.reference
        files = files_of(target, variant)
        with all_complete_or_none(files, force=self._wanted.force) as partials:
            for partial, content in zip(partials, contents, strict=True):
                partial.path.write_bytes(content)
            first, *others = (partial.path for partial in partials)
            try:
                upscaler = open_upscaler(
                    first, format=variant.format, weights=others[0] if others else None
                )
            except ModelError as error:
                if variant.format == "onnx" and self._wanted.opset is not None:
                    raise _not_run(target, self._wanted.opset, error) from error
                raise
            report = verify_artefact(upscaler, reference)
            if not report.passed:
                for partial in partials:
                    partial.discard()
        companions = (
            replace(companion, path=path)
            for companion, path in zip(report.companions, files[1:], strict=True)
        )
        return replace(report, path=target, companions=tuple(companions))

    def _engine_request(self, variant: Variant) -> EngineRequest:
        return EngineRequest(
            onnx=self._graph(variant.precision, variant.target),
            options=self._wanted.engine or EngineOptions(),
            reference=self._compared_with(variant.target),
            precision=variant.precision,
            force=self._wanted.force,
            progress=self._build_progress,
        )

    def _contents(self, variant: Variant) -> tuple[bytes, ...]:
        if variant.format == "pth" and variant.target is not None:
            return (kept_bytes(self._origin, self.quantised(variant.target)),)
        if variant.format in GRAPHS:
            from aether_converters.graphs.opsets import in_opset

            graph = self._graph(variant.precision, variant.target)
            return (graph if self._wanted.opset is None else in_opset(graph, self._wanted.opset),)
        held = cast(FloatPrecision, variant.precision)
        return WRITERS[variant.format](self._origin, held, self._wanted.shape)

    def _make_graph(self, precision: Precision, runner: Target | None) -> bytes:
        shape = self._wanted.shape
        if runner is not None:
            return integer_graph_bytes(self._origin, self.quantised(runner), shape)
        (content,) = WRITERS["onnx"](self._origin, cast(FloatPrecision, precision), shape)
        return content

    def _quantise(self, runner: Target) -> Quantised:
        return quantise_network(
            self._origin.network,
            runner,
            self._wanted.int8 or Int8Options(),
            self._say,
            told=self._build_progress or untold,
            metadata=self._origin.checkpoint.metadata,
        )

    def _choose_reference(self, runner: Target | None) -> Reference:
        """What a file is compared with: the network as it was trained, with its rounding or not."""
        if runner is None:
            return self.reference
        made = self.quantised(runner)
        exhibit = self.reference.exhibit
        return as_trained(self._origin, made.network, made.plan, exhibit) or self.reference


def _not_run(target: Path, opset: int, error: ModelError) -> ConversionError:
    """The error for a file that nobody can verify, since its opset is too new for onnxruntime."""
    return ConversionError(
        f"this onnxruntime does not run the file in opset {opset}",
        file=target,
        found=error.found,
        advice="take a lower --opset, or install a newer onnxruntime",
    )


def _with_quantisation(
    report: ArtefactReport, target: Target, quantised: Quantised
) -> ArtefactReport:
    """The report with what is in int8, and whence the ranges come."""
    facts: dict[str, int | str] = {
        INT8_FOR: target,
        "int8_layers": len(quantised.plan.inputs),
        "int8_share": f"{quantised.share:.1%} of the multiply-accumulates",
        "ranges": "; ".join(quantised.notes),
    }
    if quantised.gains:
        facts["tuning"] = ", ".join(gain.in_words for gain in quantised.gains)
    return replace(report, details={**report.details, **facts})
