"""Which picture goes where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aether_converters.errors import ImageError
from aether_converters.pictures.faults import unreadable_folder
from aether_converters.pictures.formats import READABLE, SUFFIXES, ImageFormat, is_picture, renamed

ENDINGS: Final[dict[ImageFormat, str]] = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to upscale."""

    source: Path
    target: Path
    image_format: ImageFormat


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
    if (
        out is not None
        and len(inputs) == 1
        and inputs[0].is_file()
        and out.suffix.lower() in SUFFIXES
    ):
        return [Job(source=inputs[0], target=out, image_format=SUFFIXES[out.suffix.lower()])]
    ending = ENDINGS[image_format]
    jobs: dict[Path, Job] = {}
    for given in inputs:
        for source, relative in pictures_in(given, recursive=recursive):
            if out is not None:
                target = out / renamed(relative, ending)
            elif given.is_dir():
                folder = given.resolve()
                target = folder.with_name(f"{folder.name}_{scale}x") / renamed(relative, ending)
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


def pictures_in(given: Path, *, recursive: bool) -> Iterator[tuple[Path, Path]]:
    """Each picture with its path relative to the folder that was given."""
    if not given.is_dir():
        yield given, Path(given.name)
        return
    found: list[Path] = []
    locked: list[OSError] = []
    for folder, folders, files in os.walk(given, onerror=locked.append):
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        found += (path for path in paths if is_picture(path) and path.is_file())
        if not recursive:
            folders.clear()
    # Folders that may not be read fail as pictures do.
    found += (Path(error.filename) for error in locked)
    if given in found:
        raise unreadable_folder(given)
    if not found:
        raise ImageError(
            "there is no picture in this folder",
            file=given,
            expected=", ".join(READABLE),
            advice="name another folder, or enter its folders with --recursive",
        )
    for path in sorted(found):
        yield path, path.relative_to(given)
