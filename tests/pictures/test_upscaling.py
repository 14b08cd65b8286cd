"""Pictures of every kind go through models of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from aether_converters import Upscaler, open_upscaler
from aether_converters.errors import ImageError
from aether_converters.measuring.verification import structured_image
from aether_converters.pictures.batch import PictureReport, run_jobs
from aether_converters.pictures.jobs import Job, plan_jobs
from aether_converters.pictures.picture import Picture, Planes, from_float, to_float
from aether_converters.pictures.reading import read_picture
from aether_converters.pictures.upscaling import TileOptions, upscale_picture
from aether_converters.pictures.writing import write_picture
from tests.support.tiny import tiny


@dataclass(frozen=True)
class Models:
    grey: Upscaler
    rgb: Upscaler
    rgba: Upscaler


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")

    def opened(channels: int) -> Upscaler:
        path = folder / f"{channels}.pth"
        torch.save(tiny(in_chans=channels).state_dict(), path)
        return open_upscaler(path)

    return Models(opened(1), opened(3), opened(4))


def picture(channels: int, alpha: str = "none", height: int = 21, width: int = 34) -> Picture:
    planes = structured_image(4, height, width)[0]
    return Picture(
        color=planes[:channels],
        alpha={"none": None, "varying": planes[3], "opaque": np.ones_like(planes[3])}[alpha],
    )


def test_rgb_picture_through_rgb_model_is_the_model_s_output(models: Models):
    given = picture(3)
    result = upscale_picture(models.rgb, given)
    np.testing.assert_array_equal(result.color, models.rgb.run(to_float(given.color)[None])[0])
    assert result.alpha is None


def test_grey_picture_stays_grey_through_an_rgb_model(models: Models):
    given = picture(1)
    result = upscale_picture(models.rgb, given)
    expected = models.rgb.run(np.repeat(to_float(given.color), 3, axis=0)[None])[0].mean(axis=0)
    assert result.color.shape == (1, 42, 68)
    np.testing.assert_allclose(result.color[0], expected, atol=1e-6)


def test_each_colour_of_an_rgb_picture_goes_through_a_grey_model(models: Models):
    given = picture(3)
    result = upscale_picture(models.grey, given)
    for plane, enlarged in zip(to_float(given.color), result.color, strict=True):
        np.testing.assert_array_equal(enlarged, models.grey.run(plane[None, None])[0, 0])


def test_transparency_is_upscaled_like_a_grey_picture(models: Models):
    given = picture(3, "varying")
    result = upscale_picture(models.rgb, given)
    assert given.alpha is not None
    assert result.alpha is not None
    expected = models.rgb.run(np.stack([to_float(given.alpha)] * 3)[None])[0].mean(axis=0)
    np.testing.assert_allclose(result.alpha, expected, atol=1e-6)


def test_constant_transparency_is_kept_without_running_the_model(models: Models):
    done: list[tuple[int, int]] = []

    def count(pixels: int, total: int) -> None:
        done.append((pixels, total))

    result = upscale_picture(models.rgb, picture(3, "opaque"), on_pixels=count)
    assert done == [(42 * 68, 42 * 68)]
    assert result.alpha is not None
    assert result.alpha.shape == (42, 68)
    assert (result.alpha == 1.0).all()


def test_rgba_model_sees_colours_and_transparency_together(models: Models):
    given = picture(3, "varying")
    result = upscale_picture(models.rgba, given)
    assert given.alpha is not None
    expected = models.rgba.run(
        np.concatenate([to_float(given.color), to_float(given.alpha)[None]])[None]
    )[0]
    np.testing.assert_array_equal(result.color, expected[:3])
    np.testing.assert_array_equal(result.alpha, expected[3])


def test_rgba_model_takes_an_opaque_picture_too(models: Models):
    given = picture(3)
    opaque = np.concatenate([to_float(given.color), np.ones((1, 21, 34), np.float32)])
    expected = models.rgba.run(opaque[None])[0, :3]
    np.testing.assert_array_equal(upscale_picture(models.rgba, given).color, expected)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", ["none", "varying", "opaque"])
def test_tiles_give_the_result_of_the_whole(models: Models, kind: str, channels: int, alpha: str):
    given = picture(channels, alpha, 80, 90)
    upscaler: Upscaler = getattr(models, kind)
    whole = upscale_picture(upscaler, given)
    tiled = upscale_picture(upscaler, given, TileOptions(tile=45))
    np.testing.assert_allclose(tiled.color, whole.color, atol=1e-4)
    if whole.alpha is not None and tiled.alpha is not None:
        np.testing.assert_allclose(tiled.alpha, whole.alpha, atol=1e-4)
    assert (whole.alpha is None) == (alpha == "none")


def saved(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Path:
    Image.linear_gradient("L").resize(size).convert(mode).save(path)
    return path


def test_a_file_gets_the_scale_in_its_name_and_a_folder_in_its_own(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    one = saved(tmp_path / "one.jpg")
    two = saved(tmp_path / "photos" / "two.png")
    jobs = plan_jobs([one, tmp_path / "photos"], None, 2)
    assert [(job.source, job.target) for job in jobs] == [
        (one, tmp_path / "one_2x.png"),
        (two, tmp_path / "photos_2x" / "two.png"),
    ]


def test_out_is_a_folder_or_the_name_of_the_one_picture(tmp_path: Path):
    one = saved(tmp_path / "one.png")
    assert plan_jobs([one], tmp_path / "out", 2)[0].target == tmp_path / "out" / "one.png"
    (job,) = plan_jobs([one], tmp_path / "large.webp", 2)
    assert (job.target, job.image_format) == (tmp_path / "large.webp", "webp")


def test_folders_within_folders_are_entered_on_demand(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    saved(tmp_path / "in" / "deep" / "a.png")
    saved(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    flat = plan_jobs([tmp_path / "in"], tmp_path / "out", 2)
    deep = plan_jobs([tmp_path / "in"], tmp_path / "out", 2, recursive=True)
    assert [job.target.relative_to(tmp_path).as_posix() for job in flat] == ["out/b.png"]
    assert [job.target.relative_to(tmp_path).as_posix() for job in deep] == [
        "out/b.png",
        "out/deep/a.png",
    ]


def test_a_folder_without_pictures_is_named(tmp_path: Path):
    with pytest.raises(ImageError) as caught:
        plan_jobs([tmp_path], None, 2)
    assert str(caught.value) == (
        f"{tmp_path}: there is no picture in this folder\n"
        "  expected  PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, TGA, PNM, QOI\n"
        "  next      name another folder, or enter its folders with --recursive"
    )


def test_two_pictures_never_share_a_result(tmp_path: Path):
    one, two = saved(tmp_path / "a.png"), saved(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="two pictures would be written to one file"):
        plan_jobs([one, two], tmp_path / "out", 2)


def run_job(job: Job, upscaler: Upscaler, *, force: bool = False) -> PictureReport:
    (report,) = run_jobs([job], upscaler, TileOptions(), force=force)
    return report


def job(source: Path, target: Path, image_format: Any = None):
    (found,) = plan_jobs([source], target, 2, image_format=image_format)
    return found


def test_a_job_writes_the_enlarged_picture(models: Models, tmp_path: Path):
    source = saved(tmp_path / "a.png")
    report = run_job(job(source, tmp_path / "b.png"), models.rgb)
    assert report.outcome == "written"
    assert report.size == (40, 24)
    assert read_picture(tmp_path / "b.png").color.shape == (3, 24, 40)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("image_format", ["png", "tiff", "webp"])
def test_every_kind_of_picture_goes_through(
    models: Models, tmp_path: Path, mode: str, image_format: str
):
    source = saved(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode)
    target = tmp_path / f"b.{image_format}"
    report = run_job(job(source, target), models.rgb)
    assert report.outcome == "written", report.notes
    assert read_picture(target).color.shape[1:] == (24, 40)


def test_sixteen_bits_stay_sixteen(models: Models, tmp_path: Path):
    given = Picture(color=structured_image(3, 16, 16)[0], bits=16)
    write_picture(given, tmp_path / "a.png", "png")
    report = run_job(job(tmp_path / "a.png", tmp_path / "b.png"), models.rgb)
    assert report.outcome == "written"
    result = read_picture(tmp_path / "b.png")
    assert result.bits == 16
    seen = to_float(read_picture(tmp_path / "a.png").color)
    expected = np.clip(models.rgb.run(seen[None])[0], 0, 1)
    np.testing.assert_allclose(to_float(result.color), expected, atol=1 / 65535)


def test_what_exists_is_skipped_unless_force_is_set(models: Models, tmp_path: Path):
    source = saved(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"mine")
    planned = job(source, tmp_path / "b.png")
    report = run_job(planned, models.rgb)
    assert report.outcome == "skipped"
    assert (tmp_path / "b.png").read_bytes() == b"mine"
    assert run_job(planned, models.rgb, force=True).outcome == "written"


def test_a_picture_is_never_replaced_by_its_own_result(models: Models, tmp_path: Path):
    source = saved(tmp_path / "a.png")
    before = source.read_bytes()
    report = run_job(job(source, source), models.rgb, force=True)
    assert report.outcome == "failed"
    assert "would replace a file that this run reads" in report.notes[0]
    assert source.read_bytes() == before


def test_a_damaged_picture_is_reported_and_leaves_nothing(models: Models, tmp_path: Path):
    source = saved(tmp_path / "a.png", size=(200, 200))
    source.write_bytes(source.read_bytes()[:-100])
    report = run_job(job(source, tmp_path / "out"), models.rgb)
    assert report.outcome == "failed"
    assert str(source) in report.notes[0]
    assert not (tmp_path / "out").exists()


def test_transparency_is_not_silently_lost_in_a_jpeg(models: Models, tmp_path: Path):
    Image.fromarray(np.full((8, 8, 4), 100, np.uint8)).save(tmp_path / "a.png")
    report = run_job(job(tmp_path / "a.png", tmp_path / "b.jpg"), models.rgb)
    assert report.outcome == "failed"
    assert "holds no transparency" in report.notes[0]
    assert not (tmp_path / "b.jpg").exists()


def in_8_bits(planes: Planes) -> Planes:
    return from_float(to_float(planes), np.dtype(np.uint8))


def with_planes(given: Picture, change: Callable[[Planes], Planes]) -> Picture:
    alpha = None if given.alpha is None else change(given.alpha)
    return replace(given, color=change(given.color), alpha=alpha)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", ["none", "varying", "opaque"])
def test_pixels_of_a_file_are_upscaled_as_their_values(
    models: Models, kind: str, channels: int, alpha: str
):
    exact = picture(channels, alpha)
    stored = with_planes(exact, in_8_bits)
    upscaler: Upscaler = getattr(models, kind)
    found = upscale_picture(upscaler, stored)
    expected = with_planes(upscale_picture(upscaler, with_planes(stored, to_float)), in_8_bits)
    assert found.color.dtype == np.uint8
    np.testing.assert_array_equal(found.color, expected.color)
    assert (found.alpha is None) == (alpha == "none")
    if found.alpha is not None:
        np.testing.assert_array_equal(found.alpha, expected.alpha)


def test_reports_come_in_the_order_of_the_pictures(models: Models, tmp_path: Path):
    sources = [saved(tmp_path / f"{name}.png", size=(8, 8)) for name in "abcde"]
    sources[1].write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d.png").write_bytes(b"there already")
    jobs = plan_jobs(sources, tmp_path / "out", 2)
    begun: list[Job] = []
    reports = list(run_jobs(jobs, models.rgb, TileOptions(), on_picture=begun.append))
    assert [report.source for report in reports] == sources
    assert [report.outcome for report in reports] == [
        *("written", "failed", "written", "skipped", "written")
    ]
    assert begun == jobs


def test_a_model_s_invalid_numbers_are_reported_by_name(models: Models, tmp_path: Path):
    source = saved(tmp_path / "a.png")

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return models.rgb.run(image) * np.float32("nan")

    report = run_job(job(source, tmp_path / "b.png"), replace(models.rgb, run=run))
    assert report.outcome == "failed"
    assert "the model produced invalid numbers" in report.notes[0]
    assert not (tmp_path / "b.png").exists()
