"""An ONNX model as an engine and its JSON file, compared with the source where a GPU is present."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from aether_converters.atomic import complete_or_nothing
from aether_converters.graphs.macs import graph_macs
from aether_converters.measuring.figures import ArtefactReport
from aether_converters.measuring.verification import Reference, verify_artefact
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.tensorrt.build import (
    BuildProgress,
    EngineOptions,
    build_plan,
    refuse_float,
)
from aether_converters.tensorrt.driver import Driver, probe_driver
from aether_converters.tensorrt.sidecar import (
    EngineNetwork,
    Sidecar,
    engine_details,
    sidecar_path,
)
from aether_converters.tensorrt.writing import BuiltFrom, sidecar_of

COUNTED_SIDE: Final = 64  # px; of the picture whose multiplications are counted


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """An engine to be made.

    Attributes:
        onnx: The model, in `precision`.
        options: What the engine is to be.
        reference: The source.
        precision: fp32, fp16 or int8.
        force: Replace files that exist.
        progress: See `build_plan`.
    """

    onnx: bytes = field(repr=False)
    options: EngineOptions
    reference: Reference
    precision: str
    force: bool = False
    progress: BuildProgress | None = None


def write_engine(target: Path, request: EngineRequest) -> ArtefactReport:
    """Build an engine and leave it at `target`, with its JSON file beside it.

    The ONNX model is compared with the source in onnxruntime first. The engine is compared too
    where a GPU can run it; elsewhere the report says why it was not.

    Raises:
        MissingExtraError: TensorRT or onnxruntime is not installed.
        EngineError: TensorRT cannot be used here or refuses the model, or an INT8 layer would
            silently run in float.
        ConversionError: A file cannot be written.
    """
    started = time.perf_counter()
    checked, origin = _checked_graph(target, request)
    if not checked.passed:
        return replace(checked, format="trt", precision=request.precision)
    plan = build_plan(request.onnx, request.options, file=target, progress=request.progress)
    refuse_float(plan, file=target)
    driver = probe_driver()
    sidecar = sidecar_of(plan, request.options, origin, driver)
    with (
        complete_or_nothing(sidecar_path(target), force=request.force) as description,
        complete_or_nothing(target, force=request.force) as partial,
    ):
        partial.path.write_bytes(plan.content)
        description.path.write_text(sidecar.to_json(), "utf-8")
        report = _compared(sidecar, partial.path, request.reference, driver)
        if report.problem:
            partial.discard()
            description.discard()
    psnr = f"{checked.psnr:.1f} dB" if checked.psnr is not None else "equal"
    details = {**report.details, "onnx_psnr": psnr}
    return replace(report, path=target, seconds=time.perf_counter() - started, details=details)


def _checked_graph(target: Path, request: EngineRequest) -> tuple[ArtefactReport, BuiltFrom]:
    """How the ONNX model compares with the source, and what it is."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, target.with_suffix(".onnx").name)
        file.write_bytes(request.onnx)
        # The session's memory is free again before the builder takes its own.
        model = open_upscaler(file)
        report = verify_artefact(model, request.reference, exhibited=False)
        macs = graph_macs(file, (1, model.channels[0], COUNTED_SIDE, COUNTED_SIDE)) or 0
    network = EngineNetwork(
        scale=model.scale,
        receptive_radius=model.receptive_radius,
        global_context=model.global_context,
        bytes_per_pixel=model.bytes_per_pixel,
        macs_per_pixel=math.ceil(macs / COUNTED_SIDE**2),
    )
    origin = BuiltFrom(
        onnx=request.onnx, precision=request.precision, channels=model.channels, network=network
    )
    return replace(report, path=target), origin


def _compared(
    sidecar: Sidecar, engine: Path, reference: Reference, driver: Driver
) -> ArtefactReport:
    from aether_converters.runtimes.tensorrt import open_engine, why_not_here

    reason = why_not_here(sidecar, driver)
    if not reason:
        return verify_artefact(open_engine(engine, sidecar=sidecar), reference)
    return ArtefactReport(
        path=engine,
        format="trt",
        precision=sidecar.precision,
        bytes=sidecar.engine_bytes,
        sha256=sidecar.engine_sha256,
        max_difference=math.nan,
        mean_difference=math.nan,
        psnr=None,
        ssim=math.nan,
        limit="",
        passed=False,
        problem="",
        not_run=reason,
        seconds=0.0,
        details=engine_details(sidecar),
    )
