"""What only an NVIDIA GPU can show: `pytest -m gpu`, with TensorRT or TensorRT-RTX installed.

Left out where there is none; `docs/tensorrt.md` says where these tests have been run.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from aether_converters import convert, open_upscaler, verify
from aether_converters.benchmark import benchmark
from aether_converters.cli import main
from aether_converters.engine_sidecar import read_sidecar
from aether_converters.errors import EngineError
from aether_converters.images import read_picture
from aether_converters.nvidia_driver import probe_driver
from aether_converters.providers import REQUIREMENTS, ProviderOptions
from aether_converters.tensorrt_backend import BackendName, installed_backends
from aether_converters.tensorrt_build import (
    EngineOptions,
    Profile,
    build_plan,
    refuse_float,
)
from aether_converters.upscalers import Image as Pixels
from aether_converters.verification import structured_image
from tests.qdq import quantised
from tests.tiny import tiny

pytestmark = pytest.mark.gpu

RUNTIME: Any = onnxruntime
SMALL = Profile(min=(1, 3, 16, 16), opt=(1, 3, 128, 128), max=(1, 3, 256, 320))
HERE = tuple(gpu.capability for gpu in probe_driver().gpus[:1])


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    if request.param not in installed_backends():
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained network that was named with --trained, or else a small one."""
    trained: Path | None = request.config.getoption("trained")
    if trained is not None:
        return trained
    path = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    torch.save(tiny(embed_dim=48).state_dict(), path)
    return path


def options(backend: BackendName, **changes: Any) -> EngineOptions:
    capabilities = HERE if backend == "tensorrt-rtx" else ()
    known: dict[str, Any] = {"profiles": (SMALL,), "compute_capabilities": capabilities}
    return EngineOptions(backend=backend, **{**known, **changes})


@pytest.fixture(scope="module")
def engines(
    backend: BackendName, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp(backend)
    report = convert(checkpoint, folder, to=["onnx", "trt"], engine=options(backend))
    assert report.passed, [artefact.problem or artefact.not_run for artefact in report.artefacts]
    return {f"{a.precision} {a.format}": a.path for a in report.artefacts}


def psnr(found: Pixels, expected: Pixels) -> float:
    return -10 * math.log10(float(np.square(found - expected).mean()) + 1e-20)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 80.0), ("fp16", 60.0)])
@pytest.mark.parametrize("size", [(128, 128), (37, 53), (256, 320)], ids=str)
def test_an_engine_computes_what_pytorch_computes(
    engines: dict[str, Path],
    checkpoint: Path,
    precision: str,
    least: float,
    size: tuple[int, int],
):
    image = structured_image(3, *size)
    expected = open_upscaler(checkpoint).run(image)
    assert psnr(open_upscaler(engines[f"{precision} trt"]).run(image), expected) >= least


def ranges(model: Path, image: Pixels) -> dict[str, float]:
    """The largest absolute value of every tensor, for an image."""
    graph: Any = onnx.load(str(model))
    names = [name for node in graph.graph.node for name in node.output]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "output")
    session = RUNTIME.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(names, {"input": image})
    largest = {name: float(np.abs(values).max()) for name, values in zip(names, found, strict=True)}
    return {"input": float(image.max()), **largest}


def test_an_int8_engine_computes_what_pytorch_computes(
    engines: dict[str, Path], backend: BackendName, checkpoint: Path, tmp_path: Path
):
    image = structured_image(3, 128, 128)
    graph = engines["fp32 onnx"]
    scales = {name: max(value, 1e-6) / 127 for name, value in ranges(graph, image).items()}
    content = quantised(graph.read_bytes(), scales=scales)
    plan = build_plan(content, options(backend))
    assert plan.layers, "the builder reports no layers, so that nothing can be said of INT8"
    refuse_float(plan)
    path = written(plan.content, engines["fp32 trt"], tmp_path)
    found = open_upscaler(path).run(image)
    assert psnr(found, open_upscaler(checkpoint).run(image)) >= 45.0


def written(content: bytes, like: Path, folder: Path) -> Path:
    """An engine with the JSON file of another one of the same network."""
    known = replace(
        read_sidecar(like),
        engine_sha256=hashlib.sha256(content).hexdigest(),
        engine_bytes=len(content),
        precision="int8",
    )
    path = folder / "int8.engine"
    path.write_bytes(content)
    path.with_name("int8.engine.json").write_text(known.to_json())
    return path


def test_half_precision_is_faster_than_pytorch_in_half_precision(
    engines: dict[str, Path], checkpoint: Path
):
    found = benchmark(
        [checkpoint, engines["fp16 trt"]],
        sizes=[(256, 256)],
        device="cuda",
        dtypes=["fp16"],
        seconds=1.0,
    )
    torch_row, engine_row = found.measurements
    assert engine_row.milliseconds < torch_row.milliseconds
    assert engine_row.macs is not None


def test_the_same_buffers_serve_all_images_of_a_size(engines: dict[str, Path]):
    model = open_upscaler(engines["fp16 trt"])
    image = structured_image(3, 128, 128)
    first = model.run(image)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(5):
        np.testing.assert_array_equal(model.run(image), first)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_profiles_follow_one_another(backend: BackendName, checkpoint: Path, tmp_path: Path):
    wide = Profile(min=(1, 3, 16, 16), opt=(1, 3, 200, 300), max=(1, 3, 256, 320))
    pair = Profile(min=(2, 3, 64, 64), opt=(2, 3, 64, 64), max=(2, 3, 64, 64))
    report = convert(
        checkpoint,
        tmp_path,
        to=["trt"],
        precision=["fp16"],
        engine=options(backend, profiles=(SMALL, wide, pair)),
    )
    model = open_upscaler(report.artefacts[0].path)
    reference = open_upscaler(checkpoint)
    for shape in ((1, 128, 128), (1, 200, 300), (2, 64, 64), (1, 120, 130)):
        count, *size = shape
        image = np.repeat(structured_image(3, size[0], size[1]), count, axis=0)
        assert psnr(model.run(image), reference.run(image)) >= 60.0
    with pytest.raises(EngineError, match="not built for images of this size"):
        model.run(structured_image(3, 300, 300))


def test_a_static_engine_runs(backend: BackendName, checkpoint: Path, tmp_path: Path):
    report = convert(
        checkpoint,
        tmp_path,
        to=["trt"],
        precision=["fp16"],
        shape=(1, 3, 96, 128),
        engine=options(backend, profiles=()),
    )
    assert report.passed


def test_the_command_line_upscales_verifies_and_measures(
    engines: dict[str, Path], checkpoint: Path, tmp_path: Path
):
    Image.linear_gradient("L").resize((400, 300)).convert("RGB").save(tmp_path / "photo.png")
    engine = str(engines["fp16 trt"])
    assert main(["upscale", engine, str(tmp_path / "photo.png")]) == 0
    assert read_picture(tmp_path / "photo_2x.png").color.shape == (3, 600, 800)
    assert main(["verify", str(checkpoint), engine]) == 0
    assert main(["bench", engine, "--size", "128", "--seconds", "0.1"]) == 0
    assert verify(checkpoint, [engine]).passed


@pytest.mark.parametrize(
    "changes",
    [
        {"version_compatible": True},
        {"hardware_compatibility": "ampere_plus"},
        {"hardware_compatibility": "same_compute_capability"},
    ],
    ids=str,
)
def test_compatible_engines_run_too(changes: dict[str, Any], checkpoint: Path, tmp_path: Path):
    if "tensorrt" not in installed_backends():
        pytest.skip("tensorrt is not installed")
    report = convert(
        checkpoint,
        tmp_path,
        to=["trt"],
        precision=["fp16"],
        engine=options("tensorrt", **changes),
    )
    assert report.passed


def test_a_timing_cache_makes_the_next_build_faster(engines: dict[str, Path], tmp_path: Path):
    if "tensorrt" not in installed_backends():
        pytest.skip("tensorrt is not installed")
    known = options("tensorrt", timing_cache=tmp_path / "timings")
    graph = engines["fp16 onnx"].read_bytes()

    def seconds(build: Callable[[], object]) -> float:
        started = time.perf_counter()
        build()
        return time.perf_counter() - started

    first = seconds(lambda: build_plan(graph, known))
    assert (tmp_path / "timings").stat().st_size > 0
    assert seconds(lambda: build_plan(graph, known)) < first
    (tmp_path / "timings").write_bytes(b"no timings")
    with pytest.raises(EngineError, match="the timing cache is of another GPU"):
        build_plan(graph, known)


def test_a_damaged_plan_is_refused_and_the_process_lives(engines: dict[str, Path], tmp_path: Path):
    content = engines["fp16 trt"].read_bytes()
    path = written(content[: len(content) // 2], engines["fp16 trt"], tmp_path)
    with pytest.raises(EngineError, match="TensorRT does not accept the engine"):
        open_upscaler(path)


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "directml"])
def test_onnxruntime_computes_on_the_gpu(name: Any, checkpoint: Path, tmp_path: Path):
    if REQUIREMENTS[name].name not in RUNTIME.get_available_providers():
        pytest.skip(f"this onnxruntime has no provider {name}")
    (artefact,) = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp32"]).artefacts
    cache = tmp_path / "cache" if name == "tensorrt" else None
    model = open_upscaler(artefact.path, provider=ProviderOptions(name=name, engine_cache=cache))
    assert str(model.details["provider"]).startswith(name)
    image = structured_image(3, 64, 64)
    assert psnr(model.run(image), open_upscaler(artefact.path).run(image)) >= 50.0
    assert cache is None or any(cache.iterdir())
