"""How fast the files of a report are, measured in turn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from aether_converters.measuring.benchmark import TORCH_FORMATS, Case, measure
from aether_converters.measuring.exhibit import computed_by
from aether_converters.measuring.figures import ArtefactReport, Speed
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Upscaler

SECONDS: Final = 0.4  # that each file is run for; three rounds at least


def with_speeds(
    artefacts: Sequence[ArtefactReport], size: tuple[int, int]
) -> tuple[ArtefactReport, ...]:
    """The artefacts with how fast they enlarge a picture of (H, W) px.

    Those that run the same code have the same figure: all that PyTorch computes. Warmed, and run in
    turn over and over, as `aethernet bench` does. Those that failed, were not run or do not take
    the size have none.
    """
    codes = {a.path: _code(a) for a in artefacts if not a.problem and not a.not_run}
    first = {code: path for path, code in reversed(codes.items())}
    upscalers = {code: open_upscaler(path) for code, path in first.items()}
    cases = {
        code: _case(code, upscaler)
        for code, upscaler in upscalers.items()
        if upscaler.accepted_size(*size) == size
    }
    if not cases:
        return tuple(artefacts)
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    found = measure(
        list(cases.values()), sizes=[size], threads=torch.get_num_threads(), seconds=SECONDS
    )
    speeds = {
        measured.name: Speed(
            milliseconds=measured.milliseconds,
            spread=measured.spread,
            load=load,
            runs=len(measured.times),
            size=size,
            computed_by=computed_by(upscalers[measured.name]),
        )
        for measured in found.measurements
    }
    return tuple(replace(a, speed=speeds.get(codes.get(a.path, ""))) for a in artefacts)


def _code(artefact: ArtefactReport) -> str:
    """Equal for files that run the same code."""
    return "PyTorch" if artefact.format in TORCH_FORMATS else str(artefact.path)


def _case(code: str, upscaler: Upscaler) -> Case:
    run = upscaler.run
    return Case(
        name=code,
        dtype=upscaler.precision,
        arithmetic="fp32",
        channels=upscaler.channels[0],
        scale=upscaler.scale,
        open=lambda: run,
        macs=lambda _size: None,
        bytes_per_pixel=upscaler.bytes_per_pixel,
    )
