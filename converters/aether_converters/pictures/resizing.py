"""Pictures brought to any size after a model has enlarged them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
from PIL import Image

from aether_converters.pictures.limits import check_size
from aether_converters.pictures.metadata import scaled
from aether_converters.pictures.picture import Picture, Planes, white


def resized(picture: Picture, factor: Fraction) -> Picture:
    """The picture, `factor` times as large, sides rounded to whole px; on paper it stays as large.

    Lanczos over three lobes, in the values of the file as picture editors do it. Where the picture
    becomes smaller, the filter widens with it, so that nothing flickers or aliases.

    Raises:
        ImageError: The result would have more px than a picture that is read may have.
    """
    _, height, width = picture.color.shape
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    check_size(*size)
    alpha = picture.alpha
    return replace(
        picture,
        color=np.stack([_plane(plane, size) for plane in picture.color]),
        alpha=None if alpha is None else _plane(alpha, size),
        resolution=scaled(picture.resolution, float(factor)),
    )


def _plane(plane: Planes, size: tuple[int, int]) -> Planes:
    # Pillow rounds 8 bits after each axis, and does not resize 16: floats are rounded once.
    image = Image.fromarray(np.asarray(plane, np.float32))
    values = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    values = np.clip(values, 0, white(plane.dtype))
    return (np.rint(values) if plane.dtype.kind == "u" else values).astype(plane.dtype)
