"""Picture files in, upscaled picture files out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from aether_converters.atomic import complete_or_nothing
from aether_converters.errors import ImageError
from aether_converters.pictures.jobs import Job
from aether_converters.pictures.picture import Picture
from aether_converters.pictures.reading import read_picture
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


@dataclass(frozen=True, kw_only=True)
class PictureReport:
    """What became of one picture.

    Attributes:
        source: The picture.
        target: The upscaled picture.
        outcome: Written, skipped because the target exists, or failed.
        size: (W, H) of the upscaled picture in px; None unless it was written.
        tiles: Number of parts in which the picture was computed.
        seconds: Time for reading, upscaling and writing.
        notes: What the user should know: why it failed or was skipped, what the format lost.
    """

    source: Path
    target: Path
    outcome: Literal["written", "skipped", "failed"]
    size: tuple[int, int] | None = None
    tiles: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The facts as JSON-ready values."""
        return {**vars(self), "source": str(self.source), "target": str(self.target)}


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

    While one is computed, the next is read and the one before is written. With `strict`, damaged
    pictures that could be read fail.
    """
    jobs = list(jobs)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        read = partial(reader.submit, partial(_read, force=force, strict=strict))
        reading = deque(map(read, jobs[:1]))
        writing: deque[Future[PictureReport]] = deque()
        for index, job in enumerate(jobs):
            work = reading.popleft().result()
            reading.extend(
                reader.submit(_read, job, force=force, strict=strict)
                for job in jobs[index + 1 :][:1]
            )
            on_picture(job)
            if isinstance(work, _Work):
                work = _enlarge(work, upscaler, options, on_pixels)
            while writing:
                yield writing.popleft().result()
            writing.append(writer.submit(_write, work, quality=quality, force=force))
        while writing:
            yield writing.popleft().result()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A picture on its way from file to file."""

    job: Job
    picture: Picture
    tiles: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def _read(job: Job, *, force: bool, strict: bool) -> _Work | PictureReport:
    if job.target.exists() and not force:
        note = "exists already; replace it with --force"
        return PictureReport(source=job.source, target=job.target, outcome="skipped", notes=(note,))
    started = time.perf_counter()
    try:
        if job.target.exists() and job.target.samefile(job.source):
            raise ImageError(
                "the result would replace the picture itself",
                file=job.source,
                advice="choose another folder with --out",
            )
        picture = read_picture(job.source, strict=strict)
    except AetherError as error:
        return _failed(job, error)
    return _Work(job=job, picture=picture, seconds=time.perf_counter() - started)


def _enlarge(
    work: _Work, upscaler: Upscaler, options: TileOptions, on_pixels: OnPixels
) -> _Work | PictureReport:
    started = time.perf_counter()
    try:
        tiles = len(planned_tiles(upscaler, work.picture, options))
        picture = upscale_picture(upscaler, work.picture, options, on_pixels)
    except AetherError as error:
        return _failed(work.job, error)
    return replace(
        work,
        picture=picture,
        tiles=tiles,
        seconds=work.seconds + time.perf_counter() - started,
        notes=_notes(upscaler) if tiles > 1 else (),
    )


def _notes(upscaler: Upscaler) -> tuple[str, ...]:
    """What tiles change."""
    if upscaler.looks_at_all:
        return (LOOKS_AT_ALL.format(", ".join(upscaler.looks_at_all)),)
    return (TILES_CHANGE_IT,) if upscaler.global_context else ()


def _write(work: _Work | PictureReport, *, quality: int, force: bool) -> PictureReport:
    if isinstance(work, PictureReport):
        return work
    job, started = work.job, time.perf_counter()
    try:
        with complete_or_nothing(job.target, force=force) as partial:
            try:
                notes = write_picture(work.picture, partial.path, job.image_format, quality=quality)
            except ImageError as error:  # users know the picture's name, not the hidden one
                raise error.in_file(job.target) from error.__cause__
    except AetherError as error:
        return _failed(job, error)
    _, height, width = work.picture.color.shape
    return PictureReport(
        source=job.source,
        target=job.target,
        outcome="written",
        size=(width, height),
        tiles=work.tiles,
        seconds=work.seconds + time.perf_counter() - started,
        notes=(*notes, *work.notes),
    )


def _failed(job: Job, error: AetherError) -> PictureReport:
    return PictureReport(
        source=job.source, target=job.target, outcome="failed", notes=(str(error),)
    )
