"""An ONNX model as an engine and its JSON file, compared with the source where a GPU is present."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from aether_converters.atomic import complete_or_nothing
from aether_converters.engine_sidecar import EngineNetwork, Sidecar, sidecar_path
from aether_converters.errors import require
from aether_converters.macs import graph_macs
from aether_converters.nvidia_driver import Driver, probe_driver
from aether_converters.tensorrt_build import (
    BuildProgress,
    EngineOptions,
    Plan,
    build_plan,
    refuse_float,
)
from aether_converters.upscalers import open_upscaler
from aether_converters.verification import ArtefactReport, Reference, verify_artefact

PACKAGES: Final = ("aether-spandrel", "onnx", "torch")
COUNTED_SIDE: Final = 64  # px; of the picture whose multiplications are counted


def write_engine(
    onnx: bytes,
    target: Path,
    options: EngineOptions,
    reference: Reference,
    *,
    precision: str,
    force: bool,
    progress: BuildProgress | None = None,
) -> ArtefactReport:
    """Build an engine and leave it at `target`, with its JSON file beside it.

    The ONNX model is compared with the source in onnxruntime first. The engine is compared too
    where a GPU can run it; elsewhere the report says why it was not.

    Args:
        onnx: The model, in `precision`.
        target: The engine's file.
        options: What it is to be.
        reference: The source.
        precision: fp32, fp16 or int8.
        force: Replace files that exist.
        progress: See `build_plan`.

    Raises:
        MissingExtraError: TensorRT or onnxruntime is not installed.
        EngineError: TensorRT cannot be used here or refuses the model, or an INT8 layer would
            silently run in float.
        ConversionError: A file cannot be written.
    """
    started = time.perf_counter()
    checked, network, channels = _checked_graph(onnx, target, reference)
    if not checked.passed:
        return replace(checked, format="trt", precision=precision)
    plan = build_plan(onnx, options, file=target, progress=progress)
    refuse_float(plan, file=target)
    driver = probe_driver()
    sidecar = _description(
        plan,
        options,
        network,
        channels=channels,
        onnx=onnx,
        precision=precision,
        driver=driver,
    )
    with (
        complete_or_nothing(sidecar_path(target), force=force) as description,
        complete_or_nothing(target, force=force) as partial,
    ):
        partial.path.write_bytes(plan.content)
        description.path.write_text(sidecar.to_json(), "utf-8")
        report = _compared(sidecar, partial.path, reference, driver)
        if report.problem:
            partial.discard()
            description.discard()
    psnr = f"{checked.psnr:.1f} dB" if checked.psnr is not None else "equal"
    details = {**report.details, "onnx_psnr": psnr}
    return replace(report, path=target, seconds=time.perf_counter() - started, details=details)


def _checked_graph(
    onnx: bytes, target: Path, reference: Reference
) -> tuple[ArtefactReport, EngineNetwork, tuple[int, int]]:
    """How the ONNX model compares with the source, what its network is, and its channels."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, target.with_suffix(".onnx").name)
        file.write_bytes(onnx)
        # The session's memory is free again before the builder takes its own.
        model = open_upscaler(file)
        checked = replace(verify_artefact(model, reference, exhibited=False), path=target)
        macs = graph_macs(file, (1, model.channels[0], COUNTED_SIDE, COUNTED_SIDE)) or 0
    network = EngineNetwork(
        scale=model.scale,
        receptive_radius=model.receptive_radius,
        global_context=model.global_context,
        bytes_per_pixel=model.bytes_per_pixel,
        macs_per_pixel=math.ceil(macs / COUNTED_SIDE**2),
    )
    return checked, network, model.channels


def _description(
    plan: Plan,
    options: EngineOptions,
    network: EngineNetwork,
    *,
    channels: tuple[int, int],
    onnx: bytes,
    precision: str,
    driver: Driver,
) -> Sidecar:
    metadata = _metadata(onnx)
    on_gpu = plan.backend == "tensorrt" and driver.answers
    return Sidecar(
        engine_sha256=hashlib.sha256(plan.content).hexdigest(),
        engine_bytes=len(plan.content),
        backend=plan.backend,
        backend_version=plan.version,
        precision=precision,
        input=plan.input,
        output=replace(plan.output, shape=_output_shape(plan, channels[1])),
        profiles=plan.profiles,
        compute_capabilities=plan.compute_capabilities,
        gpu=driver.gpus[0].name if on_gpu else "",
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        layers=len(plan.layers),
        int8_layers=sum(layer.int8 for layer in plan.layers),
        int8_declared=len(plan.declared_int8),
        network=network,
        onnx_sha256=hashlib.sha256(onnx).hexdigest(),
        source_sha256=metadata.get("source_sha256", hashlib.sha256(onnx).hexdigest()),
        model=metadata,
        versions=_versions(),
    )


def _output_shape(plan: Plan, channels: int) -> tuple[int, ...]:
    # The parser does not always infer the channels; the ONNX file says them.
    batch, _, height, width = plan.output.shape
    return batch, channels, height, width


def _metadata(onnx: bytes) -> Mapping[str, str]:
    model: Any = require("onnx").load_from_string(onnx)
    return {entry.key: entry.value for entry in model.metadata_props}


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _compared(
    sidecar: Sidecar, engine: Path, reference: Reference, driver: Driver
) -> ArtefactReport:
    from aether_converters.tensorrt_run import open_engine, why_not_here

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


def engine_details(sidecar: Sidecar) -> dict[str, int | str]:
    """Facts about an engine for a report."""
    return {
        "backend": f"{sidecar.backend} {sidecar.backend_version}",
        "compute_capabilities": ", ".join(sidecar.compute_capabilities),
        "layers": sidecar.layers,
        "int8_layers": sidecar.int8_layers,
    }
