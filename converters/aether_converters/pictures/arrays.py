"""An array or a Pillow image in, the same enlarged out."""

from __future__ import annotations

from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

from aether_converters.errors import ImageError
from aether_converters.pictures.limits import check_size
from aether_converters.pictures.metadata import Marks
from aether_converters.pictures.picture import (
    ICC_SPACES,
    Picture,
    Samples,
    refuse_invalid,
    upright,
)
from aether_converters.pictures.reading import picture_in
from aether_converters.pictures.tiling import MEMORY
from aether_converters.pictures.upscaling import OnPixels, TileOptions, upscale_picture
from aether_converters.runtimes.opening import Model, open_upscaler
from aether_spandrel.constants import Constants

Kind = TypeVar("Kind", Image.Image, NDArray[Any])

CHANNELS: Final = range(1, 5)
INTEGERS: Final = ("uint8", "uint16")
FLOATS: Final = ("float16", "float32", "float64")
BEYOND: Final = 0.5  # of white, by which filters overshoot; further out numbers are no [0, 1]


def upscale(
    model: Model,
    picture: Kind,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    memory: int = MEMORY,
    device: str | None = None,
    dtype: str | None = None,
    on_pixels: OnPixels = lambda _done, _all: None,
    **constants: Unpack[Constants],
) -> Kind:
    """The picture enlarged, as what it was given as: the pixels that `aethernet upscale` writes.

    Args:
        model: A file, which is opened for this call alone; or what `open_upscaler` gives, which is
            kept for any number of calls from any number of threads; or a network of whatever
            architecture that spandrel has loaded, where it is and in its dtype.
        picture: (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGBA, of uint8
            or uint16 over their full range or of floats in [0, 1]; or a Pillow image, which is
            turned upright, and of which palettes, CMYK and the like become RGB.
        tile: Side of a tile in px; by default the largest that `memory` holds.
        overlap: Px that tiles see beyond their part; by default all that the result can depend on.
        memory: Bytes that one tile may take.
        device: For a file, as for `open_upscaler`.
        dtype: For a file, as for `open_upscaler`.
        on_pixels: Told after each part how many px are done, and how many there are in all.
        **constants: For a checkpoint file, values that its tensors do not carry.

    Returns:
        scale * H by scale * W px in the dtype that was given, floats clipped to [0, 1]; of a Pillow
        image one with its colour profile.

    Raises:
        ImageError: It is no picture, its floats do not lie in [0, 1], or the model gives numbers
            that are none.
        ModelError: The model cannot be run, or not on pictures, or is open already and a device,
            dtype or constant is given.
        CheckpointError: The file is a checkpoint that cannot be read.
    """
    upscaler = open_upscaler(model, device=device, dtype=dtype, **constants)
    tiles = TileOptions(tile=tile, overlap=overlap, memory=memory)
    if isinstance(picture, Image.Image):
        given = _of_pillow(picture)
        return _to_pillow(upscale_picture(upscaler, given, tiles, on_pixels))
    large = upscale_picture(upscaler, _of_array(picture), tiles, on_pixels)
    return _to_array(large, picture)


def _of_pillow(image: Image.Image) -> Picture:
    check_size(*image.size)
    if image.mode == "F":
        raise ImageError(
            "what is white in this picture is not known",
            expected="a Pillow image of integers, or an array of floats in [0, 1]",
            found="mode F",
            advice="divide numpy.asarray(image) by its white and pass that",
        )
    return picture_in(image)


def _of_array(array: NDArray[Any]) -> Picture:
    if not isinstance(cast(object, array), np.ndarray):
        raise ImageError(
            "this is no picture that can be enlarged",
            expected="a NumPy array or a Pillow image",
            found=type(array).__name__,
            advice="open a file with PIL.Image.open; make an (H, W, channels) array of a tensor",
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ImageError(
            "an array of this shape is not a picture",
            expected="(H, W), (H, W, 3) or (H, W, 4)",
            found=str(array.shape),
            advice="pass pictures one by one, with their channels last",
        )
    if array.dtype.name not in (*INTEGERS, *FLOATS):
        raise ImageError(
            "what is white in an array of this dtype is not known",
            expected="uint8, uint16 or floats in [0, 1]",
            found=str(array.dtype),
            advice="convert it with astype, white being 255, 65535 or 1.0",
        )
    if array.size:
        check_size(array.shape[1], array.shape[0])
    floats = array.dtype.name in FLOATS
    if floats and array.size:
        low, high = float(array.min()), float(array.max())
        if not -BEYOND <= low <= high <= 1 + BEYOND:  # nor is NaN
            raise ImageError(
                "the floats of this array do not lie between black and white",
                expected="0 to 1",
                found=f"{low:g} to {high:g}",
                advice="divide it by its white, such as 255",
            )
    # By its name a dtype is in this computer's order of bytes.
    samples = np.asarray(array).astype("float32" if floats else array.dtype.name, copy=False)
    return upright(cast(Samples, samples), 1, Marks())


def _to_array(picture: Picture, given: NDArray[Any]) -> NDArray[Any]:
    """The picture with the dtype and, where it can be, the number of axes of what was given."""
    pixels = _interleaved(picture)
    dtype: str = cast(Any, given.dtype).name
    if dtype in FLOATS:
        refuse_invalid(pixels)
        pixels = np.clip(pixels, 0, 1, out=pixels)
    flat = pixels.shape[2] == 1 and given.shape[2:] != (1,)
    return (pixels[..., 0] if flat else pixels).astype(dtype, copy=False)


def _to_pillow(picture: Picture) -> Image.Image:
    pixels = _interleaved(picture)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    profile = picture.icc_profile
    if profile is not None and profile[16:20] == ICC_SPACES[len(picture.color)]:
        image.info["icc_profile"] = profile
    return image


def _interleaved(picture: Picture) -> NDArray[Any]:
    if picture.alpha is None:  # enlarged pictures lie so in memory: this copies nothing
        return np.ascontiguousarray(np.moveaxis(picture.color, 0, -1))
    return np.stack([*picture.color, picture.alpha], axis=-1)
