"""From a checkpoint to fused, verified artefacts: `convert` writes them, `verify` measures them."""

from aether_converters.conversion import Report, convert, verify
from aether_converters.errors import ConversionError, ImageError, MissingExtraError, ModelError
from aether_converters.upscalers import Upscaler, open_upscaler
from aether_converters.verification import ArtefactReport

__all__ = [
    "ArtefactReport",
    "ConversionError",
    "ImageError",
    "MissingExtraError",
    "ModelError",
    "Report",
    "Upscaler",
    "convert",
    "open_upscaler",
    "verify",
]
