"""A picture enlarged by a model, whatever channels either has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from aether_converters.errors import ModelError
from aether_converters.pictures.metadata import scaled
from aether_converters.pictures.picture import Picture, Planes, white
from aether_converters.pictures.tiling import MEMORY, TilePlan, plan_tiles, upscale_image
from aether_converters.pictures.transparency import with_hidden_filled
from aether_converters.runtimes.upscaler import Image, Upscaler

OnPixels = Callable[[int, int], None]
"""Told after each part of a picture how many of its px are done, and how many there are in all."""


RGBA: Final = 4  # channels


PICTURE_CHANNELS: Final = ((1, 1), (3, 3), (RGBA, RGBA), (3, 1))  # in and out


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How large pictures are cut; see `plan_tiles`. Sizes in px, memory in bytes."""

    tile: int | None = None
    overlap: int | None = None
    memory: int = MEMORY


def upscale_picture(
    upscaler: Upscaler,
    picture: Picture,
    options: TileOptions | None = None,
    on_pixels: OnPixels = lambda _done, _all: None,
) -> Picture:
    """The picture enlarged by a model of 1, 3 or 4 channels, whatever channels it has itself.

    A grey picture stays grey: a colour model sees it as three equal channels, and their mean is
    kept. A grey model upscales the colours of a picture one by one. Transparency goes through
    the model's fourth channel where it has one, else through the model as a grey picture;
    constant transparency is not computed. Colours that it hides entirely are filled from their
    neighbours first. On paper the picture stays as large: its resolution grows with it.
    """
    options = options or TileOptions()
    if upscaler.channels not in PICTURE_CHANNELS:
        taken, given = upscaler.channels
        raise ModelError(
            "the model does not map pictures to pictures",
            file=upscaler.path,
            expected="1, 3 or 4 channels, as many out as in; or RGB in and grey out",
            found=f"{taken} in and {given} out",
            advice="run it from Python, with tensors of its channels",
        )
    plan = planned_tiles(upscaler, picture, options)
    channels = upscaler.channels[0]
    alpha = picture.alpha
    color = picture.color if alpha is None else with_hidden_filled(picture.color, alpha)
    varying_alpha = alpha is not None and alpha.min() != alpha.max()
    by_plane = len(color) > channels
    passes = (len(color) if by_plane else 1) + (varying_alpha and channels != RGBA)
    total = passes * color.shape[1] * color.shape[2] * upscaler.scale**2
    done = 0

    def count(pixels: int) -> None:
        nonlocal done
        done += pixels
        on_pixels(done, total)

    def run(planes: Planes, finish: Callable[[Image], Image]) -> Planes:
        return upscale_image(upscaler, planes, plan, finish=finish, on_pixels=count)

    def grey(output: Image) -> Image:
        return output[:3].mean(axis=0, keepdims=True)

    def kept(output: Image) -> Image:
        of_color = grey(output) if len(color) == 1 else output[:3]
        return np.concatenate([of_color, output[3:]]) if varying_alpha else of_color

    if by_plane:
        enlarged = np.concatenate([run(plane[None], grey) for plane in color])
    else:
        enlarged = run(model_input(color, alpha, channels), kept)
    new_color, new_alpha = enlarged, None
    if alpha is not None:
        if not varying_alpha:
            new_alpha = np.full(enlarged.shape[1:], alpha.flat[0], alpha.dtype)
        elif channels == RGBA:
            new_color, new_alpha = enlarged[:-1], enlarged[-1]
        else:
            new_alpha = run(model_input(alpha[None], None, channels), grey)[0]
    resolution = scaled(picture.resolution, upscaler.scale)
    return replace(picture, color=new_color, alpha=new_alpha, resolution=resolution)


def planned_tiles(upscaler: Upscaler, picture: Picture, options: TileOptions) -> TilePlan:
    """The parts in which a picture is computed; see `plan_tiles`."""
    _, height, width = picture.color.shape
    return plan_tiles(
        upscaler, height, width, tile=options.tile, overlap=options.overlap, memory=options.memory
    )


def model_input(color: Planes, alpha: Planes | None, channels: int) -> Planes:
    """Colour planes, as many as the model takes; an RGBA model sees an opaque picture."""
    if channels == 1:
        return color
    planes = np.broadcast_to(color, (3, *color.shape[1:]))
    if channels != RGBA:
        return planes
    if alpha is None:
        alpha = np.full(color.shape[1:], white(color.dtype), color.dtype)
    return np.concatenate([planes, alpha[None]])
