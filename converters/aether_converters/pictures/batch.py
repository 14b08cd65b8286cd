"""Picture files in, upscaled picture files out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Final, Literal

from aether_converters.atomic import complete_or_nothing, identity, refuse_existing, refuse_input
from aether_converters.errors import ExistsError, ImageError, fault_of
from aether_converters.pictures.jobs import Job
from aether_converters.pictures.picture import Picture
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.resizing import resized
from aether_converters.pictures.upscaling import (
    OnPixels,
    TileOptions,
    planned_tiles,
    upscale_picture,
)
from aether_converters.pictures.writing import write_picture
from aether_converters.runtimes.upscaler import Upscaler
from aether_spandrel.errors import AetherError

TILES_CHANGE_IT: Final = (
    "the model weighs channels by the whole picture, which its tiles do not see: "
    "more --memory makes them fewer"
)
LOOKS_AT_ALL: Final = (
    "the model looks at the whole picture, or may, with {}, and its tiles do not show it: "
    "more --memory makes them fewer"
)
TILES_SEE_LESS: Final = (
    "tiles overlap by {} px of the {} px that a pixel can depend on: more --memory makes them "
    "fewer, --overlap wider"
)


@dataclass(frozen=True, kw_only=True)
class PictureReport:
    """What became of one picture.

    Attributes:
        source: The picture.
        target: The upscaled picture.
        outcome: Written; skipped because the target exists, or the picture is a result; or failed.
        size: (W, H) of the upscaled picture in px; None unless it was written.
        tiles: Number of parts in which the picture was computed.
        bands: Number of bands of rows in which a single part was computed.
        seconds: Time for reading, upscaling and writing.
        notes: What the user should know: why it failed or was skipped, what the format lost.
        fault: Why it failed, for programs; `notes` has its text.
    """

    source: Path
    target: Path
    outcome: Literal["written", "skipped", "failed"]
    size: tuple[int, int] | None = None
    tiles: int = 0
    bands: int = 1
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    fault: AetherError | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values."""
        facts = {name: value for name, value in vars(self).items() if name != "fault"}
        return {**facts, "source": str(self.source), "target": str(self.target)}


def run_jobs(
    jobs: Iterable[Job],
    upscaler: Upscaler,
    options: TileOptions,
    *,
    quality: int = 95,
    force: bool = False,
    strict: bool = False,
    on_picture: Callable[[Job], None] = lambda _: None,
    on_pixels: OnPixels = lambda _done, _all: None,
) -> Iterator[PictureReport]:
    """Upscale picture files, and report each in turn; what is wrong with one is not raised.

    While one is computed, the next is read and the one before is written. Whoever interrupts it is
    told what became of those that were begun, before KeyboardInterrupt is raised. With `strict`,
    damaged pictures that could be read fail.
    """
    jobs = list(jobs)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        read = partial(reader.submit, partial(_read, force=force, strict=strict))
        reading = deque(map(read, jobs[:1]))
        writing: deque[Future[PictureReport]] = deque()
        try:
            for job, following in zip_longest(jobs, jobs[1:]):
                work = reading.popleft().result()
                if following is not None:
                    reading.append(read(following))
                on_picture(job)
                if isinstance(work, _Work):
                    work = _enlarge(work, upscaler, options, on_pixels)
                while writing:
                    yield writing.popleft().result()
                writing.append(writer.submit(_write, work, quality=quality, force=force))
        except KeyboardInterrupt:
            while writing:
                yield writing.popleft().result()
            raise
        while writing:
            yield writing.popleft().result()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A picture on its way from file to file."""

    job: Job
    picture: Picture
    tiles: int = 0
    bands: int = 1
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def _read(job: Job, *, force: bool, strict: bool) -> _Work | PictureReport:
    started = time.perf_counter()
    if job.left_out:
        return _skipped(job, job.left_out)
    try:
        with fault_of(job.source):
            if job.fault is not None:
                raise job.fault
            _refuse_target(job, force=force)
            picture = read_picture(job.source, strict=strict)
    except ExistsError:
        return _skipped(job, f"{job.target} exists already; replace it with --force")
    except AetherError as error:
        return _failed(job, error)
    return _Work(job=job, picture=picture, seconds=time.perf_counter() - started)


def _refuse_target(job: Job, *, force: bool) -> None:
    """Raise what stands against writing the result: what is there, and who needs it."""
    there = identity(job.target)
    if there is not None and there == identity(job.source):
        refuse_input(job.target, (there,))
    refuse_existing(job.target, force=force)
    refuse_input(job.target, job.inputs)


def _enlarge(
    work: _Work, upscaler: Upscaler, options: TileOptions, on_pixels: OnPixels
) -> _Work | PictureReport:
    started = time.perf_counter()
    try:
        with fault_of(work.job.source):
            plan = planned_tiles(upscaler, work.picture, options)
            picture = upscale_picture(upscaler, work.picture, options, on_pixels)
            if work.job.resize != 1:
                picture = resized(picture, work.job.resize)
    except AetherError as error:
        # Which model it was is known; which of many pictures is not.
        return _failed(work.job, error.in_file(work.job.source), cause=error)
    return replace(
        work,
        picture=picture,
        tiles=len(plan),
        bands=plan.band_count,
        seconds=work.seconds + time.perf_counter() - started,
        notes=_notes(upscaler, plan.overlap) if len(plan) > 1 else (),
    )


def _notes(upscaler: Upscaler, overlap: int) -> tuple[str, ...]:
    """What tiles change."""
    if upscaler.looks_at_all:
        return (LOOKS_AT_ALL.format(", ".join(upscaler.looks_at_all)),)
    if upscaler.sees > overlap:
        return (TILES_SEE_LESS.format(overlap, upscaler.sees),)
    return (TILES_CHANGE_IT,) if upscaler.global_context else ()


def _write(work: _Work | PictureReport, *, quality: int, force: bool) -> PictureReport:
    if isinstance(work, PictureReport):
        return work
    job, started = work.job, time.perf_counter()
    try:
        with fault_of(job.target), complete_or_nothing(job.target, force=force) as partial:
            try:
                notes = write_picture(work.picture, partial.path, job.image_format, quality=quality)
            except ImageError as error:  # users know the picture's name, not the hidden one
                raise error.in_file(job.target) from error.__cause__
    except ExistsError:
        return _skipped(job, "exists already: another process was faster")
    except AetherError as error:
        return _failed(job, error)
    _, height, width = work.picture.color.shape
    return PictureReport(
        source=job.source,
        target=job.target,
        outcome="written",
        size=(width, height),
        tiles=work.tiles,
        bands=work.bands,
        seconds=work.seconds + time.perf_counter() - started,
        notes=(*notes, *work.notes),
    )


def _failed(job: Job, error: AetherError, *, cause: AetherError | None = None) -> PictureReport:
    return PictureReport(
        source=job.source,
        target=job.target,
        outcome="failed",
        notes=(str(error),),
        fault=cause or error,
    )


def _skipped(job: Job, note: str) -> PictureReport:
    return PictureReport(source=job.source, target=job.target, outcome="skipped", notes=(note,))
