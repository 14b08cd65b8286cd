"""What the JSON file beside an engine says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from aether_converters.errors import require
from aether_converters.tensorrt.build import EngineOptions, Plan
from aether_converters.tensorrt.driver import Driver
from aether_converters.tensorrt.sidecar import EngineNetwork, Sidecar

PACKAGES: Final = ("aether-spandrel", "onnx", "torch")


@dataclass(frozen=True, kw_only=True)
class BuiltFrom:
    """The ONNX model that an engine was built from.

    Attributes:
        onnx: Its bytes.
        precision: fp32, fp16 or int8.
        channels: Of input and output.
        network: What it has to compute.
    """

    onnx: bytes = field(repr=False)
    precision: str
    channels: tuple[int, int]
    network: EngineNetwork


def sidecar_of(plan: Plan, options: EngineOptions, origin: BuiltFrom, driver: Driver) -> Sidecar:
    """The JSON file's content for an engine that was just built."""
    metadata = _metadata(origin.onnx)
    on_gpu = plan.backend == "tensorrt" and driver.answers
    return Sidecar(
        engine_sha256=hashlib.sha256(plan.content).hexdigest(),
        engine_bytes=len(plan.content),
        backend=plan.backend,
        backend_version=plan.version,
        precision=origin.precision,
        input=plan.input,
        output=replace(plan.output, shape=_output_shape(plan, origin.channels[1])),
        profiles=plan.profiles,
        compute_capabilities=plan.compute_capabilities,
        gpu=driver.gpus[0].name if on_gpu else "",
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        layers=len(plan.layers),
        int8_layers=sum(layer.int8 for layer in plan.layers),
        int8_declared=len(plan.declared_int8),
        network=origin.network,
        onnx_sha256=hashlib.sha256(origin.onnx).hexdigest(),
        source_sha256=metadata.get("source_sha256", hashlib.sha256(origin.onnx).hexdigest()),
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
