"""Which files are pictures, by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_converters.pictures.formats import is_picture


@pytest.mark.parametrize(
    "name", ["a.png", "a.JPG", "a.jpeg", "a.WebP", "a.tif", "a.tiff", "a.bmp", ".hidden.png"]
)
def test_pictures_are_told_by_suffix(name: str) -> None:
    assert is_picture(Path(name))


@pytest.mark.parametrize("name", ["a.txt", "png", "a.png.part", "a.gif", "._photo.jpg", ".png"])
def test_other_names_are_no_pictures(name: str) -> None:
    assert not is_picture(Path("folder.png") / name)
