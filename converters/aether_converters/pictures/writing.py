"""A picture into a file, and what the format could not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from PIL import Image

from aether_converters.errors import ImageError
from aether_converters.pictures.faults import (
    DECODER_FAULTS,
    SIZE_FAULTS,
    WARNINGS_IGNORED,
    WRITE_TROUBLES,
    explained,
)
from aether_converters.pictures.formats import FORMATS, ImageFormat, Limits
from aether_converters.pictures.jpeg import jpeg_segments
from aether_converters.pictures.metadata import XMP_TAG, exif_with, keywords
from aether_converters.pictures.picture import (
    ICC_SPACES,
    Picture,
    Samples,
    from_float,
    to_float,
    white,
)
from aether_converters.pictures.png import changing_chunks, write_png
from aether_converters.pictures.tiff import write_tiff

PREDICTOR_TAG: Final = 317


def write_picture(
    picture: Picture, file: Path, image_format: ImageFormat, *, quality: int = 95
) -> tuple[str, ...]:
    """Write `picture` to exactly `file`, whatever its suffix, and say what could not be kept.

    Values are clipped to [0, 1] and rounded. PNG, TIFF and BMP are lossless, WebP is at quality
    100. After an error part of the file may exist.

    Args:
        picture: What to write.
        file: The file to create or replace.
        image_format: The format written.
        quality: 1 to 100, of JPEG and WebP.

    Returns:
        A sentence for each thing that the format cannot hold.

    Raises:
        ImageError: Transparency for JPEG or BMP, a side too long for the format, pixels that are
            not numbers, a quality out of range, or a file that cannot be written.
    """
    limits = FORMATS[image_format]
    try:
        picture = _without_idle_alpha(picture, limits)
        _check_fits(picture, limits, quality)
        kept, notes = _kept(picture, limits)
        with WARNINGS_IGNORED:
            _encode(kept, file, image_format, quality)
    except ImageError as error:
        raise error.in_file(file) from error
    except (*DECODER_FAULTS, *SIZE_FAULTS) as error:
        raise explained(error, WRITE_TROUBLES, file) from error
    return (*picture.doubts, *picture.dropped, *notes)


def _check_fits(picture: Picture, limits: Limits, quality: int) -> None:
    """Refuse what a format cannot hold and what nobody would want to lose.

    Raises:
        ImageError: Transparency, a side that is too long, or a quality out of range.
    """
    if not 1 <= quality <= 100:
        raise ImageError("the quality is out of range", expected="1 to 100", found=str(quality))
    if picture.alpha is not None and not limits.alpha:
        raise ImageError(
            f"{limits.name} holds no transparency, and this picture has some",
            advice="use png, webp or tiff",
        )
    _, height, width = picture.color.shape
    if max(height, width) > limits.longest_side:
        raise ImageError(
            f"the picture is too large for {limits.name}",
            expected=f"at most {limits.longest_side} px on each side",
            found=f"{width} x {height} px",
            advice="use png or tiff",
        )


def _without_idle_alpha(picture: Picture, limits: Limits) -> Picture:
    """The picture without transparency that hides nothing, for formats that hold none."""
    alpha = picture.alpha
    if alpha is None or limits.alpha or alpha.min() < white(alpha.dtype):
        return picture
    return replace(picture, alpha=None)


def _kept(picture: Picture, limits: Limits) -> tuple[Picture, tuple[str, ...]]:
    """The picture as a format can hold it, and a sentence on each thing that it cannot."""
    name = limits.name
    bits = min(picture.bits, limits.bits)
    channels = len(picture.color) if limits.grey else 3
    rgb = np.broadcast_to(picture.color, (channels, *picture.color.shape[1:]))
    profile = picture.icc_profile
    foreign = profile is not None and profile[16:20] != ICC_SPACES[channels]
    exif_size = len(picture.exif or b"")
    losses: tuple[tuple[bool, str, Any, str], ...] = (
        (
            bits < picture.bits,
            "bits",
            bits,
            f"{name} holds {bits} bits per channel: written with {bits} of {picture.bits}",
        ),
        (channels > len(picture.color), "color", rgb, f"{name} has no grey: written as RGB"),
        (
            profile is not None and not limits.icc,
            "icc_profile",
            None,
            f"{name} holds no colour profile here: left out",
        ),
        (
            foreign and limits.icc,
            "icc_profile",
            None,
            f"the colour profile is not one for {'grey' if channels == 1 else 'RGB'}: left out",
        ),
        (
            exif_size > limits.exif[bits],
            "exif",
            None,
            f"{name} with {bits} bits per channel holds {limits.exif[bits]} bytes of EXIF, "
            f"and this picture has {exif_size}: left out",
        ),
        *_lost_marks(picture, limits),
    )
    changes = {field: value for lost, field, value, _ in losses if lost}
    return replace(picture, **changes), tuple(note for lost, *_, note in losses if lost and note)


def _lost_marks(picture: Picture, limits: Limits) -> Iterator[tuple[bool, str, Any, str]]:
    """What of a picture's captions and colours a format does not hold, as in `_kept`."""
    name, held = limits.name, limits.texts
    lost = [
        text for text in picture.texts if held is not None and text[1].split(b"\0")[0] not in held
    ]
    kept = tuple(text for text in picture.texts if text not in lost)
    yield (
        bool(lost),
        "texts",
        kept,
        f"{name} holds no texts such as those of a PNG ({keywords(lost)}): left out",
    )
    size = len(picture.xmp or b"")
    yield (
        size > limits.xmp,
        "xmp",
        None,
        f"{name} holds {limits.xmp} bytes of XMP, and this picture has {size}: left out",
    )
    colors = ", ".join(changing_chunks(picture))
    yield (
        bool(picture.color_chunks) and not limits.color_chunks,
        "color_chunks",
        (),
        f"{name} does not say how colours are meant by {colors}: left out" if colors else "",
    )


def _encode(picture: Picture, file: Path, image_format: ImageFormat, quality: int) -> None:
    """Write a picture that the format can hold entirely.

    Raises:
        ImageError: A pixel is not a number.
    """
    samples = _to_samples(picture)
    if image_format == "png":
        write_png(samples, picture, file)
    elif picture.bits == 16:
        write_tiff(samples, picture, file)
    else:
        options = _pillow_options(picture, image_format, quality)
        Image.fromarray(samples).save(
            file, image_format, **{name: value for name, value in options.items() if value}
        )


def _pillow_options(picture: Picture, image_format: ImageFormat, quality: int) -> dict[str, Any]:
    """What Pillow has to be told, by format; what is empty says nothing."""
    metadata = {"icc_profile": picture.icc_profile, "exif": picture.exif}
    if image_format == "webp":
        # WebP has no place for the resolution, except in EXIF.
        exif = exif_with(picture.exif, picture.resolution)
        lossless = {"quality": quality, "lossless": quality == 100, "exact": True}
        return {**metadata, **lossless, "exif": exif, "xmp": picture.xmp}
    if image_format == "jpeg":
        coding = {"quality": quality, "subsampling": 0, "extra": jpeg_segments(picture)}
        dpi = tuple(min(max(round(r), 1), 65535) for r in picture.resolution or ())
        return {**metadata, **coding, "dpi": dpi}
    if image_format == "bmp":
        return {"dpi": picture.resolution}
    # Pillow can compress a TIFF or give it EXIF's nested directories, not both.
    if picture.exif:
        exif = exif_with(picture.exif, picture.resolution, picture.xmp)
        return {**metadata, "exif": exif}
    info = {PREDICTOR_TAG: 2, **({XMP_TAG: picture.xmp} if picture.xmp else {})}
    compressed = {"compression": "tiff_adobe_deflate", "tiffinfo": info}
    return {**metadata, **compressed, "dpi": picture.resolution}


def _to_samples(picture: Picture) -> Samples:
    """The picture's pixels over the full range of uint8 or uint16, (H, W) if grey alone.

    Raises:
        ImageError: A pixel is NaN or infinite.
    """
    dtype = np.dtype(np.uint16 if picture.bits == 16 else np.uint8)
    if picture.alpha is None and picture.color.dtype == dtype:
        # Upscaled pictures lie in memory as files hold them, so that this copies nothing.
        there = np.ascontiguousarray(np.moveaxis(picture.color, 0, -1))
        # Of a single px numpy calls any strides contiguous; encoders do not.
        channels, height, width = picture.color.shape
        samples = there.reshape(-1).reshape(height, width, channels)
    else:
        planes = [*picture.color] if picture.alpha is None else [*picture.color, picture.alpha]
        samples = np.empty((*planes[0].shape, len(planes)), dtype)
        for channel, plane in enumerate(planes):
            same = plane.dtype == dtype
            samples[..., channel] = plane if same else from_float(to_float(plane), dtype)
    return cast("Samples", samples[..., 0] if samples.shape[-1] == 1 else samples)
