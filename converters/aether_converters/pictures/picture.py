"""A still picture in memory: pixels, and what has to survive the upscaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from aether_converters.errors import ImageError
from aether_converters.pictures.metadata import Marks

Samples: TypeAlias = NDArray[np.uint8 | np.uint16]
"""Pixels as files hold them, (H, W) or (H, W, S): 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
Planes: TypeAlias = NDArray[np.uint8 | np.uint16 | np.float32]
"""Pixels of a picture: integers over their full range, as files hold them, or float32 in [0, 1]."""

ICC_SPACES: Final = {1: b"GRAY", 3: b"RGB "}
"""The colour space, bytes 16 to 20 of a profile, that fits this many colour channels."""

ORIENTATIONS: Final = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
"""What turns the pixels upright: rows and columns swapped first, step along each of them."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Picture(Marks):
    """A still picture: pixels, and what has to survive the upscaling.

    Attributes:
        color: (C, H, W); C is 1 (grey) or 3 (RGB).
        alpha: (H, W), of the dtype of `color`, white is opaque, not multiplied into `color`;
            None: no transparency.
        bits: Bits per channel that the file had, and that the next one is to have.
        doubts: What is wrong with the pixels, in words; nothing if the file is sound.
    """

    color: Planes
    alpha: Planes | None = None
    bits: Literal[8, 16] = 8
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the shapes fit.

        Raises:
            ImageError: `color` is not (1 or 3, H, W) with pixels, or `alpha` is not (H, W).
        """
        shape = self.color.shape
        if len(shape) != 3 or shape[0] not in ICC_SPACES or self.color.size == 0:
            raise ImageError(
                "these pixels are not a picture", expected="(1 or 3, H, W)", found=str(shape)
            )
        if self.alpha is not None and self.alpha.shape != shape[1:]:
            raise ImageError(
                "transparency and colours differ in size",
                expected=str(shape[1:]),
                found=str(self.alpha.shape),
            )

    def __repr__(self) -> str:
        """Size, channels and depth: pixels and profiles would fill the screen."""
        channels, height, width = self.color.shape
        kind = "grey" if channels == 1 else "RGB"
        alpha = "" if self.alpha is None else " with transparency"
        return f"<Picture: {width} x {height} px, {kind}{alpha}, {self.bits} bits per channel>"


def white(dtype: np.dtype[Any]) -> int:
    """The value of white, and of opaque, in pixels of this dtype."""
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def to_float(planes: Planes) -> NDArray[np.float32]:
    """Pixels of any dtype as float32, white is 1."""
    if planes.dtype == np.float32:
        return cast("NDArray[np.float32]", planes)
    return np.divide(planes, np.float32(white(planes.dtype)), dtype=np.float32, order="C")


def from_float(values: NDArray[np.float32], dtype: np.dtype[Any]) -> Planes:
    """Pixels of `dtype`; integers are clipped and rounded, which overwrites nothing.

    Raises:
        ImageError: A pixel is NaN or infinite.
    """
    if dtype == values.dtype:
        return values
    refuse_invalid(values)
    clipped = np.clip(values, 0, 1)
    clipped *= np.float32(white(dtype))
    return np.rint(clipped, out=clipped).astype(dtype)


def refuse_invalid(values: NDArray[np.float32]) -> None:
    """Raise ImageError where what a model gave is NaN or infinite."""
    if not np.isfinite([values.min(), values.max()]).all():
        raise ImageError(
            "the model produced invalid numbers",
            expected="pixels from 0 to 1",
            found="NaN or infinity, as when half precision (fp16) overflows",
            advice="use the fp32 file of the model; if this is it, see `aethernet inspect`",
        )


def upright(samples: Samples, orientation: int, marks: Marks) -> Picture:
    """The picture as it is looked at; an `orientation` unknown to EXIF changes nothing."""
    swapped, row_step, column_step = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
    planes = np.moveaxis(np.atleast_3d(samples), -1, 0)  # (S, H, W)
    planes = np.swapaxes(planes, 1, 2) if swapped else planes
    values = planes[:, ::row_step, ::column_step]
    channels = 1 if len(values) < 3 else 3
    if swapped and marks.resolution:
        marks = replace(marks, resolution=marks.resolution[::-1])
    return Picture(
        color=values[:channels],
        alpha=values[channels] if len(values) > channels else None,
        bits=16 if samples.dtype == np.uint16 else 8,
        **vars(marks),
    )
