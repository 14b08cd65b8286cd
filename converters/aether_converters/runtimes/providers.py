"""Where onnxruntime computes: the provider that was asked for, and no other unseen.

onnxruntime takes the CPU, with a line on stderr at most, where a provider does not start or leaves
operators out. What a session really uses is therefore asked of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from aether_converters.errors import ModelError
from aether_converters.tensorrt.driver import probe_driver

ProviderName = Literal["auto", "cpu", "cuda", "tensorrt", "directml", "coreml"]
PROVIDERS: Final[tuple[ProviderName, ...]] = get_args(ProviderName)

BEST_FIRST: Final[tuple[ProviderName, ...]] = ("cuda", "directml", "cpu")
"""What `auto` tries. TensorRT builds for minutes before it computes, and CoreML may round to
float16 unasked: both have to be asked for."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What a provider needs.

    Attributes:
        name: Of it in onnxruntime.
        package: That has it.
        nvidia: Whether it needs NVIDIA's driver.
        advice: What else may be missing where it does not start.
    """

    name: str
    package: str
    nvidia: bool = False
    advice: str = ""


REQUIREMENTS: Final[Mapping[ProviderName, Requirement]] = {
    "cpu": Requirement(name="CPUExecutionProvider", package="onnxruntime"),
    "cuda": Requirement(
        name="CUDAExecutionProvider",
        package="onnxruntime-gpu",
        nvidia=True,
        advice='pip install "onnxruntime-gpu[cuda,cudnn]" brings CUDA and cuDNN, which it needs',
    ),
    "tensorrt": Requirement(
        name="TensorrtExecutionProvider",
        package="onnxruntime-gpu",
        nvidia=True,
        advice="it needs the version of TensorRT for which onnxruntime-gpu was built: "
        "https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html",
    ),
    "directml": Requirement(name="DmlExecutionProvider", package="onnxruntime-directml"),
    "coreml": Requirement(name="CoreMLExecutionProvider", package="onnxruntime on macOS"),
}


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """Where an ONNX file is computed.

    Attributes:
        name: The provider, or `auto` for the fastest that computes; see `BEST_FIRST`.
        engine_cache: Folder in which `tensorrt` keeps its engines; without one it builds them
            anew each time, which takes minutes.
        fp16: Whether `tensorrt` may compute an fp32 file in fp16.
        int8: Whether `tensorrt` may compute in int8 what the file quantises.
    """

    name: ProviderName = "cpu"
    engine_cache: Path | None = None
    fp16: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        """Refuse what only TensorRT has.

        Raises:
            ModelError: An option does not belong to the provider.
        """
        flags = (
            ("--engine-cache", self.engine_cache),
            ("--provider-fp16", self.fp16),
            ("--provider-int8", self.int8),
        )
        given = [flag for flag, value in flags if value]
        if given and self.name != "tensorrt":
            raise ModelError(
                "these are options of the provider tensorrt",
                found=f"{' and '.join(given)}, and the provider {self.name}",
                advice=f"leave {' and '.join(given)} away, or add --provider tensorrt",
            )

    def as_onnxruntime(self) -> tuple[str, dict[str, str]]:
        """The provider and its options, by onnxruntime's names."""
        options: dict[str, str] = {}
        if self.engine_cache is not None:
            options |= {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(self.engine_cache),
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(self.engine_cache),
            }
        if self.fp16:
            options["trt_fp16_enable"] = "1"
        if self.int8:
            options["trt_int8_enable"] = "1"
        return REQUIREMENTS[self.name].name, options


def refuse_provider(given: ProviderOptions, path: Path) -> None:
    """Raise ModelError if a provider was asked for, and a file is not run by onnxruntime."""
    if given.name not in ("cpu", "auto"):
        raise ModelError(
            "--provider is for ONNX files: PyTorch and TensorRT run where --device says",
            file=path,
            found=f"--provider {given.name}",
            advice="try --device cuda, or convert the checkpoint to ONNX",
        )


def usable_providers(runtime: Any) -> Iterator[ProviderOptions]:
    """Of `BEST_FIRST` those that onnxruntime has and whose driver answers; the CPU is the last."""
    there = cast("list[str]", runtime.get_available_providers())
    for name in BEST_FIRST:
        requirement = REQUIREMENTS[name]
        if requirement.name in there and not (requirement.nvidia and not probe_driver().answers):
            yield ProviderOptions(name=name)


def missing_provider(runtime: Any) -> str:
    """What would make use of this computer's NVIDIA GPU, in words; nothing if there is none."""
    requirement = REQUIREMENTS["cuda"]
    if requirement.name in runtime.get_available_providers() or not probe_driver().answers:
        return ""
    return f"{requirement.package} in place of onnxruntime would use the NVIDIA GPU"


def refuse_missing_provider(wanted: ProviderOptions, runtime: Any) -> None:
    """Raise ModelError if onnxruntime lacks a provider, or its driver does not answer.

    Args:
        wanted: Where to compute; the CPU, which `auto` comes to in the end, is in each.
        runtime: The module `onnxruntime`.
    """
    if wanted.name == "auto":
        return
    requirement = REQUIREMENTS[wanted.name]
    there = cast("list[str]", runtime.get_available_providers())
    if requirement.name not in there:
        raise ModelError(
            f"this onnxruntime has no provider {wanted.name}",
            expected=requirement.name,
            found=", ".join(there),
            advice=f"uninstall onnxruntime and install {requirement.package}; the two exclude each "
            "other",
        )
    if requirement.nvidia:
        driver = probe_driver()
        if not driver.answers:
            raise ModelError(
                f"the provider {wanted.name} needs an NVIDIA GPU",
                found=driver.problem,
                advice="install NVIDIA's driver, or leave --provider away",
            )


def refuse_fall_back(wanted: ProviderOptions, session: Any) -> str:
    """What a session computes where, in words; empty for the CPU.

    Raises:
        ModelError: Nothing is computed by the provider that was asked for.
    """
    requirement = REQUIREMENTS[wanted.name]
    used = cast("list[str]", session.get_providers())
    nodes = assigned_nodes(session)
    if requirement.name not in used or (nodes and not nodes[requirement.name]):
        raise ModelError(
            f"onnxruntime would fall back from {wanted.name} to the CPU",
            expected=requirement.name,
            found=", ".join(used if requirement.name not in used else nodes),
            advice=requirement.advice or "leave --provider away",
        )
    if wanted.name == "cpu":
        return ""
    if not nodes:
        return f"{wanted.name} (this onnxruntime does not say how many operators)"
    other = nodes.total() - nodes[requirement.name]
    rest = f", {other} of {nodes.total()} operators on the CPU" if other else ""
    return f"{wanted.name}{rest}"


def assigned_nodes(session: Any) -> Counter[str]:
    """How many operators each provider computes; nothing where onnxruntime does not say.

    The session must have been made with `RECORD_ASSIGNMENT` set.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    found: Counter[str] = Counter()
    for part in ask() if ask is not None else ():
        found[part.ep_name] += len(part.get_nodes())
    return found


RECORD_ASSIGNMENT: Final = "session.record_ep_graph_assignment_info"
"""Key of a session's settings; versions that do not know it ignore it."""
