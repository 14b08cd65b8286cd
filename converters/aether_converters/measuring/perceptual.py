"""How different two pictures look to people, as a trained network judges it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor

from aether_converters.errors import ImageError, MissingExtraError, require
from aether_converters.pictures.picture import Planes, white

SMALLEST: Final = 31  # px, of which AlexNet's second pooling leaves one


def lpips(found: Planes, original: Planes, crop: int) -> float:
    """LPIPS of (C, H, W) pictures of one dtype without `crop` px at each side; 0 where equal.

    Zhang, Isola, Efros, Shechtman and Wang, CVPR 2018 (arXiv:1801.03924), version 0.1 on AlexNet,
    on pictures from -1 to 1; grey counts as three equal channels. It takes some 30 bytes for each
    of their pixels.

    Raises:
        MissingExtraError: The package is not installed, or AlexNet's weights are neither here nor
            to be had.
        ImageError: Less than `SMALLEST` px on a side are left.
    """
    _, height, width = original.shape
    if min(height, width) - 2 * crop < SMALLEST:
        raise ImageError(
            "the picture is too small for LPIPS",
            expected=f"{SMALLEST + 2 * crop} px on each side or more",
            found=f"{width} x {height} px",
            advice="leave --lpips out, or take larger pictures",
        )
    with torch.inference_mode():
        return float(lpips_network()(_prepared(found, crop), _prepared(original, crop)))


def _prepared(planes: Planes, crop: int) -> Tensor:
    _, height, width = planes.shape
    inside = planes[:, crop : height - crop, crop : width - crop]
    values = torch.from_numpy(inside.astype(np.float32)) / (white(planes.dtype) / 2) - 1
    return values.expand(3, -1, -1)[None]


@cache
def lpips_network() -> Callable[[Tensor, Tensor], Tensor]:
    """The network that judges pictures (N, 3, H, W) from -1 to 1, loaded once.

    Raises:
        MissingExtraError: As `lpips`.
    """
    package = cast(Any, require("lpips"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for weights as older torchvisions wanted it
            return package.LPIPS(net="alex", verbose=False).eval()
    except OSError as error:
        raise MissingExtraError(
            "the weights of AlexNet, on which LPIPS is built, cannot be had",
            expected="233 MB from download.pytorch.org, once",
            found=str(error),
            advice="run it once with a connection to the internet, or leave --lpips out",
        ) from error
