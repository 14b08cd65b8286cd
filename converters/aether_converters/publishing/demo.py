"""Everything once, with the sample model and its picture."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aether_converters import sample
from aether_converters.card import ModelCard
from aether_converters.int8.planning import Int8Options
from aether_converters.pictures.batch import PictureReport, run_jobs
from aether_converters.pictures.jobs import plan_jobs
from aether_converters.pictures.upscaling import TileOptions
from aether_converters.publishing.releasing import NEEDED_BY, Release, release
from aether_converters.reports.files import PAGE
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.runtimes.upscaler import Format
from aether_converters.tensorrt.build import BuildProgress, EngineOptions
from aether_converters.wanted import Precision, Progress

FORMATS: Final[dict[Format, tuple[str, ...]]] = {**NEEDED_BY, "trt": ("tensorrt_rtx",)}
"""Modules of extras by format. TensorRT-RTX builds engines without a GPU, TensorRT does not."""

PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
INT8: Final = Int8Options(targets=("cpu",), tune=3.0)
"""What runs in onnxruntime, and so on every machine; tuned briefly, as nobody waits long here."""
CARD: Final = ModelCard(
    description="Doubles clean pictures. A small network, trained briefly, to try things out with: "
    "1.5 dB above bicubic interpolation on average of four photographs.",
    tags=("photo", "general-upscaler"),
)
"""The file itself says whose it is."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What was made.

    Attributes:
        release: The files and what goes with them.
        picture: The enlarged picture.
    """

    release: Release
    picture: PictureReport

    @property
    def page(self) -> Path:
        """The report, to be opened in a browser."""
        return self.release.folder / PAGE

    @property
    def failed(self) -> bool:
        """Whether anything went wrong."""
        return self.release.report.failed or self.picture.outcome == "failed"


def formats() -> tuple[Format, ...]:
    """Every format that can be written here."""
    return tuple(
        kind
        for kind, modules in FORMATS.items()
        if all(importlib.util.find_spec(module) for module in modules)
    )


def steps() -> int:
    """How many steps `demo` names at most."""
    return 6 + len(formats()) * len(PRECISIONS)


def demo(
    out: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    build_progress: BuildProgress | None = None,
) -> Demo:
    """Release the sample model into a folder, and enlarge its picture with the first file.

    Args:
        out: The folder, made if it is missing.
        force: Replace files that exist.
        progress: Called with a few words before each step.
        build_progress: Called while an engine is built.

    Raises:
        ConversionError: A file exists and `force` is not set, or one cannot be written.
        MissingExtraError: A package is needed that is not installed.
    """
    folder, kinds = Path(out), formats()
    made = release(
        sample.MODEL,
        folder,
        card=CARD,
        to=kinds,
        precision=PRECISIONS,
        force=force,
        int8=INT8,
        engine=EngineOptions(backend="tensorrt-rtx") if "trt" in kinds else None,
        progress=progress,
        build_progress=build_progress,
    )
    if progress is not None:
        progress(sample.PICTURE.name)
    upscaler = open_upscaler(next(a.path for a in made.report.artefacts if a.passed))
    target = folder / f"{sample.PICTURE.stem}_{upscaler.scale}x.png"
    jobs = plan_jobs([sample.PICTURE], target, upscaler.scale)
    (picture,) = run_jobs(jobs, upscaler, TileOptions(), force=force)
    return Demo(release=made, picture=picture)
