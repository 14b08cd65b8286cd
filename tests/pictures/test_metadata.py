"""Orientation, EXIF and colour profiles."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.upscaling import upscale_picture
from aether_converters.pictures.writing import write_picture
from aether_converters.runtimes.opening import open_upscaler
from aether_converters.sample import MODEL
from tests.support.pictures import (
    EXIF_FORMATS,
    GREY_PROFILE,
    HEIGHT,
    RGB_PROFILE,
    WIDTH,
    chunk,
    exif,
    exif_tags,
    noise,
    picture,
    png_of,
    same_pixels,
)


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


# What a picture says about its size, its colours and itself.


def marked_png(path: Path, *more: bytes) -> Path:
    path.write_bytes(png_of(noise(8, 9, 3), 8, 2, *more))
    return path


def chunks_of(path: Path) -> dict[bytes, bytes]:
    content, place, found = path.read_bytes(), 8, dict[bytes, bytes]()
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        found[kind] = content[place + 8 : place + 8 + length]
        place += 12 + length
    return found


def enlarged(source: Path, target: Path, image_format: ImageFormat) -> tuple[str, ...]:
    large = upscale_picture(open_upscaler(MODEL), read_picture(source))
    return write_picture(large, target, image_format)


COLOR_CHUNKS = {
    b"gAMA": struct.pack(">I", 100000),
    b"cICP": bytes((9, 16, 0, 1)),
    b"cHRM": struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000),
    b"sRGB": b"\1",
    b"mDCV": bytes(range(24)),
    b"cLLI": bytes(8),
    b"bKGD": bytes(6),
}


@pytest.mark.parametrize("kind", COLOR_CHUNKS)
def test_what_a_png_says_of_its_colours_stays(tmp_path: Path, kind: bytes) -> None:
    source = marked_png(tmp_path / "a.png", chunk(kind, COLOR_CHUNKS[kind]))
    assert enlarged(source, tmp_path / "b.png", "png") == ()
    found = chunks_of(tmp_path / "b.png")
    assert found[kind] == COLOR_CHUNKS[kind]
    assert list(found).index(kind) < list(found).index(b"IDAT")


@pytest.mark.parametrize("kind", [b"gAMA", b"cICP", b"cHRM", b"mDCV"])
@pytest.mark.parametrize("image_format", ["jpeg", "webp", "tiff", "bmp"])
def test_what_others_cannot_say_of_colours_is_named(
    tmp_path: Path, kind: bytes, image_format: ImageFormat
) -> None:
    source = marked_png(tmp_path / "a.png", chunk(kind, COLOR_CHUNKS[kind]))
    (note,) = enlarged(source, tmp_path / "b", image_format)
    assert kind.decode() in note


def test_colours_meant_as_every_picture_without_a_word_are_not_named(tmp_path: Path) -> None:
    as_srgb = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sRGB", b"\0")
    source = marked_png(tmp_path / "a.png", as_srgb, chunk(b"bKGD", bytes(6)))
    assert enlarged(source, tmp_path / "b", "jpeg") == ()


@pytest.mark.parametrize("source_format", ["png", "jpeg", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("image_format", ["png", "jpeg", "tiff", "bmp", "webp"])
@pytest.mark.parametrize("dpi", [(300, 300), (72, 144)])
def test_the_resolution_grows_with_the_picture(
    tmp_path: Path, source_format: ImageFormat, image_format: ImageFormat, dpi: tuple[int, int]
) -> None:
    image = replace(picture(), resolution=dpi)
    write_picture(image, tmp_path / "a", source_format)
    assert enlarged(tmp_path / "a", tmp_path / "b", image_format) == ()
    found = read_picture(tmp_path / "b").resolution
    assert found == pytest.approx((2 * dpi[0], 2 * dpi[1]), abs=0.05)


def test_pillow_reads_the_resolution_that_was_written(tmp_path: Path) -> None:
    formats: tuple[tuple[Literal[8, 16], ImageFormat], ...]
    formats = ((8, "png"), (16, "png"), (8, "jpeg"), (8, "tiff"), (16, "tiff"))
    for bits, image_format in formats:
        image = replace(picture(bits=bits), resolution=(300, 200))
        write_picture(image, tmp_path / "a", image_format)
        if (bits, image_format) == (16, "tiff"):
            tags = cast("tifffile.TiffPage", tifffile.TiffFile(tmp_path / "a").pages[0]).tags
            assert (tags[282].value, tags[283].value) == ((300, 1), (200, 1))
        else:
            dpi = Image.open(tmp_path / "a").info["dpi"]
            assert dpi == pytest.approx((300, 200), abs=0.05)


def test_the_resolution_turns_with_the_picture(tmp_path: Path) -> None:
    block = exif(6)
    block[282], block[283], block[296] = 100, 200, 2
    Image.new("RGB", (4, 4)).save(tmp_path / "a.webp", exif=block)
    found = read_picture(tmp_path / "a.webp")
    assert found.resolution == (200, 100)
    assert not {282, 283, 296} & set(exif_tags(found.exif))


def test_a_resolution_in_centimetres_is_one_in_inches(tmp_path: Path) -> None:
    block = exif()
    block[282], block[283], block[296] = 100, 100, 3
    Image.new("RGB", (4, 4)).save(tmp_path / "a.webp", exif=block)
    assert read_picture(tmp_path / "a.webp").resolution == pytest.approx((254, 254))


TEXTS = {
    "a workflow of megabytes": chunk(
        b"zTXt", b"workflow\0\0" + zlib.compress(bytes(range(256)) * 10400)
    ),
    "a prompt": chunk(b"tEXt", b"parameters\0a cat, 20 steps"),
    "a title in another script": chunk(b"iTXt", b"Title\0\0\0\0\0" + "猫".encode()),
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_a_png_stay_and_are_named_where_they_cannot(tmp_path: Path, text: str) -> None:
    source = marked_png(tmp_path / "a.png", TEXTS[text])
    assert enlarged(source, tmp_path / "b.png", "png") == ()
    assert TEXTS[text] in (tmp_path / "b.png").read_bytes()
    (note,) = enlarged(source, tmp_path / "b.webp", "webp")
    assert note.startswith("WebP holds no texts such as those of a PNG (")


def test_a_profile_of_megabytes_is_read(tmp_path: Path) -> None:
    profile = RGB_PROFILE[:16] + b"RGB " + RGB_PROFILE[20:] + bytes(2 * 10**6)
    source = marked_png(tmp_path / "a.png", chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
    assert enlarged(source, tmp_path / "b.png", "png") == ()
    assert read_picture(tmp_path / "b.png").icc_profile == profile


def test_a_profile_that_unpacks_to_gigabytes_is_left_out(tmp_path: Path) -> None:
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(80)) + packer.flush()
    source = marked_png(tmp_path / "a.png", chunk(b"iCCP", b"x\0\0" + packed))
    found = read_picture(source)
    assert found.icc_profile is None
    assert found.dropped == ("a damaged colour profile: left out",)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'exif:PixelXDimension="4000" dc:creator="Ada"><tiff:ImageWidth>9</tiff:ImageWidth>'
    b"<dc:title>Sea</dc:title></rdf:Description></x:xmpmeta>"
)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("with_exif", [False, True])
def test_xmp_stays_without_what_is_no_longer_true(
    tmp_path: Path, image_format: ImageFormat, bits: Literal[8, 16], with_exif: bool
) -> None:
    source = marked_png(tmp_path / "a.png", chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP))
    first = read_picture(source)
    assert first.color.shape == (3, 9, 8)  # turned as it says
    values = noise(3, 8, 9, bits=bits)
    block = exif().tobytes() if with_exif and (bits, image_format) != (16, "tiff") else None
    image = replace(first, color=values, bits=bits, exif=block)
    write_picture(image, tmp_path / "b", image_format)
    found = read_picture(tmp_path / "b")
    assert found.xmp is not None
    assert b'dc:creator="Ada"' in found.xmp
    assert b"<dc:title>Sea</dc:title>" in found.xmp
    for untrue in (b"Orientation", b"PixelXDimension", b"ImageWidth"):
        assert untrue not in found.xmp
    assert (found.exif is not None) == (block is not None)


@pytest.mark.parametrize("target_format", ["png", "jpeg"])
def test_the_comment_of_a_jpeg_or_gif_stays(tmp_path: Path, target_format: ImageFormat) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", comment="by Ada")
    Image.new("P", (8, 8)).save(tmp_path / "a.gif", comment="by Ada")
    for name in ("a.jpg", "a.gif"):
        assert enlarged(tmp_path / name, tmp_path / "b", target_format) == ()
        assert b"by Ada" in (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("kind", "named"), [(b"caBX", True), (b"vpAX", True), (b"tIME", False), (b"iDOT", False)]
)
def test_chunks_that_bind_a_png_to_its_pixels_are_named(
    tmp_path: Path, kind: bytes, named: bool
) -> None:
    source = marked_png(tmp_path / "a.png", chunk(kind, bytes(7)))
    notes = enlarged(source, tmp_path / "b.png", "png")
    assert notes == ((f"the PNG's {kind.decode()}: left out",) if named else ())
    assert kind not in chunks_of(tmp_path / "b.png")


def test_a_chunk_that_declares_itself_safe_to_copy_is_copied(tmp_path: Path) -> None:
    source = marked_png(tmp_path / "a.png", chunk(b"prVs", b"mine"))
    assert enlarged(source, tmp_path / "b.png", "png") == ()
    assert chunks_of(tmp_path / "b.png")[b"prVs"] == b"mine"


def test_captions_by_photoshop_are_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    segment = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0"
    body = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    content = stream.getvalue()
    (tmp_path / "a.jpg").write_bytes(content[:2] + body + content[2:])
    notes = enlarged(tmp_path / "a.jpg", tmp_path / "b.jpg", "jpeg")
    assert notes == ("IPTC captions and Photoshop's settings: left out",)


def test_exif_that_old_programs_keep_in_a_text_turns_a_png(tmp_path: Path) -> None:
    block = exif(6).tobytes()
    text = b"\nexif\n" + str(len(block)).encode() + b"\n" + block.hex().encode() + b"\n"
    old = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    found = read_picture(marked_png(tmp_path / "a.png", old))
    assert found.color.shape == (3, 9, 8)
    assert exif_tags(found.exif)[271] == "Acme"
