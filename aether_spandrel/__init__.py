"""AetherNet checkpoints for spandrel, ChaiNNer, ComfyUI and Python.

`install()` makes `spandrel.ModelLoader` read them, `load()` reads one directly, `inspect()` says
what a file is.
"""

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
