"""onnxruntime computes where it was asked to, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from PIL import Image

from aether_converters import convert, open_upscaler
from aether_converters.command_line.main import main
from aether_converters.command_line.parser import read_arguments
from aether_converters.command_line.provider_options import provider_options
from aether_converters.errors import ModelError
from aether_converters.measuring.benchmark import benchmark
from aether_converters.pictures.reading import read_picture
from aether_converters.runtimes import onnx_runtime, providers
from aether_converters.runtimes.providers import (
    RECORD_ASSIGNMENT,
    REQUIREMENTS,
    ProviderName,
    ProviderOptions,
    assigned_nodes,
    missing_provider,
    refuse_fall_back,
    refuse_missing_provider,
    usable_providers,
)
from aether_converters.tensorrt.driver import Driver, probe_driver
from tests.support.tiny import tiny

RUNTIME: Any = onnxruntime


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.save(tiny().state_dict(), folder / "model.pth")
    report = convert(folder / "model.pth", to=["onnx"], precision=["fp32"])
    return report.artefacts[0].path


@pytest.fixture(scope="module")
def session(model: Path) -> Any:
    options = RUNTIME.SessionOptions()
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    return RUNTIME.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name",
    [n for n, need in REQUIREMENTS.items() if need.name not in RUNTIME.get_available_providers()],
)
def test_a_provider_that_onnxruntime_lacks_names_the_package(name: ProviderName, model: Path):
    with pytest.raises(ModelError) as refusal:
        open_upscaler(model, provider=ProviderOptions(name=name))
    there = ", ".join(RUNTIME.get_available_providers())
    assert str(refusal.value) == (
        f"this onnxruntime has no provider {name}\n"
        f"  expected  {REQUIREMENTS[name].name}\n"
        f"  found     {there}\n"
        f"  next      uninstall onnxruntime and install {REQUIREMENTS[name].package}; the two "
        "exclude each other"
    )


@pytest.mark.skipif(probe_driver().answers, reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_the_driver_is_asked_before_a_session_is_made(name: ProviderName):
    class Runtime:
        """As `onnxruntime-gpu` answers."""

        @staticmethod
        def get_available_providers() -> list[str]:
            return [requirement.name for requirement in REQUIREMENTS.values()]

    with pytest.raises(ModelError, match=f"the provider {name} needs an NVIDIA GPU") as refusal:
        refuse_missing_provider(ProviderOptions(name=name), Runtime)
    assert refusal.value.found == probe_driver().problem


def test_a_session_that_fell_back_is_refused(session: Any):
    """It is one on the CPU, as onnxruntime makes it where CUDA does not start."""
    with pytest.raises(ModelError) as refusal:
        refuse_fall_back(ProviderOptions(name="cuda"), session)
    assert str(refusal.value).startswith(
        "onnxruntime would fall back from cuda to the CPU\n"
        "  expected  CUDAExecutionProvider\n"
        "  found     CPUExecutionProvider\n"
        '  next      pip install "onnxruntime-gpu[cuda,cudnn]"'
    )
    assert refuse_fall_back(ProviderOptions(), session) == ""


def test_operators_are_counted_by_where_they_run(session: Any):
    nodes = assigned_nodes(session)
    if not hasattr(session, "get_provider_graph_assignment_info"):
        assert not nodes
        return
    assert set(nodes) == {"CPUExecutionProvider"}
    assert nodes.total() > 20


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"CUDAExecutionProvider": 9}, "cuda"),
        (
            {"CUDAExecutionProvider": 9, "CPUExecutionProvider": 2},
            "cuda, 2 of 11 operators on the CPU",
        ),
    ],
)
def test_operators_that_stay_on_the_cpu_are_told(split: dict[str, int], words: str):
    class Part:
        def __init__(self, name: str, count: int) -> None:
            self.ep_name = name
            self._count = count

        def get_nodes(self) -> list[None]:
            return [None] * self._count

    class Session:
        """As one of `onnxruntime-gpu` answers on a machine with a GPU."""

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Part]:
            return [Part(name, count) for name, count in split.items()]

    assert refuse_fall_back(ProviderOptions(name="cuda"), Session()) == words


def test_a_provider_that_computes_nothing_is_refused():
    class Session:
        def get_providers(self) -> list[str]:
            return ["CoreMLExecutionProvider", "CPUExecutionProvider"]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            class Part:
                ep_name = "CPUExecutionProvider"

                def get_nodes(self) -> list[None]:
                    return [None]

            return [Part()]

    with pytest.raises(ModelError, match="would fall back from coreml to the CPU"):
        refuse_fall_back(ProviderOptions(name="coreml"), Session())


def test_tensorrt_s_options_have_onnxruntime_s_names(tmp_path: Path):
    options = ProviderOptions(name="tensorrt", engine_cache=tmp_path, fp16=True, int8=True)
    assert options.as_onnxruntime() == (
        "TensorrtExecutionProvider",
        {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(tmp_path),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(tmp_path),
            "trt_fp16_enable": "1",
            "trt_int8_enable": "1",
        },
    )


@pytest.mark.parametrize("flag", ["--engine-cache=cache", "--provider-fp16", "--provider-int8"])
def test_options_of_tensorrt_alone_are_refused_elsewhere(
    flag: str, model: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["bench", str(model), flag]) == 1
    name = flag.partition("=")[0]
    assert capsys.readouterr().err == (
        "error: these are options of the provider tensorrt\n"
        f"  found     {name}, and the provider auto\n"
        f"  next      leave {name} away, or add --provider tensorrt\n"
    )


def test_the_cpu_may_be_asked_for(model: Path, tmp_path: Path):
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(tmp_path / "photo.png")
    command = ["upscale", model, tmp_path / "photo.png", "--provider", "cpu"]
    assert main([str(part) for part in command]) == 0
    assert read_picture(tmp_path / "photo_2x.png").color.shape == (3, 32, 48)
    found = benchmark([model], sizes=[(16, 16)], seconds=0.01, provider=ProviderOptions(name="cpu"))
    assert [row.name for row in found.measurements] == [model.name]


# Where nobody says where


class GpuRuntime:
    """As `onnxruntime-gpu` and `onnxruntime-directml` answer, were they one."""

    @staticmethod
    def get_available_providers() -> list[str]:
        return [requirement.name for requirement in REQUIREMENTS.values()]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "probe_driver", lambda: Driver(cuda="13.0"))


@pytest.mark.usefixtures("driver")
def test_auto_takes_the_gpu_before_the_cpu_and_nothing_that_must_be_asked_for():
    assert [option.name for option in usable_providers(GpuRuntime)] == ["cuda", "directml", "cpu"]


@pytest.mark.skipif(probe_driver().answers, reason="there is a GPU")
def test_auto_leaves_out_what_has_no_driver():
    assert [option.name for option in usable_providers(GpuRuntime)] == ["directml", "cpu"]
    assert [option.name for option in usable_providers(RUNTIME)] == ["cpu"]
    assert missing_provider(RUNTIME) == ""


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_onnxruntime_cannot_use_is_told():
    if REQUIREMENTS["cuda"].name in RUNTIME.get_available_providers():
        pytest.skip("this onnxruntime can")
    words = "onnxruntime-gpu in place of onnxruntime would use the NVIDIA GPU"
    assert missing_provider(RUNTIME) == words
    assert missing_provider(GpuRuntime) == ""


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_auto_takes_the_cpu_where_a_gpu_does_not_start_and_says_why(
    model: Path, monkeypatch: pytest.MonkeyPatch
):
    """The session is one that onnxruntime makes on the CPU in place of CUDA."""
    if REQUIREMENTS["cuda"].name in RUNTIME.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    options = [ProviderOptions(name="cuda"), ProviderOptions(name="cpu")]

    def both(_runtime: Any) -> list[ProviderOptions]:
        return options

    monkeypatch.setattr(onnx_runtime, "usable_providers", both)
    upscaler = open_upscaler(model, provider=ProviderOptions(name="auto"))
    assert upscaler.computed_by == (
        'onnxruntime on the CPU; cuda does not start: pip install "onnxruntime-gpu[cuda,cudnn]" '
        "brings CUDA and cuDNN, which it needs"
    )


def test_the_command_says_where_an_onnx_file_is_computed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(tmp_path / "photo.png")
    for words in ((), ("--device", "cpu"), ("--provider", "cpu")):
        command = ["upscale", str(model), str(tmp_path / "photo.png"), "--force", *words]
        assert main(command) == 0
        told = capsys.readouterr().err
        if words or not probe_driver().answers:
            assert told == "computed by onnxruntime on the CPU\n"


def test_a_device_of_pytorch_leaves_the_provider_to_onnxruntime(model: Path):
    """`--device cpu` alone is understood as what it says, for every file."""
    read = read_arguments(["upscale", str(model), "photo.png", "--device", "cpu"])
    assert provider_options(read).name == "cpu"
    assert provider_options(read_arguments(["bench", str(model)])).name == "auto"
