"""Which picture goes where."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final, Literal

from aether_converters.atomic import Identity, identities, identity
from aether_converters.errors import ImageError, fault_of
from aether_converters.pictures.faults import unreadable_folder
from aether_converters.pictures.formats import READABLE, SUFFIXES, ImageFormat, is_picture, renamed
from aether_spandrel.errors import AetherError
from aether_spandrel.opening import is_folder

ENDINGS: Final[dict[ImageFormat, str]] = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
}

SCALED: Final = r"_[0-9]+(?:\.[0-9]+)?x"
"""What stands behind the name of a source in that of its result, unless a suffix is chosen."""

Wanted = ImageFormat | Literal["same"]
"""What can be asked for: a format, or that of each source."""

OF_A_FILE: Final = re.compile(r"\.(?=.*[a-z])[a-z0-9]{3,5}", re.IGNORECASE)
"""Endings that nobody gives to a folder without saying that it is one."""

NUMBER: Final = re.compile(r"([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to upscale.

    Attributes:
        source: The picture, or the folder in which there are none.
        target: The upscaled picture.
        image_format: Of the target.
        resize: By how much the model's result is made larger, or smaller.
        left_out: Why it is not upscaled though nothing is wrong with it; empty if it is.
        fault: What is wrong with the source, where that is known in advance.
        inputs: The files that the whole run reads, of which none may be replaced.
    """

    source: Path
    target: Path
    image_format: ImageFormat
    resize: Fraction = Fraction(1)
    left_out: str = ""
    fault: AetherError | None = None
    inputs: Collection[Identity] = field(default=(), repr=False, compare=False)


def plan_jobs(
    inputs: Sequence[Path],
    out: str | Path | None,
    scale: float,
    *,
    image_format: Wanted | None = None,
    recursive: bool = False,
    matched: Collection[Path] = (),
    suffix: str | None = None,
) -> list[Job]:
    """Which picture goes where; an input with which something is wrong becomes a job that fails.

    The folder of the results is not searched where it lies within one that is. A picture that is
    named as the result of another, `photo_2x.png` beside `photo.png`, is left out where a folder
    or a pattern stood for it, or where that result would take its place.

    Args:
        inputs: Pictures, and folders of pictures; what is named twice is taken once.
        out: A folder, or a picture's name if there is one input; by default pictures get the
            scale in their name and folders in theirs. What ends with / is a folder.
        scale: By how much results are larger than their sources.
        image_format: Of the upscaled pictures, or `same` for that of each source, where it is
            written, or else PNG; by default what `out` names, or else PNG.
        recursive: Whether folders within folders are entered.
        matched: Those inputs for which a pattern stood.
        suffix: Stands behind the names of results in place of the scale, and in a folder `out` too.

    Raises:
        ImageError: The only input holds no picture, two pictures would get one name, or `out` is
            no name for what is to be written.
    """
    folders = _Folders(suffix)
    given = list({folders.place(path): path for path in inputs}.values())
    if out is not None and (named := _named_result(given, out, image_format)):
        if suffix is not None:
            raise ImageError(
                "the name of the result is given whole, and a suffix too",
                file=Path(out),
                found=f"--suffix {suffix}",
                advice="leave --suffix out, or name a folder with --out",
            )
        return [replace(named, inputs=identities(given))]
    search = _Search(
        out=None if out is None else Path(out),
        ending=f"_{scale:g}x" if suffix is None else suffix,
        in_out="" if suffix is None else suffix,
        image_format=image_format or "png",
        recursive=recursive,
        folders=folders,
        perhaps_out=given[-1] if out is None and len(given) > 1 else None,
    )
    patterns = search.results_among(matched)
    jobs: dict[Path, Job] = {}
    others: dict[Path, Job] = {}
    for path in given:
        for job in search.jobs_of(path, patterns):
            if job.left_out or job.fault:
                others[folders.place(job.source)] = job
                continue
            before = jobs.setdefault(folders.place(job.target), job)
            if folders.place(before.source) != folders.place(job.source):
                raise ImageError(
                    "two pictures would be written to one file",
                    file=job.target,
                    found=f"{before.source} and {job.source}",
                    advice="rename one, or upscale them into different folders",
                )
    if not jobs and (faults := [job.fault for job in others.values() if job.fault]):
        raise faults[0]
    planned = [*others.values(), *(_in_the_way(job, jobs, folders) for job in jobs.values())]
    read = identities(job.source for job in planned)
    return [replace(job, inputs=read) for job in planned]


def _in_the_way(job: Job, jobs: Mapping[Path, Job], folders: _Folders) -> Job:
    """The job, left out if its picture lies where the result of another is to go."""
    other = jobs.get(folders.place(job.source), job)
    if other is job:
        return job
    return replace(job, left_out=f"left out: the result of {other.source.name} belongs there")


def _format_for(source: Path, wanted: Wanted) -> ImageFormat:
    """In which format the result of a picture is written."""
    return SUFFIXES.get(source.suffix.lower(), "png") if wanted == "same" else wanted


def _named_result(
    given: Sequence[Path], out: str | Path, image_format: Wanted | None
) -> Job | None:
    """The job of the only picture if `out` names its result; None if `out` is a folder.

    Raises:
        ImageError: `out` is the name of a file, and cannot be that of the result.
    """
    text, out = str(out), Path(out)
    alone = len(given) == 1 and not is_folder(given[0])
    if text.endswith(("/", os.sep)) or (
        is_folder(out) and not (alone and out.suffix.lower() in SUFFIXES)
    ):
        return None
    if not (out.suffix.lower() in SUFFIXES or OF_A_FILE.fullmatch(out.suffix)):
        return None
    advice = f"end the name of a folder with /: --out {out}/"
    if alone and out.suffix.lower() not in SUFFIXES:
        advice = f"choose one of these endings, or {advice}"
    if not alone:
        raise ImageError("several pictures cannot be written to one file", file=out, advice=advice)
    if out.suffix.lower() not in SUFFIXES:
        raise ImageError(
            "no picture is written under a name with this ending",
            file=out,
            expected=", ".join(SUFFIXES),
            found=out.suffix,
            advice=advice,
        )
    ending_means = SUFFIXES[out.suffix.lower()]
    wanted = None if image_format is None else _format_for(given[0], image_format)
    if wanted not in (None, ending_means):
        raise ImageError(
            "the name of the result has the ending of another format",
            file=out,
            expected=f"{ENDINGS[wanted]} for --format {image_format}",
            found=out.suffix,
            advice="leave --format out, or change the ending",
        )
    return Job(source=given[0], target=out, image_format=ending_means)


@dataclass(frozen=True, kw_only=True)
class _Search:
    """How pictures are looked for, and where their results go."""

    out: Path | None
    ending: str
    in_out: str
    image_format: Wanted
    recursive: bool
    folders: _Folders
    perhaps_out: Path | None = None

    def jobs_of(self, given: Path, results: Mapping[Path, str]) -> Iterator[Job]:
        """A job for each picture of one input; `results` are inputs to be left out."""
        advice = "name another folder"
        if not self.recursive:
            advice += ", or enter its folders with --recursive"
        try:
            with fault_of(given):
                if given == self.perhaps_out and not os.path.lexists(given):
                    raise ImageError(
                        "there is no such file",
                        file=given,
                        advice=f"check the path, or where results are to go there: --out {given}",
                    )
                found = list(
                    pictures_in(given, recursive=self.recursive, but=self.out, advice=advice)
                )
                results = {
                    **results,
                    **self.folders.results_within(given, [path for path, _ in found]),
                }
                for source, relative in found:
                    yield self._job(source, self._target(given, relative), results)
        except AetherError as error:
            image_format = _format_for(given, self.image_format)
            yield Job(source=given, target=given, image_format=image_format, fault=error)

    def results_among(self, matched: Collection[Path]) -> dict[Path, str]:
        """Those of a pattern that are results, with the names of their sources."""
        found = {path: name for path in matched if (name := self.folders.source_name(path))}
        return found if len(found) < len(matched) else {}  # a pattern for results means them

    def _target(self, given: Path, relative: Path) -> Path:
        ending = self._file_ending(relative)
        if self.out is not None:
            found = self.out / renamed(relative, ending)
            return found.with_name(f"{found.stem}{self.in_out}{ending}")
        if is_folder(given):
            # Of "." and ".." the name is known only then; else the path stays as it was written.
            folder = given if given.name not in ("", "..") else given.resolve()
            return folder.with_name(f"{folder.name}{self.ending}") / renamed(relative, ending)
        return given.with_name(f"{given.stem}{self.ending}{ending}")

    def _file_ending(self, source: Path) -> str:
        """Of the result: as the source writes it where the format stays."""
        found = _format_for(source, self.image_format)
        same = self.image_format == "same" and SUFFIXES.get(source.suffix.lower()) == found
        return source.suffix if same else ENDINGS[found]

    def _job(self, source: Path, target: Path, results: Mapping[Path, str]) -> Job:
        name = results.get(source)
        left_out = f"left out: named as a result of {name}" if name else ""
        image_format = _format_for(source, self.image_format)
        return Job(source=source, target=target, image_format=image_format, left_out=left_out)


class _Folders:
    """What is known of folders, each of which is looked at once."""

    def __init__(self, suffix: str | None) -> None:
        """Know nothing yet but the suffix of the results, None for their scale."""
        self._result = re.compile(
            rf"(.+)(?:{SCALED}|{re.escape(suffix)})" if suffix else f"(.+){SCALED}", re.DOTALL
        )
        self.resolved = cache(_resolved)
        self._names = cache(_names_in)

    def place(self, path: Path) -> Path:
        """The path by which a file is known, however it was written; links to files stay."""
        return self.resolved(path.parent) / path.name if path.name != ".." else self.resolved(path)

    def source_name(self, path: Path) -> str:
        """What lies beside a picture or folder that is named as a result of it; or nothing."""
        folder = is_folder(path)
        match = self._result.fullmatch(path.name if folder else path.stem)
        return self._names(path.parent, folders=folder).get(match[1], "") if match else ""

    def results_within(self, given: Path, pictures: Sequence[Path]) -> dict[Path, str]:
        """Pictures found in a folder that are results of others, with the names of those."""
        if not is_folder(given):
            return {}
        found: dict[Path, str] = {}
        for picture in pictures:
            folders = [given / part for part in list(picture.relative_to(given).parents)[:-1]]
            names = filter(None, map(self.source_name, (picture, *folders)))
            if name := next(names, ""):
                found[picture] = name
        return found


def _resolved(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # raises nothing, unlike `Path.resolve`


def _names_in(folder: Path, *, folders: bool) -> dict[str, str]:
    """The pictures, by their names without endings, or the folders within a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        if folders:
            return {entry.name: entry.name for entry in entries if entry.is_dir()}
        return {Path(e.name).stem: e.name for e in entries if is_picture(Path(e.name))}
    return {}


def pictures_in(
    given: Path,
    *,
    recursive: bool,
    but: Path | None = None,
    advice: str = "name another folder, or pictures",
) -> Iterator[tuple[Path, Path]]:
    """Each picture with its path relative to the folder that was given.

    Args:
        given: A folder, or a picture.
        recursive: Whether folders within folders are entered.
        but: A folder that is not entered.
        advice: What to do if there is none.

    Raises:
        ImageError: There is no picture in this folder.
    """
    if not is_folder(given):
        yield given, Path(given.name)
        return
    avoided = None if but is None else identity(but)
    found: list[Path] = []
    locked: list[OSError] = []
    for folder, folders, files in os.walk(given, onerror=locked.append):
        inside = [
            name for name in folders if avoided is None or identity(Path(folder, name)) != avoided
        ]
        folders[:] = inside if recursive else []
        paths = (Path(folder, name) for name in files if not name.startswith("."))
        found += (path for path in paths if is_picture(path) and path.is_file())
    # Folders that may not be read fail as pictures do.
    found += (Path(error.filename) for error in locked)
    if given in found:
        raise unreadable_folder(given)
    if not found:
        raise ImageError(
            "there is no picture in this folder",
            file=given,
            expected=", ".join(READABLE),
            advice=advice,
        )
    for path in sorted(found, key=_in_order):
        yield path, path.relative_to(given)


def _in_order(path: Path) -> tuple[list[tuple[int, str]], Path]:
    """What sorts frame 2 before frame 10."""
    parts = NUMBER.split(str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path
