"""Each kind of pixels becomes grey or RGB, and what is no single picture is refused."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any, cast

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from aether_converters.errors import ImageError
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    HEIGHT,
    RGB_PROFILE,
    WIDTH,
    chunk,
    cmyk_profile,
    noise,
    picture,
    png,
    png_of,
    read_error,
    same_pixels,
    samples,
    write_error,
)


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


def test_missing_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert read_error(path) == (f"{path}: there is no such file\n  next      check the path")


def test_folder_is_explained(tmp_path: Path) -> None:
    lines = read_error(tmp_path).splitlines()
    assert lines[0] == f"{tmp_path}: this is a folder"
    assert lines[-1] == "  next      name the file in it"


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="the administrator may read everything"
)
def test_lack_of_permission_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(picture(), path, "png")
    path.chmod(0)
    assert read_error(path).startswith(f"{path}: the file cannot be read: Permission denied")
    assert write_error(picture(), path, "png") == (
        f"{path}: this file may not be written\n"
        f"  found     [Errno 13] Permission denied: {str(path)!r}\n"
        "  next      choose a folder of your own"
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"hello", "a text"),
        (b"RIFF\0\0\0\0WAVEfmt ", "bytes 52 49 46 46 00 00 00 00"),
        (b"%PDF-1.7\n", "a PDF document"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert read_error(path) == (
        f"{path}: this is not a picture that can be read\n"
        "  expected  PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, TGA, PNM, QOI\n"
        f"  found     {found}\n"
        "  next      if it is the picture that was meant, open it in a picture editor and save it "
        "as PNG"
    )


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


@pytest.mark.parametrize(
    ("content", "found", "step"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "a web page", "download the file itself"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC picture", "save it as PNG"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "a Git LFS pointer, not the file itself",
            "git lfs pull",
        ),
        (b"\xff\x0a" + bytes(40), "a JPEG XL picture", "save it as PNG"),
    ],
)
def test_what_is_named_a_jpeg_and_is_none_is_told(
    tmp_path: Path, content: bytes, found: str, step: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    error = read_error(path)
    assert f"  found     {found}\n" in error
    assert step in error.splitlines()[-1]


@pytest.mark.skipif(os.name != "posix", reason="needs pipes with names")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    link = tmp_path / "b.jpg"
    link.symlink_to("/dev/zero")
    for path in (pipe, link, Path("/dev/zero"), Path("/dev/tty")):
        assert "this is not a regular file" in read_error(path) or path == Path("/dev/tty")


PILLOW_FORMATS = ("gif", "avif", "tga", "ppm", "pgm", "pbm", "qoi", "jfif", "jpe")


@pytest.mark.parametrize("suffix", PILLOW_FORMATS)
def test_formats_that_are_read_alone_show_what_pillow_shows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    mode = {"pgm": "L", "pbm": "1", "gif": "P"}.get(suffix, "RGB")
    source = Image.fromarray(noise(HEIGHT, WIDTH, 3)).convert(mode)
    if suffix == "qoi":
        path.write_bytes(imagecodecs.qoi_encode(np.asarray(source)))
    else:
        source.save(path, {"jfif": "JPEG", "jpe": "JPEG"}.get(suffix))
    found = read_picture(path)
    shown = Image.open(path).convert("L" if mode in ("L", "1") else "RGB")
    assert same_pixels(found, np.asarray(shown))


def test_16_bit_grey_of_a_pnm_keeps_its_bits(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, bits=16)
    header = f"P5 {WIDTH} {HEIGHT} 65535\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + values.astype(">u2").tobytes())
    assert same_pixels(read_picture(tmp_path / "a.pgm"), values)


def test_transparency_of_a_gif_becomes_alpha(tmp_path: Path) -> None:
    source = Image.fromarray(noise(HEIGHT, WIDTH, 3)).quantize(16)
    source.save(tmp_path / "a.gif", transparency=3)
    found = read_picture(tmp_path / "a.gif")
    assert found.alpha is not None
    assert np.array_equal(found.alpha == 0, np.asarray(source) == 3)


def test_a_grey_jpeg_or_webp_with_alpha_is_read_as_it_is(tmp_path: Path) -> None:
    values = noise(HEIGHT, WIDTH, 2)
    Image.fromarray(values, "LA").save(tmp_path / "a.tga")
    assert same_pixels(read_picture(tmp_path / "a.tga"), values)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("color_type", [0, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 9), (13, 17)])
def test_an_interlaced_png_has_the_pixels_of_a_plain_one_and_prints_nothing(
    tmp_path: Path,
    depth: int,
    color_type: int,
    size: tuple[int, int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if (depth == 16 and color_type == 3) or (depth < 8 and color_type not in (0, 3)):
        pytest.skip("PNG has no such pixels")
    height, width = size
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    values = np.random.default_rng(0).integers(0, 2**depth, (height, width, channels))
    more = [chunk(b"PLTE", (bytes(range(256)) * 3)[: 3 * 2**depth])] if color_type == 3 else []
    plain, interlaced = (
        png_of(values, depth, color_type, *more, interlaced=each) for each in (False, True)
    )
    (tmp_path / "a.png").write_bytes(plain)
    (tmp_path / "b.png").write_bytes(interlaced)
    first, second = read_picture(tmp_path / "a.png"), read_picture(tmp_path / "b.png")
    assert first.bits == second.bits
    assert np.array_equal(samples(first), samples(second))
    assert capfd.readouterr() == ("", "")


def test_an_interlaced_png_without_its_last_passes_is_refused(tmp_path: Path) -> None:
    content = png_of(noise(9, 9, 3), 8, 2, interlaced=True, cut=20)
    (tmp_path / "a.png").write_bytes(content)
    assert "some of its pixels are missing" in read_error(tmp_path / "a.png")


def test_a_video_is_told_how_its_frames_are_enlarged(tmp_path: Path):
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(40))
    with pytest.raises(ImageError, match="this is not a picture that can be read") as refusal:
        read_picture(tmp_path / "clip.mp4")
    assert refusal.value.found == "a video"
    assert "ffmpeg -i video.mp4 frames/%06d.png" in str(refusal.value.advice)
    assert "docs/video.md" in str(refusal.value.advice)
