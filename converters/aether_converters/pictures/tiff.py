"""TIFF, as tifffile reads and writes it."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Iterable, Mapping
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
from aether_converters.pictures.jpeg import check_jpeg, parse_jpeg
from aether_converters.pictures.limits import check_cost, check_single, check_size
from aether_converters.pictures.metadata import ICC_TAG, XMP_TAG, Marks, read_exif, true_xmp
from aether_converters.pictures.picture import Picture, Samples, upright
from aether_converters.pictures.webp import webp_size

CHANNELS: Final = {
    PHOTOMETRIC.MINISWHITE: 1,
    PHOTOMETRIC.MINISBLACK: 1,
    PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.PALETTE: 1,
    PHOTOMETRIC.SEPARATED: 4,
    PHOTOMETRIC.YCBCR: 3,
    PHOTOMETRIC.CIELAB: 3,
}
"""Colour channels of each kind of TIFF; the samples after them are transparency or masks."""

PILLOW_MODES: Final = {
    PHOTOMETRIC.SEPARATED: "CMYK",
    PHOTOMETRIC.YCBCR: "YCbCr",
    PHOTOMETRIC.CIELAB: "LAB",
}
AXES: Final = ("YX", "YXS", "SYX")  # one channel; interleaved; one plane per channel
ALPHA: Final = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
MAX_PAGES: Final = 1000  # looked at; in a damaged file they can follow each other in a ring
MAX_SAMPLES: Final = 16  # per pixel: colours, alpha, and masks that an editor saved

BLOCK_SLACK: Final = 2  # times; blocks at the edge can be larger than what is seen of them
BLOCK_ALLOWANCE: Final = 2**16  # px
COST_OF_PACKED: Final = 32  # bytes of pixels that go through a decoder in the time of a packed one

NOT_KEPT: Final = {33723: "IPTC captions", 34377: "Photoshop's layers and settings"}
"""Tags that say something, and are not written again."""


def decode_tiff(stream: BinaryIO) -> Picture:
    """The picture in a TIFF of one page; previews and masks do not count as pages."""
    tiff = tifffile.TiffFile(stream)
    pages = [
        page
        for page in islice(cast("Iterable[tifffile.TiffPage]", tiff.pages), MAX_PAGES)
        if not (page.is_reduced or page.is_mask)
    ]
    if not pages:
        raise ImageError("the file is cut off: it has no page", advice="copy or download it again")
    check_single(len(pages), "pages")
    page, file_size = pages[0], tiff.filehandle.size
    _check_tiff(page)
    _check_blocks(page, file_size)
    _check_codec(page, stream, file_size)
    samples, profile = _tiff_samples(page)
    orientation, exif, resolution = read_exif(partial(_tiff_exif, stream))
    xmp = page.tags.valueof(XMP_TAG)
    marks = Marks(
        icc_profile=profile or None,
        exif=exif,
        xmp=true_xmp(xmp) if isinstance(xmp, bytes) else None,
        resolution=resolution,
        dropped=tuple(f"{name}: left out" for tag, name in NOT_KEPT.items() if tag in page.tags),
    )
    return upright(samples, orientation, marks)


def _check_tiff(page: tifffile.TiffPage) -> None:
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
    channels = CHANNELS.get(PHOTOMETRIC(page.photometric), MAX_SAMPLES + 1)
    if page.axes not in AXES or not channels <= page.samplesperpixel <= MAX_SAMPLES:
        raise ImageError(
            "the colours of this TIFF are of a rare kind",
            expected="grey, RGB, palette, CMYK, YCbCr or LAB",
            found=f"{PHOTOMETRIC(page.photometric).name}, {page.samplesperpixel} channels",
            advice="open it in a picture editor and save it as RGB",
        )


def _check_blocks(page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse strips and tiles that are missing, or of which there is too much for their file.

    Raises:
        ImageError: They go on beyond the file's end, or are the same bytes again and again.
    """
    # tifffile fills in what is missing, block by block, with black.
    blocks, stored = math.prod(page.chunked), sum(map(bool, page.databytecounts))
    if stored < blocks:
        raise ImageError(
            "the file is cut off: some of its pixels are missing",
            expected=f"{blocks} blocks",
            found=f"{stored} blocks",
            advice="copy or download it again",
        )
    decoded = (
        math.prod(page.chunked) * math.prod(page.chunks) * (1 if page.bitspersample <= 8 else 2)
    )
    check_cost(decoded, file_size, pixels=page.imagewidth * page.imagelength)
    check_cost(COST_OF_PACKED * sum(page.databytecounts), file_size)
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

    channels = CHANNELS[photometric]
    samples = _full_range(planes, page.bitspersample)
    color = samples[..., :channels]
    # tifffile has the YCbCr of JPEG decoded to RGB.
    in_jpeg = photometric == PHOTOMETRIC.YCBCR and page.compression == COMPRESSION.JPEG
    if photometric in PILLOW_MODES and not in_jpeg:
        narrow = (color >> 8 if color.dtype == np.uint16 else color).astype(np.uint8)
        size = (page.imagewidth, page.imagelength)
        image = Image.frombytes(PILLOW_MODES[photometric], size, narrow.tobytes())
        return to_srgb(image, profile), None

    if photometric == PHOTOMETRIC.MINISWHITE:
        color = np.invert(color)
    alphas = [i for i, kind in enumerate(page.extrasamples, channels) if kind in ALPHA]
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
    blocks = {ICC_TAG: picture.icc_profile, XMP_TAG: picture.xmp}
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
        resolution=picture.resolution,
        resolutionunit="INCH" if picture.resolution else None,
        extratags=[(tag, "B", len(block), block, True) for tag, block in blocks.items() if block],
    )


def _check_codec(page: tifffile.TiffPage, stream: BinaryIO, file_size: int) -> None:
    """Refuse strips and tiles that say of themselves that they are larger than they should be.

    Raises:
        ImageError: One is, or its codec does not tell the size before it decodes.
    """
    compression = COMPRESSION(page.compression)
    if compression in PLAIN_CODECS:
        return
    size_of = SIZES_IN_CODECS.get(compression)
    if size_of is None:
        raise ImageError(
            "the pixels of this TIFF are compressed in a rare way",
            expected="none, LZW, deflate, JPEG, WebP, JPEG 2000, PNG, ZSTD, LZMA or fax",
            found=compression.name,
            advice="open it in a picture editor and save it with LZW",
        )
    height, width = (page.chunks if page.planarconfig == 2 else page.chunks[:2])[-2:]
    most = BLOCK_SLACK * width * height + BLOCK_ALLOWANCE
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        stream.seek(offset)
        block = stream.read(length)
        if block and (px := size_of(block, file_size)) > most:
            raise ImageError(
                "a part of this TIFF is larger than its place in the picture",
                expected=f"{width} x {height} px",
                found=f"{px} px",
                advice="it is damaged: copy it again, or save it with the program that made it",
            )


def _jpeg_pixels(block: bytes, file_size: int) -> int:
    jpeg = parse_jpeg(block)
    check_jpeg(jpeg, file_size)
    return jpeg.width * jpeg.height


def _jpeg2000_pixels(block: bytes, _: int) -> int:
    start = block.find(b"\xff\x4f\xff\x51")
    right, bottom, left, top = struct.unpack_from(">IIII", block, start + 8)
    return max(right - left, 0) * max(bottom - top, 0)


def _webp_pixels(block: bytes, _: int) -> int:
    width, height = webp_size(block)
    return width * height


def _png_pixels(block: bytes, _: int) -> int:
    width, height = struct.unpack_from(">II", block, 16)
    return width * height


PLAIN_CODECS: Final = frozenset(
    COMPRESSION(code)
    # none, fax, LZW, deflate, NeXT, PackBits, ThunderScan, deflate, LZMA, ZSTD
    for code in (1, 2, 3, 4, 5, 8, 32766, 32773, 32809, 32946, 34925, 50000, 34926)
)
"""Compressions that say no size: tifffile knows how much has to come out."""

SIZES_IN_CODECS: Final[Mapping[COMPRESSION, Callable[[bytes, int], int]]] = {
    COMPRESSION(6): _jpeg_pixels,
    COMPRESSION(7): _jpeg_pixels,
    COMPRESSION(33003): _jpeg2000_pixels,
    COMPRESSION(33005): _jpeg2000_pixels,
    COMPRESSION(34712): _jpeg2000_pixels,
    COMPRESSION(34892): _jpeg_pixels,
    COMPRESSION(34933): _png_pixels,
    COMPRESSION(50001): _webp_pixels,
}
"""How many px a block has by its own account, for compressions that say so."""
