"""TIFF, as tifffile reads and writes it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT

from aether_converters.errors import ImageError
from aether_converters.pictures.color import to_srgb
from aether_converters.pictures.limits import check_single, check_size
from aether_converters.pictures.metadata import ICC_TAG, read_exif
from aether_converters.pictures.picture import Picture, Samples, upright

TIFF_CHANNELS: Final = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
}
"""Colour channels of each kind of TIFF; the samples after them are transparency or masks."""

TIFF_PILLOW_MODES: Final = {
    PHOTOMETRIC.SEPARATED: "CMYK",
    PHOTOMETRIC.YCBCR: "YCbCr",
    PHOTOMETRIC.CIELAB: "LAB",
}
TIFF_AXES: Final = ("YX", "YXS", "SYX")  # one channel; interleaved; one plane per channel
TIFF_ALPHA: Final = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
TIFF_MAX_PAGES: Final = 1000  # looked at; in a damaged file they can follow each other in a ring
TIFF_MAX_SAMPLES: Final = 16  # per pixel: colours, alpha, and masks that an editor saved


def decode_tiff(stream: BinaryIO) -> Picture:
    """The picture in a TIFF of one page; previews and masks do not count as pages."""
    tiff = tifffile.TiffFile(stream)
    pages = [
        page
        for page in islice(cast("Iterable[tifffile.TiffPage]", tiff.pages), TIFF_MAX_PAGES)
        if not (page.is_reduced or page.is_mask)
    ]
    if not pages:
        raise ImageError("the file is cut off: it has no page", advice="copy or download it again")
    check_single(len(pages), "pages")
    _check_tiff(pages[0], tiff.filehandle.size)
    samples, profile = _tiff_samples(pages[0])
    orientation, exif = read_exif(partial(_tiff_exif, stream))
    return upright(samples, orientation, profile, exif)


def _check_tiff(page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse what cannot be decoded safely or faithfully, before it is decoded.

    Raises:
        ImageError: The size, the kind of numbers or colours, or pixels beyond the file's end.
    """
    check_size(page.imagewidth, page.imagelength)
    if page.is_tiled:
        check_size(page.tilewidth, page.tilelength)
    if page.sampleformat != SAMPLEFORMAT.UINT or page.bitspersample > 16:
        raise ImageError(
            "the pixels of this TIFF are no numbers from black to white",
            expected="unsigned integers of up to 16 bits",
            found=f"{page.bitspersample} bits, {SAMPLEFORMAT(page.sampleformat).name}",
            advice="open it in a picture editor and save it with 16 bits per channel",
        )
    channels = TIFF_CHANNELS.get(PHOTOMETRIC(page.photometric), TIFF_MAX_SAMPLES + 1)
    if page.axes not in TIFF_AXES or not channels <= page.samplesperpixel <= TIFF_MAX_SAMPLES:
        raise ImageError(
            "the colours of this TIFF are of a rare kind",
            expected="grey, RGB, palette, CMYK, YCbCr or LAB",
            found=f"{PHOTOMETRIC(page.photometric).name}, {page.samplesperpixel} channels",
            advice="open it in a picture editor and save it as RGB",
        )
    # tifffile fills in what is missing, block by block, with black.
    blocks, stored = math.prod(page.chunked), sum(map(bool, page.databytecounts))
    if stored < blocks:
        raise ImageError(
            "the file is cut off: some of its pixels are missing",
            expected=f"{blocks} blocks",
            found=f"{stored} blocks",
            advice="copy or download it again",
        )
    if max(map(operator.add, page.dataoffsets, page.databytecounts), default=0) > file_size:
        raise ImageError(
            "the file is cut off: its pixels go on beyond its end",
            found=f"{file_size} bytes",
            advice="copy or download it again",
        )


def _tiff_samples(page: tifffile.TiffPage) -> tuple[Samples, bytes | None]:
    """The page's pixels as grey or RGB with straight alpha, and the profile that fits them."""
    profile: bytes | None = page.tags.valueof(ICC_TAG)
    photometric = PHOTOMETRIC(page.photometric)
    stored = np.atleast_3d(cast("Samples", page.asarray()))
    planes = np.moveaxis(stored, 0, -1) if page.axes == "SYX" else stored
    if photometric == PHOTOMETRIC.PALETTE:
        palette = (cast("NDArray[np.uint16]", page.colormap) >> 8).astype(np.uint8)
        return np.moveaxis(palette[:, planes[..., 0].astype(np.uint16)], 0, -1), profile

    channels = TIFF_CHANNELS[photometric]
    samples = _full_range(planes, page.bitspersample)
    color = samples[..., :channels]
    # tifffile has the YCbCr of JPEG decoded to RGB.
    in_jpeg = photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    if photometric in TIFF_PILLOW_MODES and not in_jpeg:
        narrow = (color >> 8 if color.dtype == np.uint16 else color).astype(np.uint8)
        size = (page.imagewidth, page.imagelength)
        image = Image.frombytes(TIFF_PILLOW_MODES[photometric], size, narrow.tobytes())
        return to_srgb(image, profile), None

    if photometric == PHOTOMETRIC.MINISWHITE:
        color = np.invert(color)
    alphas = [i for i, kind in enumerate(page.extrasamples, channels) if kind in TIFF_ALPHA]
    if not alphas:
        return color, profile
    alpha = samples[..., alphas[0], None]
    if page.extrasamples[alphas[0] - channels] == EXTRASAMPLE.ASSOCALPHA:
        color = _divided(color, alpha)
    return np.concatenate((color, alpha), axis=-1), profile


def _full_range(samples: Samples, bits: int) -> Samples:
    """Samples of `bits` spread over all values of uint8, or uint16 for more than 8 bits."""
    if bits in (8, 16):
        return samples
    dtype = np.uint8 if bits < 8 else np.uint16
    spread = np.rint(np.linspace(0, np.iinfo(dtype).max, 2**bits)).astype(dtype)
    return spread[samples.astype(np.uint16)]


def _divided(color: Samples, alpha: Samples) -> Samples:
    """Colours (H, W, C) that `alpha` (H, W, 1) was multiplied into, as they were before."""
    peak = np.float32(np.iinfo(color.dtype).max)
    straight = np.zeros(color.shape, np.float32)
    np.divide(color, alpha, out=straight, where=alpha > 0, dtype=np.float32)
    return np.rint(np.minimum(straight, 1) * peak).astype(color.dtype)


def _tiff_exif(stream: BinaryIO) -> Image.Exif:
    """The main directory of a TIFF file as EXIF, which has the same layout."""
    exif = Image.Exif()
    stream.seek(0)
    exif.load_from_fp(stream)
    return exif


def write_tiff(samples: Samples, picture: Picture, file: Path) -> None:
    """Write a TIFF of any depth, compressed without loss, alpha not multiplied in; no EXIF."""
    icc = picture.icc_profile
    tifffile.imwrite(
        file,
        samples,
        photometric="rgb" if len(picture.color) == 3 else "minisblack",
        planarconfig=None if samples.ndim == 2 else "contig",
        extrasamples=[] if picture.alpha is None else ["unassalpha"],
        compression="adobe_deflate",
        predictor=True,
        metadata=None,
        software=False,
        extratags=[(ICC_TAG, "B", len(icc), icc, True)] if icc else [],
    )
