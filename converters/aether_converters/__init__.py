"""From a checkpoint to fused, verified artefacts: `convert` writes them, `verify` measures them.

`release` adds all that is published with them.
"""

from __future__ import annotations

# As `typing.TYPE_CHECKING`, without the import: who stops the command at once is to see no more
# of Python than can be helped.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from aether_converters.card import ModelCard
    from aether_converters.comparison import verify
    from aether_converters.conversion import convert
    from aether_converters.errors import (
        ConversionError,
        ImageError,
        MissingExtraError,
        ModelError,
    )
    from aether_converters.measuring.evaluation import Comparing, evaluate
    from aether_converters.measuring.figures import ArtefactReport
    from aether_converters.pictures.arrays import upscale
    from aether_converters.publishing.releasing import release
    from aether_converters.reports.report import Report
    from aether_converters.runtimes.opening import open_upscaler
    from aether_converters.runtimes.upscaler import Upscaler

__all__ = [
    "ArtefactReport",
    "Comparing",
    "ConversionError",
    "ImageError",
    "MissingExtraError",
    "ModelCard",
    "ModelError",
    "Report",
    "Upscaler",
    "convert",
    "evaluate",
    "open_upscaler",
    "release",
    "upscale",
    "verify",
]

# Imported when first used: importing torch takes seconds, which `--help` does without, and
# `doctor` must run where torch is broken.
_HOMES: Final = {
    "ArtefactReport": "aether_converters.measuring.figures",
    "Comparing": "aether_converters.measuring.evaluation",
    "ConversionError": "aether_converters.errors",
    "ImageError": "aether_converters.errors",
    "MissingExtraError": "aether_converters.errors",
    "ModelCard": "aether_converters.card",
    "ModelError": "aether_converters.errors",
    "Report": "aether_converters.reports.report",
    "Upscaler": "aether_converters.runtimes.upscaler",
    "convert": "aether_converters.conversion",
    "evaluate": "aether_converters.measuring.evaluation",
    "open_upscaler": "aether_converters.runtimes.opening",
    "release": "aether_converters.publishing.releasing",
    "upscale": "aether_converters.pictures.arrays",
    "verify": "aether_converters.comparison",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; `__version__` is that of the package."""
    import importlib

    if name == "__version__":
        from importlib.metadata import version

        return version("aether-spandrel")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from aether_converters.errors import EXTRAS, require

        if error.name and error.name.partition(".")[0] in EXTRAS:
            require(error.name)  # which says how to install it
        raise


def __dir__() -> list[str]:
    """The public names, which are there only once they are used."""
    return sorted((*__all__, *(name for name in globals() if name.startswith("__"))))
