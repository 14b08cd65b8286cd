"""Picture files in, upscaled picture files out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Final, Literal

import numpy as np

from aether_converters.atomic import complete_or_nothing
from aether_converters.errors import ImageError, ModelError
from aether_converters.images import (
    SUFFIXES,
    ImageFormat,
    Picture,
    Planes,
    is_picture,
    read_picture,
    to_float,
    white,
    write_picture,
)
from aether_converters.proof import Pair
from aether_converters.tiling import MEMORY, TilePlan, plan_tiles, upscale_image
from aether_converters.upscalers import Image, Upscaler
from aether_spandrel.errors import AetherError

OnPixels = Callable[[int, int], None]
"""Told after each part of a picture how many of its px are done, and how many there are in all."""

RGBA: Final = 4  # channels
PICTURE_CHANNELS: Final = ((1, 1), (3, 3), (RGBA, RGBA), (3, 1))  # in and out
COMPARED_SIDE: Final = 512  # px
TILES_CHANGE_IT: Final = (
    "the model weighs channels by the whole picture, which its tiles do not see: "
    "more --memory makes them fewer"
)

ENDINGS: Final[dict[ImageFormat, str]] = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
}


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How large pictures are cut; see `plan_tiles`. Sizes in px, memory in bytes."""

    tile: int | None = None
    overlap: int | None = None
    memory: int = MEMORY


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to upscale."""

    source: Path
    target: Path
    image_format: ImageFormat


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


def plan_jobs(
    inputs: Sequence[Path],
    out: Path | None,
    scale: int,
    *,
    image_format: ImageFormat = "png",
    recursive: bool = False,
) -> list[Job]:
    """Which picture goes where.

    Args:
        inputs: Pictures, and folders of pictures.
        out: A folder, or a picture's name if there is one input; by default pictures get the
            scale in their name and folders in theirs.
        scale: Upscaling factor.
        image_format: Of the upscaled pictures, unless `out` names one.
        recursive: Whether folders within folders are entered.

    Raises:
        ImageError: An input is missing, a folder holds no picture, or two pictures would get
            one name.
    """
    if out is not None and len(inputs) == 1 and inputs[0].is_file() and is_picture(out):
        return [Job(source=inputs[0], target=out, image_format=SUFFIXES[out.suffix.lower()])]
    ending = ENDINGS[image_format]
    jobs: dict[Path, Job] = {}
    for given in inputs:
        for source, relative in _pictures(given, recursive=recursive):
            if out is not None:
                target = out / relative.with_suffix(ending)
            elif given.is_dir():
                folder = given.resolve()
                target = folder.with_name(f"{folder.name}_{scale}x") / relative.with_suffix(ending)
            else:
                target = source.with_name(f"{source.stem}_{scale}x{ending}")
            if target in jobs:
                raise ImageError(
                    "two pictures would be written to one file",
                    file=target,
                    found=f"{jobs[target].source} and {source}",
                    advice="rename one, or upscale them into different folders",
                )
            jobs[target] = Job(source=source, target=target, image_format=image_format)
    return list(jobs.values())


def _pictures(given: Path, *, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture with its path relative to the folder that was given."""
    if not given.is_dir():
        yield given, Path(given.name)
        return
    found = sorted(
        path
        for path in (given.rglob("*") if recursive else given.iterdir())
        if path.is_file() and is_picture(path) and not path.name.startswith(".")
    )
    if not found:
        raise ImageError(
            "there is no picture in this folder",
            file=given,
            expected=", ".join(SUFFIXES),
            advice="name another folder, or enter its folders with --recursive",
        )
    for path in found:
        yield path, path.relative_to(given)


def run_jobs(
    jobs: Iterable[Job],
    upscaler: Upscaler,
    options: TileOptions,
    *,
    quality: int = 95,
    force: bool = False,
    on_picture: Callable[[Job], None] = lambda _: None,
    on_pixels: OnPixels = lambda _done, _all: None,
) -> Iterator[PictureReport]:
    """Upscale picture files, and report each in turn; what is wrong with one is not raised.

    While one is computed, the next is read and the one before is written.
    """
    jobs = list(jobs)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = deque(reader.submit(_read, job, force=force) for job in jobs[:1])
        writing: deque[Future[PictureReport]] = deque()
        for index, job in enumerate(jobs):
            work = reading.popleft().result()
            reading.extend(reader.submit(_read, job, force=force) for job in jobs[index + 1 :][:1])
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


def _read(job: Job, *, force: bool) -> _Work | PictureReport:
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
        picture = read_picture(job.source)
    except AetherError as error:
        return _failed(job, error)
    return _Work(job=job, picture=picture, seconds=time.perf_counter() - started)


def _enlarge(
    work: _Work, upscaler: Upscaler, options: TileOptions, on_pixels: OnPixels
) -> _Work | PictureReport:
    started = time.perf_counter()
    try:
        tiles = len(_plan(upscaler, work.picture, options))
        picture = upscale_picture(upscaler, work.picture, options, on_pixels)
    except AetherError as error:
        return _failed(work.job, error)
    return replace(
        work,
        picture=picture,
        tiles=tiles,
        seconds=work.seconds + time.perf_counter() - started,
        notes=(TILES_CHANGE_IT,) if tiles > 1 and upscaler.global_context else (),
    )


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


def upscale_picture(
    upscaler: Upscaler,
    picture: Picture,
    options: TileOptions | None = None,
    on_pixels: OnPixels = lambda _done, _all: None,
) -> Picture:
    """The picture enlarged by a model of 1, 3 or 4 channels, whatever channels it has itself.

    A grey picture stays grey: a colour model sees it as three equal channels, and their mean is
    kept. A grey model upscales the colours of a picture one by one. Transparency goes through
    the model's fourth channel where it has one, else through the model as a grey picture;
    constant transparency is not computed.
    """
    options = options or TileOptions()
    if upscaler.channels not in PICTURE_CHANNELS:
        taken, given = upscaler.channels
        raise ModelError(
            "the model does not map pictures to pictures",
            file=upscaler.path,
            expected="1, 3 or 4 channels, as many out as in; or RGB in and grey out",
            found=f"{taken} in and {given} out",
            advice="run it from Python, with tensors of its channels",
        )
    plan = _plan(upscaler, picture, options)
    channels = upscaler.channels[0]
    color, alpha = picture.color, picture.alpha
    varying_alpha = alpha is not None and alpha.min() != alpha.max()
    by_plane = len(color) > channels
    passes = (len(color) if by_plane else 1) + (varying_alpha and channels != RGBA)
    total = passes * color.shape[1] * color.shape[2] * upscaler.scale**2
    done = 0

    def count(pixels: int) -> None:
        nonlocal done
        done += pixels
        on_pixels(done, total)

    def run(planes: Planes, finish: Callable[[Image], Image]) -> Planes:
        return upscale_image(upscaler, planes, plan, finish=finish, on_pixels=count)

    def grey(output: Image) -> Image:
        return output[:3].mean(axis=0, keepdims=True)

    def kept(output: Image) -> Image:
        of_color = grey(output) if len(color) == 1 else output[:3]
        return np.concatenate([of_color, output[3:]]) if varying_alpha else of_color

    if by_plane:
        enlarged = np.concatenate([run(plane[None], grey) for plane in color])
    else:
        enlarged = run(_model_input(color, alpha, channels), kept)
    new_color, new_alpha = enlarged, None
    if alpha is not None:
        if not varying_alpha:
            new_alpha = np.full(enlarged.shape[1:], alpha.flat[0], alpha.dtype)
        elif channels == RGBA:
            new_color, new_alpha = enlarged[:-1], enlarged[-1]
        else:
            new_alpha = run(_model_input(alpha[None], None, channels), grey)[0]
    return replace(picture, color=new_color, alpha=new_alpha)


def _plan(upscaler: Upscaler, picture: Picture, options: TileOptions) -> TilePlan:
    _, height, width = picture.color.shape
    return plan_tiles(
        upscaler, height, width, tile=options.tile, overlap=options.overlap, memory=options.memory
    )


def comparison_images(paths: Sequence[str | Path], channels: int) -> list[Image]:
    """The middle of each picture as a model of so many channels sees it.

    Folders stand for the pictures in them. Each array is (1, channels, H, W) in [0, 1], H and W
    at most `COMPARED_SIDE` px.

    Raises:
        ImageError: A picture cannot be read, or a folder holds none.
    """
    return [pair.image for pair in comparison_pairs(paths, None, channels=(channels, 0), scale=1)]


def comparison_pairs(
    paths: Sequence[str | Path],
    originals: str | Path | None,
    *,
    channels: tuple[int, int],
    scale: int,
    most: int | None = None,
) -> list[Pair]:
    """The middle of each picture, as for `comparison_images`, and that of its original.

    Args:
        paths: Pictures, and folders of pictures.
        originals: Folder with what each should become, under its name with any ending; or None.
        channels: Of the model's input and output.
        scale: Of the model.
        most: How many pictures are read at most; None for all.

    Raises:
        ImageError: A picture cannot be read, a folder holds none, or a picture has no original.
    """
    pairs: list[Pair] = []
    for given in paths:
        for path, _ in _pictures(Path(given), recursive=False):
            if len(pairs) == most:
                return pairs
            image = _middle(path, channels[0], COMPARED_SIDE)
            original = None
            if originals is not None:
                place = _original_of(path, Path(originals))
                original = _middle(place, channels[1], scale * COMPARED_SIDE)
            pairs.append(Pair(name=path.stem, image=image, original=original))
    return pairs


def _original_of(picture: Path, folder: Path) -> Path:
    found = [path for path in sorted(folder.glob(f"{escape(picture.stem)}.*")) if is_picture(path)]
    if not found:
        raise ImageError(
            "this picture has no original",
            file=picture,
            expected=f"{picture.stem} with any picture's ending in {folder}",
            advice="give the originals the names of their pictures",
        )
    return found[0]


def _middle(path: Path, channels: int, side: int) -> Image:
    """(1, channels, H, W) in [0, 1], H and W at most `side` px."""
    picture = read_picture(path)
    _, height, width = picture.color.shape
    top, left = (max(size - side, 0) // 2 for size in (height, width))
    seen = _model_input(picture.color, picture.alpha, channels)
    seen = seen[:channels, top : top + side, left : left + side]
    return np.ascontiguousarray(to_float(seen[None]))


def _model_input(color: Planes, alpha: Planes | None, channels: int) -> Planes:
    """Colour planes, as many as the model takes; an RGBA model sees an opaque picture."""
    if channels == 1:
        return color
    planes = np.broadcast_to(color, (3, *color.shape[1:]))
    if channels != RGBA:
        return planes
    if alpha is None:
        alpha = np.full(color.shape[1:], white(color.dtype), color.dtype)
    return np.concatenate([planes, alpha[None]])
