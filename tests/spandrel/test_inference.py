"""The network that programs run: what the core computes, in the memory of its activations."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aether_core import AetherNet, prepare_qat
from aether_spandrel import AetherNetArch, inference
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.inference import (
    FastAetherNet,
    build_network,
    convolved,
    in_parts,
    mixed,
    part_widths,
    upscaled,
)
from aether_spandrel.network import float_weights, fuse, read_network
from tests.support import golden_cases
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw
from tests.support.tiny import tiny


def network(revision: str, **options: Any) -> FastAetherNet:
    found = fuse(read_network(Checkpoint.from_object(draw(revision, **options))))
    return build_network(found.config, float_weights(found), FastAetherNet)


def core(model: FastAetherNet) -> AetherNet:
    """The same weights, computed by the definition."""
    return build_network(model.config, model.state_dict())


def blocks(model: AetherNet) -> list[Any]:
    return [block for stage in cast(Any, model).layers for block in stage]


def picture(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("revision", PUBLISHED)
def test_the_result_is_that_of_the_core(revision: str, attention: bool):
    attention = attention and PUBLISHED[revision].attention
    model = network(revision, channel_attn=attention, spatial_attn=attention)
    image = picture(2, 3, 61, 83)  # more pixels than a strip has
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("case", golden_cases.CASES)
def test_what_spandrel_loads_is_as_exact_as_the_core(case: str, dtype: torch.dtype):
    model = AetherNetArch().load(golden_cases.state_dict(golden_cases.CASES[case])).model
    assert isinstance(model, FastAetherNet)
    image = golden_cases.image(golden_cases.CASES[case])
    with torch.inference_mode():
        exact = core(model).double()(image.double())

        def error(network: AetherNet) -> float:
            return float((network(image.to(dtype)).double() - exact).abs().mean())

        allowed = 3 * error(core(model.to(dtype))) + 1e-13
        assert error(model.to(dtype)) < allowed


def test_it_has_the_keys_of_the_core_and_survives_copying():
    model = network("G5f")
    image = picture(1, 3, 9, 8)
    assert list(model.state_dict()) == list(core(model).state_dict())
    filled = FastAetherNet(model.config).eval()
    filled.load_state_dict(core(model).state_dict())
    with torch.inference_mode():
        expected = model(image)
        for same in (filled, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert isinstance(same, FastAetherNet)
            assert torch.equal(same(image), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_whoever_looks_at_operators_sees_those_of_the_core():
    model = network("G1")
    image = picture(1, 3, 9, 8)
    with torch.inference_mode():
        expected = core(model)(image)
        traced = cast(Any, torch.jit.trace(model, (image,)))
        assert torch.equal(traced(image), expected)
        assert torch.equal(fx.symbolic_trace(model)(image), expected)


def test_it_can_be_trained_and_trained_for_int8_as_the_core_is():
    model = FastAetherNet(tiny().config).eval()
    model.load_state_dict(tiny().state_dict())
    image = picture(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(model(image), tiny()(image))  # two kernels a block, as in training
    both = [prepare_qat(net.fuse_model(), warmup=1).train() for net in (model, tiny())]
    for net in both:
        net(image).sum().backward()
        net(image).sum().backward()
    with torch.inference_mode():
        first, second = (net.eval()(image) for net in both)
    assert torch.equal(first, second)


@pytest.mark.parametrize("attention", ["channel_attn", "spatial_attn"])
def test_each_attention_alone(attention: str):
    model = network("G5f", **{attention: True})
    image = picture(1, 3, 20, 21)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 7])
@pytest.mark.parametrize("revision", PUBLISHED)
def test_channels_in_parts_give_the_same(
    revision: str, width: int, monkeypatch: pytest.MonkeyPatch
):
    attention = PUBLISHED[revision].attention
    model = network(revision, channel_attn=attention, spatial_attn=attention)
    channels = model.config.embed_dim
    widths = [min(width, channels - start) for start in range(0, channels, width)]
    image = picture(2, 3, 13, 17)
    monkeypatch.setattr(inference, "part_widths", lambda *_: widths)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


def test_parts_are_those_that_are_fast_on_this_machine():
    model = network("G1", embed_dim=100, lk_kernel=11)
    image = picture(2, 3, 40, 30)
    widths = part_widths(model.config, image)
    instructions = torch.backends.cpu.get_cpu_capability()[:6]
    assert widths == ([16] * 6 + [4] if instructions in ("AVX2", "AVX512") else [100])
    assert part_widths(model.config, image.to("meta")) == [100]
    assert part_widths(replace(model.config, lk_kernel=7), image) == [100]
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("revision", ["G1", "G5f"])
def test_without_the_operators_of_onednn_it_gives_the_same(
    revision: str, monkeypatch: pytest.MonkeyPatch
):
    model = network(revision)
    image = picture(1, 3, 13, 17)
    with torch.inference_mode():
        expected = model(image)
        monkeypatch.setattr(inference, "fused_linear", lambda *_: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
        torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)


def test_convolutions_may_give_another_order_of_memory():
    model = network("G1")
    (block, *_) = blocks(model)
    x = picture(1, model.config.embed_dim, 9, 8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        (y,) = convolved(block.conv, [x])
        (found,) = mixed(block, [x], [y.contiguous()])
        torch.testing.assert_close(found, block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("revision", ["G1", "G2a", "G4", "G5f"])
def test_blocks_keep_float32_between_linear_maps_in_16_bits(revision: str, dtype: torch.dtype):
    attention = PUBLISHED[revision].attention
    model = network(
        revision, lk_kernel=21, sk_kernel=3, channel_attn=attention, spatial_attn=attention
    )
    image = picture(1, 3, 13, 17)
    with torch.inference_mode():
        expected = model(image)
        model.to(dtype)
        with Operators() as seen:
            found = model(image.to(dtype))
    assert found.dtype == dtype
    depthwise = {
        dtype for shape, dtype in zip(seen.convolved, seen.dtypes, strict=True) if shape[1] == 1
    }
    assert depthwise == {torch.float32}
    rounded_weights = (core(model.float())(image) - expected).abs().mean()
    error = (found.float() - expected).abs().mean()
    assert error < rounded_weights + torch.finfo(dtype).eps  # and the last pixels'


@pytest.mark.parametrize("pixels", [16, 50, 10**9])
def test_strips_of_any_size_give_the_same(pixels: int, monkeypatch: pytest.MonkeyPatch):
    model = network("G1")
    monkeypatch.setattr(inference, "STRIP_BYTES", 4 * pixels * model.config.ffn_dim)
    image = picture(1, 3, 13, 17)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


def test_any_memory_order_and_size_is_taken_and_the_input_left_alone():
    model = network("G1")
    with torch.inference_mode():
        for image in (
            picture(1, 3, 1, 1),
            picture(2, 3, 9, 4).contiguous(memory_format=torch.channels_last),
            picture(1, 4, 9, 8)[:, 1:, ::2, 1:],
            picture(3, 9, 8).expand(2, 3, 9, 8),
        ):
            before = image.clone()
            expected = model(image.contiguous())
            torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(image, before)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 2), (3, 3), (12, 9)], ids=str)
@pytest.mark.parametrize(
    ("revision", "scale"),
    [("G1", 1), ("G1", 2), ("G1", 3), ("G1", 4), ("G1", 8), ("G5f", 1), ("G5f", 3), ("G5f", 4)],
)
def test_the_last_convolutions_are_one_up_to_the_edges(
    revision: str, scale: int, size: tuple[int, int]
):
    model = network(revision, scale=scale)
    image = picture(2, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


def test_nothing_is_as_wide_as_the_sub_pixel_convolution():
    model = network("G1", scale=2, embed_dim=16, depths=(1,))
    body = picture(1, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), Widest() as seen:
        upscaled(model, body)
    assert seen.widest == model.config.head_dim * 64 * 64


def test_stages_that_are_joined_later_are_not_overwritten():
    model = network("G5f", depths=(1, 1, 1))
    image = picture(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), core(model)(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("revision", ["G1", "G5f"])
def test_gradients_flow_to_the_picture_and_to_weights(revision: str):
    model = network(revision)
    image = picture(1, 3, 9, 8).requires_grad_()
    model(image).sum().backward()
    assert image.grad is not None
    assert bool(image.grad.abs().sum() > 0)
    model.requires_grad_(True)
    with torch.no_grad():
        expected = model(image)
    found = model(image.detach())
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_trained_alone_are_not_overwritten():
    model = network("G1")
    weight = dict(model.named_parameters())["layers.0.0.ffn.fc1_gate.weight"]
    weight.requires_grad_(True)
    model(picture(1, 3, 9, 8)).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("revision", ["G1", "G2a", "G5f"])
def test_it_compiles_without_a_graph_break_and_exports(revision: str):
    attention = PUBLISHED[revision].attention
    model = network(revision, channel_attn=attention, spatial_attn=attention)
    image = picture(1, 3, 12, 20)
    with torch.no_grad():
        expected = model(image)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), expected, atol=1e-5, rtol=1e-5)
        exported = torch.export.export(
            model, (image,), dynamic_shapes=({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
        ).module()
        other = picture(1, 3, 15, 10)
        torch.testing.assert_close(exported(other), model(other), atol=1e-5, rtol=1e-5)


def test_autocast_works():
    model = network("G1")
    image = picture(1, 3, 16, 16)
    with torch.inference_mode():
        expected = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(image)
    assert float((found.float() - expected).square().mean().sqrt()) < 2e-2


def test_training_drops_paths_without_gradients_too():
    model = tiny(drop_path_rate=0.9).train()
    with torch.no_grad():
        first, second = (model(picture(32, 3, 8, 8)) for _ in range(2))
    assert not torch.equal(first, second)


class Widest(TorchDispatchMode):
    """The most values that a tensor has."""

    widest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.widest = max(self.widest, *(t.numel() for t in tree_leaves(result)))
        return result


class Operators(TorchDispatchMode):
    """The weights' shapes and the dtypes of all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved: list[tuple[int, ...]] = []
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if "conv" in func.overloadpacket.__name__:
            self.convolved.append(tuple(args[1].shape))
            self.dtypes.append(torch.promote_types(args[0].dtype, args[1].dtype))
        return func(*args, **(kwargs or {}))


class Passes(TorchDispatchMode):
    """Counts how often elementwise operators and copies go over all values of the block's input.

    What attention pools, one channel or two, is not as wide.
    """

    ELEMENTWISE = frozenset(
        {"gelu", "silu", "silu_", "mul", "mul_", "add", "add_", "addcmul", "copy_", "clone", "cat"}
    )

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        self.passes = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.ELEMENTWISE and result.shape[1] > 2:
            self.passes += result.numel() / self.values
        return result


@pytest.mark.parametrize(
    ("fused", "widths"), [(False, [16]), (True, [16]), (True, [8, 8])], ids=str
)
@pytest.mark.parametrize(
    ("revision", "attention", "limit"),
    [("G1", False, 3), ("G3", False, 3), ("G4", False, 3), ("G5f", False, 3), ("G5f", True, 5)],
)
def test_a_block_makes_few_passes_beside_convolutions_and_norm(
    revision: str,
    attention: bool,
    limit: int,
    fused: bool,
    widths: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    if not fused:
        monkeypatch.setattr(inference, "fused_linear", lambda *_: None)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    model = network(
        revision,
        embed_dim=16,
        depths=(1,),
        ffn_dim=16,
        channel_attn=attention,
        spatial_attn=attention,
    )
    (block,) = blocks(model)
    x = picture(1, 16, 64, 64)
    parts = in_parts(x, widths)
    with torch.inference_mode(), Passes(x.numel()) as counted:
        mixed(block, parts, convolved(block.conv, parts))
    least = 0.9 if fused else 2.9  # the residual; the activation and the product too
    assert least < counted.passes < limit + 0.1
