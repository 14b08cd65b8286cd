"""The one way in which files are opened: regular ones alone, without waiting for anything."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

from aether_spandrel.errors import AetherError

WITHOUT_WAITING: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
"""A pipe without a writer would be waited for; Windows has neither flag, nor such pipes."""


def is_folder(path: str | Path) -> bool:
    """As `Path.is_dir`, but False for a name that is too long, or behind a closed folder."""
    return os.path.isdir(path)  # noqa: PTH112


def open_file(path: Path, kind: type[AetherError] = AetherError) -> BufferedReader:
    """A regular file, opened to read bytes from its beginning; to be closed by the caller.

    Folders, pipes, sockets and devices are refused, of which some never end and others never
    begin. Links are followed.

    Args:
        path: The file.
        kind: Of the error, if it cannot be opened.

    Raises:
        AetherError: Of `kind`, with the file's name: it is not there, is not a regular file, or
            may not be read.
    """
    try:
        return _opened(path)
    except AetherError as error:
        raise error.as_kind(kind).in_file(path) from error.__cause__


def read_file(path: Path, *, most: int, kind: type[AetherError] = AetherError) -> bytes:
    """All of a small regular file.

    Args:
        path: The file.
        most: Bytes that it may have.
        kind: Of the error.

    Raises:
        AetherError: Of `kind`, with the file's name: as `open_file`, or it is larger.
    """
    with open_file(path, kind) as stream:
        try:
            content = stream.read(most + 1)
        except OSError as error:
            raise _unreadable(error).as_kind(kind).in_file(path) from error
    if len(content) > most:
        too_large = AetherError(
            "the file is larger than any of its kind",
            file=path,
            expected=f"at most {most} bytes",
            advice="check that it is the file that was meant",
        )
        raise too_large.as_kind(kind)
    return content


def _opened(path: Path) -> BufferedReader:
    try:
        # Looked at before it is opened, which for some devices has effects ...
        _refuse_irregular(path.stat())
        stream = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  Path.open takes no opener
        try:
            # ... and after, in case that it was exchanged in between.
            _refuse_irregular(os.fstat(stream.fileno()))
        except BaseException:
            stream.close()
            raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AetherError("there is no such file", advice="check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    return stream


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | WITHOUT_WAITING)


def _refuse_irregular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise AetherError("this is a folder", advice="name the file in it")
    if not stat.S_ISREG(found.st_mode):
        raise AetherError(
            "this is not a regular file",
            found=IRREGULAR.get(stat.S_IFMT(found.st_mode), "something else"),
            advice="name a file: what comes through a pipe has to be saved first",
        )


IRREGULAR: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""What a path can lead to that is neither a file nor a folder."""


def _unreadable(error: OSError | ValueError) -> AetherError:
    """The error for what the system refuses; a ValueError is a name that no file can have."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return AetherError(
        f"the file cannot be read: {reason[:200]}",
        advice="check the path, the permissions and that the disk is well",
    )
