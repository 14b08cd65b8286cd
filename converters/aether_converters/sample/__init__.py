"""A small trained model and a picture to try it on; the README beside them says what from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).parent / "2x_aether_sample.safetensors"
"""G1, 2x, RGB, in float16 and unfused, as a trainer would leave it."""

PICTURE: Final = Path(__file__).parent / "coffee.png"
"""A photograph of 300 x 200 px, which the model was not trained on."""
