"""A checkpoint becomes a pair of NCNN files, both or neither."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from aether_converters import ConversionError, convert, verify
from aether_converters.artefacts import WRITERS
from tests.support.golden_cases import CASES, checkpoint
from tests.support.tiny import tiny

PAIRS = ["2x_tiny_fp16.bin", "2x_tiny_fp16.param", "2x_tiny_fp32.bin", "2x_tiny_fp32.param"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    torch.save(tiny().state_dict(), path)
    return path


def test_pairs_are_written_compared_and_compared_again(source: Path, tmp_path: Path):
    report = convert(source, tmp_path / "out", to=["ncnn"])
    assert report.passed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == PAIRS
    for artefact in report.artefacts:
        (weights,) = artefact.companions
        assert weights.path == artefact.path.with_suffix(".bin")
        assert weights.sha256 == hashlib.sha256(weights.path.read_bytes()).hexdigest()
        assert artefact.total_bytes == artefact.bytes + weights.path.stat().st_size
    assert verify(source, sorted((tmp_path / "out").glob("*.param"))).passed


def test_the_bin_file_of_another_model_is_not_replaced(source: Path, tmp_path: Path):
    theirs = tmp_path / "out" / "2x_tiny_fp32.bin"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    with pytest.raises(ConversionError, match="exists already"):
        convert(source, theirs.parent, to=["ncnn"], precision=["fp32"])
    assert [path.read_text() for path in theirs.parent.iterdir()] == ["theirs"]


def test_of_a_pair_that_differs_nothing_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (other,) = (tmp_path / "other.pth",)
    torch.save(tiny(seed=1).state_dict(), other)
    convert(other, tmp_path / "other", to=["ncnn"], precision=["fp32"])
    wrong = tuple(
        (tmp_path / "other" / f"2x_other_fp32{s}").read_bytes() for s in (".param", ".bin")
    )

    def of_another(*_: object) -> tuple[bytes, ...]:
        return wrong

    monkeypatch.setitem(WRITERS, "ncnn", of_another)
    report = convert(source, tmp_path / "out", to=["ncnn"], precision=["fp32"])
    assert report.failed
    assert list((tmp_path / "out").iterdir()) == []


def test_what_ncnn_lacks_is_named_before_anything_is_written(tmp_path: Path):
    path = tmp_path / "g2a.pth"
    torch.save(checkpoint(CASES["g2a-train-4x"]), path)
    with pytest.raises(ConversionError, match="operator that has no form in NCNN here"):
        convert(path, tmp_path / "out", to=["safetensors", "ncnn"])
    assert not (tmp_path / "out").exists()
