"""NCNN's files read as data: what is damaged or of another network never reaches NCNN."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_converters import ModelError
from aether_converters.graphs.ncnn_file import HALF, read_ncnn
from aether_converters.graphs.ncnn_graph import NcnnPair, build_ncnn
from tests.support.tiny import tiny

PAIR = build_ncnn(tiny().fuse_model(), channels=3)
HALVES = build_ncnn(tiny().fuse_model(), channels=3, half=True)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def counts(new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        magic, _, *rest = text.split("\n")
        return "\n".join([magic, new, *rest])

    return change


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "an empty file": (lambda _: "", "a first line other than 7767517"),
    "another magic number": (replaced("7767517", "7767518"), "a first line other than 7767517"),
    "no counts": (lambda _: "7767517\n", "no counts of layers and blobs"),
    "a count that is no number": (counts("many 3"), "no counts of layers and blobs"),
    "an absurd count of layers": (counts("2147483647 9"), "where the second line says 2147483647"),
    "a negative count": (counts("-1 9"), "no counts of layers and blobs"),
    "one layer less than it says": (lambda t: t.rsplit("\n", 2)[0] + "\n", "layers where the"),
    "a layer that nobody knows": (replaced("GELU", "Evil"), "a layer Evil"),
    "a layer of other networks": (replaced("GELU", "Interp"), "a layer Interp"),
    "an absurd number of inputs": (replaced(" 1 1 data", " 999999999 1 data"), "fewer blobs"),
    "a convolution of absurd width": (replaced(" 0=16", " 0=2147483647"), "parameter 0 is"),
    "a convolution without channels": (replaced(" 0=16", " 0=0"), "parameter 0 is 0"),
    "an absurd kernel": (replaced(" 1=7", " 1=99999"), "parameter 1 is 99999"),
    "an absurd number of weights": (replaced(" 6=432", " 6=999999999"), "line|parameter|channels"),
    "a stride": (replaced(" 4=3", " 3=1000 4=3"), "parameter 3 is 1000"),
    "an absurd border": (replaced(" 4=3", " 4=100000"), "parameter 4 is 100000"),
    "an absurd shuffle": (replaced("output 0=2", "output 0=1024"), "parameter 0 is 1024"),
    "a number that is none": (replaced(" 0=16", " 0=x"), "0=x is no parameter"),
    "a blob that nobody gives": (replaced("1 1 data ", "1 1 nothing "), "takes what no layer"),
    "an array that is shorter than it says": (replaced("=1,", "=1000000000,"), "an array of 1"),
    "a word that is no layer": (lambda t: t.replace("GELU", "GELU\n", 1), "layers where the"),
}


def put(folder: Path, text: str, weights: bytes) -> Path:
    path = folder / "model.param"
    path.write_text(text, "utf-8")
    path.with_suffix(".bin").write_bytes(weights)
    return path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_graph_is_refused_in_words(name: str, tmp_path: Path):
    damage, words = DAMAGES[name]
    path = put(tmp_path, damage(PAIR.param.decode()), PAIR.weights)
    with pytest.raises(ModelError, match=words) as refused:
        read_ncnn(path)
    assert str(refused.value).startswith(f"{path}: this is no AetherNet in NCNN's form")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("pair", [PAIR, HALVES], ids=["floats", "halves"])
def test_weights_cut_short_are_refused(pair: NcnnPair, share: float, tmp_path: Path):
    weights = pair.weights
    path = put(tmp_path, pair.param.decode(), weights[: int(len(weights) * share)])
    with pytest.raises(ModelError, match="bytes of weights, where the layers need"):
        read_ncnn(path)


def test_weights_too_long_are_refused(tmp_path: Path):
    path = put(tmp_path, PAIR.param.decode(), PAIR.weights + bytes(4))
    with pytest.raises(ModelError, match="bytes of weights, where the layers need"):
        read_ncnn(path)


def test_weights_of_another_kind_are_refused(tmp_path: Path):
    path = put(tmp_path, PAIR.param.decode(), b"\x00\xd0\x4b\x00" + PAIR.weights[4:])
    with pytest.raises(ModelError, match="weights of another kind, 00d04b00"):
        read_ncnn(path)
    assert HALVES.weights[:4] == HALF


@pytest.mark.skipif(os.name != "posix", reason="needs pipes with names")
def test_a_pipe_called_like_a_graph_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "a.param")
    with pytest.raises(ModelError, match="this is not a regular file"):
        read_ncnn(tmp_path / "a.param")


def test_a_missing_bin_file_is_named(tmp_path: Path):
    path = put(tmp_path, PAIR.param.decode(), b"")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"a \.param and a \.bin file of one name"):
        read_ncnn(path)


def test_bytes_that_are_no_text_and_absurd_sizes_are_refused(tmp_path: Path):
    path = put(tmp_path, "", PAIR.weights)
    path.write_bytes(b"7767517\n\xff\xfe")
    with pytest.raises(ModelError, match="bytes that are no text"):
        read_ncnn(path)
    with path.open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ModelError, match="8589934592 bytes"):
        read_ncnn(path)


def test_whatever_happens_to_a_graph_is_refused_or_read(tmp_path: Path):
    random.seed(0)
    text = PAIR.param
    for _ in range(400):
        damaged = bytearray(text)
        for _ in range(random.randint(1, 4)):
            start = random.randrange(len(damaged))
            damaged[start : start + random.randint(0, 6)] = random.choice(
                [b"", b"-", b"9" * 12, b" ", b"\n", b"=", b",", b"e", b"nan", b"0", b"\x00"]
            )
        path = put(tmp_path, "", PAIR.weights)
        path.write_bytes(damaged)
        try:
            read_ncnn(path)
        except ModelError:
            continue
