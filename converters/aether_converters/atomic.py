"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from aether_converters.errors import ConversionError, ExistsError

STALE_AFTER: Final = 3600.0  # s; what a killed process left is older than any running one's
LISTING_SHARE: Final = 0.01  # of the time, at most, that goes into looking for what was left
KEPT_OF_NAME: Final = 100  # bytes of a target's name in the hidden one, which may have 255
PARTIAL: Final = re.compile(r"(\..+\.)[0-9a-f]{16}\.partial", re.DOTALL)
"""Names of our own making: what the target is called, 16 random digits."""

CAUSES: Final = {
    errno.ENOSPC: "free some space, or choose another folder with --out",
    errno.EDQUOT: "free some of your quota, or choose another folder with --out",
    errno.EFBIG: "the file system or a limit of the process allows no larger file: choose another "
    "folder with --out",
    errno.EACCES: "choose a folder that you may write to with --out",
    errno.EPERM: "choose a folder that you may write to with --out",
    errno.EROFS: "choose a folder that you may write to with --out",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder with --out",
    errno.EEXIST: "a file stands where a folder is needed: choose another folder with --out",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""What to do about each error of the operating system that users meet."""


@dataclass
class Partial:
    """A file that has not got its name yet."""

    path: Path
    discarded: bool = False

    def discard(self) -> None:
        """Let it disappear instead of moving it to its name."""
        self.discarded = True


@contextmanager
def complete_or_nothing(target: Path, *, force: bool) -> Generator[Partial]:
    """Yield a hidden file beside `target` to be filled; move it to `target` when all went well.

    The file is on disk before it is moved, and the move is atomic: whoever looks sees the old
    file, the new one or none. If the body raises, nothing is left. A process that is killed
    leaves at most the hidden file, which a later run removes.

    Raises:
        ConversionError: The target exists and `force` is not set, or the operating system
            refuses; a full disk and missing permissions are told apart.
    """
    with _explained(target):
        refuse_existing(target, force=force)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
    # The name is known before the file exists: an interruption at any moment finds it to remove.
    partial = target.with_name(f"{_partial_prefix(target)}{secrets.token_hex(8)}.partial")
    handle = Partial(partial)
    try:
        with _explained(target):
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            yield handle
            if handle.discarded:
                return
            _flush_to_disk(partial)
            partial.chmod(0o666 & ~_umask())
            refuse_existing(target, force=force)
            partial.replace(target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def all_complete_or_none(targets: Sequence[Path], *, force: bool) -> Generator[tuple[Partial, ...]]:
    """As `complete_or_nothing`, for files that are of no use without each other.

    All are on disk before any gets its name, the first one last: whoever sees that sees the
    others, and a failure takes those back that were not there before.
    """
    new = [target for target in targets[1:] if not target.exists()]
    try:
        with contextlib.ExitStack() as stack:
            yield tuple(
                stack.enter_context(complete_or_nothing(target, force=force)) for target in targets
            )
    except BaseException:
        for target in new:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        raise


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ExistsError if a file stands there already, and ConversionError if anything else does.

    Only a file may be replaced, and only with `force`.
    """
    with _explained(target):
        try:
            target.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
    if not target.is_file():
        raise ConversionError(
            "something else than a file stands where the file belongs",
            file=target,
            found="a folder"
            if target.is_dir()
            else "a device or the like"
            if target.exists()
            else "a link that leads nowhere",
            advice="choose another name, or another folder with --out",
        )
    if not force:
        raise ExistsError(
            "the file exists already, and is kept",
            file=target,
            advice="choose another folder with --out, or replace it with --force",
        )


Identity: TypeAlias = "tuple[int, int]"
"""Of a file, whatever it is called: device and inode."""


def identities(files: Iterable[str | Path]) -> frozenset[Identity]:
    """Which files these are, those in folders among them; what is not there is left out."""
    found: set[Identity] = set()
    for file in map(Path, files):
        inside = _inside(file)
        found.update(which for path in (file, *inside) if (which := identity(path)))
    return frozenset(found)


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):  # most often no folder
        return []


def identity(file: Path) -> Identity | None:
    """Which file this is; None if there is none."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino)


def refuse_input(target: Path, inputs: Collection[Identity]) -> None:
    """Raise ConversionError if a target is one of the files from which a run makes its results."""
    if identity(target) in inputs:
        raise ConversionError(
            "the result would replace a file that this run reads",
            file=target,
            advice="choose another folder with --out",
        )


@contextmanager
def placed_by(option: str) -> Generator[None]:
    """Say of files that another option than --out places, and no --force replaces, what to do.

    Raises:
        ConversionError: As is raised within, with advice that names the option.
    """
    try:
        yield
    except ExistsError as error:
        error.advice = f"choose another folder with {option}"
        raise
    except ConversionError as error:
        error.advice = (error.advice or "").replace("--out", option)
        raise


@contextmanager
def _explained(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ConversionError(
            f"cannot be written: {error.strerror or error}; nothing was left there",
            file=target,
            advice=CAUSES.get(error.errno or 0, "choose another folder with --out"),
        ) from error


def _partial_prefix(target: Path) -> str:
    # Parts of a letter at the end, and what is no text, are left out: some systems refuse them.
    name = target.name.encode("utf-8", "ignore")[:KEPT_OF_NAME].decode("utf-8", "ignore")
    return f".{name}."


@dataclass(frozen=True)
class _Listing:
    """The partial files in a folder, by what they begin with, and when to look again."""

    partials: Mapping[str, Sequence[Path]]
    valid_until: float


_listings: dict[Path, _Listing] = {}


def _remove_stale(target: Path) -> None:
    folder = target.parent
    listing = _listings.get(folder)
    if listing is None or time.monotonic() > listing.valid_until:
        listing = _listings[folder] = _list_partials(folder)
    for partial in listing.partials.get(_partial_prefix(target), ()):
        with contextlib.suppress(OSError):
            status = partial.lstat()
            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > STALE_AFTER:
                partial.unlink()


def _list_partials(folder: Path) -> _Listing:
    started = time.monotonic()
    partials: defaultdict[str, list[Path]] = defaultdict(list)
    with os.scandir(folder) as entries:
        for entry in entries:
            if match := PARTIAL.fullmatch(entry.name):
                partials[match[1]].append(Path(entry.path))
    now = time.monotonic()
    # A folder of 40,000 pictures takes longer to list than a small picture to write.
    return _Listing(partials=partials, valid_until=now + (now - started) / LISTING_SHARE)


def _flush_to_disk(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
