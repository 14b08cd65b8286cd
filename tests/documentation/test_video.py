"""The commands of docs/video.md enlarge a clip with sound, where ffmpeg is installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.tiny import tiny

PAGE = Path(__file__).parent.parent.parent / "docs" / "video.md"
PROGRAMS = {"aethernet": [sys.executable, "-m", "aether_converters"]}
FRAMES = 6
WIDTH, HEIGHT = 48, 32

pytestmark = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is not installed"
)


def call(*words: str, folder: Path) -> bytes:
    done = subprocess.run(words, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stderr.decode(errors='replace')}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip in the colours of HD, and what the page's commands make of it."""
    folder = tmp_path_factory.mktemp("video")
    torch.save(tiny().state_dict(), folder / "model.pth")
    seconds = FRAMES / 24
    clip = (
        f"ffmpeg -f lavfi -i testsrc2=size={WIDTH}x{HEIGHT}:rate=24:duration={seconds} "
        f"-f lavfi -i sine=frequency=440:duration={seconds} "
        "-vf scale=out_color_matrix=bt709:out_range=tv -colorspace bt709 -color_primaries bt709 "
        "-color_trc bt709 -c:v libx264 -crf 1 -pix_fmt yuv420p -c:a aac video.mp4"
    )
    call(*clip.split(), folder=folder)
    (block,) = re.findall(r"```sh video\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    for line in block.splitlines():
        program, *words = shlex.split(line)
        call(*PROGRAMS.get(program, [program]), *words, folder=folder)
    return folder


def streams(file: Path) -> dict[str, dict[str, Any]]:
    words = ["ffprobe", "-v", "error", "-show_streams", "-of", "json"]
    found = json.loads(call(*words, file.name, folder=file.parent))["streams"]
    return {stream["codec_type"]: stream for stream in found}


def pictures(file: Path) -> NDArray[np.uint8]:
    """All frames in YUV, as small as the clip's."""
    words = f"ffmpeg -i {file.name} -vf scale={WIDTH}:{HEIGHT}:flags=area -pix_fmt yuv444p"
    raw = call(*words.split(), "-f", "rawvideo", "-", folder=file.parent)
    return np.frombuffer(raw, np.uint8).reshape(-1, 3, HEIGHT, WIDTH)


def test_every_frame_is_enlarged_at_its_rate_and_colours_are_told(folder: Path):
    before, after = (streams(folder / name)["video"] for name in ("video.mp4", "large.mp4"))
    assert (after["width"], after["height"]) == (2 * WIDTH, 2 * HEIGHT)
    assert after["nb_frames"] == before["nb_frames"] == str(FRAMES)
    assert after["r_frame_rate"] == before["r_frame_rate"]
    for name in ("color_space", "color_primaries", "color_transfer"):
        assert after[name] == before[name] == "bt709"


def test_the_sound_is_the_same_byte_for_byte(folder: Path):
    first, second = (
        call(*f"ffmpeg -i {name} -map 0:a -c copy -f md5 -".split(), folder=folder)
        for name in ("video.mp4", "large.mp4")
    )
    assert first == second


def test_the_frames_become_what_they_were(folder: Path):
    """With the enlarged frames exchanged for the frames, so that no network is between."""
    shutil.rmtree(folder / "large", ignore_errors=True)
    shutil.copytree(folder / "frames", folder / "large")
    (block,) = re.findall(r"```sh video\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    last = block.splitlines()[-1].replace("large.mp4", "same.mp4").replace("-crf 16", "-crf 1")
    call(*shlex.split(last), folder=folder)
    difference = pictures(folder / "same.mp4").astype(int) - pictures(folder / "video.mp4")
    assert np.abs(difference.mean(axis=(0, 2, 3))).max() < 1.0
    assert np.abs(difference).mean() < 6.0  # thin coloured lines lose by chroma of half the size
