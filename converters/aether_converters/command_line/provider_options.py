"""Options of where ONNX files are computed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aether_converters.command_line.arguments import named
from aether_converters.runtimes.providers import PROVIDERS

if TYPE_CHECKING:
    from aether_converters.runtimes.providers import ProviderOptions


def provider_arguments(command: argparse.ArgumentParser) -> None:
    """Where ONNX files are computed."""
    command.add_argument(
        "--provider",
        choices=PROVIDERS,
        default="cpu",
        help="for .onnx: where onnxruntime computes; no other is taken instead (default: cpu)",
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

    return ProviderOptions(
        name=options.provider,
        engine_cache=options.engine_cache,
        fp16=options.provider_fp16,
        int8=options.provider_int8,
    )
