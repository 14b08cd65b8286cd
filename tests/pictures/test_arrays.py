"""An array or a Pillow image goes through a model as its file goes through the command."""

from __future__ import annotations

import pydoc
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from spandrel import ModelLoader

import aether_converters
import aether_spandrel
from aether_converters import ModelError, Upscaler, open_upscaler, upscale
from aether_converters.command_line.main import main
from aether_converters.errors import ImageError, MissingExtraError
from aether_converters.measuring.verification import structured_image
from aether_converters.pictures.tiling import WHOLE_PIXELS
from tests.support.pictures import RGB_PROFILE, exif, noise
from tests.support.tiny import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save(tiny().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def opened(model: Path) -> Upscaler:
    return open_upscaler(model)


def by_command(model: Path, picture: NDArray[Any], folder: Path, *more: str) -> NDArray[Any]:
    (folder / "in.png").write_bytes(bytes(imagecodecs.png_encode(picture)))
    out = folder / "out.png"
    assert main(["upscale", str(model), str(folder / "in.png"), "--out", str(out), *more]) == 0
    return imagecodecs.png_decode(out.read_bytes())


SHAPES = [(13, 17), (13, 17, 2), (13, 17, 3), (13, 17, 4)]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_array_becomes_bit_for_bit_what_the_command_writes(
    model: Path, opened: Upscaler, tmp_path: Path, shape: tuple[int, ...], bits: int
):
    picture = noise(*shape, bits=bits)
    found = upscale(opened, picture)
    expected = by_command(model, picture, tmp_path)
    assert found.dtype == picture.dtype
    assert found.shape == (26, 34, *shape[2:])
    np.testing.assert_array_equal(found, expected)


def test_tiles_and_columns_are_those_of_the_command(model: Path, tmp_path: Path):
    picture = noise(96, 90, 3)
    expected = by_command(model, picture, tmp_path, "--tile", "50", "--overlap", "9")
    np.testing.assert_array_equal(upscale(model, picture, tile=50, overlap=9), expected)
    wide = noise(400, WHOLE_PIXELS // 400 + 100, 3)
    memory = 2**23
    expected = by_command(model, wide, tmp_path, "--memory", str(memory / 2**30), "--force")
    done: list[tuple[int, int]] = []
    found = upscale(
        model, wide, memory=memory, on_pixels=lambda now, total: done.append((now, total))
    )
    np.testing.assert_array_equal(found, expected)
    assert len(done) > 1
    assert done[-1] == (wide.shape[0] * wide.shape[1] * 4,) * 2


def test_floats_keep_their_dtype_and_end_at_black_and_white(opened: Upscaler):
    picture = structured_image(3, 20, 24)[0].transpose(1, 2, 0)
    picture = np.rint(picture)  # which float16 holds exactly

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return 5 * opened.run(image) - 2

    glaring = replace(opened, run=run)
    expected = glaring.run(picture.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    assert expected.min() < 0
    assert expected.max() > 1
    for dtype in (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)):
        found = upscale(glaring, picture.astype(dtype))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.clip(expected, 0, 1).astype(dtype))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "1", "I;16"])
def test_a_pillow_image_becomes_what_the_command_writes(
    model: Path, opened: Upscaler, tmp_path: Path, mode: str
):
    gradient = Image.linear_gradient("L").resize((20, 12))
    deep = Image.fromarray(np.asarray(gradient).astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else gradient.convert(mode)
    source = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(source)
    assert main(["upscale", str(model), str(source), "--out", str(tmp_path / "b.png")]) == 0
    found = upscale(opened, picture)
    assert isinstance(found, Image.Image)
    assert found.size == (40, 24)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(tmp_path / "b.png")))


def test_a_photograph_is_turned_upright_and_keeps_its_profile(opened: Upscaler, tmp_path: Path):
    Image.fromarray(noise(12, 20, 3)).save(
        tmp_path / "a.jpg", exif=exif(6).tobytes(), icc_profile=RGB_PROFILE
    )
    found = upscale(opened, Image.open(tmp_path / "a.jpg"))
    assert found.size == (24, 40)
    assert found.info["icc_profile"] == RGB_PROFILE


def test_pillow_images_with_alpha_multiplied_in_and_matrices_are_pictures(opened: Upscaler):
    grey = Image.new("LA", (5, 4), (100, 128))
    same = np.asarray(upscale(opened, grey)).astype(int)
    assert np.abs(np.asarray(upscale(opened, grey.convert("La"))).astype(int) - same).max() <= 2
    array = noise(6, 7)
    matrix: Any = array.view(np.matrix)
    assert np.array_equal(upscale(opened, matrix), upscale(opened, array))


def test_a_model_that_spandrel_loaded_gives_the_same(model: Path, opened: Upscaler):
    picture = noise(13, 17, 4)
    expected = upscale(opened, picture)
    for descriptor in (aether_spandrel.load(model), ModelLoader().load_from_file(model)):
        np.testing.assert_array_equal(upscale(descriptor, picture), expected)  # pyright: ignore[reportArgumentType]


def test_a_dtype_computes_in_it(model: Path, opened: Upscaler):
    picture = noise(16, 16, 3)
    exact = upscale(opened, picture).astype(int)
    rounded = upscale(model, picture, dtype="bf16").astype(int)
    assert 0 < np.abs(rounded - exact).max() < 16
    half = aether_spandrel.load(model).bfloat16()
    np.testing.assert_array_equal(upscale(half, picture), rounded)


@pytest.mark.parametrize("format", ["pth", "onnx", "ncnn"])
def test_ten_threads_share_one_model(model: Path, tmp_path: Path, format: str):
    if format == "ncnn":
        pytest.importorskip("ncnn")
    path = model
    if format != "pth":
        report = aether_converters.convert(model, tmp_path, to=[format], precision=["fp32"])  # pyright: ignore[reportArgumentType]
        path = report.artefacts[0].path
    upscaler = open_upscaler(path)
    pictures = [noise(11 + n, 25 - n, (3, 4)[n % 2]) for n in range(10)]
    alone = [upscale(upscaler, picture) for picture in pictures]
    with ThreadPoolExecutor(10) as threads:
        for _ in range(3):
            together = threads.map(partial(upscale, upscaler), pictures)
            for found, expected in zip(together, alone, strict=True):
                np.testing.assert_array_equal(found, expected)


REFUSED: dict[str, tuple[Any, str]] = {
    "0 to 255": (np.full((4, 4), 255, np.float32), "floats of this array do not lie"),
    "not a number": (np.full((4, 4), np.nan), "floats of this array do not lie"),
    "int64": (np.zeros((4, 4), np.int64), "white in an array of this dtype"),
    "batch": (np.zeros((1, 4, 4, 3), np.uint8), "array of this shape"),
    "channels first": (np.zeros((3, 20, 20), np.uint8), "array of this shape"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "not a picture"),
    "too large": (np.broadcast_to(np.uint8(3), (10**5, 10**5, 3)), "the picture is too large"),
    "tensor": (torch.zeros(4, 4), "no picture that can be enlarged"),
    "mode F": (Image.new("F", (4, 4)), "what is white in this picture"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_refused_in_words(opened: Upscaler, case: str):
    picture: Any
    picture, said = REFUSED[case]
    with pytest.raises(ImageError, match=said):
        upscale(opened, picture)


def test_an_open_model_takes_no_device(opened: Upscaler):
    with pytest.raises(ModelError, match="the model is open already"):
        upscale(opened, noise(4, 4), device="cpu")


@pytest.mark.parametrize("what", [torch.nn.Identity(), None])
def test_what_is_no_model_is_refused_in_words(what: Any):
    with pytest.raises(ModelError, match="this is no model that can be run"):
        upscale(what, noise(4, 4))


def test_a_name_whose_part_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
):
    homes: Any = vars(aether_converters)["_HOMES"]
    monkeypatch.setitem(homes, "upscale", "PIL.nothing")
    with pytest.raises(MissingExtraError) as refusal:
        _ = aether_converters.upscale
    assert "convert]" in str(refusal.value.advice)


@pytest.mark.parametrize("package", [aether_converters, aether_spandrel])
def test_the_public_names_can_be_found(package: Any):
    assert set(package.__all__) <= set(dir(package))
    assert re.match(r"\d+\.\d+", package.__version__)
    told = pydoc.TextDoc().document(package)
    assert all(name in re.sub(".\x08", "", told) for name in package.__all__)
