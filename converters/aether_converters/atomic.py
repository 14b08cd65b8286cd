"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aether_converters.errors import ConversionError

STALE_AFTER: Final = 3600.0  # s; what a killed process left is older than any running one's

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
    refuse_existing(target, force=force)
    with _explained(target):
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


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ConversionError if the target exists and may not be replaced."""
    if target.is_dir() or (target.exists() and not force):
        raise ConversionError(
            "the file exists already, and is kept",
            file=target,
            advice="choose another folder with --out, or replace it with --force",
        )


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
    return f".{target.name[:100]}."


def _remove_stale(target: Path) -> None:
    prefix = _partial_prefix(target)
    for entry in target.parent.iterdir():
        if entry.name.startswith(prefix) and entry.name.endswith(".partial"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > STALE_AFTER:
                    entry.unlink()


def _flush_to_disk(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    # The only way to read it is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
