"""A graph computes the same in every opset that the installed onnx knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from aether_converters import ConversionError, convert, open_upscaler
from aether_converters.command_line.main import main
from aether_converters.graphs.onnx_graph import IR_VERSION, OPSET, build_onnx
from aether_converters.graphs.opsets import in_opset, newest_opset, refuse_opset
from aether_converters.int8.planning import Int8Options
from aether_core import AetherNet
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights, fuse, read_network
from tests.support.golden_cases import CASES, checkpoint
from tests.support.tiny import tiny


def golden(case: str, folder: Path) -> AetherNet:
    path = folder / f"{case}.pth"
    torch.save(checkpoint(CASES[case]), path)
    fused = fuse(read_network(read_checkpoint(path)))
    return build_network(fused.config, float_weights(fused))


@pytest.mark.parametrize("case", CASES)
def test_every_revision_computes_the_same_in_opset_18_and_in_the_newest(case: str, tmp_path: Path):
    network = golden(case, tmp_path)
    channels, scale = (network.config.in_chans, network.config.out_chans), network.config.scale
    written = build_onnx(network, channels=channels, scale=scale).SerializeToString()
    assert in_opset(written, OPSET) == written
    image = np.random.default_rng(0).random((1, channels[0], 13, 17), np.float32)
    (tmp_path / "17.onnx").write_bytes(written)
    expected = open_upscaler(tmp_path / "17.onnx").run(image)
    for opset in (18, newest_opset()):
        path = tmp_path / f"{opset}.onnx"
        path.write_bytes(in_opset(written, opset))
        upscaler = open_upscaler(path)
        assert upscaler.details["opset"] == opset
        np.testing.assert_allclose(upscaler.run(image), expected, atol=1e-6)


@pytest.mark.parametrize("opset", range(OPSET, newest_opset() + 1))
def test_a_conversion_is_verified_in_every_opset(
    opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    to = ["--to", "onnx", "--out", str(tmp_path / "out"), "--no-report", "--json"]
    assert main(["convert", str(tmp_path / "model.pth"), *to, "--opset", str(opset)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [artefact["details"]["opset"] for artefact in told["artefacts"]] == [opset, opset]
    lowest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    for artefact in told["artefacts"]:
        assert artefact["details"]["ir_version"] == max(lowest, IR_VERSION)
        onnxruntime.InferenceSession(artefact["path"])


def test_int8_is_kept_in_every_opset_that_onnxruntime_has_its_kernels_for(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    Image.effect_noise((96, 96), 60).convert("RGB").save(tmp_path / "noise.png")
    settings = Int8Options(
        targets=("cpu", "tensorrt"), calibration=(tmp_path / "noise.png",), tune=0
    )

    def written(opset: int) -> list[int | str]:
        folder = tmp_path / str(opset)
        report = convert(
            tmp_path / "model.pth",
            folder,
            to=["onnx"],
            precision=["int8"],
            opset=opset,
            int8=settings,
        )
        assert report.passed
        return [artefact.details["opset"] for artefact in report.artefacts]

    assert written(21) == [21, 21]
    try:
        assert written(newest_opset()) == [newest_opset()] * 2
    except ConversionError as error:
        assert f"does not run the file in opset {newest_opset()}" in str(error)  # noqa: PT017
        assert not list((tmp_path / str(newest_opset())).glob("*.onnx"))


def test_opsets_that_are_not_written_are_refused(tmp_path: Path):
    for opset in (16, newest_opset() + 1):
        with pytest.raises(ConversionError, match="ONNX files are not written in this opset"):
            refuse_opset(opset)
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    with pytest.raises(ConversionError, match="an opset was given, and no ONNX file"):
        convert(tmp_path / "model.pth", tmp_path / "out", to=["pth"], opset=18)
    with pytest.raises(ConversionError, match="17 to"):
        convert(tmp_path / "model.pth", tmp_path / "out", to=["onnx"], opset=16)
