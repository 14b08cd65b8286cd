"""From a checkpoint to fused, verified artefacts: `convert` writes them, `verify` measures them.

`release` adds all that is published with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aether_converters.conversion import Report, convert, verify
    from aether_converters.errors import (
        ConversionError,
        ImageError,
        MissingExtraError,
        ModelError,
    )
    from aether_converters.model_card import ModelCard
    from aether_converters.releasing import release
    from aether_converters.upscalers import Upscaler, open_upscaler
    from aether_converters.verification import ArtefactReport

__all__ = [
    "ArtefactReport",
    "ConversionError",
    "ImageError",
    "MissingExtraError",
    "ModelCard",
    "ModelError",
    "Report",
    "Upscaler",
    "convert",
    "open_upscaler",
    "release",
    "verify",
]

# Imported when first used: importing torch takes seconds, which `--help` does without, and
# `doctor` must run where torch is broken.
_HOMES: Final = {
    "ArtefactReport": "aether_converters.verification",
    "ConversionError": "aether_converters.errors",
    "ImageError": "aether_converters.errors",
    "MissingExtraError": "aether_converters.errors",
    "ModelCard": "aether_converters.model_card",
    "ModelError": "aether_converters.errors",
    "Report": "aether_converters.conversion",
    "Upscaler": "aether_converters.upscalers",
    "convert": "aether_converters.conversion",
    "open_upscaler": "aether_converters.upscalers",
    "release": "aether_converters.releasing",
    "verify": "aether_converters.conversion",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
