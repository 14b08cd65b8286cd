"""Damaged files read, or say that they are damaged."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_converters.errors import ImageError
from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.writing import write_picture
from tests.support.pictures import (
    DECODE_ADVICE,
    GREY_PROFILE,
    SEEDS,
    chunk,
    declare,
    noise,
    picture,
    png,
    read_error,
    same_pixels,
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


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(GREY_PROFILE)),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"short")),
        chunk(b"cHRM", bytes(32)),
        chunk(b"zTXt", b"x"),
        chunk(b"tRNS", b"\x01\x00" * 3),
        chunk(b"tRNS", b"short"),
        chunk(b"PLTE", bytes(7)),
    ],
)
def test_faulty_metadata_in_a_png_neither_stops_nor_prints(
    tmp_path: Path, more: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    values = noise(2, 2, 3)
    (tmp_path / "a").write_bytes(png(2, 2, 8, 2, values.tobytes(), more) + b"behind the end")
    assert same_pixels(read_picture(tmp_path / "a"), values)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("depth", "color_type", "more"),
    [
        (3, 0, b""),
        (4, 2, b""),
        (16, 3, chunk(b"PLTE", bytes(6))),
        (1, 6, b""),
        (8, 5, b""),
        (8, 3, b""),
    ],
)
def test_a_png_of_a_depth_that_its_kind_cannot_have_is_refused_in_our_words(
    tmp_path: Path, depth: int, color_type: int, more: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(png(2, 2, depth, color_type, bytes(32), more))
    with pytest.raises(ImageError, match="the picture cannot be decoded"):
        read_picture(tmp_path / "a")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "colors",
    [
        chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\xff") * 2,
        chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\xff" * 6),
        chunk(b"PLTE", bytes(6)) * 2,
        chunk(b"tRNS", b"\xff") + chunk(b"PLTE", bytes(6)),
        chunk(b"PLTE", bytes(6))[:-1] + b"?",
    ],
)
def test_a_faulty_palette_neither_stops_nor_prints(
    tmp_path: Path, colors: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(png(2, 2, 8, 3, bytes(4), colors))
    assert not read_picture(tmp_path / "a").color.any()
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
