"""Which files are pictures, by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aether_converters.command_line.main import main
from aether_converters.errors import ImageError
from aether_converters.pictures.formats import is_picture
from aether_converters.pictures.jobs import plan_jobs
from aether_converters.pictures.reading import read_picture
from aether_converters.sample import MODEL

NAMES = ("a.png", "a.JPG", "a.jpeg", "a.WebP", "a.tif", "a.tiff", "a.bmp", ".hidden.png")
OTHER_NAMES = ("a.jfif", "a.JPE", "a.GIF", "a.avif", "a.tga", "a.ppm", "a.qoi", "a.heic", "a.psd")


@pytest.mark.parametrize("name", [*NAMES, *OTHER_NAMES])
def test_pictures_are_told_by_suffix(name: str) -> None:
    assert is_picture(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "png", "a.png.part", "._photo.jpg", ".png"])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not is_picture(Path("folder.png") / name)


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("jpg", ".jpg"),
        ("JPEG", ".jpg"),
        (".jpg", ".jpg"),
        ("tif", ".tif"),
        ("TIFF", ".tif"),
        ("jfif", ".jpg"),
        ("WebP", ".webp"),
        ("png", ".png"),
    ],
)
def test_a_format_is_understood_as_people_write_it(tmp_path: Path, text: str, suffix: str) -> None:
    source = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(source)
    out = tmp_path / "out"
    assert main(["upscale", str(MODEL), str(source), "--format", text, "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("text", ["gif", "heic", "pngg", ""])
def test_a_format_that_is_not_written_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["upscale", str(MODEL), str(tmp_path), "--format", text])
    assert "png" in capsys.readouterr().err


def test_each_picture_of_a_folder_is_enlarged_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.new("RGB", (8, 8), "red")
    for name, as_format in (
        *(("a.png", "PNG"), ("b.jfif", "JPEG"), ("c.gif", "GIF"), ("d.tga", "TGA")),
        *(("e.ppm", "PPM"), ("f.avif", "AVIF"), ("g.jpe", "JPEG")),
    ):
        image.save(folder / name, as_format)
    for name in ("g.heic", "h.jxl", "i.psd"):
        (folder / name).write_bytes(bytes(100))
    (folder / "notes.txt").write_text("no picture")

    assert main(["upscale", str(MODEL), str(folder), "--out", str(tmp_path / "out")]) == 1

    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.png" for name in "abcdefg"}
    printed = "".join(capsys.readouterr())
    assert all(name in printed for name in ("g.heic", "h.jxl", "i.psd"))
    assert "notes.txt" not in printed


@pytest.mark.skipif(os.name != "posix", reason="needs permissions as Unix has them")
def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "in" / "locked"
    locked.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    scan, access = os.scandir, os.access

    def refuse(folder: str) -> Any:
        if Path(folder) == locked:  # as for everybody but the administrator, who may run this
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    def may_read(path: Path, mode: int) -> bool:
        return path != locked and access(path, mode)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", may_read)
    jobs = plan_jobs([tmp_path / "in"], tmp_path / "out", 2, recursive=True)
    assert [job.source for job in jobs] == [tmp_path / "in" / "a.png", locked]
    with pytest.raises(ImageError, match="this folder may not be read"):
        read_picture(locked)
