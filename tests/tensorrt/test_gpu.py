"""What only an NVIDIA GPU can show: `pytest -m gpu`, with TensorRT or TensorRT-RTX installed.

Left out where there is none; `docs/tensorrt.md` says where these tests have been run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from aether_converters import convert, open_upscaler, sample, verify
from aether_converters.artefacts import Precision
from aether_converters.command_line.main import main
from aether_converters.errors import EngineError, ModelError
from aether_converters.int8.planning import Int8Options
from aether_converters.measuring.benchmark import benchmark
from aether_converters.measuring.verification import structured_image
from aether_converters.pictures.comparison import comparison_images
from aether_converters.pictures.reading import read_picture
from aether_converters.runtimes.providers import REQUIREMENTS, ProviderName, ProviderOptions
from aether_converters.runtimes.upscaler import Image as Pixels
from aether_converters.tensorrt.backend import (
    COMPUTE_CAPABILITIES,
    BackendName,
    installed_backends,
)
from aether_converters.tensorrt.build import (
    EngineOptions,
    Profile,
    build_plan,
)
from aether_converters.tensorrt.driver import probe_driver
from aether_converters.tensorrt.sidecar import read_sidecar
from aether_core import prepare_qat
from tests.support import golden_cases
from tests.support.tiny import tiny

pytestmark = pytest.mark.gpu

RUNTIME: Any = onnxruntime
SAMPLE = Path(sample.__file__).parent
SMALL = Profile(min=(1, 3, 16, 16), opt=(1, 3, 128, 128), max=(1, 3, 256, 320))
HERE = tuple(gpu.capability for gpu in probe_driver().gpus[:1])


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> BackendName:
    if request.param not in installed_backends():
        pytest.skip(f"{request.param} is not installed")
    if request.param == "tensorrt-rtx" and not set(HERE) <= COMPUTE_CAPABILITIES.keys():
        pytest.skip(f"TensorRT-RTX does not build for GPUs of compute capability {HERE[0]}")
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
    report = convert(
        checkpoint,
        folder,
        to=["onnx", "trt"],
        precision=["fp32", "fp16", "int8"],
        engine=options(backend),
    )
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


def test_an_int8_engine_runs_in_int8(engines: dict[str, Path], checkpoint: Path):
    facts = read_sidecar(engines["int8 trt"])
    assert facts.layers, "the builder reports no layers, so that nothing can be said of INT8"
    assert facts.int8_layers >= facts.int8_declared > 0
    # Of a photograph: what is drawn with edges from black to white costs more.
    (photo,) = comparison_images([SAMPLE / "coffee.png"], 3)
    image = photo[:, :, 40:168, 60:188]
    expected = open_upscaler(checkpoint).run(image)
    assert psnr(open_upscaler(engines["int8 trt"]).run(image), expected) >= 45.0


def test_a_network_that_was_trained_for_int8_computes_what_was_trained(
    backend: BackendName, tmp_path: Path
):
    network = prepare_qat(tiny().train())
    with torch.no_grad():
        for _ in range(3):
            network(torch.from_numpy(structured_image(3, 64, 64)))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    report = convert(
        tmp_path / "model.pth", tmp_path, to=["trt"], precision=["int8"], engine=options(backend)
    )
    (artefact,) = report.artefacts
    assert "come from its training" in str(artefact.details["ranges"])
    assert artefact.passed, artefact.problem
    assert artefact.psnr is None or artefact.psnr >= 45.0


def test_a_published_file_that_was_trained_for_int8_runs_as_in_onnxruntime(
    backend: BackendName, tmp_path: Path
):
    checkpoint = golden_cases.checkpoint(golden_cases.CASES["g5f-qat-2x"])
    torch.save(checkpoint, tmp_path / "model.pth")
    report = convert(
        tmp_path / "model.pth", tmp_path, to=["trt"], precision=["int8"], engine=options(backend)
    )
    (artefact,) = report.artefacts
    assert artefact.passed, artefact.problem
    # Its weights are drawn, so that rounding costs more than of a trained network.
    there = float(str(artefact.details["onnx_psnr"]).removesuffix(" dB"))
    assert artefact.psnr is not None
    assert artefact.psnr >= there - 1.0


def written(content: bytes, like: Path, folder: Path) -> Path:
    """An engine with the JSON file of another one of the same network."""
    known = replace(
        read_sidecar(like),
        engine_sha256=hashlib.sha256(content).hexdigest(),
        engine_bytes=len(content),
    )
    path = folder / "written.engine"
    path.write_bytes(content)
    path.with_name("written.engine.json").write_text(known.to_json())
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


def refuse_missing(name: ProviderName) -> None:
    """Skip where this onnxruntime, or TensorRT beside it, lacks the provider."""
    lacks_library = name == "tensorrt" and "tensorrt" not in installed_backends()
    if REQUIREMENTS[name].name not in RUNTIME.get_available_providers() or lacks_library:
        pytest.skip(f"this onnxruntime has no provider {name}, or not what it needs")


@pytest.mark.parametrize(("precision", "least"), [("fp32", 60.0), ("fp16", 55.0), ("int8", 40.0)])
@pytest.mark.parametrize("name", ["cuda", "tensorrt", "directml"])
def test_onnxruntime_computes_on_the_gpu(
    name: ProviderName, precision: Precision, least: float, checkpoint: Path, tmp_path: Path
):
    refuse_missing(name)
    int8 = Int8Options(targets=("tensorrt",), tune=0) if precision == "int8" else None
    report = convert(checkpoint, tmp_path, to=["onnx"], precision=[precision], int8=int8)
    (artefact,) = report.artefacts
    cache = tmp_path / "cache" if name == "tensorrt" else None
    model = open_upscaler(artefact.path, provider=ProviderOptions(name=name, engine_cache=cache))
    assert str(model.details["provider"]).startswith(name)
    image = structured_image(3, 64, 64)
    assert psnr(model.run(image), open_upscaler(artefact.path).run(image)) >= least
    assert cache is None or any(cache.iterdir())


def test_onnxruntime_upscales_and_is_measured_on_the_gpu(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    refuse_missing("cuda")
    (artefact,) = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp16"]).artefacts
    Image.linear_gradient("L").resize((400, 300)).convert("RGB").save(tmp_path / "photo.png")
    model, photo = str(artefact.path), str(tmp_path / "photo.png")
    assert main(["upscale", model, photo, "--provider", "cuda", "--tile", "128"]) == 0
    assert read_picture(tmp_path / "photo_2x.png").color.shape == (3, 600, 800)
    capsys.readouterr()
    arguments = ["--provider", "cuda", "--size", "64", "--seconds", "0.1", "--json"]
    assert main(["bench", model, *arguments]) == 0
    assert ", cuda" in json.loads(capsys.readouterr().out)["measurements"][0]["name"]


def test_a_provider_whose_library_is_missing_does_not_fall_back(checkpoint: Path, tmp_path: Path):
    offered = REQUIREMENTS["tensorrt"].name in RUNTIME.get_available_providers()
    if not offered or "tensorrt" in installed_backends():
        pytest.skip("this onnxruntime has no provider tensorrt, or TensorRT is there")
    (artefact,) = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp32"]).artefacts
    with pytest.raises(ModelError, match="tensorrt"):
        open_upscaler(artefact.path, provider=ProviderOptions(name="tensorrt"))
