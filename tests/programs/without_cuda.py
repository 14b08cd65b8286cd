"""Runs a training script that insists on CUDA on the CPU: `without_cuda.py train.py ARGUMENT...`.

Neither the script nor its framework is changed. Where they ask torch for a GPU, torch answers with
the CPU: devices are exchanged in every call that makes or moves a tensor, and what only a GPU can
tell is made up. So a run shows that networks, options, data and files fit together, and nothing
about speed, memory or numbers on a GPU.
"""

from __future__ import annotations

import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def on_cpu(value: Any) -> Any:
    """The CPU in place of a CUDA device or its name, anything else as it is."""
    return "cpu" if isinstance(value, (str, torch.device)) and str(value)[:4] == "cuda" else value


def moved(call: Any) -> Any:
    """The call, with the CPU in place of every CUDA device among its arguments."""

    def with_cpu(*args: Any, **options: Any) -> Any:
        return call(*map(on_cpu, args), **{name: on_cpu(value) for name, value in options.items()})

    return with_cpu


class TensorsOnCpu(TorchFunctionMode):
    """While it is active, every tensor is made on the CPU and stays there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        return moved(func)(*args, **(kwargs or {}))


class Generator(torch.Generator):
    """A generator of random numbers on the CPU, whatever the device."""

    def __new__(cls, device: Any = None) -> Generator:  # noqa: ARG004
        return super().__new__(cls)

    def __init__(self, device: Any = None) -> None:  # noqa: ARG002
        super().__init__()


def called_by_torch() -> bool:
    """Whether torch itself asks, which knows what to do without a GPU."""
    frame = inspect.stack(context=0)[2].frame
    return str(frame.f_globals["__name__"]).startswith("torch.")


def always(value: object) -> Callable[..., object]:
    """A function that gives this value, whatever it is asked."""

    def answer(*_: object, **__: object) -> object:
        return value

    return answer


def pretend() -> None:
    """Let torch say that there is a GPU, and use the CPU for it."""
    cuda: Any = torch.cuda
    gpu = SimpleNamespace(name="CPU", total_memory=2**30, major=7, minor=0, multi_processor_count=1)
    cuda.is_available = lambda: not called_by_torch()
    cuda.is_bf16_supported = always(True)
    cuda.device_count = always(1)
    cuda.current_device = always(0)
    cuda.get_device_name = always(gpu.name)
    cuda.get_device_capability = always((gpu.major, gpu.minor))
    cuda.get_device_properties = always(gpu)
    cuda.set_per_process_memory_fraction = always(None)
    cuda.max_memory_allocated = always(0)
    cuda.Stream = torch.cpu.Stream
    cuda.stream = torch.cpu.stream
    cuda.current_stream = torch.cpu.current_stream
    torch.Generator = Generator
    torch.set_default_device = always(None)
    torch.load = moved(torch.load)
    torch.autocast = moved(torch.autocast)


if __name__ == "__main__":
    script = Path(sys.argv[1]).resolve()
    sys.argv[:] = [str(script), *sys.argv[2:]]
    sys.path[0] = str(script.parent)
    pretend()
    with TensorsOnCpu():
        runpy.run_path(str(script), run_name="__main__")
