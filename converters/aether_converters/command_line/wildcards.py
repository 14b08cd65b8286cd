"""Patterns such as `release/*` among the arguments of the command line.

Shells on Windows leave them to programs; elsewhere a shell has replaced them already.
"""

from __future__ import annotations

import argparse
import glob
import os
from pathlib import Path
from typing import Any


class Files(argparse.Action):
    """Stores paths, with the files that a pattern means in its place."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Replace each pattern among `values`, which are paths; those are `matched` as well."""
        found = [(value, matching(value)) for value in values]
        setattr(namespace, self.dest, [path for _, paths in found for path in paths])
        namespace.matched = {path for value, paths in found for path in paths if paths != [value]}


def matching(path: Path) -> list[Path]:
    """The files that a pattern means, in order; the path itself if it is one, or if none match."""
    # Unlike `Path.exists` this raises nothing for names that no file can have.
    if os.path.exists(path) or not glob.has_magic(str(path)):  # noqa: PTH110
        return [path]
    found = [Path(path.anchor)]
    for part in path.parts[1 if path.anchor else 0 :]:
        found = [following for folder in found for following in _named(folder, part)]
    return sorted(found) or [path]


def _named(folder: Path, part: str) -> list[Path]:
    """What a part of a path means within a folder: what is called so, or what matches it."""
    path = folder / part
    if path.exists() or not glob.has_magic(part):
        return [path] if path.exists() else []
    inside = os.path.join(glob.escape(str(folder)), part)  # noqa: PTH118
    return [Path(name) for name in glob.glob(inside)]  # noqa: PTH207
