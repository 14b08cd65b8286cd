"""AetherNet checkpoints for spandrel, ChaiNNer, ComfyUI and Python.

`install()` makes `spandrel.ModelLoader` read them, `load()` reads one directly, `inspect()` says
what a file is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aether_spandrel.arch import AetherNetArch, install, load
    from aether_spandrel.errors import AetherError, CheckpointError
    from aether_spandrel.inspection import CheckpointInfo, inspect

__all__ = [
    "AetherError",
    "AetherNetArch",
    "CheckpointError",
    "CheckpointInfo",
    "inspect",
    "install",
    "load",
]

# Imported when first used: importing spandrel takes seconds, which `inspect` does without.
_HOMES: Final = {
    "AetherError": "aether_spandrel.errors",
    "AetherNetArch": "aether_spandrel.arch",
    "CheckpointError": "aether_spandrel.errors",
    "CheckpointInfo": "aether_spandrel.inspection",
    "inspect": "aether_spandrel.inspection",
    "install": "aether_spandrel.arch",
    "load": "aether_spandrel.arch",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; `__version__` is that of the package."""
    if name == "__version__":
        from importlib.metadata import version

        return version("aether-spandrel")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, which are there only once they are used."""
    return sorted((*__all__, *(name for name in globals() if name.startswith("__"))))
