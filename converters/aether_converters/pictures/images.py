"""Pictures in and out of the upscaler: pixels, transparency, bit depth, colour profile and EXIF.

Each library does what it does best. PNG pixels go through imagecodecs, because Pillow reduces
16-bit RGB to 8 bits and misses the transparent colour of 2- and 4-bit greys. TIFF pixels are read
by tifffile. JPEG, WebP and BMP, and the metadata of every format, belong to Pillow.
"""

from __future__ import annotations

import io
import logging
import math
import operator
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias, cast

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, SAMPLEFORMAT

from aether_converters.errors import ImageError

ImageFormat = Literal["png", "jpeg", "webp", "tiff", "bmp"]
Samples: TypeAlias = NDArray[np.uint8 | np.uint16]
"""Pixels as files hold them, (H, W) or (H, W, S): 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
Planes: TypeAlias = NDArray[np.uint8 | np.uint16 | np.float32]
"""Pixels of a picture: integers over their full range, as files hold them, or float32 in [0, 1]."""

SUFFIXES: Final[Mapping[str, ImageFormat]] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
}
"""The format that each ending of a file name stands for."""

MAX_PIXELS: Final = 2**29
"""Largest picture read, in px: 1.6 GB of 8-bit RGB. Beyond it, headers are damaged or hostile."""

PNG_LEVEL: Final = 4  # of zlib: four times as fast as 6, for files of about the same size
PNG_PIXEL_CHUNKS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
PNG_HEADER_BYTES: Final = 33  # signature and IHDR; a profile has to stand before the pixels

PILLOW_MODES: Final = {"1": "L", "L": "L", "RGBA": "RGBA"}  # every other mode becomes RGB

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

ICC_TAG: Final = 34675
PREDICTOR_TAG: Final = 317
ICC_SPACES: Final = {1: b"GRAY", 3: b"RGB "}
"""The colour space, bytes 16 to 20 of a profile, that fits this many colour channels."""

EXIF_PREFIX: Final = b"Exif\0\0"
ORIENTATION_TAG: Final = 274
EXIF_DIRECTORY: Final = 34665
GPS_DIRECTORY: Final = 34853
CAPTION_TAGS: Final = frozenset(
    (
        *(269, 270, 271, 272),  # document name, description, make and model of the camera
        *(282, 283, 296),  # resolution and its unit
        *(305, 306, 315, 316, 33432),  # software, date, artist, host computer, copyright
        *(18246, 18249, 40091, 40092, 40093, 40094, 40095),  # rating and captions by Windows
        *(EXIF_DIRECTORY, GPS_DIRECTORY),
    )
)
"""The main EXIF tags kept; others tell how one file stores its pixels, untrue of the next file."""

EXIF_SIZE_TAGS: Final = (40962, 40963)  # width and height as the camera wrote them

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

# Both log what ends up in an ImageError here, and Python prints what no handler takes. An
# application that configures logging still receives it.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Picture:
    """A still picture: pixels, and what has to survive the upscaling.

    Attributes:
        color: (C, H, W); C is 1 (grey) or 3 (RGB).
        alpha: (H, W), of the dtype of `color`, white is opaque, not multiplied into `color`;
            None: no transparency.
        bits: Bits per channel that the file had, and that the next one is to have.
        icc_profile: The embedded colour profile.
        exif: EXIF block, from its b"Exif" and two zeros on. The orientation is applied to the
            pixels and removed; preview, stored size and layout of the file are removed as well.
    """

    color: Planes
    alpha: Planes | None = None
    bits: Literal[8, 16] = 8
    icc_profile: bytes | None = None
    exif: bytes | None = None

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


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """What a format can hold."""

    name: str
    alpha: bool = True
    grey: bool = True
    icc: bool = True
    bits: Literal[8, 16] = 8
    longest_side: int = 2**31 - 1  # px
    exif: Mapping[int, int]  # bits per channel -> longest EXIF block in bytes


FORMATS: Final[Mapping[ImageFormat, _Limits]] = {
    "png": _Limits(name="PNG", bits=16, exif={8: 2**31 - 1, 16: 2**31 - 1}),
    "jpeg": _Limits(name="JPEG", alpha=False, longest_side=65500, exif={8: 65533}),
    "webp": _Limits(name="WebP", grey=False, longest_side=16383, exif={8: 2**31 - 1}),
    # Pillow cannot write 16 bits, and tifffile cannot write EXIF's nested directories.
    "tiff": _Limits(name="TIFF", bits=16, exif={8: 2**31 - 1, 16: 0}),
    "bmp": _Limits(name="BMP", alpha=False, icc=False, exif={8: 0}),
}

_Faults: TypeAlias = "tuple[type[Exception], ...]"

DECODER_FAULTS: Final[_Faults] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tifffile.TiffFileError,
    zlib.error,
)
"""What Pillow, tifffile and imagecodecs raise on damaged bytes."""

SIZE_FAULTS: Final[_Faults] = (MemoryError, Image.DecompressionBombError)

_Troubles: TypeAlias = "tuple[tuple[_Faults, str, str], ...]"

READ_TROUBLES: Final[_Troubles] = (
    ((FileNotFoundError,), "there is no such file", "check the name and the folder"),
    ((IsADirectoryError,), "this is a folder, not a picture", "name a picture inside it"),
    (
        (PermissionError,),
        "this file may not be read",
        "ask its owner for access, or copy it to a folder of your own",
    ),
    (
        SIZE_FAULTS,
        "the picture is too large for this computer",
        "cut it into parts and upscale them one by one",
    ),
    (
        DECODER_FAULTS,
        "the picture cannot be decoded",
        "it is damaged, cut off or of a rare kind: "
        "open it in a picture editor and save it again as PNG",
    ),
)
"""What a fault means, and the next step; the first row that fits a fault explains it."""

WRITE_TROUBLES: Final[_Troubles] = (
    ((FileNotFoundError,), "the folder does not exist", "create it, or choose another one"),
    ((IsADirectoryError,), "this is a folder", "choose a file name inside it"),
    ((PermissionError,), "this file may not be written", "choose a folder of your own"),
    (SIZE_FAULTS, "the picture is too large for this computer", "use a smaller scale"),
    (
        DECODER_FAULTS,
        "the picture cannot be written",
        "check the free space on the disk, or choose another format",
    ),
)


class _IgnoredWarnings:
    """No warning while any thread is inside; `catch_warnings` alone serves one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


WARNINGS_IGNORED: Final = _IgnoredWarnings()


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
    if not np.isfinite([values.min(), values.max()]).all():
        raise ImageError(
            "the model produced invalid numbers",
            expected="pixels from 0 to 1",
            found="NaN or infinity, as when half precision (fp16) overflows",
            advice="use the fp32 file of the model; if this is it, see `aethernet inspect`",
        )
    clipped = np.clip(values, 0, 1)
    clipped *= np.float32(white(dtype))
    return np.rint(clipped, out=clipped).astype(dtype)


def is_picture(path: Path) -> bool:
    """Whether `path` is named like a picture; nothing is opened."""
    # On disks of other systems macOS leaves a "._photo.jpg" without pixels beside each picture.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def read_picture(path: Path) -> Picture:
    """The picture in a PNG, JPEG, WebP, TIFF or BMP file, told by its content, not its suffix.

    CMYK, YCbCr and LAB become 8-bit sRGB without a profile; CMYK goes through its profile where
    that is sound. Palettes become RGB. More than 8 bits count as 16. Alpha that is multiplied
    into the colours is divided out. EXIF that cannot be parsed is left behind.

    Raises:
        ImageError: No such file, none of these formats, damaged, more than `MAX_PIXELS`, several
            frames or pages, or samples other than unsigned integers of up to 16 bits.
    """
    try:
        with path.open("rb") as stream, WARNINGS_IGNORED:
            return _decode(stream)
    except ImageError as error:
        raise error.in_file(path) from error
    except (*DECODER_FAULTS, *SIZE_FAULTS) as error:
        raise _explained(error, READ_TROUBLES, path) from error


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
        _check_fits(picture, limits, quality)
        kept, notes = _kept(picture, limits)
        with WARNINGS_IGNORED:
            _encode(kept, file, image_format, quality)
    except ImageError as error:
        raise error.in_file(file) from error
    except (*DECODER_FAULTS, *SIZE_FAULTS) as error:
        raise _explained(error, WRITE_TROUBLES, file) from error
    return notes


def _explained(error: Exception, troubles: _Troubles, file: Path) -> ImageError:
    """The fault in plain words, by the first row of `troubles` that fits it."""
    # Windows reports a folder opened as a file as a lack of permission.
    is_folder = isinstance(error, PermissionError) and file.is_dir()
    fault = IsADirectoryError if is_folder else type(error)
    problem, advice = next(words for faults, *words in troubles if issubclass(fault, faults))
    found = str(error) or type(error).__name__
    return ImageError(problem, file=file, found=found, advice=advice)


def _check_size(width: int, height: int) -> None:
    """Refuse a declared size, in px, before memory is spent on it.

    Raises:
        ImageError: No pixels, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise ImageError(
            "the picture has no pixels",
            found=f"{width} x {height} px",
            advice="it is damaged: save it again with the program that made it",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            "the picture is too large",
            expected=f"at most {MAX_PIXELS} px in all",
            found=f"{width} x {height} px",
            advice="cut it into parts and upscale them one by one",
        )


def _check_single(count: int, parts: str) -> None:
    """Refuse animations and documents.

    Raises:
        ImageError: `count` is more than 1.
    """
    if count > 1:
        raise ImageError(
            "this is not a single picture",
            expected="one still picture",
            found=f"{count} {parts}",
            advice=f"extract the {parts} first and upscale them one by one",
        )


def _decode(stream: BinaryIO) -> Picture:
    """The picture in an open file, by the first bytes.

    Raises:
        ImageError: See `read_picture`; here without the name of the file.
    """
    head = stream.read(16)
    stream.seek(0)
    for signature, decode in DECODERS.items():
        if re.match(signature, head, re.DOTALL):
            return decode(stream)
    raise ImageError(
        "this is not a picture that can be read",
        expected="PNG, JPEG, WebP, TIFF or BMP",
        found="another kind of file" if head else "an empty file",
        advice="open it in a picture editor and save it as PNG",
    )


def _decode_png(stream: BinaryIO) -> Picture:
    """The picture in a PNG of any depth; a colour declared transparent becomes alpha."""
    image = PngImagePlugin.PngImageFile(stream)
    _check_size(*image.size)
    _check_single(image.n_frames, "frames")
    orientation, exif = _read_exif(image.getexif)
    stream.seek(0)
    samples = cast("Samples", imagecodecs.png_decode(_png_pixels(stream.read())))
    return _upright(samples, orientation, image.info.get("icc_profile"), exif)


def _png_pixels(content: bytes) -> bytes:
    """The same PNG without metadata: of its many small faults libpng prints warnings."""
    view = memoryview(content)
    kept = [view[:8]]
    kind, start = b"", 8
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", view, start)
        end = start + 12 + length
        if kind in PNG_PIXEL_CHUNKS:
            kept.append(view[start:end])
        start = end
    return b"".join(kept)


def _decode_with_pillow(
    image_class: Callable[[BinaryIO], ImageFile.ImageFile], stream: BinaryIO
) -> Picture:
    """The picture in a JPEG, WebP or BMP."""
    image = image_class(stream)
    _check_size(*image.size)
    _check_single(getattr(image, "n_frames", 1), "frames")
    orientation, exif = _read_exif(image.getexif)
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK":
        return _upright(_to_srgb(image, profile), orientation, None, exif)
    samples = np.asarray(image.convert(PILLOW_MODES.get(image.mode, "RGB")))
    return _upright(samples, orientation, profile, exif)


def _decode_tiff(stream: BinaryIO) -> Picture:
    """The picture in a TIFF of one page; previews and masks do not count as pages."""
    tiff = tifffile.TiffFile(stream)
    pages = [
        page
        for page in islice(cast("Iterable[tifffile.TiffPage]", tiff.pages), TIFF_MAX_PAGES)
        if not (page.is_reduced or page.is_mask)
    ]
    if not pages:
        raise ImageError("the file is cut off: it has no page", advice="copy or download it again")
    _check_single(len(pages), "pages")
    _check_tiff(pages[0], tiff.filehandle.size)
    samples, profile = _tiff_samples(pages[0])
    orientation, exif = _read_exif(partial(_tiff_exif, stream))
    return _upright(samples, orientation, profile, exif)


# Classes, not Image.open: its size limit refuses large scans, and only the whole process can
# lift it; and it takes the JPEG of a phone that appends a preview for several pictures.
DECODERS: Final[Mapping[bytes, Callable[[BinaryIO], Picture]]] = {
    rb"\x89PNG\r\n\x1a\n": _decode_png,
    rb"\xff\xd8\xff": partial(_decode_with_pillow, JpegImagePlugin.JpegImageFile),
    rb"RIFF....WEBP": partial(_decode_with_pillow, WebPImagePlugin.WebPImageFile),
    rb"BM": partial(_decode_with_pillow, BmpImagePlugin.BmpImageFile),
    rb"II[*+]\0|MM\0[*+]": _decode_tiff,
}
"""The decoder for files that begin with this pattern."""


def _check_tiff(page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse what cannot be decoded safely or faithfully, before it is decoded.

    Raises:
        ImageError: The size, the kind of numbers or colours, or pixels beyond the file's end.
    """
    _check_size(page.imagewidth, page.imagelength)
    if page.is_tiled:
        _check_size(page.tilewidth, page.tilelength)
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
        return _to_srgb(image, profile), None

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


def _to_srgb(image: Image.Image, profile: bytes | None) -> NDArray[np.uint8]:
    """CMYK, YCbCr or LAB as sRGB, (H, W, 3); CMYK by its profile, if that is one for CMYK."""
    if image.mode == "CMYK" and profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = cast("ImageCms.ImageCmsProfile", ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            return np.asarray(converted)
        except (ImageCms.PyCMSError, OSError):
            pass
    return np.asarray(image.convert("RGB"))


def _tiff_exif(stream: BinaryIO) -> Image.Exif:
    """The main directory of a TIFF file as EXIF, which has the same layout."""
    exif = Image.Exif()
    stream.seek(0)
    exif.load_from_fp(stream)
    return exif


def _read_exif(load: Callable[[], Image.Exif]) -> tuple[int, bytes | None]:
    """Orientation, 1 by default, and the EXIF block that is left when it is applied."""
    orientation = 1
    try:
        exif = load()
        orientation = exif.get(ORIENTATION_TAG, 1)
        for tag in set(exif) - CAPTION_TAGS:
            del exif[tag]
        if EXIF_DIRECTORY in exif:
            for tag in EXIF_SIZE_TAGS:
                exif.get_ifd(EXIF_DIRECTORY).pop(tag, None)
        return orientation, exif.tobytes() if len(exif) else None
    except DECODER_FAULTS:
        return orientation, None


def _upright(
    samples: Samples, orientation: int, profile: bytes | None, exif: bytes | None
) -> Picture:
    """The picture as it is looked at; an `orientation` unknown to EXIF changes nothing."""
    swapped, row_step, column_step = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
    planes = np.moveaxis(np.atleast_3d(samples), -1, 0)  # (S, H, W)
    planes = np.swapaxes(planes, 1, 2) if swapped else planes
    values = planes[:, ::row_step, ::column_step]
    channels = 1 if len(values) < 3 else 3
    return Picture(
        color=values[:channels],
        alpha=values[channels] if len(values) > channels else None,
        bits=16 if samples.dtype == np.uint16 else 8,
        icc_profile=profile or None,
        exif=exif,
    )


def _check_fits(picture: Picture, limits: _Limits, quality: int) -> None:
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


def _kept(picture: Picture, limits: _Limits) -> tuple[Picture, tuple[str, ...]]:
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
    )
    changes = {field: value for lost, field, value, _ in losses if lost}
    return replace(picture, **changes), tuple(note for lost, *_, note in losses if lost)


def _encode(picture: Picture, file: Path, image_format: ImageFormat, quality: int) -> None:
    """Write a picture that the format can hold entirely.

    Raises:
        ImageError: A pixel is not a number.
    """
    samples = _to_samples(picture)
    if image_format == "png":
        _write_png(samples, picture, file)
    elif picture.bits == 16:
        _write_tiff(samples, picture, file)
    else:
        # Pillow can compress a TIFF or give it EXIF's nested directories, not both.
        tiff: dict[str, Any] = {"compression": "tiff_adobe_deflate", "tiffinfo": {PREDICTOR_TAG: 2}}
        options: dict[str, dict[str, Any]] = {
            "jpeg": {"quality": quality, "subsampling": 0},
            "webp": {"quality": quality, "lossless": quality == 100, "exact": True},
            "tiff": {} if picture.exif else tiff,
            "bmp": {},
        }
        metadata = {"icc_profile": picture.icc_profile, "exif": picture.exif}
        Image.fromarray(samples).save(
            file,
            image_format,
            **options[image_format],
            **{name: value for name, value in metadata.items() if value},
        )


def _to_samples(picture: Picture) -> Samples:
    """The picture's pixels over the full range of uint8 or uint16, (H, W) if grey alone.

    Raises:
        ImageError: A pixel is NaN or infinite.
    """
    dtype = np.dtype(np.uint16 if picture.bits == 16 else np.uint8)
    if picture.alpha is None and picture.color.dtype == dtype:
        # Upscaled pictures lie in memory as files hold them, so that this copies nothing.
        samples = np.ascontiguousarray(np.moveaxis(picture.color, 0, -1))
    else:
        planes = [*picture.color] if picture.alpha is None else [*picture.color, picture.alpha]
        samples = np.empty((*planes[0].shape, len(planes)), dtype)
        for channel, plane in enumerate(planes):
            same = plane.dtype == dtype
            samples[..., channel] = plane if same else from_float(to_float(plane), dtype)
    return cast("Samples", samples[..., 0] if samples.shape[-1] == 1 else samples)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk: length, kind, content and CRC."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _write_png(samples: Samples, picture: Picture, file: Path) -> None:
    """Write a PNG; imagecodecs knows pixels only, so the metadata goes in behind its header."""
    encoded = memoryview(imagecodecs.png_encode(samples, level=PNG_LEVEL))
    with file.open("wb") as stream:
        stream.write(encoded[:PNG_HEADER_BYTES])
        if picture.icc_profile:
            packed = zlib.compress(picture.icc_profile)
            stream.write(_png_chunk(b"iCCP", b"ICC profile\0\0" + packed))
        if picture.exif:
            stream.write(_png_chunk(b"eXIf", picture.exif.removeprefix(EXIF_PREFIX)))
        stream.write(encoded[PNG_HEADER_BYTES:])


def _write_tiff(samples: Samples, picture: Picture, file: Path) -> None:
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
