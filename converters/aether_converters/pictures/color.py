"""Inks and the like as RGB."""

from __future__ import annotations

import io
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms


def to_srgb(image: Image.Image, profile: bytes | None) -> NDArray[np.uint8]:
    """CMYK, YCbCr or LAB as sRGB, (H, W, 3); CMYK by its profile, if that is one for CMYK."""
    if image.mode == "CMYK" and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = cast("ImageCms.ImageCmsProfile", ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return np.asarray(converted)
        except (ImageCms.PyCMSError, OSError):
            pass
    return np.asarray(image.convert("RGB"))
