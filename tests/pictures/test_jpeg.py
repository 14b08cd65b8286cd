"""A damaged JPEG says so, and a sound one says nothing."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aether_converters.command_line.main import main
from aether_converters.errors import ImageError
from aether_converters.pictures.jpeg import DAMAGED, parse_jpeg
from aether_converters.pictures.reading import read_picture
from aether_converters.sample import MODEL, PICTURE

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "best": {"quality": 95, "subsampling": 0},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "dense restarts": {"restart_marker_blocks": 2},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 2},
    "grey": {"mode": "L"},
    "grey progressive": {"mode": "L", "progressive": True},
    "inks": {"mode": "CMYK"},
}


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.open(PICTURE).convert("RGB").convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def cut(content: bytes, start: int, end: int) -> bytes:
    """Half of the coded data, with an end marker."""
    return content[: (start + end) // 2] + b"\xff\xd9"


def cut_late(content: bytes, start: int, end: int) -> bytes:
    """All but the last tenth."""
    return content[: end - (end - start) // 10] + b"\xff\xd9"


def zeroed(content: bytes, start: int, end: int) -> bytes:
    """400 bytes of zeros."""
    place = start + (end - start) // 3
    return content[:place] + bytes(400) + content[place + 400 :]


def without_a_part(content: bytes, start: int, end: int) -> bytes:
    """A sector that a disk lost."""
    place = start + (end - start) // 2
    return content[:place] + content[place + 512 :]


def of_another(content: bytes, start: int, end: int) -> bytes:
    """A sector of another file."""
    place = start + (end - start) // 2
    return content[:place] + jpeg(quality=40)[1000:1512] + content[place + 512 :]


def twice_a_part(content: bytes, start: int, end: int) -> bytes:
    """A sector that is there twice."""
    place = start + (end - start) // 2
    return content[:place] + content[place - 600 :]


DAMAGES = (cut, cut_late, zeroed, without_a_part, of_another, twice_a_part)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive restarts"])
def test_damage_is_told(tmp_path: Path, kind: str, damage: Any) -> None:
    content = jpeg(**KINDS[kind])
    plan = parse_jpeg(content)
    (tmp_path / "a.jpg").write_bytes(damage(content, plan.scans[0][1], plan.scans[-1][2]))
    assert read_picture(tmp_path / "a.jpg").doubts == (DAMAGED,)
    with pytest.raises(ImageError, match="the picture is damaged, and --strict refuses it"):
        read_picture(tmp_path / "a.jpg", strict=True)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 31), (64, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_jpeg_of_any_size_is_not_doubted(
    tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    for quality in (5, 60, 100):
        options: dict[str, Any] = {"quality": quality, **KINDS[kind]}
        mode = options.pop("mode", "RGB")
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg", "JPEG", **options)
        found = read_picture(tmp_path / "a.jpg", strict=True)
        shown = np.asarray(Image.open(tmp_path / "a.jpg").convert("L" if mode == "L" else "RGB"))
        assert np.array_equal(np.moveaxis(found.color, 0, -1).squeeze(), shown.squeeze())


LEFT: dict[str, Callable[[bytes], bytes]] = {
    "zeros behind the end": lambda content: content + bytes(5000),
    "a second picture behind it": lambda content: content + content,
    "two zeros too many": lambda content: content[:-2] + b"\0\0\xff\xd9",
    "filled up": lambda content: content[:-2] + b"\xff\xff\xff\xd9",
    "a segment": lambda content: content[:2] + b"\xff\xed\0\x0aPhotosho" + content[2:],
}


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts"])
def test_what_cameras_and_programs_leave_is_no_damage(tmp_path: Path, left: str, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(LEFT[left](jpeg(**KINDS[kind])))
    assert read_picture(tmp_path / "a.jpg").doubts == ()


def test_a_phones_jpeg_with_a_preview_is_no_damage(tmp_path: Path) -> None:
    first, preview = Image.open(PICTURE), Image.new("RGB", (8, 8), "blue")
    first.convert("RGB").save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    found = read_picture(tmp_path / "a.jpg")
    assert found.doubts == ()
    assert found.dropped == ("further pictures behind it: left out",)


def test_a_damaged_picture_is_enlarged_with_a_warning_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = jpeg()
    plan = parse_jpeg(content)
    (tmp_path / "a.jpg").write_bytes(cut(content, *plan.scans[0][1:3]))
    command = ["upscale", str(MODEL), str(tmp_path / "a.jpg"), "--out", str(tmp_path / "b.png")]
    assert main([*command, "--strict"]) == 1
    assert not (tmp_path / "b.png").exists()
    assert main(command) == 0
    assert DAMAGED in capsys.readouterr().out
