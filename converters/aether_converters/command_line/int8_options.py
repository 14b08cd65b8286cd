"""Options of int8."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from aether_converters.command_line.arguments import list_of, named, positive, seconds
from aether_converters.command_line.terminal import tell
from aether_converters.command_line.wildcards import Files

if TYPE_CHECKING:
    from aether_converters.int8.planning import Int8Options
    from aether_converters.int8.tuning import Device

INT8_TARGETS: Final = ("tensorrt", "cpu")

DEVICES: Final = ("auto", "cpu", "cuda")

CALIBRATION_METHODS: Final = ("mse", "percentile", "minmax")


def int8_arguments(command: argparse.ArgumentParser) -> None:
    """Options of `convert` and `release` with `--precision int8`."""
    group = command.add_argument_group("int8")
    group.add_argument(
        "--int8-target",
        type=list_of(INT8_TARGETS),
        default=["tensorrt"],
        metavar="TARGETS",
        help="who will run it, a file for each: comma-separated, of tensorrt (symmetric int8) and "
        "cpu (uint8 activations, for onnxruntime) (default: tensorrt)",
    )
    group.add_argument(
        "--calibration",
        nargs="+",
        type=named,
        action=Files,
        default=[],
        metavar="PATH",
        help="pictures and folders like those that the model will upscale, on which it is "
        "calibrated and tuned beside built-in ones",
    )
    group.add_argument(
        "--calibration-method",
        choices=CALIBRATION_METHODS,
        default="mse",
        help="how a range follows from the values met (default: mse)",
    )
    group.add_argument(
        "--keep-float",
        nargs="+",
        default=[],
        metavar="LAYER",
        help="layers that stay float, such as conv_last or 'layers.0.*'",
    )
    group.add_argument(
        "--int8-all",
        action="store_true",
        help="every convolution and linear map, depthwise ones too, whatever it costs",
    )
    group.add_argument(
        "--tune",
        type=seconds,
        metavar="TIME",
        help="how long the rounded network may learn from the float one, such as 90s or 10m; off "
        "for not at all (default: 3m)",
    )
    group.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="where it learns (default: auto, an NVIDIA GPU where PyTorch can use one)",
    )
    group.add_argument(
        "--sensitivity", action="store_true", help="measure and list what each layer costs"
    )
    group.add_argument(
        "--max-loss",
        type=positive,
        metavar="DB",
        help="keep layers float until the loss is at most this, such as 0.02",
    )


def int8_options(options: argparse.Namespace) -> Int8Options | None:
    """How a network becomes int8, or None if nothing was said of it."""
    from aether_converters.int8.planning import Int8Options

    int8 = Int8Options(
        targets=tuple(options.int8_target),
        calibration=tuple(options.calibration),
        method=options.calibration_method,
        keep_float=tuple(options.keep_float),
        everything=options.int8_all,
        sensitivity=options.sensitivity,
        max_loss=options.max_loss,
        tune=Int8Options.tune if options.tune is None else options.tune,
        device=_device(options),
    )
    return None if int8 == Int8Options() else int8


def _device(options: argparse.Namespace) -> Device:
    """Where it learns, which is said if it was not asked for; the CPU if nothing is learnt."""
    if options.device != "auto":
        return options.device
    from aether_converters.runtimes.devices import chosen_device, device_in_words

    if "int8" not in options.precision or options.tune == 0:
        return "cpu"
    # Learning was tried on these two alone.
    device: Device = "cuda" if chosen_device("auto").device == "cuda" else "cpu"
    tell(f"int8 learns on {device_in_words(device)}")
    return device
