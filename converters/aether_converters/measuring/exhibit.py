"""What a report shows beside its figures: parts of pictures, and how fast a file was there.

The same part of a picture is enlarged by bicubic interpolation, by the source network and by each
artefact, so that a person can look at what the figures say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from aether_converters.measuring.effort import effort_of
from aether_converters.measuring.figures import Pixels, SceneViews, View
from aether_converters.measuring.proof import CROPPED
from aether_converters.pictures.comparison import Pair
from aether_converters.runtimes.upscaler import Image, Upscaler
from aether_converters.sample import PICTURE
from aether_core import AetherConfig

SHOWN: Final = (192, 288)  # (H, W) in px of the enlarged part
MOST_SCENES: Final = 4
TIMED_SIDES: Final = (256, 192, 128, 96, 64)  # px of the input
TIMED_MACS: Final = 6e9  # of one timed run at most, if a side allows it; a tenth of a second or so
LEAST_SHOWN: Final = 1e-4  # of a difference; a 39th of a grey level of 255


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A part of a picture that is shown enlarged.

    Attributes:
        name: Of the picture.
        image: The part with what lies around it, (1, C, h, w) in [0, 1].
        original: What the shown part should become; None where that is not known.
    """

    name: str
    image: Image = field(repr=False)
    original: Pixels | None = field(repr=False, default=None)


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """What artefacts are asked for beside the comparison.

    Attributes:
        scenes: To be enlarged by each.
        timed_size: (H, W) in px of the input for which their speed is measured.
    """

    scenes: tuple[Scene, ...]
    timed_size: tuple[int, int]


def exhibit_for(config: AetherConfig, pairs: Sequence[Pair]) -> Exhibit:
    """The part with the most detail of each of the first pictures, and a size that is soon run."""
    effort = effort_of(replace(config, fused=True))
    return exhibit_of(pairs, config.scale, effort.macs / (effort.size[0] * effort.size[1]))


def exhibit_of(pairs: Sequence[Pair], scale: int, macs_per_pixel: float) -> Exhibit:
    """The same for a network of which this much is known."""
    sides = (side for side in TIMED_SIDES if macs_per_pixel * side**2 <= TIMED_MACS)
    side = next(sides, TIMED_SIDES[-1])
    scenes = tuple(_scene(pair, scale) for pair in pairs[:MOST_SCENES])
    return Exhibit(scenes=scenes, timed_size=(side, side))


def shown_pairs(config: AetherConfig, pictures: Sequence[str | Path]) -> list[Pair]:
    """What a report shows; nothing of a network that maps no pictures to pictures."""
    from aether_converters.pictures.comparison import comparison_pairs
    from aether_converters.pictures.upscaling import PICTURE_CHANNELS

    channels = (config.in_chans, config.out_chans)
    if channels not in PICTURE_CHANNELS:
        return []
    return comparison_pairs(
        pictures or [PICTURE], None, channels=channels, scale=config.scale, most=MOST_SCENES
    )


def _scene(pair: Pair, scale: int) -> Scene:
    """The part is larger than what is shown by `CROPPED` px of output on each side."""
    _, _, height, width = pair.image.shape
    rows, columns = (
        min(math.ceil((side + 2 * CROPPED) / scale), whole)
        for side, whole in zip(SHOWN, (height, width), strict=True)
    )
    top, left = _busiest_part(pair.image, rows, columns)
    part = slice(top, top + rows), slice(left, left + columns)
    original = None
    if pair.original is not None:
        enlarged = (slice(scale * p.start, scale * p.stop) for p in part)
        original = _shown(pair.original[(..., *enlarged)])
    return Scene(
        name=pair.name, image=np.ascontiguousarray(pair.image[(..., *part)]), original=original
    )


def _busiest_part(image: Image, rows: int, columns: int) -> tuple[int, int]:
    """Top and left of the part in which neighbouring px differ most."""
    grey = image[0].mean(axis=0)
    detail = np.zeros_like(grey, dtype=np.float64)
    detail[1:] += np.abs(np.diff(grey, axis=0))
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    sums = np.pad(detail, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    of_part = sums[rows:, columns:] - sums[:-rows, columns:]
    of_part = of_part - (sums[rows:, :-columns] - sums[:-rows, :-columns])
    top, left = np.unravel_index(int(of_part.argmax()), of_part.shape)
    return int(top), int(left)


def look_at(scene: Scene, exact: Image, config: AetherConfig) -> SceneViews:
    """The scene enlarged by bicubic interpolation and, `exact`, by the source network."""
    interpolated = _shown(bicubic(scene.image, config.out_chans, config.scale))
    source, original = _shown(exact), scene.original
    return SceneViews(
        name=scene.name,
        bicubic=interpolated,
        source=source,
        original=original,
        bicubic_psnr=_seen_psnr(interpolated, source if original is None else original),
        source_psnr=None if original is None else _seen_psnr(source, original),
    )


def _seen_psnr(seen: Pixels, aim: Pixels) -> float | None:
    """Of 8-bit pictures, in dB; None where both are equal."""
    error = float(np.square(seen.astype(np.float64) - aim).mean())
    return 10 * math.log10(255**2 / error) if error else None


def bicubic(image: Image, channels: int, scale: int) -> Image:
    """The picture enlarged by the kernel of picture editors (a = -0.5), in so many channels."""
    enlarged = F.interpolate(
        torch.from_numpy(image), scale_factor=scale, mode="bicubic", antialias=True
    ).numpy()
    return enlarged if enlarged.shape[1] == channels else enlarged.mean(axis=1, keepdims=True)


def view_of(scene: Scene, found: Image, exact: Image) -> View:
    """What an artefact makes of a scene, beside what its source does."""
    found, exact = (np.clip(_inside(image), 0, 1) for image in (found, exact))
    difference = _planes(found - exact)
    largest = float(np.abs(found - exact).max())
    seen, aim = _pixels(found), _pixels(exact) if scene.original is None else scene.original
    return View(
        scene=scene.name,
        pixels=seen,
        max_difference=largest,
        psnr=_seen_psnr(seen, aim),
        difference=difference if largest >= LEAST_SHOWN else None,
    )


def _inside(image: Image) -> Image:
    """The picture without what its edges change; the whole of a small one."""
    inside = image[:, :, CROPPED:-CROPPED, CROPPED:-CROPPED]
    return inside if inside.size else image


def _shown(image: Image) -> Pixels:
    return _pixels(_inside(image))


def _pixels(image: Image) -> Pixels:
    """As seen on a screen: grey as RGB, transparency left out; NaN is black."""
    whole: Image = np.clip(_planes(image), 0, 1) * 255
    return np.ascontiguousarray(whole + 0.5, dtype=np.uint8)


def _planes(image: Image) -> Image:
    """(H, W, 3): grey as RGB, transparency left out; NaN is 0."""
    planes: Image = image[0, :3] if image.shape[1] >= 3 else image[0, :1].repeat(3, axis=0)
    told = np.where(np.isfinite(planes), planes, 0)
    return np.asarray(told.transpose(1, 2, 0), dtype=np.float32)


RUNTIMES: Final = {
    "pth": "PyTorch",
    "safetensors": "PyTorch",
    "onnx": "onnxruntime",
    "trt": "TensorRT",
    "ncnn": "NCNN",
}


def computed_by(upscaler: Upscaler) -> str:
    """Runtime and processor, in words."""
    where = "GPU" if upscaler.format == "trt" else upscaler.details.get("provider", "CPU")
    return f"{RUNTIMES[upscaler.format]}, {where}"
