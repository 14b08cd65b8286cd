"""Quantisation-aware training: what int8 will compute is what is trained, and what files keep."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
import torch.multiprocessing
import torch.nn.functional as F
import torch.utils.checkpoint
from spandrel import ModelLoader
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import aether_spandrel
from aether_core import (
    RANGE_ENTRY,
    AetherNet,
    InputRange,
    aether,
    freeze_ranges,
    fuse_model,
    input_scale,
    prepare_qat,
    quantised_layers,
    set_quantised,
    weight_scales,
)
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.folding import fuse_state_dict
from aether_spandrel.inference import build_network
from aether_spandrel.network import float_weights, fuse, read_network
from aether_spandrel.ranges import input_sources
from tests.reading.test_half_precision import with_large_products
from tests.support import golden_cases
from tests.support.published import REVISIONS as PUBLISHED
from tests.support.published import draw
from tests.support.tiny import tiny
from tests.support.two_processes import batch, train

CPU = torch.device("cpu")
LAYERS = [
    "conv_first",
    *(
        f"layers.{block}.{part}"
        for block in ("0.0", "0.1", "1.0")
        for part in ("conv", "ffn", "ffn.fc2")
    ),
    "conv_after_body",
    "conv_before_upsample.0",
    "upsample.0",
    "conv_last",
]


def trained(*, warmup: int = 2, batches: int = 4, **changes: Any) -> AetherNet:
    """A network in eval mode whose ranges have seen some batches."""
    network = prepare_qat(tiny(drop_path_rate=0.0, **changes), warmup=warmup, momentum=0.9)
    network.train()
    with torch.no_grad():
        for seed in range(batches):
            network(batch(seed))
    return network.eval()


def first_block(network: AetherNet) -> Any:
    return cast(Any, network).layers[0][0]


def modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return cast("Iterator[tuple[str, nn.Module]]", network.named_modules())


def ranges(network: nn.Module) -> dict[str, float]:
    return {name: float(layer.amax) for name, layer in quantised_layers(network).items()}


def plain(network: nn.Module, image: Tensor) -> Tensor:
    """The output by plain operators alone: what needs a gradient is not computed in place."""
    return network(image.clone().requires_grad_()).detach()


# What a layer computes


def ready(layer: Any, amax: float) -> Any:
    """The layer with this range."""
    layer.input_range = InputRange(momentum=0.9, warmup=1, device=CPU).eval()
    layer.input_range.amax.fill_(amax)
    layer.input_range.batches.fill_(1)
    return layer


def test_a_layer_by_hand():
    """Steps of 0.01 for the input and for the weights; what lies beyond a range saturates."""
    layer = first_block(tiny()).ffn.fc2
    layer.weight = nn.Parameter(torch.tensor([[0.5, -1.27]]))
    layer.bias = nn.Parameter(torch.tensor([0.254321]))
    ready(layer, 1.27)
    output = layer(torch.tensor([0.1234, 2.0]).reshape(1, 2, 1, 1))
    assert output.item() == pytest.approx(0.5 * 0.12 - 1.27 * 1.27 + 0.254321, abs=1e-6)
    output = layer(torch.tensor([0.1284, -2.0]).reshape(1, 2, 1, 1))
    assert output.item() == pytest.approx(0.5 * 0.13 + 1.27 * 1.28 + 0.254321, abs=1e-6)


def test_a_layer_computes_what_integers_compute():
    layer = ready(tiny().conv_after_body, 1.0)
    x = torch.randn(2, 16, 9, 11)
    step, steps = input_scale(torch.tensor(1.0)), weight_scales(layer.weight)
    integers = (x / step).round().clamp(-128, 127)
    kernel = (layer.weight / steps[:, None, None, None]).round()
    assert kernel.abs().amax(dim=(1, 2, 3)).eq(127).all()  # each channel uses all of its steps
    sums = F.conv2d(integers.double(), kernel.double(), padding=1)
    expected = sums * (step * steps.double())[:, None, None] + layer.bias.double()[:, None, None]
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_pass_where_nothing_saturates():
    layer = first_block(tiny()).ffn.fc2
    layer.weight = nn.Parameter(torch.ones(1, 2))
    layer.bias = nn.Parameter(torch.zeros(1))
    layer = ready(layer, 1.0)
    x = torch.tensor([0.3, 1.5]).reshape(1, 2, 1, 1).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 0.0]
    assert layer.weight.grad.flatten().tolist() == pytest.approx([0.3, 1.0], abs=0.005)


def test_a_channel_of_zeros_stays_zero_and_can_still_learn():
    layer = ready(tiny().conv_last, 1.0)
    nn.init.zeros_(layer.weight[0])
    output = layer(torch.ones(1, 64, 4, 4))
    assert torch.equal(output[:, 0], layer.bias[0].expand(1, 4, 4))
    output.sum().backward()
    assert layer.weight.grad[0].ne(0).all()


def test_every_convolution_and_linear_map_is_quantised():
    """With all weights and inputs in int8 none is left out, in either form."""
    for network in (trained(), fuse_model(trained())):
        assert list(quantised_layers(network)) == LAYERS
        quantised = {id(t) for t in spied(network)}
        expected = {
            name
            for name, module in modules(network)
            if isinstance(module, (nn.Conv2d, nn.Linear))
            and not name.endswith(("lk_conv", "sk_conv"))  # quantised as one
        }
        assert len(quantised) == len(expected) + (0 if network.config.fused else 3)


def spied(network: AetherNet) -> list[Tensor]:
    """The weights that the network quantises."""
    seen: list[Tensor] = []
    for layer in quantised_layers(network).values():
        layer.register_forward_pre_hook(lambda _, given: seen.extend(given[1:]))
    network(batch())
    return seen


# Ranges


def test_a_range_is_an_average_at_first_and_then_moves():
    layer = InputRange(momentum=0.75, warmup=3, device=CPU)
    found: list[float] = []
    for largest in (1.0, -3.0, 2.0, 6.0, 11.0):
        layer(torch.tensor([0.5, largest, -0.5]))
        layer.advance()
        found.append(layer.amax.item())
    assert found == [1.0, 2.0, 2.0, 3.0, 5.0]  # (1 + 3 + 2 + 6) / 4 = 3, then 3 + (11 - 3) / 4


def test_what_is_computed_twice_counts_as_one_batch():
    layer = InputRange(momentum=0.9, warmup=1, device=CPU)
    for largest in (3.0, 1.0):
        layer(torch.tensor([largest]))
    layer.advance()
    assert (layer.amax.item(), layer.batches.item()) == (3.0, 1)


def test_nothing_is_quantised_while_it_warms_up():
    layer = InputRange(momentum=0.9, warmup=2, device=CPU)
    x = torch.tensor([0.123456, 1.0])
    for _ in range(2):
        assert torch.equal(layer(x)[0], x)
        layer.advance()
    assert not torch.equal(layer(x)[0], x)


def test_what_amp_makes_infinite_does_not_count():
    layer = InputRange(momentum=0.9, warmup=1, device=CPU)
    for value in (1.0, float("inf"), float("nan"), 0.0):
        layer(torch.tensor([value]))
        layer.advance()
    assert (layer.amax.item(), layer.batches.item(), layer.seen.item()) == (1.0, 1, 0.0)


def test_eval_mode_changes_no_range():
    network = trained()
    before = copy.deepcopy(network.state_dict())
    network(10 * batch())
    torch.testing.assert_close(network.state_dict(), before, atol=0, rtol=0)


def test_frozen_ranges_stay_until_they_are_released():
    network = trained()
    freeze_ranges(network)
    before = ranges(network)
    network.train()
    for _ in range(2):
        network(10 * batch())
    assert ranges(network) == before
    freeze_ranges(network, frozen=False)
    for _ in range(2):
        network(10 * batch())
    assert all(ranges(network)[name] > before[name] for name in ("conv_first", "layers.0.0.conv"))


def test_a_range_that_has_not_warmed_up_cannot_be_frozen():
    network = trained(warmup=9, batches=4)
    message = "conv_first cannot be frozen after 3 of 9 batches: train on, or"
    with pytest.raises(ValueError, match=message):
        freeze_ranges(network)


# Which layers


def test_a_layer_alone_can_be_switched_off_and_on():
    network, image = trained(), batch(9)
    outputs = [plain(network, image)]
    set_quantised(network, False, ["layers.0.1.ffn", "conv_*"])
    off = {name for name, layer in quantised_layers(network).items() if not layer.enabled}
    assert off == {name for name in LAYERS if name == "layers.0.1.ffn" or name.startswith("conv_")}
    outputs.append(plain(network, image))
    set_quantised(network, True, ["conv_*"])
    outputs.append(plain(network, image))
    set_quantised(network, True)
    assert torch.equal(plain(network, image), outputs[0])
    assert not any(torch.equal(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


def test_all_switched_off_is_the_float_network_bit_for_bit():
    network, image = fuse_model(trained()), batch(9)
    set_quantised(network, False)
    untouched = fuse_model(tiny(drop_path_rate=0.0))
    assert torch.equal(plain(network, image), plain(untouched, image))
    assert not any(RANGE_ENTRY in key for key in untouched.state_dict())


def test_skipped_layers_have_no_range():
    network = prepare_qat(tiny(), skip=["layers.*.conv", "conv_last"])
    left = [name for name in LAYERS if not name.endswith(".conv") and name != "conv_last"]
    assert list(quantised_layers(network)) == left


def test_preparing_twice_changes_nothing():
    network = trained()
    before = copy.deepcopy(network.state_dict())
    assert prepare_qat(network) is network
    torch.testing.assert_close(network.state_dict(), before, atol=0, rtol=0)
    network.train()
    network(batch())
    assert int(quantised_layers(network)["conv_first"].batches) == 4
    hooked = cast(Any, network)
    assert (len(hooked._forward_pre_hooks), len(hooked._forward_hooks)) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\) and warmup be at least 1, got 1.0"),
        ({"warmup": 0}, "warmup be at least 1, got 0.99 and 0"),
        ({"skip": ["conv_frist"]}, "no layer is called conv_frist, only conv_first, layers"),
    ],
)
def test_wrong_arguments_are_told(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        prepare_qat(tiny(), **arguments)


# Forms


def test_the_fused_form_computes_the_same():
    network, image = trained(), batch(9)
    expected, before = plain(network, image), ranges(network)
    fused = fuse_model(copy.deepcopy(network))
    assert torch.equal(plain(fused, image), expected)
    assert ranges(fused) == before
    state = fuse_state_dict(network.state_dict())
    assert state.keys() == fused.state_dict().keys()
    again = prepare_qat(fuse_model(tiny(seed=1)), warmup=2)
    again.load_state_dict(state)
    assert torch.equal(plain(again, image), expected)


def test_inference_in_place_leaves_no_layer_in_float():
    network, image = fuse_model(trained()).requires_grad_(False), batch(9)
    expected = plain(network, image)
    with torch.inference_mode():
        assert torch.equal(network(image), expected)


def test_networks_of_other_revisions_are_prepared_in_the_form_that_is_exported():
    """Attention, stage fusion, folded norms: what `aether_spandrel` reads can be trained on."""
    found = fuse(read_network(Checkpoint.from_object(draw("G5f", channel_attn=True))))
    network = prepare_qat(build_network(found.config, float_weights(found)), warmup=1).train()
    image = batch()
    for _ in range(3):
        network(image)
    again = read_network(Checkpoint.from_object(network.state_dict()))
    assert again.revision.name == "G5f"
    assert again.config == found.config
    assert list(again.ranges.usable) == list(input_sources(found.config))
    assert not again.ranges.unusable


# Training


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    target = F.interpolate(batch(seed), scale_factor=2, mode="bicubic")
    loss = (network(batch(seed)) - target).abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_training_lowers_the_loss_with_quantisation_on():
    torch.manual_seed(0)
    network = aether(embed_dim=16, depths=(1, 1), lk_kernel=5, scale=2, drop_path_rate=0.0)
    prepare_qat(network, warmup=1)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = [step(network, optimizer, seed=index % 3) for index in range(40)]
    assert all(int(layer.batches) == 39 for layer in quantised_layers(network).values())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert sum(losses[-5:]) < 0.6 * sum(losses[1:6])
    quantised = plain(network.eval(), batch())
    set_quantised(network, False)
    assert not torch.equal(plain(network, batch()), quantised)


def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=2).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for seed in range(3):
        step(network, optimizer, seed)
    set_quantised(network, False, ["layers.*.conv"])
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "a.pth")
    state, moments = torch.load(tmp_path / "a.pth", weights_only=True)
    resumed = prepare_qat(tiny(seed=1, drop_path_rate=0.0), warmup=2).train()
    resumed.load_state_dict(state)
    other = torch.optim.Adam(resumed.parameters(), 1e-3)
    other.load_state_dict(moments)
    for seed in (3, 4):
        assert step(resumed, other, seed) == step(network, optimizer, seed)
    torch.testing.assert_close(resumed.state_dict(), network.state_dict(), atol=0, rtol=0)


def test_activation_checkpointing_gives_the_same_gradients_and_ranges():
    """Blocks are computed again while gradients flow: with the same range, and counted once."""

    def gradients(*, recompute: bool) -> tuple[list[Tensor], dict[str, float]]:
        network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
        if recompute:
            for stage in cast(Any, network).layers:
                for block in stage:
                    again = block.forward
                    block.forward = partial(
                        torch.utils.checkpoint.checkpoint, again, use_reentrant=False
                    )
        for seed in range(3):
            network.zero_grad()
            network(batch(seed)).square().mean().backward()
        return [cast(Tensor, p.grad) for p in network.parameters()], ranges(network)

    expected, found = gradients(recompute=False), gradients(recompute=True)
    assert found[1] == expected[1]
    torch.testing.assert_close(found[0], expected[0], atol=0, rtol=0)


def test_autocast_trains_in_bfloat16_with_ranges_in_float32():
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
    exact = copy.deepcopy(network)
    for seed in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            output = network(batch(seed))
        exact(batch(seed))
        assert output.dtype == torch.bfloat16
        output.float().mean().backward()
    for name, layer in quantised_layers(network).items():
        assert layer.amax.dtype == torch.float32
        assert layer.amax.item() == pytest.approx(ranges(exact)[name], rel=0.03)
    assert all(bool(torch.isfinite(cast(Tensor, p.grad)).all()) for p in network.parameters())


def test_the_whole_step_compiles_without_a_break():
    network = prepare_qat(tiny(depths=(1,), drop_path_rate=0.0), warmup=1).train()
    expected = copy.deepcopy(network)
    # Of what other tests compiled torch would conclude that sizes vary, which it cannot compile
    # of any fake quantisation.
    torch.compiler.reset()
    compiled = cast(
        nn.Module, torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    )
    for seed in range(3):
        assert torch.equal(compiled(batch(seed)), expected(batch(seed)))
    assert ranges(network) == ranges(expected)


def test_processes_agree_on_the_largest_value_that_any_has_seen(tmp_path: Path):
    cast(Any, torch.multiprocessing).spawn(train, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    largest = [max(float((batch(s) - 0.5).abs().max()) for s in (n, n + 1)) for n in (0, 2, 4)]
    found = prepare_qat(tiny())
    found.load_state_dict(first[0])
    layer = quantised_layers(found)["conv_first"]
    assert layer.amax.item() == pytest.approx((largest[0] + largest[1]) / 2)
    assert layer.seen.item() == pytest.approx(largest[2])


# Averaged weights, as trainers keep them


def test_averaged_models_take_the_ranges_along():
    """As neosr and traiNNer-redux keep them; torch copies buffers while it averages parameters."""
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
    average = AveragedModel(network, multi_avg_fn=cast(Any, get_ema_multi_avg_fn)(0.9))
    for seed in range(3):
        network(batch(seed))
        average.update_parameters(network)
    assert ranges(average.module) == ranges(network)
    assert ranges(average.module)["conv_first"] > 0


def test_averages_that_leave_integers_behind_keep_the_ranges_too():
    """As ema-pytorch does it, with which traiNNer-redux averages."""
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
    average = copy.deepcopy(network).eval()
    for seed in range(4):
        network(batch(seed))
        for mean, new in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(new, 0.5)
    found = read_network(Checkpoint.from_object(average.state_dict())).ranges
    assert not found.unusable
    assert min(found.usable.values()) > 0
    active = average(batch())
    set_quantised(average, False)
    assert not torch.equal(active, average(batch()))


def test_a_copy_that_averages_parameters_alone_stays_float_and_says_so():
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
    average = copy.deepcopy(network).eval()
    for seed in range(3):
        network(batch(seed))
    untouched = fuse_model(tiny(drop_path_rate=0.0))
    assert torch.equal(plain(fuse_model(average), batch()), plain(untouched, batch()))
    found = read_network(Checkpoint.from_object(average.state_dict())).ranges
    assert not found.usable
    assert found.unusable == dict.fromkeys(LAYERS, "no batch was seen")


# Files


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_file_is_a_float_network_everywhere(ending: str, tmp_path: Path):
    network, image = trained(), batch(9)
    path = tmp_path / f"qat.{ending}"
    if ending == "pth":
        torch.save({"params": network.state_dict()}, path)
    else:
        safetensors.torch.save_file(network.state_dict(), path)
    fused = fuse_model(copy.deepcopy(network))
    set_quantised(fused, False)
    expected = plain(fused, image)
    aether_spandrel.install()
    for model in (ModelLoader().load_from_file(path).model, aether_spandrel.load(path).model):
        assert torch.equal(plain(model, image), expected)
        assert not any(isinstance(part, InputRange) for part in model.modules())
        assert not any(RANGE_ENTRY in key for key in model.state_dict())
    info = aether_spandrel.inspect(path)
    assert (info.revision, info.qat, info.fused, info.warnings) == ("G1", True, False, ())
    assert info.ranges == fused_names(ranges(network))
    assert info.notes == (
        "70 entries of quantisation are kept apart; the network computes in floats. They give the "
        "input ranges of 17 of 17 layers",
    )


def fused_names(by_part: dict[str, float]) -> dict[str, float]:
    """By the layers that the exported network has."""
    found: dict[str, float] = {}
    for name, amax in by_part.items():
        names = {"conv": [f"{name}.fused_conv"], "ffn": [f"{name}.fc1_gate", f"{name}.fc1_main"]}
        found.update(dict.fromkeys(names.get(name.rpartition(".")[2], [name]), amax))
    return found


def test_a_float_network_takes_the_file_and_quantisation_starts_from_a_float_file():
    network = trained()
    float_network = tiny(seed=1)
    float_network.load_state_dict(network.state_dict())
    fresh = prepare_qat(tiny(seed=1))
    fresh.load_state_dict(float_network.state_dict())
    assert torch.equal(plain(fresh, batch()), plain(prepare_qat(float_network), batch()))


def test_a_file_that_lacks_some_ranges_or_has_others_is_refused():
    state = trained().state_dict()
    partial = {k: t for k, t in state.items() if not k.startswith("conv_last.input_range")}
    with pytest.raises(RuntimeError, match=r"Missing key.*conv_last\.input_range\.amax"):
        trained().load_state_dict(partial)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*conv_last\.input_range\.amax"):
        prepare_qat(tiny(), skip=["conv_last"]).load_state_dict(state)


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("amax", torch.tensor(float("nan")), "it is NaN"),
        ("amax", torch.tensor(float("inf")), "it is inf, where 1e-06 to 1e+06 can be meant"),
        ("amax", torch.tensor(0.0), "it is 0, where 1e-06 to 1e+06 can be meant"),
        ("amax", torch.tensor(-0.5), "it is -0.5, below zero"),
        ("amax", torch.tensor([1.0, 2.0]), "it is not a single number"),
        ("amax", torch.empty((), device="meta"), "it is not a single number"),
        ("batches", torch.tensor(0), "no batch was seen"),
        ("enabled", torch.tensor(0, dtype=torch.uint8), "its quantisation is switched off"),
    ],
)
def test_a_range_that_cannot_be_used_is_named(entry: str, value: Tensor, reason: str):
    state = dict(trained().state_dict())
    state[f"layers.0.1.ffn.input_range.{entry}"] = value
    found = read_network(Checkpoint.from_object(state)).ranges
    assert found.unusable == {"layers.0.1.ffn": reason}
    assert len(found.usable) == 15  # without the gate and the main map


def test_a_range_of_no_layer_is_named():
    state = {**trained().state_dict(), "layers.7.0.conv.input_range.amax": torch.tensor(1.0)}
    found = read_network(Checkpoint.from_object(state)).ranges
    assert found.unusable == {"layers.7.0.conv": "the network has no such layer"}
    assert len(found.usable) == 17


def test_img_range_that_moves_into_the_weights_leaves_the_range_of_the_image():
    network = trained(img_range=255.0)
    found = read_network(Checkpoint.from_object(network.state_dict()), img_range=255.0)
    assert found.ranges.usable["conv_first"] == pytest.approx(ranges(network)["conv_first"] / 255)
    assert found.ranges.usable["conv_first"] == pytest.approx(0.5, abs=0.05)
    assert found.ranges.usable["conv_last"] == ranges(network)["conv_last"]


# Published files


RECORDED = {
    "g1-qat-fakequant-2x": {
        "layers.0.0.conv.fused_conv": "conv_first",
        "layers.0.0.ffn.fc1_gate": "layers.0.0.norm",
        "layers.0.0.ffn.fc1_main": "layers.0.0.norm",
        "layers.1.0.ffn.fc1_gate": "layers.1.0.norm",
        "layers.1.0.ffn.fc1_main": "layers.1.0.norm",
        "conv_after_body": "norm",
        "upsample.0": "conv_before_upsample.1",
        "conv_last": "upsample.0",
    },
    "g5f-qat-2x": {
        "layers.0.0.conv.fused_conv": "conv_first",
        "layers.0.0.ffn.fc1_gate": "stages.0.0.norm_quant",
        "layers.0.0.ffn.fc1_main": "stages.0.0.norm_quant",
        "layers.0.0.ffn.fc2": "stages.0.0.ffn.quant_mul",
        "layers.1.0.conv.fused_conv": "stages.0.0.quant_add",
        "layers.1.0.ffn.fc1_gate": "stages.1.0.norm_quant",
        "layers.1.0.ffn.fc1_main": "stages.1.0.norm_quant",
        "layers.1.0.ffn.fc2": "stages.1.0.ffn.quant_mul",
        "fusion_convs.0": "stages.0.0.quant_add",
        "fusion_convs.1": "stages.1.0.quant_add",
        "fusion_conv": "fusion_convs.0 fusion_convs.1",
        "upsample.0": "conv_before_upsample.1",
        "conv_last": "upsample_quant",
    },
}
"""What gives the input of a layer, as the file calls it; no observer saw the other inputs."""


def observed(state: dict[str, Tensor], module: str) -> float:
    place = f"{module}.activation_post_process."
    if f"{place}min_val" not in state:
        place += "activation_post_process."
    return max(-float(state[f"{place}min_val"]), float(state[f"{place}max_val"]))


@pytest.mark.parametrize("name", RECORDED)
def test_published_observers_give_ranges(name: str):
    state = golden_cases.state_dict(golden_cases.CASES[name])
    found = read_network(Checkpoint.from_object(state)).ranges
    assert found.usable == {
        layer: max(observed(state, module) for module in modules.split())
        for layer, modules in RECORDED[name].items()
    }
    assert not found.unusable


def inputs_and_outputs(network: AetherNet) -> tuple[dict[str, float], dict[str, float]]:
    """The largest absolute value that each module takes and gives."""
    taken: dict[str, float] = {}
    given: dict[str, float] = {}

    def note(name: str, _: nn.Module, x: tuple[Tensor], y: Tensor) -> None:
        taken[name], given[name] = (float(t.detach().abs().max()) for t in (x[0], y))

    for name, module in modules(network):
        module.register_forward_hook(partial(note, name))
    plain(network, batch())
    return taken, given


def test_what_is_said_to_give_an_input_gives_it():
    """In our networks, where it is a module; of published stubs only the names are known."""
    checked: set[str] = set()
    for revision in ("G1", "G2b", "G4", "G5f"):
        found = fuse(read_network(Checkpoint.from_object(draw(revision, scale=4))))
        network = build_network(found.config, float_weights(found))
        taken, given = inputs_and_outputs(network)
        for layer, alternatives in input_sources(found.config).items():
            for modules in alternatives:
                if set(modules) <= given.keys():
                    assert taken[layer] == max(given[module] for module in modules), layer
                    checked.add(layer)
    assert checked == {
        "layers.0.0.conv.fused_conv",
        *(f"layers.{stage}.0.ffn.fc1_{part}" for stage in (0, 1) for part in ("gate", "main")),
        *("fusion_conv", "conv_after_body", "upsample.0", "upsample.2", "conv_last"),
    }


@pytest.mark.parametrize("revision", [name for name, row in PUBLISHED.items() if row.qat])
def test_every_published_training_gives_some_ranges_and_none_that_cannot_be_used(revision: str):
    found = read_network(Checkpoint.from_object(draw(revision, qat=True)))
    layers = set(found.ranges.usable)
    assert layers >= {"layers.0.0.conv.fused_conv"} or revision in ("G4", "G5a", "G5b")
    assert layers >= {"upsample.0"} or revision in ("G4",)
    assert layers <= set(input_sources(found.config))
    assert not found.ranges.unusable


def test_an_observer_that_never_ran_is_named():
    state = draw("G5f", qat=True)
    state["stages.0.0.norm_quant.activation_post_process.min_val"] = torch.tensor(float("inf"))
    state["stages.0.0.norm_quant.activation_post_process.max_val"] = torch.tensor(float("-inf"))
    found = read_network(Checkpoint.from_object(state)).ranges
    assert found.unusable == {
        f"layers.0.0.ffn.fc1_{part}": "its observer saw no batch" for part in ("gate", "main")
    }


@pytest.mark.parametrize(("another", "largest"), [(64, 127), (130, 255)])
def test_steps_of_converted_files_become_ranges(another: int, largest: int):
    """Where no zero point lies in the upper half, activations have 7 bits."""
    state = dict(tiny().state_dict())
    state["conv_first.scale"] = torch.tensor(0.02)
    state["conv_first.zero_point"] = torch.tensor(60)
    state["conv_before_upsample.1.scale"] = torch.tensor(-1.0)
    state["conv_before_upsample.1.zero_point"] = torch.tensor(another)
    found = read_network(Checkpoint.from_object(state)).ranges
    expected = 0.02 * (largest - 60)
    assert found.usable == {"layers.0.0.conv.fused_conv": pytest.approx(expected)}
    assert found.unusable == {"upsample.0": "its step is -1, not above zero"}


def test_weights_are_not_rescaled_for_float16_where_that_would_change_a_range():
    state = with_large_products(draw("G1", depths=(1,)))
    assert read_network(Checkpoint.from_object(state)).fits_float16
    state["layers.0.0.ffn.fc2.input_range.amax"] = torch.tensor(1e5)
    found = read_network(Checkpoint.from_object(state))
    assert not found.fits_float16
    for key, tensor in found.state_dict.items():
        assert torch.equal(tensor, state[key])
