"""Pictures to compare on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Final

import numpy as np

from aether_converters.errors import ImageError
from aether_converters.pictures.formats import is_picture
from aether_converters.pictures.jobs import pictures_in
from aether_converters.pictures.picture import to_float
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.upscaling import model_input
from aether_converters.runtimes.upscaler import Image


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture to upscale, and what it should become.

    Attributes:
        name: Of the picture's file, without its ending.
        image: (1, C, H, W) in [0, 1].
        original: (1, C, scale * H, scale * W) in [0, 1]; None where there is none.
    """

    name: str
    image: Image = field(repr=False)
    original: Image | None = field(repr=False, default=None)


COMPARED_SIDE: Final = 512  # px


def comparison_images(paths: Sequence[str | Path], channels: int) -> list[Image]:
    """The middle of each picture as a model of so many channels sees it.

    Folders stand for the pictures in them. Each array is (1, channels, H, W) in [0, 1], H and W
    at most `COMPARED_SIDE` px.

    Raises:
        ImageError: A picture cannot be read, or a folder holds none.
    """
    return [pair.image for pair in comparison_pairs(paths, None, channels=(channels, 0), scale=1)]


def comparison_pairs(
    paths: Sequence[str | Path],
    originals: str | Path | None,
    *,
    channels: tuple[int, int],
    scale: int,
    most: int | None = None,
) -> list[Pair]:
    """The middle of each picture, as for `comparison_images`, and that of its original.

    Args:
        paths: Pictures, and folders of pictures.
        originals: Folder with what each should become, under its name with any ending; or None.
        channels: Of the model's input and output.
        scale: Of the model.
        most: How many pictures are read at most; None for all.

    Raises:
        ImageError: A picture cannot be read, a folder holds none, or a picture has no original.
    """
    pairs: list[Pair] = []
    for given in paths:
        for path, _ in pictures_in(Path(given), recursive=False):
            if len(pairs) == most:
                return pairs
            image = _middle(path, channels[0], COMPARED_SIDE)
            original = None
            if originals is not None:
                place = _original_of(path, Path(originals))
                original = _middle(place, channels[1], scale * COMPARED_SIDE)
            pairs.append(Pair(name=path.stem, image=image, original=original))
    return pairs


def _original_of(picture: Path, folder: Path) -> Path:
    found = [path for path in sorted(folder.glob(f"{escape(picture.stem)}.*")) if is_picture(path)]
    if not found:
        raise ImageError(
            "this picture has no original",
            file=picture,
            expected=f"{picture.stem} with any picture's ending in {folder}",
            advice="give the originals the names of their pictures",
        )
    return found[0]


def _middle(path: Path, channels: int, side: int) -> Image:
    """(1, channels, H, W) in [0, 1], H and W at most `side` px."""
    picture = read_picture(path)
    _, height, width = picture.color.shape
    top, left = (max(size - side, 0) // 2 for size in (height, width))
    seen = model_input(picture.color, picture.alpha, channels)
    seen = seen[:channels, top : top + side, left : left + side]
    return np.ascontiguousarray(to_float(seen[None]))
