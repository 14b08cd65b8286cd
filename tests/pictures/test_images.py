"""What survives between a picture file and the pixels that a network sees."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aether_converters.errors import ImageError
from aether_converters.pictures.images import (
    MAX_PIXELS,
    ImageFormat,
    Picture,
    is_picture,
    read_picture,
    to_float,
    write_picture,
)

HEIGHT, WIDTH = 13, 17
LOSSLESS: tuple[ImageFormat, ...] = ("png", "tiff", "bmp")
EXIF_FORMATS: tuple[ImageFormat, ...] = ("png", "jpeg", "webp", "tiff")
RGB_PROFILE = imagecodecs.cms_profile("srgb")
GREY_PROFILE = imagecodecs.cms_profile("gray", gamma=2.2)
DECODE_ADVICE = (
    "it is damaged, cut off or of a rare kind: open it in a picture editor and save it again as PNG"
)


def noise(*shape: int, bits: int = 8) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 2**bits, shape)
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Integers of 8 or 16 bits as [0, 1]."""
    return np.divide(values, np.iinfo(values.dtype).max, dtype=np.float32)


def picture(channels: int = 3, *, alpha: bool = False, bits: Literal[8, 16] = 8) -> Picture:
    values = unit(noise(channels + 1, HEIGHT, WIDTH, bits=bits))
    return Picture(color=values[:-1], alpha=values[-1] if alpha else None, bits=bits)


def samples(image: Picture) -> NDArray[np.int64]:
    """The pixels as a file holds them, (H, W, channels)."""
    planes = [*image.color] if image.alpha is None else [*image.color, image.alpha]
    values = to_float(np.stack(planes, axis=-1))
    return np.rint(values * (2**image.bits - 1)).astype(np.int64)


def same_pixels(found: Picture, expected: NDArray[Any]) -> bool:
    """Whether `found` has exactly these (H, W) or (H, W, channels) samples."""
    return np.array_equal(samples(found), np.atleast_3d(expected))


def chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join(
        (
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(kind + content)),
        )
    )


def png(width: int, height: int, depth: int, color_type: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from raw scan lines, each without its filter byte, with chunks before the pixels."""
    step = len(rows) // max(height, 1)
    lines = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *more, pixels, chunk(b"IEND", b""))
    )


def exif(orientation: int | None = None) -> Image.Exif:
    """EXIF with a camera, an exposure time, a place, and the size of the photograph."""
    block = Image.Exif()
    block[271] = "Acme"
    block[34665] = {33434: 0.5, 40962: 4000, 40963: 3000}
    block[34853] = {1: "N"}
    if orientation is not None:
        block[274] = orientation
    return block


def exif_tags(block: bytes | None) -> Mapping[int, Any]:
    """All tags of an EXIF block, those of its nested directories under theirs."""
    parsed = Image.Exif()
    parsed.load(block or b"")
    return {**parsed, 34665: parsed.get_ifd(34665), 34853: parsed.get_ifd(34853)}


def cmyk_profile() -> bytes:
    """A colour profile for a press whose black ink alone prints anything."""
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    table += 4 * ramp + 2**3 * bytes((255, 128, 128, 0, 128, 128)) + 3 * ramp
    body = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def read_error(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(path)
    return str(caught.value)


def write_error(image: Picture, file: Path, image_format: ImageFormat, quality: int = 95) -> str:
    with pytest.raises(ImageError) as caught:
        write_picture(image, file, image_format, quality=quality)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPG", "a.jpeg", "a.WebP", "a.tif", "a.tiff", "a.bmp", ".hidden.png"]
)
def test_pictures_are_told_by_suffix(name: str) -> None:
    assert is_picture(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "png", "a.png.part", "a.gif", "._photo.jpg", ".png"])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not is_picture(Path("folder.png") / name)


# Pixels, there and back.


@pytest.mark.parametrize("image_format", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_keep_every_bit(
    tmp_path: Path, image_format: ImageFormat, bits: Literal[8, 16], alpha: bool, channels: int
) -> None:
    if image_format == "bmp" and (alpha or bits == 16):
        pytest.skip("BMP has neither transparency nor 16 bits")
    image = picture(channels, alpha=alpha, bits=bits)

    assert write_picture(image, tmp_path / "file.tmp", image_format) == ()
    found = read_picture(tmp_path / "file.tmp")

    assert found.bits == bits
    assert found.color.dtype == (np.uint8 if found.bits == 8 else np.uint16)
    assert (found.alpha is None) == (not alpha)
    assert same_pixels(found, samples(image))


@pytest.mark.parametrize("image_format", ["png", "tiff"])
def test_all_65536_values_survive(tmp_path: Path, image_format: ImageFormat) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_picture(Picture(color=unit(values[None]), bits=16), tmp_path / "a", image_format)
    assert same_pixels(read_picture(tmp_path / "a"), values)


@pytest.mark.parametrize("alpha", [False, True])
def test_webp_at_quality_100_is_lossless_even_where_transparent(
    tmp_path: Path, alpha: bool
) -> None:
    image = picture(alpha=alpha)
    assert write_picture(image, tmp_path / "a", "webp", quality=100) == ()
    assert same_pixels(read_picture(tmp_path / "a"), samples(image))


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_changes_what_lossy_formats_write(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    for quality in (10, 95):
        write_picture(picture(), tmp_path / f"{quality}", image_format, quality=quality)
    assert (tmp_path / "10").stat().st_size < (tmp_path / "95").stat().st_size


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_grey_grey_and_colours_close(tmp_path: Path, channels: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32), (channels, 32, 32))
    write_picture(Picture(color=ramp), tmp_path / "a", "jpeg")
    found = read_picture(tmp_path / "a")
    assert found.color.shape == ramp.shape
    assert np.abs(to_float(found.color) - ramp).max() < 0.02


def test_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    color = np.array([[[-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]]], np.float32)
    write_picture(Picture(color=color), tmp_path / "a", "png")
    assert samples(read_picture(tmp_path / "a")).ravel().tolist() == [0, 0, 0, 1, 255, 255]


def test_writing_leaves_the_picture_unchanged(tmp_path: Path) -> None:
    image = picture(alpha=True)
    before = samples(image)
    write_picture(image, tmp_path / "a", "png")
    assert np.array_equal(samples(image), before)


def test_opaque_alpha_is_written(tmp_path: Path) -> None:
    image = replace(picture(), alpha=np.ones((HEIGHT, WIDTH), np.float32))
    write_picture(image, tmp_path / "a", "png")
    found = read_picture(tmp_path / "a")
    assert found.alpha is not None
    assert to_float(found.alpha).min() == 1


def test_a_picture_of_one_pixel_survives(tmp_path: Path) -> None:
    for image_format in LOSSLESS:
        write_picture(Picture(color=np.ones((3, 1, 1), np.float32)), tmp_path / "a", image_format)
        assert samples(read_picture(tmp_path / "a")).tolist() == [[[255, 255, 255]]]


# Kinds of pixels.


@pytest.mark.parametrize(
    ("mode", "suffix", "becomes"),
    [
        ("1", "png", "L"),
        ("1", "bmp", "L"),
        ("1", "tif", "L"),
        ("L", "png", "L"),
        ("L", "jpg", "L"),
        ("L", "bmp", "L"),
        ("L", "tif", "L"),
        ("LA", "png", "LA"),
        ("LA", "tif", "LA"),
        ("P", "png", "RGB"),
        ("P", "bmp", "RGB"),
        ("P", "tif", "RGB"),
        ("RGB", "png", "RGB"),
        ("RGB", "jpg", "RGB"),
        ("RGB", "webp", "RGB"),
        ("RGB", "bmp", "RGB"),
        ("RGB", "tif", "RGB"),
        ("RGBA", "png", "RGBA"),
        ("RGBA", "webp", "RGBA"),
        ("RGBA", "tif", "RGBA"),
        ("CMYK", "jpg", "RGB"),
        ("CMYK", "tif", "RGB"),
        ("LAB", "tif", "RGB"),
    ],
)
def test_each_mode_reads_as_grey_or_rgb_as_pillow_shows_it(
    tmp_path: Path, mode: str, suffix: str, becomes: str
) -> None:
    source = Image.fromarray(noise(HEIGHT, WIDTH, 4))
    source = source.convert("RGB").quantize(16) if mode == "P" else source
    if mode == "LAB":
        source = Image.frombytes("LAB", (WIDTH, HEIGHT), noise(HEIGHT, WIDTH, 3).tobytes())
    elif mode not in ("P", "RGBA"):
        source = source.convert("RGB").convert(mode)
    path = tmp_path / f"a.{suffix}"
    source.save(path)

    found = read_picture(path)

    assert found.bits == 8
    assert same_pixels(found, np.asarray(Image.open(path).convert(becomes)))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_shallow_grey_png_spreads_to_8_bits_and_keeps_its_transparent_value(
    tmp_path: Path, depth: int, transparent: bool
) -> None:
    step = 255 // (2**depth - 1)
    marks = (chunk(b"tRNS", struct.pack(">H", 1)),) if transparent else ()
    row = int("".join(f"{value:0{depth}b}" for value in (0, 1)).ljust(16, "0"), 2)
    (tmp_path / "a").write_bytes(
        png(2, 1, depth, 0, row.to_bytes(2, "big")[: (2 * depth + 7) // 8], *marks)
    )

    found = samples(read_picture(tmp_path / "a"))[0].tolist()

    assert found == ([[0, 255], [step, 0]] if transparent else [[0], [step]])


def test_palette_png_with_transparency_reads_as_rgb_with_alpha(tmp_path: Path) -> None:
    palette, alphas = chunk(b"PLTE", bytes((10, 20, 30, 40, 50, 60))), chunk(b"tRNS", bytes((7,)))
    (tmp_path / "a").write_bytes(png(2, 1, 8, 3, bytes((0, 1)), palette, alphas))
    assert samples(read_picture(tmp_path / "a"))[0].tolist() == [[10, 20, 30, 7], [40, 50, 60, 255]]


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3)])
def test_transparent_colour_of_a_16_bit_png_becomes_alpha(
    tmp_path: Path, color_type: int, channels: int
) -> None:
    values = noise(1, 2, channels, bits=16)
    key = chunk(b"tRNS", values[0, 1].astype(">u2").tobytes())
    rows = values.astype(">u2").tobytes()
    (tmp_path / "a").write_bytes(png(2, 1, 16, color_type, rows, key))

    found = read_picture(tmp_path / "a")

    assert found.bits == 16
    assert samples(found)[0].tolist() == [[*values[0, 0], 65535], [*values[0, 1], 0]]


def test_pillows_16_bit_grey_keeps_its_bits(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, bits=16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert same_pixels(read_picture(tmp_path / name), values)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True},
        {"compression": "adobe_deflate"},
        {"compression": "zstd"},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "lzw"},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "lzw"},
        {"planarconfig": "separate", "tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"rowsperstrip": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_layouts_hold_the_same_pixels(
    tmp_path: Path, bits: int, layout: dict[str, Any], channels: int
) -> None:
    planar = layout.get("planarconfig") == "separate"
    if channels == 1 and planar:
        pytest.skip("one channel has no planes")
    values = noise(HEIGHT, WIDTH, channels, bits=bits)
    tifffile.imwrite(
        tmp_path / "a",
        values[..., 0] if channels == 1 else np.moveaxis(values, -1, 0) if planar else values,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else [],
        **layout,
    )

    found = read_picture(tmp_path / "a")

    assert found.bits == bits
    assert same_pixels(found, values)


@pytest.mark.parametrize(("mode", "values"), [("RGB", (200, 100, 50)), ("YCbCr", (124, 86, 182))])
@pytest.mark.parametrize("compression", ["jpeg", "raw"])
def test_jpeg_and_ycbcr_in_tiff_read_as_rgb(
    tmp_path: Path, mode: str, values: tuple[int, int, int], compression: str
) -> None:
    Image.new(mode, (32, 32), values).save(tmp_path / "a.tif", compression=compression)
    assert np.abs(samples(read_picture(tmp_path / "a.tif")) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_tiff_is_inverted_but_its_alpha_is_not(tmp_path: Path, bits: int) -> None:
    values = noise(HEIGHT, WIDTH, 2, bits=bits)
    tifffile.imwrite(
        tmp_path / "a",
        values,
        photometric="miniswhite",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    expected = np.stack((2**bits - 1 - values[..., 0], values[..., 1]), axis=-1)
    assert same_pixels(read_picture(tmp_path / "a"), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_multiplied_in_alpha_is_divided_out(tmp_path: Path, bits: int) -> None:
    peak = 2**bits - 1
    stored = np.array([[[peak // 4, 0, peak // 2, peak // 2], [9, 9, 9, 0], [5, 5, 5, 2]]])
    tifffile.imwrite(
        tmp_path / "a",
        stored.astype(f"u{bits // 8}"),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    half, hidden, above = samples(read_picture(tmp_path / "a"))[0].tolist()
    assert half == [round(peak // 4 / (peak // 2) * peak), 0, peak, peak // 2]
    assert hidden == [0, 0, 0, 0]
    assert above == [peak, peak, peak, 2]


def test_masks_beside_the_alpha_of_a_tiff_are_left_out(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 6)
    tifffile.imwrite(
        tmp_path / "a",
        values,
        photometric="rgb",
        extrasamples=["unspecified", "unassalpha", "unspecified"],
    )
    assert same_pixels(read_picture(tmp_path / "a"), values[..., [0, 1, 2, 4]])


def test_12_bit_tiff_spreads_to_16_bits(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a", np.zeros((1, 3), np.uint16), photometric="minisblack")
    content = bytearray((tmp_path / "a").read_bytes())
    page = tifffile.TiffFile(io.BytesIO(content)).pages[0]
    bits_per_sample = cast("tifffile.TiffPage", page).tags[258]
    content[bits_per_sample.valueoffset] = 12
    content[-6:] = bytes((0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00))  # 0, 2048, 4095, and 4 spare bits
    (tmp_path / "a").write_bytes(content)

    found = read_picture(tmp_path / "a")

    assert found.bits == 16
    assert samples(found).ravel().tolist() == [0, 32776, 65535]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palette_tiff_reads_as_rgb(tmp_path: Path, dtype: type[np.unsignedinteger[Any]]) -> None:
    indexes = np.array([[0, 1, 255]], dtype)
    colors = noise(3, 2 ** (8 * indexes.itemsize))
    colormap = colors.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a", indexes, photometric="palette", colormap=colormap)
    assert same_pixels(read_picture(tmp_path / "a"), np.moveaxis(colors[:, indexes], 0, -1))


def test_16_bit_cmyk_tiff_reads_with_8_bits(tmp_path: Path) -> None:
    inks = noise(HEIGHT, WIDTH, 4)
    tifffile.imwrite(tmp_path / "a", inks.astype(np.uint16) * 257, photometric="separated")
    found = read_picture(tmp_path / "a")
    assert found.bits == 8
    shown = Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes()).convert("RGB")
    assert same_pixels(found, np.asarray(shown))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_goes_through_its_profile_and_loses_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for inks, shown in (((255, 0, 0, 0), 255), ((0, 0, 0, 255), 0)):
        Image.new("CMYK", (4, 4), inks).save(path, icc_profile=cmyk_profile())
        found = read_picture(path)
        assert found.icc_profile is None
        assert (samples(found) == shown).all()


@pytest.mark.parametrize("profile", [b"no profile", RGB_PROFILE])
def test_cmyk_with_an_unsound_profile_is_converted_plainly(tmp_path: Path, profile: bytes) -> None:
    path = tmp_path / "a.tif"
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(path, icc_profile=profile)
    found = read_picture(path)
    assert found.icc_profile is None
    assert samples(found)[0, 0].tolist() == [0, 255, 255]


def test_format_is_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "a.jpg", "PNG")
    assert same_pixels(read_picture(tmp_path / "a.jpg"), noise(HEIGHT, WIDTH, 3))


def test_preview_pages_of_a_tiff_do_not_count(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    tifffile.imwrite(tmp_path / "a", values, photometric="rgb")
    preview = values[::2, ::2]
    tifffile.imwrite(tmp_path / "a", preview, photometric="rgb", subfiletype=1, append=True)
    assert same_pixels(read_picture(tmp_path / "a"), values)


def test_preview_behind_a_phones_jpeg_does_not_count(tmp_path: Path) -> None:
    first, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_picture(tmp_path / "a.jpg").color.shape == (3, 16, 16)


# Orientation, EXIF and colour profiles.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
def test_orientation_is_applied_and_removed(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(path, exif=exif(orientation).tobytes(), **options)

    found = read_picture(path)

    assert same_pixels(found, np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert 274 not in exif_tags(found.exif)


def test_orientation_turns_16_bits_and_alpha_too(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 4, bits=16)
    block = exif(6).tobytes().removeprefix(b"Exif\0\0")
    encoded = imagecodecs.png_encode(values)
    (tmp_path / "a").write_bytes(encoded[:33] + chunk(b"eXIf", block) + encoded[33:])
    assert same_pixels(read_picture(tmp_path / "a"), np.rot90(values, -1))


def test_exif_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    block = exif(3).tobytes().removeprefix(b"Exif\0\0")
    encoded = imagecodecs.png_encode(values)
    (tmp_path / "a").write_bytes(encoded[:-12] + chunk(b"eXIf", block) + encoded[-12:])
    found = read_picture(tmp_path / "a")
    assert same_pixels(found, values[::-1, ::-1])
    assert exif_tags(found.exif)[271] == "Acme"


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_changes_nothing(tmp_path: Path, orientation: int) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif(orientation))
    assert same_pixels(read_picture(tmp_path / "a.png"), values)


@pytest.mark.parametrize("image_format", EXIF_FORMATS)
def test_exif_survives_without_orientation_and_stored_sizes(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    block = exif(6)
    block[256] = 4000
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=block)
    image = read_picture(tmp_path / "a.jpg")
    assert write_picture(image, tmp_path / "b", image_format) == ()

    tags = exif_tags(read_picture(tmp_path / "b").exif)

    assert tags[271] == "Acme"
    assert tags[34665] == {33434: 0.5}
    assert tags[34853] == {1: "N"}
    assert not {256, 274} & set(tags)


def test_exif_survives_in_a_16_bit_png(tmp_path: Path) -> None:
    image = replace(picture(bits=16), exif=exif().tobytes())
    assert write_picture(image, tmp_path / "a", "png") == ()
    assert exif_tags(read_picture(tmp_path / "a").exif)[34853] == {1: "N"}


def test_exif_of_a_tiff_is_read_without_the_layout_of_its_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a", noise(4, 4, 3), photometric="rgb", software="Scanner 1")
    tags = exif_tags(read_picture(tmp_path / "a").exif)
    assert tags[305] == "Scanner 1"
    assert set(tags) <= {270, 282, 283, 296, 305, 34665, 34853}


def test_damaged_exif_is_left_behind(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 3)
    for block in (b"nonsense", b"II*\0\xff\xff\xff\xff", b""):
        encoded = imagecodecs.png_encode(values)
        (tmp_path / "a").write_bytes(encoded[:33] + chunk(b"eXIf", block) + encoded[33:])
        found = read_picture(tmp_path / "a")
        assert same_pixels(found, values)
        assert found.exif is None


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "profile"), [(1, GREY_PROFILE), (3, RGB_PROFILE)])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff"])
def test_colour_profile_survives_unchanged(
    tmp_path: Path,
    bits: Literal[8, 16],
    channels: int,
    profile: bytes,
    image_format: ImageFormat,
) -> None:
    if image_format == "webp" and channels == 1:
        pytest.skip("WebP has no grey")
    image = replace(picture(channels, bits=bits), icc_profile=profile)
    write_picture(image, tmp_path / "a", image_format)
    assert read_picture(tmp_path / "a").icc_profile == profile


@pytest.mark.parametrize(
    ("channels", "profile", "note"),
    [
        (1, RGB_PROFILE, "the colour profile is not one for grey: left out"),
        (3, GREY_PROFILE, "the colour profile is not one for RGB: left out"),
        (3, b"short", "the colour profile is not one for RGB: left out"),
    ],
)
@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff"])
def test_profile_for_other_colours_is_never_written(
    tmp_path: Path, channels: int, profile: bytes, note: str, image_format: ImageFormat
) -> None:
    image = replace(picture(channels), icc_profile=profile)
    assert write_picture(image, tmp_path / "a", image_format) == (note,)
    assert read_picture(tmp_path / "a").icc_profile is None


# What a format cannot hold.


@pytest.mark.parametrize(
    ("image_format", "name"), [("jpeg", "JPEG"), ("webp", "WebP"), ("bmp", "BMP")]
)
def test_8_bit_formats_say_that_16_bits_are_lost(
    tmp_path: Path, image_format: ImageFormat, name: str
) -> None:
    notes = write_picture(picture(bits=16), tmp_path / "a", image_format)
    assert notes == (f"{name} holds 8 bits per channel: written with 8 of 16",)
    assert read_picture(tmp_path / "a").bits == 8


def test_webp_says_that_grey_becomes_rgb_and_drops_the_grey_profile(tmp_path: Path) -> None:
    image = replace(picture(1, alpha=True), icc_profile=GREY_PROFILE)
    assert write_picture(image, tmp_path / "a", "webp", quality=100) == (
        "WebP has no grey: written as RGB",
        "the colour profile is not one for RGB: left out",
    )
    assert same_pixels(read_picture(tmp_path / "a"), samples(image)[..., [0, 0, 0, 1]])


def test_bmp_says_that_profile_and_exif_are_lost(tmp_path: Path) -> None:
    block = exif().tobytes()
    image = replace(picture(), icc_profile=RGB_PROFILE, exif=block)
    assert write_picture(image, tmp_path / "a", "bmp") == (
        "BMP holds no colour profile here: left out",
        "BMP with 8 bits per channel holds 0 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )


def test_16_bit_tiff_says_that_exif_is_lost(tmp_path: Path) -> None:
    block = exif().tobytes()
    image = replace(picture(bits=16), exif=block)
    assert write_picture(image, tmp_path / "a", "tiff") == (
        "TIFF with 16 bits per channel holds 0 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )


def test_jpeg_says_that_long_exif_is_lost(tmp_path: Path) -> None:
    long = exif()
    long[270] = 70000 * "a"
    block = long.tobytes()
    assert write_picture(replace(picture(), exif=block), tmp_path / "a", "jpeg") == (
        "JPEG with 8 bits per channel holds 65533 bytes of EXIF, "
        f"and this picture has {len(block)}: left out",
    )
    assert read_picture(tmp_path / "a").exif is None


@pytest.mark.parametrize(("image_format", "name"), [("jpeg", "JPEG"), ("bmp", "BMP")])
def test_transparency_is_refused_where_it_would_be_lost(
    tmp_path: Path, image_format: ImageFormat, name: str
) -> None:
    file = tmp_path / "a"
    assert write_error(picture(alpha=True), file, image_format) == (
        f"{file}: {name} holds no transparency, and this picture has some\n"
        "  next      use png, webp or tiff"
    )
    assert not file.exists()


@pytest.mark.parametrize(
    ("image_format", "name", "limit"), [("webp", "WebP", 16383), ("jpeg", "JPEG", 65500)]
)
def test_side_too_long_for_the_format_is_refused(
    tmp_path: Path, image_format: ImageFormat, name: str, limit: int
) -> None:
    file = tmp_path / "a"
    at_limit = Picture(color=np.zeros((3, 1, limit), np.float32))
    assert write_picture(at_limit, file, image_format) == ()
    above = Picture(color=np.zeros((3, limit + 1, 1), np.float32))
    assert write_error(above, file, image_format) == (
        f"{file}: the picture is too large for {name}\n"
        f"  expected  at most {limit} px on each side\n"
        f"  found     1 x {limit + 1} px\n"
        "  next      use png or tiff"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("in_alpha", [False, True])
def test_invalid_numbers_from_the_model_are_refused(
    tmp_path: Path, bad: float, image_format: ImageFormat, in_alpha: bool
) -> None:
    if in_alpha and image_format == "jpeg":
        pytest.skip("JPEG has no transparency")
    file = tmp_path / "a"
    image = picture(alpha=in_alpha)
    (image.color[2] if image.alpha is None else image.alpha)[3, 4] = bad
    assert write_error(image, file, image_format) == (
        f"{file}: the model produced invalid numbers\n"
        "  expected  pixels from 0 to 1\n"
        "  found     NaN or infinity, as when half precision (fp16) overflows\n"
        "  next      use the fp32 file of the model; if this is it, see `aethernet inspect`"
    )
    assert not file.exists()


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_quality_out_of_range_is_refused(tmp_path: Path, quality: int) -> None:
    file = tmp_path / "a"
    assert write_error(picture(), file, "jpeg", quality) == (
        f"{file}: the quality is out of range\n  expected  1 to 100\n  found     {quality}"
    )


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "webp", "bmp"])
def test_writing_into_a_missing_folder_is_explained(
    tmp_path: Path, image_format: ImageFormat
) -> None:
    file = tmp_path / "none" / "a"
    assert write_error(picture(), file, image_format).splitlines() == [
        f"{file}: the folder does not exist",
        f"  found     [Errno 2] No such file or directory: {str(file)!r}",
        "  next      create it, or choose another one",
    ]


def test_writing_over_a_folder_is_explained(tmp_path: Path) -> None:
    lines = write_error(picture(), tmp_path, "png").splitlines()
    assert lines[0] == f"{tmp_path}: this is a folder"
    assert lines[-1] == "  next      choose a file name inside it"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_explained() -> None:
    assert write_error(picture(), Path("/dev/full"), "png") == (
        "/dev/full: the picture cannot be written\n"
        "  found     [Errno 28] No space left on device\n"
        "  next      check the free space on the disk, or choose another format"
    )


# Hostile and damaged files.


def test_missing_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert read_error(path) == (
        f"{path}: there is no such file\n"
        f"  found     [Errno 2] No such file or directory: {str(path)!r}\n"
        "  next      check the name and the folder"
    )


def test_folder_is_explained(tmp_path: Path) -> None:
    lines = read_error(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}: this is a folder, not a picture"
    assert lines[-1] == "  next      name a picture inside it"


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the administrator may read everything"
)
def test_lack_of_permission_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(picture(), path, "png")
    path.chmod(0)
    assert read_error(path) == (
        f"{path}: this file may not be read\n"
        f"  found     [Errno 13] Permission denied: {str(path)!r}\n"
        "  next      ask its owner for access, or copy it to a folder of your own"
    )
    assert write_error(picture(), path, "png") == (
        f"{path}: this file may not be written\n"
        f"  found     [Errno 13] Permission denied: {str(path)!r}\n"
        "  next      choose a folder of your own"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"hello", "another kind of file"),
        (b"GIF89a" + bytes(50), "another kind of file"),
        (b"RIFF\0\0\0\0WAVEfmt ", "another kind of file"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "another kind of file"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert read_error(path) == (
        f"{path}: this is not a picture that can be read\n"
        "  expected  PNG, JPEG, WebP, TIFF or BMP\n"
        f"  found     {found}\n"
        "  next      open it in a picture editor and save it as PNG"
    )


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_cut_off_file_is_refused(tmp_path: Path, image_format: ImageFormat, part: float) -> None:
    path = tmp_path / "a"
    write_picture(picture(), path, image_format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    first, *_, last = read_error(path).splitlines()
    assert (first, last) in (
        (f"{path}: the picture cannot be decoded", f"  next      {DECODE_ADVICE}"),
        (
            f"{path}: the file is cut off: it has no page",
            "  next      copy or download it again",
        ),
        (
            f"{path}: the file is cut off: its pixels go on beyond its end",
            "  next      copy or download it again",
        ),
    )


def test_uncompressed_tiff_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tifffile.imwrite(path, noise(64, 64, 3), photometric="rgb")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert read_error(path) == (
        f"{path}: the file is cut off: its pixels go on beyond its end\n"
        f"  found     {len(whole) - 100} bytes\n"
        "  next      copy or download it again"
    )


def test_looping_pages_of_a_tiff_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tifffile.imwrite(path, noise(4, 4, 3), photometric="rgb", subfiletype=1)
    content = bytearray(path.read_bytes())
    start, entries = struct.unpack("<I", content[4:8])[0], content[8]
    end = start + 2 + 12 * entries
    content[end : end + 4] = content[4:8]
    path.write_bytes(content)
    assert read_error(path) == (
        f"{path}: the file is cut off: it has no page\n  next      copy or download it again"
    )


def test_tiff_that_declares_more_strips_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    tifffile.imwrite(
        path, noise(64, 64), photometric="minisblack", rowsperstrip=1, compression="lzw"
    )
    path.write_bytes(declare(path.read_bytes(), 5, 100_000_000))
    assert read_error(path) == (
        f"{path}: the file is cut off: some of its pixels are missing\n"
        "  expected  100000000 blocks\n"
        "  found     64 blocks\n"
        "  next      copy or download it again"
    )


def seeds() -> list[bytes]:
    """One small file of each kind, with profile and EXIF, for the mutations below."""
    files: list[bytes] = []
    compressed: dict[str, Any] = {"compression": "lzw", "predictor": True}
    for bits, options in ((8, {}), (16, compressed)):
        for photometric, channels in (("rgb", 3), ("minisblack", 1), ("separated", 4)):
            stream = io.BytesIO()
            values = noise(6, 5, channels, bits=bits).squeeze()
            tifffile.imwrite(stream, values, photometric=photometric, **options)
            files.append(stream.getvalue())
        files.append(bytes(imagecodecs.png_encode(noise(6, 5, 3, bits=bits))))
    for name in ("PNG", "JPEG", "WEBP", "BMP", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(noise(6, 5, 3)).save(
            stream, name, exif=exif(6).tobytes(), icc_profile=RGB_PROFILE
        )
        files.append(stream.getvalue())
    return files


SEEDS = seeds()


@settings(max_examples=400, deadline=None)
@given(
    seed=st.sampled_from(range(len(SEEDS))),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    near_head=st.booleans(),
)
def test_damaged_file_reads_or_says_that_it_is_damaged(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    changes: list[tuple[float, int]],
    near_head: bool,
) -> None:
    content = bytearray(SEEDS[seed])
    reach = min(len(content), 300) if near_head else len(content)
    for place, value in changes:
        content[int(place * (reach - 1))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read_picture(path)
        except ImageError:
            return
    assert np.isfinite(found.color).all()


@pytest.mark.parametrize(("frames", "suffix"), [(2, "png"), (3, "png"), (2, "webp"), (3, "webp")])
def test_animation_is_refused(tmp_path: Path, frames: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    first, *others = (Image.new("RGB", (4, 4), (50 * i, 0, 0)) for i in range(frames))
    first.save(path, save_all=True, append_images=others)
    assert read_error(path) == (
        f"{path}: this is not a single picture\n"
        "  expected  one still picture\n"
        f"  found     {frames} frames\n"
        "  next      extract the frames first and upscale them one by one"
    )


def test_document_of_several_pages_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(5, 8, 8, 3), photometric="rgb")
    assert read_error(path) == (
        f"{path}: this is not a single picture\n"
        "  expected  one still picture\n"
        "  found     5 pages\n"
        "  next      extract the pages first and upscale them one by one"
    )


@pytest.mark.parametrize(
    ("dtype", "found"),
    [
        (np.float32, "32 bits, IEEEFP"),
        (np.float16, "16 bits, IEEEFP"),
        (np.uint32, "32 bits, UINT"),
        (np.int16, "16 bits, INT"),
    ],
)
def test_tiff_of_other_numbers_is_refused(tmp_path: Path, dtype: Any, found: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4, 3), dtype), photometric="rgb")
    assert read_error(path) == (
        f"{path}: the pixels of this TIFF are no numbers from black to white\n"
        "  expected  unsigned integers of up to 16 bits\n"
        f"  found     {found}\n"
        "  next      open it in a picture editor and save it with 16 bits per channel"
    )


def test_tiff_of_a_rare_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(4, 4), photometric="cfa")
    assert read_error(path) == (
        f"{path}: the colours of this TIFF are of a rare kind\n"
        "  expected  grey, RGB, palette, CMYK, YCbCr or LAB\n"
        "  found     CFA, 1 channels\n"
        "  next      open it in a picture editor and save it as RGB"
    )


def declare(content: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header: a decompression bomb, or nothing."""
    if content.startswith(b"\x89PNG"):
        header = struct.pack(">II", width, height) + content[24:29]
        return content[:8] + chunk(b"IHDR", header) + content[33:]
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<ii", width, height) + content[26:]
    if content.startswith(b"II"):
        tags = cast("tifffile.TiffPage", tifffile.TiffFile(io.BytesIO(content)).pages[0]).tags
        places = {tags[256].valueoffset: width, tags[257].valueoffset: height}
        changed = bytearray(content)
        for place, value in places.items():
            changed[place : place + 4] = struct.pack("<I", value)
        return bytes(changed)
    marker = content.index(b"\xff\xc0")
    return content[: marker + 5] + struct.pack(">HH", height, width) + content[marker + 9 :]


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_declared_size_beyond_the_limit_is_refused_before_decoding(
    tmp_path: Path, image_format: ImageFormat, bits: Literal[8, 16]
) -> None:
    path = tmp_path / "a"
    write_picture(picture(bits=bits), path, image_format)
    side = 65000
    path.write_bytes(declare(path.read_bytes(), side, side))
    assert read_error(path) == (
        f"{path}: the picture is too large\n"
        f"  expected  at most {MAX_PIXELS} px in all\n"
        f"  found     {side} x {side} px\n"
        "  next      cut it into parts and upscale them one by one"
    )


def test_webp_canvas_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    canvas = bytes((16, 0, 0, 0)) + 2 * (60000 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas
    (tmp_path / "a").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert read_error(tmp_path / "a").startswith(f"{tmp_path / 'a'}: the picture ")


@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "bmp"])
def test_picture_without_pixels_is_refused(tmp_path: Path, image_format: ImageFormat) -> None:
    path = tmp_path / "a"
    write_picture(picture(), path, image_format)
    path.write_bytes(declare(path.read_bytes(), 0, 5))
    assert read_error(path).splitlines()[0] in (
        f"{path}: the picture has no pixels",
        f"{path}: the picture cannot be decoded",
    )


def test_pillows_lower_limit_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for image_format in ("png", "jpeg", "tiff", "bmp"):
        write_picture(picture(), tmp_path / "a", image_format)
        assert read_picture(tmp_path / "a").color.shape == (3, HEIGHT, WIDTH)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(GREY_PROFILE)),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"short")),
        chunk(b"cHRM", bytes(32)),
        chunk(b"zTXt", b"x"),
    ],
)
def test_faulty_metadata_in_a_png_neither_stops_nor_prints(
    tmp_path: Path, more: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    values = noise(2, 2, 3)
    (tmp_path / "a").write_bytes(png(2, 2, 8, 2, values.tobytes(), more) + b"behind the end")
    assert same_pixels(read_picture(tmp_path / "a"), values)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_or_warned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger().removeHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, content in enumerate(SEEDS):
            path = tmp_path / f"{number}"
            path.write_bytes(content)
            image = replace(read_picture(path), icc_profile=b"", exif=None)
            for image_format in ("png", "jpeg", "webp", "tiff", "bmp"):
                write_picture(image, path, image_format)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("color", "alpha"), [((4, 5), None), ((2, 4, 5), None), ((3, 0, 5), None), ((3, 4, 5), (5, 4))]
)
def test_arrays_that_do_not_fit_make_no_picture(
    color: tuple[int, ...], alpha: tuple[int, ...] | None
) -> None:
    with pytest.raises(ImageError):
        Picture(
            color=np.zeros(color, np.float32),
            alpha=None if alpha is None else np.zeros(alpha, np.float32),
        )


def test_picture_prints_its_size_and_kind_only() -> None:
    assert repr(picture(alpha=True, bits=16)) == (
        "<Picture: 17 x 13 px, RGB with transparency, 16 bits per channel>"
    )
