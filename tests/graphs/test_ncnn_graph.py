"""What is written for NCNN: a graph that every program with NCNN in it can read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from aether_converters import ConversionError
from aether_converters.graphs.ncnn_file import HALF, RULES, NcnnFile, read_ncnn
from aether_converters.graphs.ncnn_graph import (
    NcnnPair,
    _text,  # pyright: ignore[reportPrivateUsage]
    build_ncnn,
)
from aether_core import AetherNet
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights, fuse, read_network
from tests.support.golden_cases import CASES, checkpoint
from tests.support.tiny import tiny

WEIGHTS_READ_BY_CHAINNER = {"Convolution", "ConvolutionDepthWise", "InnerProduct"}
"""Of the kinds that we write; it refuses a file with weights in any other layer."""

LEFT_OUT_BY_PROGRAMS = {"LayerNorm", "Scale", "Normalize", "MemoryData", "UnaryOp", "BatchNorm"}
"""Refused by ChaiNNer's reader, or not built into Upscayl's NCNN."""

WITHOUT_FORM = "g2a-train-4x"

CHARACTERS_READ_BY_NCNN = 15
"""Of a number; NCNN before 2024 takes the rest for the next parameter and refuses the file."""


def golden(case: str, folder: Path) -> AetherNet:
    path = folder / f"{case}.pth"
    torch.save(checkpoint(CASES[case]), path)
    fused = fuse(read_network(read_checkpoint(path)))
    return build_network(fused.config, float_weights(fused))


def read(pair: NcnnPair, folder: Path) -> NcnnFile:
    (folder / "model.param").write_bytes(pair.param)
    (folder / "model.bin").write_bytes(pair.weights)
    return read_ncnn(folder / "model.param")


def written(network: AetherNet, folder: Path, *, half: bool = False) -> NcnnFile:
    return read(build_ncnn(network, channels=network.config.in_chans, half=half), folder)


@pytest.mark.parametrize("case", [case for case in CASES if case != WITHOUT_FORM])
@pytest.mark.parametrize("half", [False, True])
def test_a_file_says_what_its_network_is(case: str, half: bool, tmp_path: Path):
    network = golden(case, tmp_path)
    file, config = written(network, tmp_path, half=half), network.config
    assert file.scale == config.scale
    assert file.channels == (config.in_chans, config.out_chans)
    assert file.receptive_radius == config.receptive_radius
    assert file.global_context == config.global_context
    assert file.precision == ("fp16" if half else "fp32")


@pytest.mark.parametrize("case", [case for case in CASES if case != WITHOUT_FORM])
def test_chainner_reads_the_weights_of_every_layer_that_has_some(case: str, tmp_path: Path):
    network = golden(case, tmp_path)
    graph = build_ncnn(network, channels=network.config.in_chans).param.decode()
    kinds = {line.split()[0] for line in graph.splitlines()[2:]}
    assert kinds <= {"Input", *RULES}
    assert not kinds & LEFT_OUT_BY_PROGRAMS
    assert kinds & WEIGHTS_READ_BY_CHAINNER


def test_an_operator_without_a_form_is_named(tmp_path: Path):
    with pytest.raises(ConversionError) as refused:
        written(golden(WITHOUT_FORM, tmp_path), tmp_path)
    assert "operator that has no form in NCNN" in str(refused.value)
    assert "(1, 2, 3)" in str(refused.value)


def test_the_mean_of_pictures_is_a_border_and_part_of_two_biases(tmp_path: Path):
    file = written(tiny().fuse_model(), tmp_path)
    first = next(line for line in file.lines if line.kind == "Convolution")
    assert first.inputs == ("data",)
    assert first.numbers[18] == 0.5
    assert file.lines[-1].kind == "PixelShuffle"
    assert file.lines[-1].outputs == ("output",)


def test_a_block_takes_no_step_that_it_does_not_need(tmp_path: Path):
    steps = [
        Counter(line.kind for line in written(network, tmp_path).lines)
        for network in (
            tiny(depths=(1,)).fuse_model(),
            tiny(depths=(2,)).fuse_model(),
        )
    ]
    assert dict(steps[1] - steps[0]) == {
        "ConvolutionDepthWise": 1,
        "Convolution": 5,  # mean, variance, gate, main, last
        "BinaryOp": 5,
        "GELU": 1,
        "Split": 3,
    }


@pytest.mark.parametrize("case", [case for case in CASES if case != WITHOUT_FORM])
def test_numbers_are_as_short_as_ncnn_reads_them_and_exact(case: str, tmp_path: Path):
    network = golden(case, tmp_path)
    graph = build_ncnn(network, channels=network.config.in_chans).param.decode()
    words = [word for word in graph.split() if "=" in word]
    values = [value for word in words for value in word.partition("=")[2].split(",")]
    assert max(map(len, values)) <= CHARACTERS_READ_BY_NCNN
    smallest = np.nextafter(np.float32(-1.1e-38), np.float32(0))
    for number in (smallest, np.float32(-1 / 3), np.finfo(np.float32).min):
        assert np.float32(float(_text(float(number)))) == number
        assert len(_text(float(number))) <= CHARACTERS_READ_BY_NCNN


def test_halves_hold_the_constants_of_a_norm_exactly():
    network = tiny(embed_dim=12).fuse_model()
    half = build_ncnn(network, channels=3, half=True).weights
    centre = (12 * np.eye(12) - 1) / 16
    assert HALF + centre.astype(np.float16).tobytes() in half
    assert np.array_equal(centre, centre.astype(np.float16))


def test_a_weight_that_overflows_a_half_is_refused(tmp_path: Path):
    network = tiny().fuse_model()
    with torch.no_grad():
        network.conv_last.weight[0, 0, 0, 0] = 1e5
    written(network, tmp_path)
    with pytest.raises(ConversionError, match="a weight overflows fp16"):
        written(network, tmp_path, half=True)


def test_an_odd_number_of_weights_stays_float_so_that_nothing_is_filled_up(tmp_path: Path):
    network = tiny(embed_dim=9, in_chans=1).fuse_model()  # 81 weights in the first convolution
    pair = build_ncnn(network, channels=1, half=True)
    assert pair.weights[:4] == bytes(4)
    assert read(pair, tmp_path).precision == "fp16"


def test_the_same_network_gives_the_same_files():
    network = tiny().fuse_model()
    assert build_ncnn(network, channels=3) == build_ncnn(network, channels=3)
