"""A checkpoint becomes fused files that compute what it computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, shape_inference
from spandrel import ModelLoader

import aether_spandrel
from aether_converters import ConversionError, convert, open_upscaler, verify
from aether_converters.measuring.verification import structured_image
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.network import read_network
from tests.support.named_shapes import dims_of, true_shapes
from tests.support.published import REVISIONS, draw
from tests.support.tiny import tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "2x_tiny.pth"
    path.parent.mkdir()
    torch.save({"params": tiny().state_dict()}, path)
    return path


def onnx_io(model: onnx.ModelProto) -> tuple[list[int | str], list[int | str]]:
    return dims_of(model.graph.input[0]), dims_of(model.graph.output[0])


def test_convert_writes_every_format_in_every_precision_under_the_community_s_names(
    checkpoint: Path, tmp_path: Path
):
    report = convert(checkpoint, tmp_path / "out")
    assert report.passed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "2x_tiny_fp16.onnx",
        "2x_tiny_fp16.pth",
        "2x_tiny_fp16.safetensors",
        "2x_tiny_fp32.onnx",
        "2x_tiny_fp32.pth",
        "2x_tiny_fp32.safetensors",
    ]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("aether_small_2x_fp16_fused.pth", "2x_aether_small_fp32.pth"),
        ("2xNomos_fp32.pth", "2x_Nomos_fp32.pth"),
        ("2x_Nomos.safetensors", "2x_Nomos_fp32.pth"),
        ("x2-photo.v2.pth", "2x_photo.v2_fp32.pth"),
        ("net_g_latest.pth", "2x_net_g_latest_fp32.pth"),
        ("2x_fp16.pth", "2x_aether_fp32.pth"),
    ],
)
def test_file_names_state_scale_and_precision_once(tmp_path: Path, file: str, expected: str):
    torch.save(tiny().state_dict(), tmp_path / file)
    report = convert(tmp_path / file, tmp_path / "out", to=["pth"], precision=["fp32"])
    assert report.artefacts[0].path.name == expected


def test_report_figures_are_those_of_the_file_on_disk(checkpoint: Path, tmp_path: Path):
    report = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp32"])
    (artefact,) = report.artefacts
    assert artefact.bytes == artefact.path.stat().st_size
    session = onnxruntime.InferenceSession(artefact.path, providers=["CPUExecutionProvider"])
    differences: list[float] = []
    for size in ((96, 80), (37, 53)):
        image = structured_image(3, *size)
        expected = open_upscaler(checkpoint).run(image)
        found = np.asarray(session.run(None, {"input": image})[0])
        differences.append(float(np.abs(found - expected).max()))
    assert artefact.max_difference == pytest.approx(max(differences), abs=1e-7)
    assert json.loads(json.dumps(report.as_dict()))["artefacts"][0]["passed"] is True


@pytest.mark.parametrize(
    ("scale", "channels"), [(1, 3), (2, 3), (3, 3), (4, 3), (8, 3), (1, 1), (2, 4), (3, 1)]
)
def test_every_scale_and_channel_count_converts(tmp_path: Path, scale: int, channels: int):
    torch.save(tiny(scale=scale, in_chans=channels).state_dict(), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path)
    assert report.passed
    for artefact in report.artefacts:
        upscaler = open_upscaler(artefact.path)
        assert upscaler.channels == (channels, channels)
        assert upscaler.scale == scale
        shape = upscaler.run(np.zeros((2, channels, 5, 9), np.float32)).shape
        assert shape == (2, channels, 5 * scale, 9 * scale)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_stored_dtype_converts(tmp_path: Path, suffix: str, dtype: torch.dtype):
    path = tmp_path / f"net{suffix}"
    state = {key: tensor.to(dtype) for key, tensor in tiny().state_dict().items()}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    report = convert(path, tmp_path / "out", to=["safetensors", "onnx"], precision=["fp32"])
    assert report.passed


def test_img_range_from_the_metadata_is_folded_into_the_weights(tmp_path: Path):
    network = tiny(img_range=255.0)
    torch.save(
        {"params": network.state_dict(), "arch_config": {"img_range": 255.0}}, tmp_path / "net.pth"
    )
    image = structured_image(3, 24, 20)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)).numpy()
    for artefact in convert(tmp_path / "net.pth", tmp_path, precision=["fp32"]).artefacts:
        found = open_upscaler(artefact.path).run(image)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_fused_files_load_anywhere_and_convert_to_identical_tensors(
    checkpoint: Path, tmp_path: Path, precision: Any, suffix: Any
):
    first = convert(checkpoint, tmp_path / "first", to=[suffix], precision=[precision])
    second = convert(
        first.artefacts[0].path,
        tmp_path / "second",
        to=["pth", "safetensors"],
        precision=[precision],
    )
    before = read_checkpoint(first.artefacts[0].path).state_dict
    for artefact in second.artefacts:
        after = read_checkpoint(artefact.path).state_dict
        assert list(after) == list(before) or set(after) == set(before)
        for key, tensor in before.items():
            assert torch.equal(after[key], tensor)
            assert after[key].dtype == tensor.dtype


def test_fused_pth_has_published_keys_and_plain_metadata(checkpoint: Path, tmp_path: Path):
    report = convert(checkpoint, tmp_path, to=["pth"], precision=["fp16"])
    content = torch.load(report.artefacts[0].path, weights_only=True)
    network = tiny().fuse_model()
    assert list(content["state_dict"]) == list(network.state_dict())
    assert content["metadata"]["architecture"] == "AetherNet"
    assert content["metadata"]["scale"] == 2
    assert content["metadata"]["source_sha256"] == report.source_sha256
    assert content["metadata"]["arch_config"]["depths"] == [2, 1]
    network.load_state_dict(content["state_dict"])  # the published constructor takes it


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_spandrel_loads_the_fused_file(checkpoint: Path, tmp_path: Path, kind: Any):
    aether_spandrel.install()
    report = convert(checkpoint, tmp_path, to=[kind], precision=["fp32"])
    descriptor = ModelLoader().load_from_file(report.artefacts[0].path)
    image = torch.from_numpy(structured_image(3, 20, 22))
    with torch.inference_mode():
        torch.testing.assert_close(descriptor.model(image), tiny()(image), atol=1e-5, rtol=0)


def header(path: Path) -> Mapping[str, str]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_safetensors_header_and_onnx_properties_carry_the_configuration(
    checkpoint: Path, tmp_path: Path
):
    report = convert(checkpoint, tmp_path, to=["safetensors", "onnx"], precision=["fp32"])
    model = onnx.load(report.artefacts[1].path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    for facts in (header(report.artefacts[0].path), properties):
        assert facts["architecture"] == "AetherNet"
        assert facts["scale"] == "2"
        assert json.loads(facts["arch_config"])["embed_dim"] == 16
        assert facts["source_sha256"] == report.source_sha256


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_follows_the_rules_that_make_it_work_everywhere(
    checkpoint: Path, tmp_path: Path, precision: Any
):
    report = convert(checkpoint, tmp_path, to=["onnx"], precision=[precision])
    model = onnx.load(report.artefacts[0].path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert [value.name for value in model.graph.input] == ["input"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert onnx_io(model) == (
        ["batch", 3, "height", "width"],
        ["batch", 3, "upscaled_height", "upscaled_width"],
    )
    wanted = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == wanted
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Shape", "Reshape", "Constant"})
    assert {tensor.data_type for tensor in model.graph.initializer} == {wanted}


@pytest.mark.parametrize("side", [16, 64])
def test_chainner_finds_the_scale_by_fixing_the_input_and_inferring_shapes(
    checkpoint: Path, tmp_path: Path, side: int
):
    report = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp16"])
    model = onnx.load(report.artefacts[0].path)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims, (1, 3, side, side), strict=True):
        dim.dim_value = size
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert onnx_io(inferred)[1] == [1, 3, 2 * side, 2 * side]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("revision", ["G1", "G5f"])
def test_shapes_inside_the_graph_are_named_and_true(
    tmp_path: Path, revision: str, scale: int, precision: Any
):
    attention = REVISIONS[revision].attention
    state = draw(revision, scale=scale, channel_attn=attention, spatial_attn=attention)
    torch.save(state, tmp_path / "model.pth")
    report = convert(tmp_path / "model.pth", tmp_path, to=["onnx"], precision=[precision])
    model = onnx.load(report.artefacts[0].path)
    hidden = {out for node in model.graph.node for out in node.output if ".ffn." in out}
    assert hidden
    assert hidden <= set(true_shapes(model))


def test_onnxruntime_keeps_the_feed_forward_in_its_own_order_of_memory(tmp_path: Path):
    torch.save(tiny().state_dict(), tmp_path / "model.pth")
    report = convert(tmp_path / "model.pth", tmp_path, to=["onnx"], precision=["fp32"])
    options = cast(Any, onnxruntime).SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(report.artefacts[0].path), options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    if not any(node.domain == "com.microsoft.nchwc" for node in nodes):
        pytest.skip("onnxruntime has no such order for this CPU")
    makers = {node.output[0]: node for node in nodes}
    products = [node for node in nodes if node.op_type == "Mul"]
    assert products
    for node in products:
        assert {makers[name].op_type for name in node.input}.isdisjoint({"ReorderOutput"})


@pytest.mark.parametrize("scale", [3, 4, 8])
def test_a_graph_with_joined_convolutions_is_exact_up_to_the_edges(tmp_path: Path, scale: int):
    torch.save(tiny(scale=scale).state_dict(), tmp_path / "model.pth")
    (artefact,) = convert(
        tmp_path / "model.pth", tmp_path, to=["onnx"], precision=["fp32"]
    ).artefacts
    model = onnx.load(artefact.path)
    assert any(node.op_type == "Slice" for node in model.graph.node)
    found, expected = open_upscaler(artefact.path), open_upscaler(tmp_path / "model.pth")
    for size in ((1, 1), (1, 5), (2, 3), (16, 16)):
        image = structured_image(3, *size)
        np.testing.assert_allclose(found.run(image), expected.run(image), atol=1e-5)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, side in zip(dims, (1, 3, 16, 16), strict=True):
        dim.dim_value = side  # as ChaiNNer finds the scale
    inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert onnx_io(inferred)[1] == [1, 3, 16 * scale, 16 * scale]


def test_static_shape_is_in_the_graph_and_in_the_name(checkpoint: Path, tmp_path: Path):
    report = convert(checkpoint, tmp_path, to=["onnx"], precision=["fp32"], shape=(1, 3, 48, 70))
    (artefact,) = report.artefacts
    assert artefact.path.name == "2x_tiny_fp32_48x70.onnx"
    assert onnx_io(onnx.load(artefact.path)) == ([1, 3, 48, 70], [1, 3, 96, 140])
    assert artefact.passed
    assert open_upscaler(artefact.path).fixed_size == (48, 70)


def test_converting_twice_gives_the_same_bytes(checkpoint: Path, tmp_path: Path):
    first, second = (convert(checkpoint, tmp_path / name) for name in ("a", "b"))
    assert {a.path.name: a.sha256 for a in first.artefacts} == {
        a.path.name: a.sha256 for a in second.artefacts
    }


@pytest.mark.parametrize(
    ("choices", "found"),
    [({"precision": ["fp8"]}, "fp8"), ({"to": ["ONNX", "pth"]}, "ONNX"), ({"to": "tar"}, "tar")],
)
def test_what_is_no_format_or_precision_is_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, choices: Any, found: str
):
    with pytest.raises(ConversionError, match="neither a format nor a precision") as refusal:
        convert(checkpoint, tmp_path / "out", **choices)
    assert refusal.value.found == found
    assert not (tmp_path / "out").exists()


def test_one_name_or_path_needs_no_list(checkpoint: Path, tmp_path: Path):
    (artefact,) = convert(checkpoint, tmp_path, to="pth", precision="fp16").artefacts
    assert artefact.path.name.endswith("_fp16.pth")
    assert verify(checkpoint, artefact.path).passed
    assert verify(checkpoint, str(artefact.path)).passed


def test_existing_files_are_kept_unless_force_is_set(checkpoint: Path, tmp_path: Path):
    target = tmp_path / "2x_tiny_fp32.onnx"
    target.write_text("mine")
    with pytest.raises(ConversionError) as caught:
        convert(checkpoint, tmp_path, to=["pth", "onnx"], precision=["fp32"])
    assert str(caught.value) == (
        f"{target}: the file exists already, and is kept\n"
        "  next      choose another folder with --out, or replace it with --force"
    )
    assert target.read_text() == "mine"
    assert not (tmp_path / "2x_tiny_fp32.pth").exists()
    convert(checkpoint, tmp_path, to=["onnx"], precision=["fp32"], force=True)
    assert open_upscaler(target).scale == 2


def test_the_source_is_never_replaced(tmp_path: Path):
    source = tmp_path / "2x_tiny_fp32.pth"
    torch.save(tiny().state_dict(), source)
    before = source.read_bytes()
    with pytest.raises(ConversionError, match="would replace a file that this run reads"):
        convert(source, force=True)
    assert source.read_bytes() == before


def test_a_weight_that_overflows_fp16_is_named_and_nothing_is_left(tmp_path: Path):
    state = tiny().state_dict()
    state["conv_last.bias"] = torch.full((3,), 1e6)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ConversionError) as caught:
        convert(tmp_path / "net.pth", tmp_path / "out", to=["pth"], precision=["fp16"])
    assert str(caught.value) == (
        f"{tmp_path / 'net.pth'}: a weight overflows fp16\n"
        "  key       conv_last.bias\n"
        "  expected  values of at most 65504\n"
        "  found     1e+06\n"
        "  next      convert with --precision fp32"
    )
    assert not list((tmp_path / "out").glob("*"))


def test_an_artefact_that_is_too_far_off_is_not_kept_and_the_others_are(tmp_path: Path):
    state = tiny().state_dict()
    state["conv_first.weight"] *= 2e5  # activations overflow float16, no weight does
    state["conv_before_upsample.0.weight"] *= 5e-6
    torch.save(state, tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", tmp_path / "out", to=["onnx"])
    fp32, fp16 = report.artefacts
    assert fp32.passed
    assert not fp16.passed
    assert not report.passed
    assert fp16.problem == "its activations overflow float16 on a GPU: use the fp32 file"
    assert [path.name for path in (tmp_path / "out").iterdir()] == [fp32.path.name]


def test_a_network_that_gives_nan_is_refused(tmp_path: Path):
    state = tiny().state_dict()
    state["norm.weight"][3] = float("nan")
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ConversionError, match="the network gives NaN or Inf instead of a picture"):
        convert(tmp_path / "net.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_tells_equal_files_from_others(checkpoint: Path, tmp_path: Path):
    good = convert(checkpoint, tmp_path / "good")
    assert verify(checkpoint, [artefact.path for artefact in good.artefacts]).passed
    torch.save(tiny(seed=1).state_dict(), tmp_path / "other.pth")
    bad = verify(checkpoint, [tmp_path / "other.pth"])
    assert not bad.passed
    assert "is above 2e-05" in bad.artefacts[0].problem


def test_verify_refuses_another_scale(checkpoint: Path, tmp_path: Path):
    torch.save(tiny(scale=3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ConversionError) as caught:
        verify(checkpoint, [tmp_path / "other.pth"])
    assert str(caught.value) == (
        f"{tmp_path / 'other.pth'}: this was made from another network\n"
        "  expected  2x, 3 channels in and 3 out\n"
        "  found     3x, 3 channels in and 3 out\n"
        "  next      name the checkpoint that it was made from"
    )


def test_a_shape_of_other_channels_is_refused(checkpoint: Path, tmp_path: Path):
    with pytest.raises(ConversionError) as caught:
        convert(checkpoint, tmp_path, to=["onnx"], shape=(1, 1, 48, 48))
    assert str(caught.value) == (
        f"{checkpoint}: the shape does not fit the network\n"
        "  expected  Nx3xHxW, each at least 1\n"
        "  found     1x1x48x48\n"
        "  next      such as --shape 1x3x720x1280"
    )


def test_a_fused_source_needs_no_fusing(tmp_path: Path):
    torch.save(tiny().fuse_model().state_dict(), tmp_path / "net.pth")
    assert read_network(read_checkpoint(tmp_path / "net.pth")).config.fused
    report = convert(tmp_path / "net.pth", tmp_path / "out", to=["pth"], precision=["fp32"])
    assert report.artefacts[0].max_difference == 0
