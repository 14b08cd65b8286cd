"""PNG: imagecodecs knows its pixels, and what it says about itself is read chunk by chunk."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import imagecodecs
import numpy as np
from PIL import Image

from aether_converters.errors import ImageError
from aether_converters.pictures.limits import check_cost, check_single, check_size
from aether_converters.pictures.metadata import (
    EXIF_PREFIX,
    ORIENTATION_TAG,
    Chunk,
    Marks,
    Resolution,
    orientation_in_xmp,
    plausible,
    read_exif,
    true_xmp,
    unpacked,
)
from aether_converters.pictures.picture import Picture, Samples, upright

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
LEVEL: Final = 4  # of zlib: four times as fast as 6, for files of about the same size
HEADER_BYTES: Final = 33  # signature and IHDR; a profile has to stand before the pixels
INCHES_PER_METRE: Final = 1 / 0.0254

CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per px of each colour type."""

PALETTE: Final = 3
DEPTHS: Final = {
    0: (1, 2, 4, 8, 16),
    2: (8, 16),
    PALETTE: (1, 2, 4, 8),
    4: (8, 16),
    6: (8, 16),
}
"""Bits of a sample that each colour type can have."""

LONGEST_SIDE: Final = 10**6  # px, for libpng
PIXEL_CHUNKS: Final = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
COLOR_CHUNKS: Final = frozenset((b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"))
WITHOUT_COLOR: Final = (b"bKGD", b"pHYs")
AS_SRGB: Final = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
"""What these say of pictures that look alike without them."""

TEXT_CHUNKS: Final = frozenset((b"tEXt", b"zTXt", b"iTXt"))
OF_ONE_FILE: Final = frozenset((b"tIME", b"iDOT", b"sBIT", b"hIST", b"acTL"))
"""What describes one file, and its own pixels: nothing that the next one could keep."""

XMP_KEYWORD: Final = b"XML:com.adobe.xmp"
RAW_EXIF: Final = re.compile(rb"Raw profile type (?:exif|APP1)", re.IGNORECASE)
"""Where programs put EXIF before PNG had a chunk for it."""

PASSES: Final = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
"""First row and column, and steps between them, of each part of an interlaced PNG."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The first chunk of a PNG."""

    width: int
    height: int
    depth: int
    color_type: int
    interlaced: bool

    @property
    def pixel_bits(self) -> int:
        """Of a pixel, as it is stored."""
        return self.depth * CHANNELS[self.color_type]

    @property
    def keeps_background(self) -> bool:
        """Whether the next file has the same kind of numbers."""
        return self.depth >= 8 and self.color_type != PALETTE

    def of_part(self, width: int, height: int) -> bytes:
        """The header of a PNG of such pixels that is not interlaced."""
        content = struct.pack(">IIBBBBB", width, height, self.depth, self.color_type, 0, 0, 0)
        return packed_chunk(b"IHDR", content)


class _Piece(NamedTuple):
    """One chunk of a file: its kind, its content, and all of it from length to checksum."""

    kind: bytes
    content: memoryview
    whole: memoryview


def decode_png(stream: BinaryIO) -> Picture:
    """The picture in a PNG of any depth; a colour declared transparent becomes alpha."""
    content = stream.read()
    pieces = _pieces(memoryview(content))
    header = _header(pieces)
    check_size(header.width, header.height)
    for piece in pieces:
        if piece.kind == b"acTL":
            check_single(int.from_bytes(piece.content[:4], "big"), "frames")
    transparent = any(piece.kind == b"tRNS" for piece in pieces)
    samples = (3 if header.color_type == PALETTE else CHANNELS[header.color_type]) + transparent
    of_sample = 2 if header.depth == 16 else 1
    pixels = header.width * header.height
    check_cost(pixels * samples * of_sample, len(content), pixels=pixels)

    orientation, marks = _marks(pieces, header)
    decode = _decode_passes if header.interlaced else _decode_whole
    return upright(decode(pieces, header), orientation, marks)


def _pieces(view: memoryview) -> list[_Piece]:
    """The chunks of a file, up to the end of the picture.

    Raises:
        struct.error: The file ends before.
    """
    found: list[_Piece] = []
    kind, start = b"", len(SIGNATURE)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", view, start)
        end = start + 12 + length
        found.append(_Piece(kind, view[start + 8 : end - 4], view[start:end]))
        start = end
    return found


def _header(pieces: Sequence[_Piece]) -> _Header:
    """What the first chunk says.

    Raises:
        struct.error: It is too short or too long.
        ValueError: It is no header, or of a side that libpng refuses.
    """
    width, height, depth, color_type, *methods = struct.unpack(">IIBBBBB", pieces[0].content)
    interlaced = methods.pop()
    if pieces[0].kind != b"IHDR" or depth not in DEPTHS.get(color_type, ()) or any(methods):
        raise ValueError("a PNG without a sound header")
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(f"a side of more than {LONGEST_SIDE} px")
    return _Header(
        width=width,
        height=height,
        depth=depth,
        color_type=color_type,
        interlaced=bool(interlaced),
    )


def _colors(pieces: Iterable[_Piece], header: _Header) -> Iterator[bytes]:
    """Palette and transparent colour, if they are sound: of faults libpng prints warnings."""
    found: dict[bytes, memoryview] = {}
    for kind, content, _ in pieces:
        if kind in (b"PLTE", b"tRNS"):
            found.setdefault(kind, content)
    palette, transparent = found.get(b"PLTE", b""), found.get(b"tRNS", b"")
    if header.color_type == PALETTE:
        fits = 0 < len(transparent) <= len(palette) // 3
        yield packed_chunk(b"PLTE", bytes(palette))
    else:
        size = 2 * CHANNELS[header.color_type]
        fits = header.color_type in (0, 2) and len(transparent) == size
        fits = fits and max(struct.unpack(f">{size // 2}H", transparent)) < 2**header.depth
    if fits:
        yield packed_chunk(b"tRNS", bytes(transparent))


def _decode_whole(pieces: Sequence[_Piece], header: _Header) -> Samples:
    """The pixels, without metadata: of its many small faults libpng prints warnings."""
    pixels = (piece.whole for piece in pieces if piece.kind == b"IDAT")
    parts = (SIGNATURE, pieces[0].whole, *_colors(pieces, header), *pixels, pieces[-1].whole)
    return cast("Samples", imagecodecs.png_decode(b"".join(parts)))


def _decode_passes(pieces: Sequence[_Piece], header: _Header) -> Samples:
    """The pixels of an interlaced PNG, of which libpng prints a warning: pass by pass.

    Raises:
        ImageError: A pass is missing.
    """
    sizes = [
        (-(-max(header.height - top, 0) // down), -(-max(header.width - left, 0) // right))
        for top, left, down, right in PASSES
    ]
    lengths = [rows * (1 + (columns * header.pixel_bits + 7) // 8) for rows, columns in sizes]
    lengths = [
        length if columns else 0 for length, (_, columns) in zip(lengths, sizes, strict=True)
    ]
    inflater = zlib.decompressobj()
    packed = b"".join(piece.content for piece in pieces if piece.kind == b"IDAT")
    stored = inflater.decompress(packed, sum(lengths) + 1)
    if len(stored) < sum(lengths):
        raise ImageError(
            "the file is cut off: some of its pixels are missing",
            expected=f"{sum(lengths)} bytes",
            found=f"{len(stored)} bytes",
            advice="copy or download it again",
        )
    colors = b"".join(_colors(pieces, header))
    pixels, start = None, 0
    for (top, left, down, right), (rows, columns), length in zip(
        PASSES, sizes, lengths, strict=True
    ):
        if not length:
            continue
        scanlines = packed_chunk(b"IDAT", zlib.compress(stored[start : start + length], 0))
        part = b"".join((SIGNATURE, header.of_part(columns, rows), colors, scanlines, END))
        found = cast("Samples", imagecodecs.png_decode(part))
        if pixels is None:
            pixels = np.zeros((header.height, header.width, *found.shape[2:]), found.dtype)
        pixels[top::down, left::right] = found
        start += length
    return cast("Samples", pixels)


def _marks(pieces: Sequence[_Piece], header: _Header) -> tuple[int, Marks]:
    """Orientation, and what the PNG says about itself."""
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: Resolution | None = None
    kept: dict[str, list[Chunk]] = {"texts": [], "color_chunks": []}
    dropped: list[str] = []
    for kind, view, _ in pieces:
        content = bytes(view) if kind not in PIXEL_CHUNKS else b""
        if kind == b"iCCP":
            profile = unpacked(content.partition(b"\0")[2][1:])
            dropped += ["a damaged colour profile: left out"] if profile is None else []
        elif kind == b"eXIf":
            exif = content
        elif kind == b"pHYs" and len(content) == 9:
            x, y, in_metres = struct.unpack(">IIB", content)
            resolution = plausible(x / INCHES_PER_METRE, y / INCHES_PER_METRE)
            if not in_metres:
                resolution = None
                kept["color_chunks"] += [(kind, content)] if x != y else []
        elif kind in TEXT_CHUNKS:
            found = _text(kind, content)
            if content.startswith(XMP_KEYWORD + b"\0"):
                xmp = found
            elif RAW_EXIF.match(content):
                exif = exif or _raw_profile(found)
            else:
                kept["texts"].append((kind, content))
        elif kind in COLOR_CHUNKS or (kind == b"bKGD" and header.keeps_background):
            kept["color_chunks"].append((kind, content))
        elif kind[3:].islower() and kind not in PIXEL_CHUNKS | OF_ONE_FILE:
            kept["texts"].append((kind, content))  # unknown, and declared safe to copy
        elif kind not in PIXEL_CHUNKS | OF_ONE_FILE:
            dropped.append(f"the PNG's {kind.decode('latin-1')}: left out")
    orientation, block, of_exif = read_exif(partial(_parsed_exif, exif, xmp))
    return orientation, Marks(
        icc_profile=profile or None,
        exif=block,
        xmp=true_xmp(xmp),
        resolution=resolution or of_exif,
        texts=tuple(kept["texts"]),
        color_chunks=tuple(kept["color_chunks"]),
        dropped=tuple(dict.fromkeys(dropped)),
    )


def _parsed_exif(exif: bytes | None, xmp: bytes | None) -> Image.Exif:
    block = Image.Exif()
    if exif:
        block.load(exif)
    orientation = orientation_in_xmp(xmp)
    if orientation and ORIENTATION_TAG not in block:
        block[ORIENTATION_TAG] = orientation
    return block


def _text(kind: bytes, content: bytes) -> bytes | None:
    """What a chunk of text says, without its keyword; None if it is damaged."""
    rest = content.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return unpacked(rest[1:])
    *_, text = rest[2:].split(b"\0", 2)  # language, translated keyword, text
    return unpacked(text) if rest[:1] == b"\1" else text


def _raw_profile(text: bytes | None) -> bytes | None:
    """EXIF in hexadecimal digits, behind two lines with its name and size."""
    try:
        return bytes.fromhex(b"".join((text or b"").split()[2:]).decode("ascii")) or None
    except ValueError:
        return None


def packed_chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk: length, kind, content and CRC."""
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


END: Final = packed_chunk(b"IEND", b"")


def write_png(samples: Samples, picture: Picture, file: Path) -> None:
    """Write a PNG; imagecodecs knows pixels only, so the metadata goes in behind its header."""
    encoded = memoryview(imagecodecs.png_encode(samples, level=LEVEL))
    with file.open("wb") as stream:
        stream.write(encoded[:HEADER_BYTES])
        for kind, content in _written_marks(picture):
            stream.write(packed_chunk(kind, content))
        stream.write(encoded[HEADER_BYTES:])


def changing_chunks(picture: Picture) -> list[str]:
    """The names of a picture's chunks without which its colours look otherwise."""
    chunks = dict(picture.color_chunks)
    if chunks.keys() & {b"cICP", b"mDCV", b"cLLI"}:
        return [kind.decode() for kind in chunks if kind not in (b"sRGB", *WITHOUT_COLOR)]
    if picture.icc_profile or b"sRGB" in chunks:
        return []
    return [
        kind.decode()
        for kind, content in chunks.items()
        if kind not in WITHOUT_COLOR and content != AS_SRGB.get(kind)
    ]


def _written_marks(picture: Picture) -> Iterator[Chunk]:
    """What a picture says about itself, in the order that PNG asks for."""
    yield from picture.color_chunks
    if picture.icc_profile:
        yield b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile)
    if picture.resolution:
        across, down = (min(round(r * INCHES_PER_METRE), 2**31 - 1) for r in picture.resolution)
        yield b"pHYs", struct.pack(">IIB", across, down, 1)
    if picture.exif:
        yield b"eXIf", picture.exif.removeprefix(EXIF_PREFIX)
    if picture.xmp:
        yield b"iTXt", XMP_KEYWORD + 5 * b"\0" + picture.xmp
    yield from picture.texts
