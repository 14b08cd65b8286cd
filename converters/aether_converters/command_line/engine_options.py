"""Options of TensorRT engines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from aether_converters.command_line.arguments import list_of, named, positive, shape
from aether_converters.tensorrt.backend import BACKENDS, COMPUTE_CAPABILITIES
from aether_converters.tensorrt.build import CAPABILITIES, HARDWARE

if TYPE_CHECKING:
    from aether_converters.tensorrt.build import EngineOptions


def engine_arguments(command: argparse.ArgumentParser) -> None:
    """What a TensorRT engine is to be."""
    group = command.add_argument_group("TensorRT engines (--to trt)")
    group.add_argument(
        "--trt-backend",
        choices=BACKENDS,
        help="default: what is installed; tensorrt where both are and a driver answers",
    )
    for name, what in (
        ("--min", "smallest input"),
        ("--opt", "input for which it is fastest"),
        ("--max", "largest input"),
    ):
        group.add_argument(
            name,
            type=shape,
            action="append",
            default=[],
            metavar="NxCxHxW",
            help=f"{what} of a profile; all three may be given again for more profiles",
        )
    group.add_argument(
        "--workspace",
        type=positive,
        metavar="GIB",
        help="GPU memory for one layer beside its tensors (default: all)",
    )
    group.add_argument(
        "--timing-cache",
        type=named,
        metavar="FILE",
        help="kernel timings of earlier builds, which make the next one faster (tensorrt)",
    )
    group.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE,
        default="none",
        help="other GPUs that are to run it, at some cost in speed (tensorrt; default: none)",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="let newer versions of the same major version run it (tensorrt)",
    )
    group.add_argument(
        "--compute-capability",
        type=list_of(tuple(COMPUTE_CAPABILITIES)),
        default=[],
        metavar="LIST",
        help="GPUs that are to run it, comma-separated, of "
        f"{', '.join(COMPUTE_CAPABILITIES)} (tensorrt-rtx; default: {','.join(CAPABILITIES)})",
    )


def engine_options(options: argparse.Namespace) -> EngineOptions | None:
    """What an engine is to be, or None if nothing was said of it."""
    from aether_converters.errors import ConversionError
    from aether_converters.tensorrt.build import EngineOptions, Profile

    counts = {len(options.min), len(options.opt), len(options.max)}
    if len(counts) > 1:
        raise ConversionError(
            "a profile needs all of --min, --opt and --max",
            expected="each of them once for every profile",
            found=f"--min {len(options.min)}, --opt {len(options.opt)} and --max "
            f"{len(options.max)} times",
        )
    engine = EngineOptions(
        backend=options.trt_backend,
        profiles=tuple(
            Profile(min=least, opt=usual, max=most)
            for least, usual, most in zip(options.min, options.opt, options.max, strict=True)
        ),
        workspace=None if options.workspace is None else int(options.workspace * 2**30),
        timing_cache=options.timing_cache,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        compute_capabilities=tuple(options.compute_capability),
    )
    return None if engine == EngineOptions() else engine
