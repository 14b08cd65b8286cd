"""Every published revision, in every configuration it has, computes what was published.

The expected values come from `tests/support/reference.py`, which follows the published arithmetic
step by step in float64 and shares no code with the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from spandrel import ModelLoader, ModelTiling
from torch import Tensor

import aether_spandrel
from aether_converters import convert, open_upscaler
from aether_spandrel import CheckpointError, revisions
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import Network, float_weights, fuse, read_network
from aether_spandrel.publishing import fused_state_dict
from aether_spandrel.revisions import REVISIONS
from tests.support import reference
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw
from tests.support.reference import published

TOLERANCE = 2e-5  # float32 against float64, outputs of about 4


TAKEN_FOR = {"G5a": "G5f", "G5d": "G5e"}
"""Unfused files whose keys two revisions share: docs/reference.md#told-apart."""


def read(state: Mapping[str, Tensor], revision: str | None = None, **metadata: object) -> Network:
    checkpoint = Checkpoint.from_object({"params": dict(state), **metadata})
    if revision in TAKEN_FOR:
        return read_network(checkpoint, revision=revision)
    return read_network(checkpoint)


def run(network: Network, image: Tensor) -> Tensor:
    with torch.inference_mode():
        return build_network(network.config, float_weights(network))(image)


def picture(channels: int, height: int = 13, width: int = 18) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.rand(1, channels, height, width, generator=generator)


def with_attention(revision: str) -> dict[str, Any]:
    """Both attentions, in revisions that have them."""
    there = PUBLISHED[revision].attention
    return {"channel_attn": True, "spatial_attn": True} if there else {}


def configurations() -> Iterator[Any]:
    """Each option of each revision at least once, and the ones that interact together."""
    for revision, options in PUBLISHED.items():
        forms: tuple[dict[str, Any], ...] = ({"fused": False}, {"fused": True})
        for form in forms:
            for scale in options.scales:
                yield revision, {"scale": scale, **form}
            for norm_type in options.norm_types:
                attentions = [(False, False)]
                if options.attention:
                    attentions += [(True, False), (False, True), (True, True)]
                for channel, spatial in attentions:
                    yield (
                        revision,
                        {
                            "norm_type": norm_type,
                            "channel_attn": channel,
                            "spatial_attn": spatial,
                            **form,
                        },
                    )
            for channels in options.in_chans:
                yield revision, {"in_chans": channels, **form}
            if revision != "G2a":
                dims = 24 if options.equal_stages else 26
                yield revision, {"embed_dim": dims, "depths": (2, 1, 1), **form}
                yield revision, {"embed_dim": 72, "lk_kernel": 13, "sk_kernel": 5, **form}
        if options.qat:
            yield revision, {"qat": True}
        if options.free_out_chans:
            yield revision, {"in_chans": 3, "out_chans": 1}
            yield revision, {"in_chans": 1, "out_chans": 3}


CONFIGURATIONS = [
    pytest.param(revision, options, id=f"{revision}-{'-'.join(f'{k}={v}' for k, v in o.items())}")
    for revision, options in configurations()
    for o in [options]
]


@pytest.mark.parametrize(("revision", "options"), CONFIGURATIONS)
def test_every_configuration_computes_what_was_published(revision: str, options: dict[str, Any]):
    state = draw(revision, **options)
    qat = bool(options.get("qat"))
    image = picture(options.get("in_chans", 3))
    expected = published(revision, state, image, qat=qat).float()
    network = read(state, revision)
    assert network.revision.name == revision

    torch.testing.assert_close(run(network, image), expected, atol=TOLERANCE, rtol=1e-5)
    torch.testing.assert_close(run(fuse(network), image), expected, atol=TOLERANCE, rtol=1e-5)

    config = network.config
    assert config.scale == expected.shape[-1] // image.shape[-1]
    assert (config.in_chans, config.out_chans) == (image.shape[1], expected.shape[1])
    assert config.fused == (options.get("fused", False) or (qat and revision != "G1"))
    for name in ("embed_dim", "depths", "lk_kernel", "norm_type", "channel_attn", "spatial_attn"):
        if name in options and revision != "G1":
            assert getattr(config, name) == options[name], name
    if not config.fused:
        assert config.sk_kernel == options.get("sk_kernel", 3)


@pytest.mark.parametrize(("revision", "options"), CONFIGURATIONS)
def test_fused_files_compute_the_same_in_the_published_arithmetic(
    revision: str, options: dict[str, Any]
):
    """What we write has the published keys, and the author's own arithmetic reads it."""
    state = draw(revision, **options)
    image = picture(options.get("in_chans", 3))
    expected = published(revision, state, image, qat=bool(options.get("qat"))).float()
    network = read(state, revision)
    fused = fused_state_dict(network)
    if "revision" in fused:  # G2a and G5a with LayerNorm have no fused form of their own
        assert network.config.sample_norm or (revision, network.config.norm_type) == (
            "G5a",
            "layernorm",
        )
        assert read(fused, revision).revision.name == revision
        torch.testing.assert_close(run(read(fused), image), expected, atol=TOLERANCE, rtol=1e-5)
        return
    assert not any(".lk_conv." in key for key in fused)
    if options.get("fused"):
        assert list(fused) == list(state)
        assert all(torch.equal(fused[key], state[key]) for key in state)
    again = published(revision, fused, image).float()
    torch.testing.assert_close(again, expected, atol=TOLERANCE, rtol=1e-5)
    torch.testing.assert_close(run(read(fused), image), expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("revision", PUBLISHED)
def test_the_loaded_network_saved_as_tensors_loads_again_bit_by_bit(revision: str, tmp_path: Path):
    """As ChaiNNer's Save Model and Interpolate Models do it."""
    aether_spandrel.install()
    options = with_attention(revision)
    torch.save(draw(revision, **options), tmp_path / "a.pth")
    torch.save(draw(revision, seed=1, **options), tmp_path / "b.pth")
    loaded = [ModelLoader().load_from_file(tmp_path / f"{name}.pth") for name in "ab"]
    states = [dict(model.model.state_dict()) for model in loaded]
    safetensors.torch.save_file(states[0], tmp_path / "saved.safetensors")
    again = ModelLoader().load_from_file(tmp_path / "saved.safetensors")
    image = picture(3)
    assert all(torch.equal(again.model.state_dict()[key], states[0][key]) for key in states[0])
    with torch.inference_mode():
        # torch may order the sums over an image by where in memory it lies.
        tolerance = 1e-5 if revision == "G2a" else 0.0
        torch.testing.assert_close(
            again.model(image), loaded[0].model(image), atol=tolerance, rtol=tolerance
        )
    assert again.tags[0] == TAKEN_FOR.get(revision, revision)

    mixed = {key: states[0][key] * 0.3 + states[1][key] * 0.7 for key in states[0]}
    interpolated = ModelLoader().load_from_state_dict(mixed)
    found = interpolated.model.state_dict()
    for key, tensor in mixed.items():
        if tensor.is_floating_point() and key != "revision":
            assert torch.equal(found[key], tensor), key
    assert interpolated.tags[0] == again.tags[0]


@pytest.mark.parametrize("revision", PUBLISHED)
def test_the_onnx_file_computes_what_was_published(revision: str, tmp_path: Path):
    options = with_attention(revision)
    state = draw(revision, **options)
    torch.save(state, tmp_path / "net.pth")
    report = convert(
        tmp_path / "net.pth", to=["onnx"], precision=["fp32", "fp16"], revision=revision
    )
    assert report.passed, [artefact.problem for artefact in report.artefacts]
    image = picture(3)
    expected = published(revision, state, image).float()
    found = torch.from_numpy(open_upscaler(report.artefacts[0].path).run(image.numpy()))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-5)


def onnx_operators(tmp_path: Path, state: Mapping[str, Tensor]) -> list[str]:
    torch.save(dict(state), tmp_path / "net.pth")
    report = convert(tmp_path / "net.pth", to=["onnx"], precision=["fp32"], force=True)
    return [node.op_type for node in onnx.load(report.artefacts[0].path).graph.node]


@pytest.mark.parametrize("fused", [False, True])
def test_the_graph_of_a_g5_network_has_nothing_left_to_fold(tmp_path: Path, fused: bool):
    """Two blocks of gate, sigmoid, product and skip; the head; one subtraction of the mean."""
    operators = onnx_operators(tmp_path, draw("G5f", fused=fused))
    elementwise = sorted(op for op in operators if op not in ("Conv", "Concat", "DepthToSpace"))
    block = ["Add", "Mul", "Mul", "Sigmoid"]  # x + fc2(g * sigmoid(g) * m)
    assert elementwise == sorted([*block * 2, "Sub", "Add", "Add", "LeakyRelu"])


def test_a_norm_before_a_padded_convolution_keeps_its_scale_and_shift(tmp_path: Path):
    folded = onnx_operators(tmp_path, draw("G5f"))
    kept = onnx_operators(tmp_path, draw("G5b"))
    assert sorted(kept) == sorted([*folded, "Mul", "Add"])


def test_models_that_pool_over_the_image_discourage_tiles():
    arch = aether_spandrel.AetherNetArch()
    with_attention = arch.load(draw("G5f", channel_attn=True))
    assert with_attention.tiling == ModelTiling.DISCOURAGED
    assert arch.load(draw("G5f", spatial_attn=True)).tiling == ModelTiling.SUPPORTED
    assert arch.load(draw("G2a")).tiling == ModelTiling.DISCOURAGED


def test_input_and_output_channels_may_differ():
    model = aether_spandrel.AetherNetArch().load(draw("G5s", in_chans=1, out_chans=3))
    assert (model.input_channels, model.output_channels) == (1, 3)
    assert model(picture(1)).shape == (1, 3, 26, 36)


@pytest.mark.parametrize("revision", ["G3", "G4", "G5b", "G5f"])
@pytest.mark.parametrize("attention", [False, True])
def test_img_range_and_res_scale_of_the_metadata_are_folded(revision: str, attention: bool):
    state = draw(revision, channel_attn=attention, spatial_attn=attention)
    image = picture(3)
    choices: tuple[dict[str, Any], ...] = ({"res_scale": 0.37}, {"img_range": 4.0})
    for constants in choices:
        expected = published(revision, state, image, **constants).float()
        network = read(state, arch_config=constants)
        torch.testing.assert_close(run(network, image), expected, atol=1e-4, rtol=1e-5)
        # The file in the published layout needs no metadata: the defaults are right for it.
        fused = fused_state_dict(network)
        torch.testing.assert_close(run(read(fused), image), expected, atol=1e-4, rtol=1e-5)
        again = published(revision, fused, image).float()
        torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-5)


def test_quantisation_aware_training_leaves_error_comp_out_from_g5d_on():
    for revision, kept in (("G5b", True), ("G5c", True), ("G5d", False), ("G5f", False)):
        network = read(draw(revision, qat=True))
        assert network.constants.get("error_comp", 1.0) == float(kept), revision
        assert ("error_comp" in network.assumed) != kept, revision


@pytest.mark.parametrize("revision", ["G2d", "G5e"])
def test_fused_files_with_statistics_are_read_as_their_revision_writes_them(revision: str):
    """G2 to G5b leave statistics behind that are folded already; G5c and later never do."""
    state = draw(revision, fused=True, fused_init=revision == "G5e")
    assert "norm.running_var" in state
    image = picture(3)
    network = read(state)
    expected = published(revision, state, image).float()
    torch.testing.assert_close(run(network, image), expected, atol=TOLERANCE, rtol=1e-5)
    assert network.constants["norm_folded"] == float(revision == "G2d")
    other = read_network(
        Checkpoint.from_object(state), norm_folded=1 - network.constants["norm_folded"]
    )
    assert float((run(other, image) - expected).abs().max()) > 1e-2


def test_half_fused_files_are_fused_while_reading():
    for revision in ("G1", "G2d", "G4", "G5f"):
        whole, fused = draw(revision), draw(revision, fused=True)
        first = "layers.0.0." if revision == "G1" else "stages.0.0."
        half = {key: tensor for key, tensor in whole.items() if not key.startswith(first)}
        half |= {key: tensor for key, tensor in fused.items() if key.startswith(first)}
        network = read(half)
        assert network.half_fused == 1
        assert network.config.fused
        image = picture(3)
        expected = published(revision, whole, image).float()
        torch.testing.assert_close(run(network, image), expected, atol=TOLERANCE, rtol=1e-5)
        torch.testing.assert_close(
            run(read(fused_state_dict(network)), image), expected, atol=TOLERANCE, rtol=1e-5
        )


def test_an_upscaled_1x_network_of_g2c_enlarges_as_published():
    assert read(draw("G2c", scale=1)).config.scale == 2


def test_a_stored_scale_that_is_not_the_upsamplers_is_refused():
    state = draw("G5f")
    state["scale_tensor"] = torch.tensor(4)
    with pytest.raises(CheckpointError, match="the stored scale is not that of the upsampler"):
        read(state)


def test_keys_of_two_revisions_at_once_are_refused():
    state = draw("G5f", fused=True)
    twice = {**state, "quant_fusion_layer.conv.weight": torch.zeros(16, 16, 1, 1)}
    with pytest.raises(CheckpointError, match="two keys stand for the same tensor"):
        read(twice)


def test_every_row_is_reached_and_shared_keys_are_named():
    assert {row.name for row in REVISIONS} == set(PUBLISHED)
    for revision in PUBLISHED:
        network = read(draw(revision))
        assert network.revision.name == TAKEN_FOR.get(revision, revision)
        if revision in TAKEN_FOR:
            assert f"{revision} has the same keys" in network.assumed["revision"]
    fused = read(draw("G5a", fused=True))
    assert (fused.revision.name, "revision" in fused.assumed) == ("G5a", False)


def test_one_more_revision_takes_one_row(monkeypatch: pytest.MonkeyPatch):
    """The example of docs/revisions.md, executed, and the test that it asks for."""
    page = (Path(__file__).parent.parent.parent / "docs" / "revisions.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(revisions, "REVISIONS", REVISIONS)  # restored afterwards
    exec(example, {})
    rules = replace(reference.RULES["G5f"], activation="gelu")
    monkeypatch.setitem(reference.RULES, "G6", rules)

    options: dict[str, Any]
    for options in ({}, {"fused": True}, with_attention("G5f")):
        state = {**draw("G5f", **options), "generation": torch.tensor(6)}
        expected = published("G6", state, picture(3)).float()
        network = read(state)
        assert network.revision.name == "G6"
        torch.testing.assert_close(run(network, picture(3)), expected, atol=TOLERANCE, rtol=1e-5)
        written = read(fused_state_dict(network))
        saved = read(build_network(network.config, float_weights(network)).state_dict())
        for again in (written, saved):
            assert again.revision.name == "G6"
            torch.testing.assert_close(run(again, picture(3)), expected, atol=TOLERANCE, rtol=1e-5)


def test_a_file_of_a_later_version_says_that_an_update_is_needed():
    network = read(draw("G5f"))
    saved = dict(build_network(network.config, float_weights(network)).state_dict())
    saved["revision"] = torch.tensor(list(b"G7"))
    assert aether_spandrel.AetherNetArch().detect(saved)
    with pytest.raises(CheckpointError, match="names a revision that this version does not know"):
        read(saved)


def test_a_revision_that_has_other_blocks_cannot_be_chosen():
    with pytest.raises(CheckpointError, match="this file cannot be of revision G1"):
        read_network(Checkpoint.from_object(draw("G5f")), revision="G1")
