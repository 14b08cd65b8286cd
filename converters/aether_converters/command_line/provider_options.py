"""Options of where files are computed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aether_converters.command_line.arguments import named
from aether_converters.runtimes.providers import PROVIDERS

if TYPE_CHECKING:
    from aether_converters.runtimes.providers import ProviderOptions


def provider_arguments(command: argparse.ArgumentParser) -> None:
    """Where files are computed."""
    command.add_argument(
        "--device",
        default="auto",
        help="for .pth and .safetensors: cpu, cuda, mps; for .param: cpu, vulkan; no other is "
        "taken instead (default: auto, the GPU where PyTorch has one; .param: cpu)",
    )
    command.add_argument(
        "--provider",
        choices=PROVIDERS,
        default="auto",
        help="for .onnx: where onnxruntime computes; no other is taken instead (default: auto, the "
        "GPU where onnxruntime has one)",
    )
    command.add_argument(
        "--engine-cache",
        type=named,
        metavar="FOLDER",
        help="where --provider tensorrt keeps its engines",
    )
    command.add_argument(
        "--provider-fp16", action="store_true", help="let --provider tensorrt compute in fp16"
    )
    command.add_argument(
        "--provider-int8",
        action="store_true",
        help="let --provider tensorrt compute quantised files in int8",
    )


def provider_options(options: argparse.Namespace) -> ProviderOptions:
    """What was said of it, as one value."""
    from aether_converters.runtimes.providers import ProviderOptions

    on_the_cpu = options.provider == "auto" and options.device == "cpu"
    return ProviderOptions(
        name="cpu" if on_the_cpu else options.provider,
        engine_cache=options.engine_cache,
        fp16=options.provider_fp16,
        int8=options.provider_int8,
    )
