"""Places that are no files, and files of the old form."""

from __future__ import annotations

import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from tests.support.hostile_files import (
    network,
    torch_legacy,
)


def legacy_keys(change: Callable[[list[str]], bytes]) -> bytes:
    keys = [str(n) for n in range(len(network()))]
    listed = pickle.dumps(keys, protocol=2)
    content = torch_legacy(network())
    start = content.rindex(listed)
    return content[:start] + change(keys) + content[start + len(listed) :]


def legacy_size(size: int) -> bytes:
    keys = pickle.dumps([str(n) for n in range(len(network()))], protocol=2)
    content = torch_legacy(network())
    start = content.rindex(keys) + len(keys)
    return content[:start] + struct.pack("<q", size) + content[start + 8 :]


def folder_in(folder: Path) -> Path:
    (folder / "folder.pth").mkdir()
    return folder / "folder.pth"


def name_in_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"a")
    return folder / "file" / "a.pth"


def pipe_in(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.pth")
    return folder / "pipe.pth"


def socket_in(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.pth")  # relative, for such names are short
    return folder / "s.pth"


def loop_in(folder: Path) -> Path:
    (folder / "loop.pth").symlink_to("loop.pth")
    return folder / "loop.pth"


def nowhere_in(folder: Path) -> Path:
    (folder / "link.pth").symlink_to("nowhere.pth")
    return folder / "link.pth"
