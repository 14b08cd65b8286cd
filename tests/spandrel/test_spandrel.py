"""What programs built on spandrel do with a loaded AetherNet."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from spandrel import (
    MAIN_REGISTRY,
    ArchRegistry,
    ImageModelDescriptor,
    ModelLoader,
    ModelTiling,
    UnsupportedModelError,
)
from torch import Tensor

import aether_spandrel
from aether_converters.sample import MODEL
from aether_core import AetherNet, aether_small, fuse_model
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw
from tests.support.tiny import tiny


@pytest.fixture(autouse=True)
def installed():
    aether_spandrel.install()


def load(network: AetherNet) -> ImageModelDescriptor[AetherNet]:
    return load_state(network.state_dict())


def load_state(state: Mapping[str, Tensor]) -> ImageModelDescriptor[AetherNet]:
    found = ModelLoader().load_from_state_dict(dict(state))
    assert isinstance(found, ImageModelDescriptor)
    return cast("ImageModelDescriptor[AetherNet]", found)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float(((a - b) ** 2).mean()))


def test_the_descriptor_says_what_the_model_is():
    found = load(tiny(scale=3, in_chans=1))
    assert (found.scale, found.input_channels, found.output_channels) == (3, 1, 1)
    assert found.architecture.id == found.architecture.name == "AetherNet"
    assert found.purpose == "SR"
    assert found.tags == ["G1", "16dim", "3b", "unfused", "float32"]
    assert found.supports_half
    assert found.supports_bfloat16
    assert found.tiling == ModelTiling.SUPPORTED
    assert found.size_requirements.none
    assert not found.model.training
    assert found.dtype == torch.float32


def test_a_model_of_scale_1_restores():
    assert load(tiny(scale=1)).purpose == "Restoration"


def test_tags_name_preset_and_stored_dtype():
    with torch.device("meta"):
        network = aether_small(scale=2)
    state = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in network.state_dict().items()}
    tags = ModelLoader().load_from_state_dict(state).tags
    assert tags == ["G1", "small", "96dim", "16b", "unfused", "float16"]


def test_a_training_checkpoint_is_fused_while_loading_and_computes_the_same():
    network = tiny()
    found = load(network)
    assert found.model.config.fused
    image = torch.rand(1, 3, 13, 18)
    torch.testing.assert_close(found(image), network(image).clamp(0, 1), atol=1e-5, rtol=0)


def test_loading_leaves_the_callers_state_dict_alone():
    state = dict(tiny().state_dict())
    before = {key: tensor.clone() for key, tensor in state.items()}
    ModelLoader().load_from_state_dict(state)
    assert list(state) == list(before)
    torch.testing.assert_close(state, before, atol=0, rtol=0)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 55), (torch.bfloat16, 38)], ids=str)
def test_half_precision_is_close_to_float32(dtype: torch.dtype, limit: float):
    network = tiny()
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        full = load(network)(image)
        found = load(network).to(dtype)
        half = found(image.to(dtype))
    assert found.dtype == half.dtype == dtype
    assert psnr(half.float(), full) > limit


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_save_model_writes_loads_again_bit_by_bit(tmp_path: Path, suffix: str):
    found = load(tiny())
    path = tmp_path / f"saved.{suffix}"
    state = dict(found.model.state_dict())
    if suffix == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    again = ModelLoader().load_from_file(path)
    torch.testing.assert_close(dict(again.model.state_dict()), state, atol=0, rtol=0)
    image = torch.rand(1, 3, 9, 9)
    assert torch.equal(cast(Any, again)(image), found(image))


@pytest.mark.parametrize("load_file", [aether_spandrel.load, ModelLoader().load_from_file])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_loaded_model_does_not_change_with_its_file(load_file: Any, suffix: str, tmp_path: Path):
    path = tmp_path / f"net{suffix}"
    state = fuse_model(tiny()).state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    model = load_file(path)
    before = model(torch.ones(1, 3, 9, 9))
    with path.open("r+b") as file:  # in place: replacing the file would leave the old one mapped
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert torch.equal(model(torch.ones(1, 3, 9, 9)), before)
    path.write_bytes(b"x")
    assert torch.equal(model(torch.ones(1, 3, 9, 9)), before)


def test_a_loaded_model_does_not_change_with_the_callers_state_dict():
    state = dict(fuse_model(tiny()).state_dict())
    model = cast(Any, ModelLoader().load_from_state_dict(state))
    before = model(torch.ones(1, 3, 9, 9))
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(model(torch.ones(1, 3, 9, 9)), before)


def test_two_models_of_one_configuration_interpolate():
    a, b = (load(tiny(seed)).model.state_dict() for seed in (0, 1))
    mixed = {key: a[key] * 0.25 + b[key] * 0.75 for key in a}
    found = ModelLoader().load_from_state_dict(mixed)
    torch.testing.assert_close(dict(found.model.state_dict()), mixed, atol=0, rtol=0)


def chainner_export(model: AetherNet, path: Path, opset: int) -> onnx.ModelProto:
    """As ChaiNNer's Convert To ONNX does it, with the old exporter."""
    torch.onnx.export(
        model,
        (torch.rand(1, 3, 3, 3),),
        str(path),
        opset_version=opset,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={
            "input": {0: "batch", 2: "height", 3: "width"},
            "output": {0: "batch", 2: "height", 3: "width"},
        },
        dynamo=False,
    )
    exported = onnx.load(path)
    onnx.checker.check_model(exported)
    return exported


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("opset", [14, 15, 16, 17])
@pytest.mark.parametrize("revision", PUBLISHED)
def test_chainners_convert_to_onnx_takes_the_network(revision: str, opset: int, tmp_path: Path):
    attention = PUBLISHED[revision].attention
    model = load_state(draw(revision, channel_attn=attention, spatial_attn=attention)).model
    path = tmp_path / "net.onnx"
    chainner_export(model, path, opset)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.rand(1, 3, 21, 16)
    output = np.asarray(session.run(None, {"input": image.numpy()})[0])
    with torch.inference_mode():
        expected = model(image)
    torch.testing.assert_close(torch.as_tensor(output), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("revision", ["G2b", "G2c", "G2d", "G3", "G5a", "G5c", "G5e", "G5f", "G5s"])
def test_no_constant_is_added_or_multiplied_where_chainners_ncnn_conversion_would_lose_it(
    revision: str, tmp_path: Path
):
    graph = chainner_export(load_state(draw(revision)).model, tmp_path / "net.onnx", 14).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    operators = [node for node in graph.node if node.op_type in ("Add", "Sub", "Mul", "Div")]
    assert operators
    assert not [node.name for node in operators if constants & set(node.input)]


def test_installing_twice_changes_nothing():
    before = [str(support.architecture.id) for support in MAIN_REGISTRY.architectures()]
    aether_spandrel.install()
    assert [str(support.architecture.id) for support in MAIN_REGISTRY.architectures()] == before
    assert before.count("AetherNet") == 1


def test_a_registry_of_ones_own_can_be_chosen():
    registry = ArchRegistry()
    state = dict(tiny().state_dict())
    with pytest.raises(UnsupportedModelError):
        ModelLoader(registry=registry).load_from_state_dict(state)
    aether_spandrel.install(registry)
    assert ModelLoader(registry=registry).load_from_state_dict(state).scale == 2


def python(script: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_loading_imports_nothing_of_an_extra():
    script = (
        "import sys, spandrel; before = set(sys.modules)\n"
        "import aether_spandrel; aether_spandrel.install()\n"
        "added = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - set(sys.stdlib_module_names) - {'aether_core', 'aether_spandrel'}))"
    )
    assert python(script) == "[]"


def test_inspecting_does_not_import_spandrel():
    script = "import sys; from aether_spandrel import inspect; print('spandrel' in sys.modules)"
    assert python(script) == "False"


def test_enlarging_with_a_file_does_not_import_spandrel():
    script = (
        "import sys, numpy; from aether_converters import upscale\n"
        f"upscale({str(MODEL)!r}, numpy.zeros((4, 4, 3), numpy.uint8))\n"
        "print('spandrel' in sys.modules)"
    )
    assert python(script) == "False"
