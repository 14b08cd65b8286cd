"""TensorRT and TensorRT-RTX behind one name: which is installed, and which can work here.

The two have the same Python interface under two module names. TensorRT needs a driver for
everything; TensorRT-RTX builds without one. The module is untyped, hence `Any`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from aether_converters.errors import EngineError, MissingExtraError
from aether_converters.installation import install_line
from aether_converters.tensorrt.driver import Driver, probe_driver
from aether_spandrel.errors import reason

BackendName = Literal["tensorrt", "tensorrt-rtx"]
BACKENDS: Final[tuple[BackendName, ...]] = get_args(BackendName)

MODULES: Final[Mapping[BackendName, str]] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
EXTRAS: Final[Mapping[BackendName, str]] = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
MAJOR_VERSIONS: Final[Mapping[BackendName, tuple[int, ...]]] = {
    "tensorrt": (10, 11),
    "tensorrt-rtx": (1,),
}
"""For which this code was written; see `tests/tensorrt/test_names.py`."""

COMPUTE_CAPABILITIES: Final[Mapping[str, str]] = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
"""Members of TensorRT-RTX's ComputeCapability, by the numbers that NVIDIA lists cards under."""

GUIDE: Final = "https://docs.nvidia.com/deeplearning/tensorrt/latest/installing-tensorrt"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A TensorRT that is installed and can be used.

    Attributes:
        name: Which of the two.
        version: Of the library, such as "10.16.1.11".
        module: Its Python module.
        driver: What the driver says.
    """

    name: BackendName
    version: str
    module: Any = field(repr=False)
    driver: Driver


def installed_backends() -> tuple[BackendName, ...]:
    """Those whose Python module is there; nothing is imported."""
    return tuple(name for name in BACKENDS if importlib.util.find_spec(MODULES[name]) is not None)


def load_backend(name: BackendName | None = None, *, to_run: bool = False) -> Backend:
    """Import TensorRT, after the driver was asked whether it can work.

    Args:
        name: Which; None for the one that is installed, and for `tensorrt` if both are and a driver
            answers.
        to_run: Engines are to be run; otherwise to be built, which TensorRT-RTX does without a
            driver.

    Raises:
        MissingExtraError: It is not installed, or only in part.
        EngineError: There is no driver, or its major version is not known here.
    """
    driver = probe_driver()
    chosen = name or _preferred(driver)
    if importlib.util.find_spec(MODULES[chosen]) is None:
        raise missing_backend(chosen)
    if not driver.answers and (to_run or chosen == "tensorrt"):
        _refuse_without_driver(chosen, driver, to_run=to_run)
    try:
        module: Any = importlib.import_module(MODULES[chosen])
    except (ImportError, OSError, RuntimeError) as error:
        raise missing_backend(chosen, reason(error)) from error
    return Backend(
        name=chosen, version=checked_version(chosen, module), module=module, driver=driver
    )


def _preferred(driver: Driver) -> BackendName:
    there = installed_backends()
    if not there:
        raise MissingExtraError(
            "neither TensorRT nor TensorRT-RTX is installed",
            advice=f"{install_line('trt-rtx')} builds engines without a GPU; [trt] in place of "
            "[trt-rtx] is for machines with one",
        )
    return "tensorrt" if "tensorrt" in there and driver.answers else there[-1]


def missing_backend(name: BackendName, found: str = "") -> MissingExtraError:
    """The error for a TensorRT that cannot be imported."""
    advice = install_line(EXTRAS[name])
    if name == "tensorrt":
        advice += (
            "; its libraries come from NVIDIA's own package index, which your network must reach: "
            f"{GUIDE}"
        )
    problem = "cannot be imported" if found else "is not installed"
    return MissingExtraError(
        f"the Python package {name} {problem}", found=found or None, advice=advice
    )


def _refuse_without_driver(name: BackendName, driver: Driver, *, to_run: bool) -> None:
    if to_run:
        raise EngineError(
            f"{name} engines run on an NVIDIA GPU alone",
            found=driver.problem,
            advice="install NVIDIA's driver, or run the .onnx or .safetensors file instead",
        )
    raise EngineError(
        "tensorrt builds engines on the GPU for which they are meant",
        found=driver.problem,
        advice="install NVIDIA's driver, or build ahead of time with --trt-backend tensorrt-rtx",
    )


def checked_version(name: BackendName, module: Any) -> str:
    """The version of an imported TensorRT.

    Raises:
        EngineError: This code was not written for it.
    """
    version = str(getattr(module, "__version__", ""))
    major = version.partition(".")[0]
    known = MAJOR_VERSIONS[name]
    if not major.isdecimal() or int(major) not in known:
        newest = max(known)
        raise EngineError(
            f"this version of {name} is not supported",
            expected=f"version {' or '.join(map(str, known))}",
            found=version or "no version",
            advice=f'pip install "{name}>={min(known)},<{newest + 1}"',
        )
    return version
