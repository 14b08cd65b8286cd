"""What is known of an engine, and every way in which it cannot be used, without a GPU."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from aether_converters import open_upscaler
from aether_converters.command_line.main import main
from aether_converters.errors import EngineError, MissingExtraError, ModelError
from aether_converters.installation import install_line
from aether_converters.measuring.benchmark import Benchmark, benchmark
from aether_converters.measuring.verification import Reference, structured_image
from aether_converters.pictures.tiling import plan_tiles, upscale_image
from aether_converters.runtimes.tensorrt import (
    chosen_profile,
    open_engine,
    refuse_mismatch,
    runs_on,
)
from aether_converters.runtimes.upscaler import SizeRange, Upscaler
from aether_converters.tensorrt import backend as backends
from aether_converters.tensorrt.backend import Backend, checked_version, load_backend
from aether_converters.tensorrt.build import Binding, Profile
from aether_converters.tensorrt.driver import Driver, Gpu, probe_driver
from aether_converters.tensorrt.layers import parse_layers
from aether_converters.tensorrt.sidecar import (
    EngineNetwork,
    Sidecar,
    parse_sidecar,
    read_sidecar,
    sidecar_path,
)
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.network import read_network
from tests.support.tiny import tiny

PLAN = b"ptrt, and what only TensorRT can read"
TILES = Profile(min=(1, 3, 16, 16), opt=(1, 3, 256, 256), max=(1, 3, 512, 512))
FRAMES = Profile(min=(2, 3, 720, 1280), opt=(2, 3, 720, 1280), max=(4, 3, 1080, 1920))

no_gpu = pytest.mark.skipif(probe_driver().answers, reason="there is a GPU")


def sidecar(**changes: Any) -> Sidecar:
    known = Sidecar(
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        engine_bytes=len(PLAN),
        backend="tensorrt-rtx",
        backend_version="1.7.1.116",
        precision="fp16",
        input=Binding(name="input", dtype="fp16", shape=(-1, 3, -1, -1)),
        output=Binding(name="output", dtype="fp16", shape=(-1, 3, -1, -1)),
        profiles=(TILES,),
        compute_capabilities=("8.6", "8.9"),
        gpu="",
        hardware_compatibility="none",
        version_compatible=False,
        layers=25,
        int8_layers=0,
        int8_declared=0,
        network=EngineNetwork(
            scale=2,
            receptive_radius=14,
            global_context=False,
            bytes_per_pixel=400,
            macs_per_pixel=20_000,
        ),
        onnx_sha256="1" * 64,
        source_sha256="2" * 64,
        model={"revision": "G1"},
        versions={"onnx": "1.16.0"},
    )
    return replace(known, **changes)


def written(folder: Path, known: Sidecar, plan: bytes = PLAN) -> Path:
    path = folder / "model.engine"
    path.write_bytes(plan)
    sidecar_path(path).write_text(known.to_json(), "utf-8")
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return written(tmp_path, sidecar())


# The JSON file


def test_what_is_written_is_read(engine: Path):
    assert read_sidecar(engine) == sidecar()
    fixed = sidecar(input=replace(sidecar().input, shape=(1, 3, 24, 40)), profiles=())
    assert parse_sidecar(fixed.to_json().encode(), engine).fixed_size == (24, 40)


def test_a_plan_that_does_not_match_is_refused(engine: Path, capsys: pytest.CaptureFixture[str]):
    changed = PLAN.replace(b"only", b"ONLY")
    engine.write_bytes(changed)
    assert main(["inspect", str(engine)]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {engine}: the engine is not the one that the file beside it describes\n"
        "  key       SHA-256\n"
        f"  expected  {sidecar().engine_sha256}, as in model.engine.json\n"
    )
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError) as refusal:
        read_sidecar(engine)
    assert (refusal.value.key, refusal.value.found) == ("bytes", str(len(PLAN) - 1))


def test_an_engine_without_its_json_file_says_what_is_missing(engine: Path):
    sidecar_path(engine).unlink()
    with pytest.raises(EngineError) as refusal:
        read_sidecar(engine)
    assert str(refusal.value) == (
        f"{engine}.json: the JSON file of this engine cannot be read: there is no such file\n"
        "  expected  beside model.engine, as aethernet convert --to trt leaves it\n"
        "  next      copy it together with the engine, or build the engine again"
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10_000, b'{"kind": "other"}', b" " * (2**20 + 1)],
    ids=["empty", "cut", "list", "binary", "deep", "other", "long"],
)
def test_a_file_of_another_kind_is_no_sidecar(content: bytes, tmp_path: Path):
    with pytest.raises(EngineError, match="not the JSON file of an engine"):
        parse_sidecar(content, tmp_path / "model.engine.json")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("engine_bytes", -1, "a whole number that is not negative"),
        ("engine_bytes", True, "a whole number that is not negative"),
        ("engine_sha256", "x" * 64, "64 hexadecimal digits"),
        ("backend", "openvino", "one of tensorrt, tensorrt-rtx"),
        ("precision", ["fp16"], "one of fp32, fp16, int8"),
        ("input", {"name": "input", "dtype": "fp16", "shape": [1, 3, 4]}, "a shape (N, C, H, W)"),
        ("input", {"name": "input", "dtype": "fp16", "shape": [1, -1, 4, 4]}, "a shape (N, C"),
        ("profiles", [{"min": [1, 3, 16, 16]}], "a list"),
        ("profiles", [{"min": [0, 3, 1, 1], "opt": [], "max": []}], "a whole number of at least 1"),
        ("network", {"scale": 0}, "a whole number of at least 1"),
        ("network", None, "an object"),
        ("version_compatible", "yes", "true or false"),
        ("model", [], "an object"),
        ("gpu", "x" * 1001, "a text"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(
    key: str, value: object, expected: str, tmp_path: Path
):
    content = json.dumps({**sidecar().as_dict(), key: value}).encode()
    with pytest.raises(EngineError) as refusal:
        parse_sidecar(content, tmp_path / "model.engine.json")
    assert refusal.value.key == key
    assert str(refusal.value.expected).startswith(expected)


@pytest.mark.parametrize("key", list(sidecar().as_dict()))
def test_no_value_may_be_missing(key: str, tmp_path: Path):
    values = {name: value for name, value in sidecar().as_dict().items() if name != key}
    with pytest.raises(EngineError):
        parse_sidecar(json.dumps(values).encode(), tmp_path / "model.engine.json")


# Where it runs


def on_cuda(engine: Path) -> Upscaler:
    return open_upscaler(engine, device="cuda")


def measured(engine: Path) -> Benchmark:
    return benchmark([engine])


@no_gpu
@pytest.mark.parametrize("run", [open_upscaler, on_cuda, measured])
def test_without_a_gpu_it_is_said_what_is_missing(
    run: Callable[[Path], object], engine: Path, monkeypatch: pytest.MonkeyPatch
):
    # Any module stands for TensorRT: the driver is asked before it is imported.
    monkeypatch.setattr(backends, "MODULES", dict.fromkeys(backends.MODULES, "tabnanny"))
    with pytest.raises(EngineError) as refusal:
        run(engine)
    assert str(refusal.value) == (
        f"{engine}: tensorrt-rtx engines run on an NVIDIA GPU alone\n"
        f"  found     {probe_driver().problem}\n"
        "  next      install NVIDIA's driver, or run the .onnx or .safetensors file instead"
    )
    assert "tabnanny" not in sys.modules


@no_gpu
def test_tensorrt_is_not_imported_where_it_would_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fatal = tmp_path / "tensorrt"
    fatal.mkdir()
    (fatal / "__init__.py").write_text("import os\nos.abort()\n")
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = "convert model.pth --to trt --trt-backend tensorrt"
    result = subprocess.run(
        [sys.executable, "-m", "aether_converters", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: tensorrt builds engines on the GPU for which they are meant\n"
        f"  found     {probe_driver().problem}\n"
        "  next      install NVIDIA's driver, or build ahead of time with --trt-backend "
        "tensorrt-rtx\n"
    )


@no_gpu
def test_a_driver_that_is_missing_is_described():
    driver = probe_driver()
    assert driver.gpus == ()
    assert "driver" in driver.in_words()


def gpu(capability: str) -> Driver:
    return Driver(cuda="13.0", gpus=(Gpu(name="RTX", capability=capability, memory=2**33),))


def test_a_package_that_is_missing_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "MODULES", {"tensorrt": "no_trt", "tensorrt-rtx": "no_rtx"})
    with pytest.raises(MissingExtraError) as refusal:
        load_backend("tensorrt")
    assert str(refusal.value).startswith(
        "the Python package tensorrt is not installed\n"
        f"  next      {install_line('trt')}; its libraries come from NVIDIA's own "
        "package index, which your network must reach: https://docs.nvidia.com/"
    )
    with pytest.raises(MissingExtraError, match="neither TensorRT nor TensorRT-RTX is installed"):
        load_backend()


def test_a_package_that_is_installed_in_part_says_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As NVIDIA's placeholders do where its index could not be reached."""
    (tmp_path / "half_trt.py").write_text("raise ImportError('libnvinfer.so.10: no such file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "MODULES", dict.fromkeys(backends.MODULES, "half_trt"))
    with pytest.raises(MissingExtraError, match="tensorrt-rtx cannot be imported") as refusal:
        load_backend("tensorrt-rtx")
    assert refusal.value.found == "libnvinfer.so.10: no such file"


def test_the_backend_is_the_one_that_can_work_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, version in (("stand_in_trt", "10.16.1"), ("stand_in_rtx", "1.7.1")):
        (tmp_path / f"{name}.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.syspath_prepend(tmp_path)
    modules = {"tensorrt": "stand_in_trt", "tensorrt-rtx": "stand_in_rtx"}
    monkeypatch.setattr(backends, "MODULES", modules)
    monkeypatch.setattr(backends, "probe_driver", lambda: gpu("8.9"))
    assert load_backend().name == "tensorrt"
    monkeypatch.setattr(backends, "probe_driver", lambda: Driver(problem="no driver"))
    assert load_backend().name == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("name", "version"), [("tensorrt", "8.6.1"), ("tensorrt", "12.0"), ("tensorrt-rtx", "")]
)
def test_another_major_version_is_refused(name: backends.BackendName, version: str):
    with pytest.raises(EngineError, match="is not supported") as refusal:
        checked_version(name, SimpleNamespace(__version__=version))
    assert refusal.value.found == (version or "no version")
    assert "pip install" in str(refusal.value.advice)


def backend(version: str, capability: str, name: backends.BackendName = "tensorrt-rtx") -> Backend:
    return Backend(name=name, version=version, module=None, driver=gpu(capability))


def test_an_engine_of_another_version_is_refused():
    with pytest.raises(EngineError) as refusal:
        refuse_mismatch(sidecar(), backend("1.8.0.5", "8.9"))
    assert str(refusal.value) == (
        "the engine was built by another version of TensorRT\n"
        "  expected  tensorrt-rtx 1.7.1.116\n"
        "  found     tensorrt-rtx 1.8.0.5\n"
        "  next      build it again with aethernet convert --to trt, or install that version"
    )
    portable = sidecar(backend="tensorrt", backend_version="10.3.0", version_compatible=True)
    refuse_mismatch(portable, backend("10.16.1", "8.9", "tensorrt"))
    with pytest.raises(EngineError, match="another version"):
        refuse_mismatch(portable, backend("11.4.0", "8.9", "tensorrt"))


def test_an_engine_of_another_gpu_is_refused():
    refuse_mismatch(sidecar(), backend("1.7.1.116", "8.6"))
    with pytest.raises(EngineError) as refusal:
        refuse_mismatch(sidecar(), backend("1.7.1.116", "12.0"))
    assert str(refusal.value) == (
        "the engine was built for another GPU\n"
        "  expected  compute capability 8.6, 8.9\n"
        "  found     RTX, compute capability 12.0\n"
        "  next      build it again here with aethernet convert --to trt --trt-backend tensorrt, "
        "or with --trt-backend tensorrt-rtx --compute-capability 12.0"
    )
    with pytest.raises(EngineError, match="TensorRT-RTX does not build for this GPU"):
        refuse_mismatch(sidecar(), backend("1.7.1.116", "9.0"))


@pytest.mark.parametrize(
    ("compatibility", "capability", "runs"),
    [
        ("none", "8.6", True),
        ("none", "9.0", False),
        ("same_compute_capability", "8.9", True),
        ("ampere_plus", "12.0", True),
        ("ampere_plus", "7.5", False),
    ],
)
def test_hardware_compatibility_widens_the_gpus(compatibility: str, capability: str, runs: bool):
    assert runs_on(sidecar(hardware_compatibility=compatibility), capability) == runs


# Sizes


def test_the_profile_that_is_made_for_the_size_is_taken():
    wide = replace(TILES, opt=(1, 3, 500, 500), max=(1, 3, 2000, 2000))
    known = sidecar(profiles=(TILES, wide))
    assert chosen_profile(known, (1, 3, 240, 250)) == (0, (1, 3, 240, 250))
    assert chosen_profile(known, (1, 3, 480, 512)) == (1, (1, 3, 480, 512))
    assert chosen_profile(sidecar(profiles=(FRAMES,)), (1, 3, 720, 1280))[1] == (2, 3, 720, 1280)


def test_an_image_that_no_profile_holds_is_refused():
    with pytest.raises(EngineError) as refusal:
        chosen_profile(sidecar(profiles=(TILES, FRAMES)), (1, 3, 600, 600))
    assert str(refusal.value) == (
        "the engine was not built for images of this size\n"
        "  expected  1x3x16x16 to 1x3x512x512 or 2x3x720x1280 to 4x3x1080x1920\n"
        "  found     1x3x600x600\n"
        "  next      use another --tile, or build the engine with --min, --opt and --max that "
        "hold it"
    )
    fixed = sidecar(input=replace(sidecar().input, shape=(1, 3, 24, 40)), profiles=())
    assert chosen_profile(fixed, (1, 3, 24, 40)) == (0, (1, 3, 24, 40))
    with pytest.raises(EngineError, match="not built for images of this size"):
        chosen_profile(fixed, (1, 3, 40, 24))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    path = tmp_path_factory.mktemp("network") / "model.pth"
    torch.save(tiny().state_dict(), path)
    return open_upscaler(path)


def limited(network: Upscaler, *ranges: SizeRange) -> Upscaler:
    """The same network as an engine with profiles: other sizes are refused."""

    def run(image: Any) -> Any:
        size = image.shape[2:]
        if not any(
            r.least <= size and size[0] <= r.most[0] and size[1] <= r.most[1] for r in ranges
        ):
            raise AssertionError(size)
        return network.run(image)

    return replace(network, run=run, streamer=None, size_ranges=ranges)


def test_tiles_keep_to_the_sizes_of_a_profile(network: Upscaler):
    model = limited(network, SizeRange(least=(32, 32), most=(96, 128)))
    image = structured_image(3, 150, 301)[0]
    plan = plan_tiles(model, *image.shape[1:])
    assert len(plan) > 1
    np.testing.assert_allclose(
        upscale_image(model, image, plan), network.run(image[None])[0], atol=1e-5
    )


def test_small_pictures_are_filled_up_to_a_profile(network: Upscaler):
    model = limited(network, SizeRange(least=(64, 64), most=(96, 96)))
    image = structured_image(3, 20, 30)[0]
    assert upscale_image(model, image, plan_tiles(model, 20, 30)).shape == (3, 40, 60)


def test_a_tile_that_no_profile_holds_is_refused(network: Upscaler):
    model = limited(network, SizeRange(least=(32, 32), most=(96, 128)))
    with pytest.raises(ModelError) as refusal:
        plan_tiles(model, 500, 500, tile=112)
    assert str(refusal.value) == (
        f"{network.path}: the model was not built for tiles of this size\n"
        "  expected  at most 96 px\n"
        "  found     --tile 112\n"
        "  next      leave --tile away, or build the engine with a larger --max"
    )


def test_an_engine_is_compared_on_a_picture_of_a_size_that_it_takes(network: Upscaler):
    reference = Reference(read_network(read_checkpoint(network.path)))
    anywhere = [case.image.shape[2:] for case in reference.cases(network)]
    assert anywhere == [(96, 80), (37, 53)]
    large = limited(network, SizeRange(least=(40, 40), most=(512, 512)))
    assert [case.image.shape[2:] for case in reference.cases(large)] == [(96, 80)]
    frames = limited(network, SizeRange(least=(200, 300), most=(400, 600)))
    assert [case.image.shape[2:] for case in reference.cases(frames)] == [(200, 300)]


# What TensorRT's inspector says


def test_layers_of_tensorrt_10_are_read_too():
    """It joins the order in memory and the dtype, in words."""
    tensor: Mapping[str, str] = {
        "x": "Thirty-two wide channel vectorized row major Int8 format",
        "y": "Channel major FP16 format where channel % 8 == 0",
    }
    x, y = (
        f"[ {{ Name: {name}, Location: Device, Dimensions: [1,32,8,8], Format/Datatype: {words} }}]"
        for name, words in tensor.items()
    )
    (layer,) = parse_layers(
        f"Name: conv, LayerType: CaskConvolution, Inputs: {x}, Outputs: {y}, ParameterType: "
        "Convolution, Kernel: [3,3], TacticName: sm80_x, StreamId: 0, Metadata: [ONNX Layer: conv]"
    )
    assert (layer.inputs, layer.outputs, layer.nodes) == (("int8",), ("fp16",), ("conv",))


def test_an_engine_takes_no_constants(engine: Path):
    with pytest.raises(ModelError, match="an engine has all its constants in it"):
        open_upscaler(engine, res_scale=0.5)


def test_an_engine_is_checked_against_what_it_is_said_to_be(engine: Path):
    with pytest.raises(EngineError, match="not the one that the file beside it describes"):
        open_engine(engine, sidecar=sidecar(engine_sha256="0" * 64))
