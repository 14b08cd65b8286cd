"""What NVIDIA's driver says of this computer, asked before any library that needs it is touched.

TensorRT ends the whole process, or fails in words that help nobody, where the driver is missing.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

LIBRARIES: Final = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
CAPABILITY_MAJOR: Final = 75  # CUdevice_attribute, in cuda.h
CAPABILITY_MINOR: Final = 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A graphics card.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, such as "8.9".
        memory: In bytes.
    """

    name: str
    capability: str
    memory: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says.

    Attributes:
        cuda: The newest CUDA that it supports, such as "13.0"; empty without a driver.
        gpus: The graphics cards, in its order.
        problem: Why nothing can be computed there; empty where it can.
    """

    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""

    @property
    def answers(self) -> bool:
        """Whether there is a graphics card to compute on."""
        return not self.problem

    def in_words(self) -> str:
        """The graphics cards, or why there are none."""
        cards = (f"{gpu.name} (compute capability {gpu.capability})" for gpu in self.gpus)
        return self.problem or ", ".join(cards)


def probe_driver() -> Driver:
    """Ask the driver of this computer; a missing one is an answer too."""
    cuda = _library()
    if cuda is None:
        return Driver(problem=f"no NVIDIA driver is installed ({LIBRARIES[0]} was not found)")
    status = int(cuda.cuInit(0))
    if status:
        return Driver(problem=f"the NVIDIA driver does not start ({_error(cuda, status)})")
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if not count.value:
        return Driver(cuda=version, problem="the NVIDIA driver finds no graphics card")
    return Driver(cuda=version, gpus=tuple(_gpu(cuda, index) for index in range(count.value)))


def _library() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _gpu(cuda: Any, index: int) -> Gpu:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    memory = ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"{major.value}.{minor.value}",
        memory=memory.value,
    )


def _error(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(status, ctypes.byref(text)) or text.value is None:
        return f"CUDA error {status}"
    return f"CUDA error {status}: {text.value.decode(errors='replace')}"
