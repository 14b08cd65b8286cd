"""What a conversion does to pictures: against the source network, and against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from aether_converters.atomic import complete_or_nothing, refuse_existing
from aether_converters.errors import ConversionError
from aether_converters.measuring.colour import LEVELS
from aether_converters.measuring.figures import PictureProof
from aether_converters.pictures.comparison import Pair
from aether_converters.runtimes.upscaler import Image

CROPPED: Final = 8  # px of output on each side that are not compared, as papers do
AMPLIFIED: Final = 16  # times, in difference pictures
WINDOW: Final = 11  # px, side of the similarity's window
SIGMA: Final = 1.5  # px


def prove(
    run: Callable[[Image], Image],
    pairs: Sequence[Pair],
    expected: Sequence[Image],
    differences: Callable[[str], Path] | None = None,
) -> tuple[PictureProof, ...]:
    """Compare an artefact with its source on pictures.

    Values end at black and white, and 8 px at each side are left out.

    Args:
        run: The artefact.
        pairs: The pictures.
        expected: What the source network makes of each.
        differences: Where the difference of each picture is written, by the picture's name.

    Raises:
        ConversionError: An original is not of the size of the upscaled picture.
    """
    return tuple(
        _proof(run(pair.image), pair, source, differences)
        for pair, source in zip(pairs, expected, strict=True)
    )


def _proof(
    output: Image, pair: Pair, source: Image, differences: Callable[[str], Path] | None
) -> PictureProof:
    found, exact = _compared(output), _compared(source)
    shift = float((found - exact).mean(dim=(0, 2, 3)).abs().max()) * LEVELS
    place = None
    if differences is not None:
        place = differences(pair.name)
        _write_difference(output, source, place)
    if pair.original is None:
        return PictureProof(
            picture=pair.name,
            psnr=psnr(found, exact),
            ssim=ssim(found, exact),
            shift=shift,
            difference=place,
        )
    if pair.original.shape != output.shape:
        raise ConversionError(
            f"the original of {pair.name} is not of the size of the upscaled picture",
            expected=_size(output),
            found=_size(pair.original),
        )
    truth = _compared(pair.original)
    ours, theirs = psnr(found, truth), psnr(exact, truth)
    return PictureProof(
        picture=pair.name,
        psnr=psnr(found, exact),
        ssim=ssim(found, exact),
        shift=shift,
        original_psnr=ours,
        original_ssim=ssim(found, truth),
        source_psnr=theirs,
        loss=None if ours is None or theirs is None else theirs - ours,
        difference=place,
    )


def _compared(picture: Image) -> Tensor:
    inside = picture[:, :, CROPPED:-CROPPED, CROPPED:-CROPPED]
    whole = inside if inside.size else picture
    return torch.from_numpy(np.ascontiguousarray(whole)).double().clamp(0, 1)


def _size(picture: Image) -> str:
    return f"{picture.shape[3]} x {picture.shape[2]} px, {picture.shape[1]} channels"


def psnr(found: Tensor, expected: Tensor) -> float | None:
    """Peak signal-to-noise ratio in dB, white being 1; None where both are equal."""
    error = float((found - expected).square().mean())
    return -10 * math.log10(error) if error else None


def ssim(found: Tensor, expected: Tensor) -> float:
    """Structural similarity of (1, C, H, W) pictures, 1 where both are equal.

    Wang, Bovik, Sheikh and Simoncelli, IEEE TIP 2004: Gaussian windows of 11 px, each channel by
    itself, without padding; smaller pictures have one window of their size.
    """
    side = min(WINDOW, *found.shape[2:])
    offsets = torch.arange(side, dtype=found.dtype) - (side - 1) / 2
    line = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = [float(weight) for weight in line / line.sum()]

    def average(x: Tensor) -> Tensor:
        return _weighted(_weighted(x, weights, 2), weights, 3)

    a, b = average(found), average(expected)
    variance_a = average(found * found) - a * a
    variance_b = average(expected * expected) - b * b
    covariance = average(found * expected) - a * b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * a * b + c1) * (2 * covariance + c2)
    similarity /= (a * a + b * b + c1) * (variance_a + variance_b + c2)
    return float(similarity.mean())


def _weighted(x: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Sums of neighbours along an axis; in float64 three times as fast as PyTorch's convolution."""
    length = x.shape[axis] - len(weights) + 1
    total = x.narrow(axis, 0, length) * weights[0]
    for start, weight in enumerate(weights[1:], 1):
        total.add_(x.narrow(axis, start, length), alpha=weight)
    return total


MADE_BY_US: Final = {"Title": "difference to the source network, amplified by aether-spandrel"}
"""What difference pictures say of themselves; by that they are known again."""


def refuse_other_picture(place: Path) -> None:
    """Raise ConversionError if a file that is no difference picture of ours stands there."""
    refuse_existing(place, force=place.is_file() and MADE_BY_US.items() <= _texts(place).items())


def _texts(picture: Path) -> dict[str, Any]:
    """What a picture says of itself; nothing where it cannot be read."""
    from PIL import Image as Pictures

    try:
        opened: Any = Pictures.open(picture)
        with opened:
            return dict(opened.info)
    except (OSError, SyntaxError, ValueError, Pictures.DecompressionBombError):
        return {}


def _write_difference(output: Image, source: Image, place: Path) -> None:
    """Grey where both agree, else brighter or darker by `AMPLIFIED` times the difference."""
    from PIL import Image as Pictures
    from PIL.PngImagePlugin import PngInfo

    difference = np.clip(output, 0, 1) - np.clip(source, 0, 1)
    shown = np.clip(0.5 + AMPLIFIED * difference[0], 0, 1)
    if shown.shape[0] != 3:
        shown = shown[:1].repeat(3, axis=0)
    pixels = (shown * 255).round().astype(np.uint8).transpose(1, 2, 0)
    texts = PngInfo()
    for name, text in MADE_BY_US.items():
        texts.add_text(name, text)
    with complete_or_nothing(place, force=True) as partial:
        Pictures.fromarray(pixels).save(partial.path, format="PNG", pnginfo=texts)
