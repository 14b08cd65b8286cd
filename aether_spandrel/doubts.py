"""What makes a checkpoint doubtful although it can be read: one function for each reason.

A doubt is a sentence for the user: what was found and what to do. None of them stops a file from
being loaded; `--strict` turns them into an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import torch
from torch import Tensor, nn

from aether_core import AetherNet
from aether_spandrel.checkpoint import Checkpoint
from aether_spandrel.inference import build_network
from aether_spandrel.network import Network, float_weights, fuse

Doubt = Callable[[Checkpoint, Network], Iterator[str]]

CENTRE: Final = 7  # px; where the small kernel was added to the large one
UNIFORM_KURTOSIS: Final = 1.8
NORMAL_KURTOSIS: Final = 3.0
NORMAL_INIT_STD: Final = 0.02
PROBE_SIDE: Final = 24  # px of the picture on which activations are measured
HALF_RANGE: Final = torch.finfo(torch.float16).max
HALF_MARGIN: Final = 4.0  # other pictures reach this much further than the probe
DECISIVE: Final = 0.5  # spread of norm weights under one reading, relative to the next best


def several_networks(checkpoint: Checkpoint, _: Network) -> Iterator[str]:
    """The file holds more than one AetherNet, beside averaged weights and those they come from."""
    if checkpoint.alternatives and not checkpoint.averaged:
        yield checkpoint.choice


def altered_parts(checkpoint: Checkpoint, _: Network) -> Iterator[str]:
    """Bytes of the network that are not those that were written."""
    if checkpoint.altered:
        yield (
            f"{len(checkpoint.altered)} parts of the file differ from their checksums, first "
            f"{checkpoint.altered[0][:60]}: it was damaged or altered after it was saved; download "
            "or copy it again"
        )


def contradicting_parts(checkpoint: Checkpoint, _: Network) -> Iterator[str]:
    """An archive that says two things of one part."""
    if checkpoint.contradicting:
        yield (
            f"the archive describes {len(checkpoint.contradicting)} of its parts twice, "
            f"differently, first {checkpoint.contradicting[0][:60]}: other programs may read "
            "another network from it; save it again with one that you trust"
        )


def broken_numbers(checkpoint: Checkpoint, _: Network) -> Iterator[str]:
    """Weights that are no numbers."""
    broken = [k for k, t in checkpoint.state_dict.items() if not bool(torch.isfinite(t).all())]
    if broken:
        yield (
            f"{len(broken)} tensors hold NaN or Inf, first {broken[0]}: "
            "the training diverged or the file is damaged"
        )


def half_fused(_: Checkpoint, network: Network) -> Iterator[str]:
    """Some blocks are fused and others not."""
    if network.half_fused:
        yield (
            f"{network.half_fused} of {network.config.blocks} blocks are fused, the others not: "
            "the file mixes two states of a training; the others were fused while reading"
        )


def untrained_kernels(_: Checkpoint, network: Network) -> Iterator[str]:
    """Depthwise kernels as a network has them before its training.

    Some published releases were made from files that were fused already: the release script then
    filled a new network with what fitted, which leaves the kernels random.
    """
    kernels = [
        tensor
        for key, tensor in network.published.items()
        if key.endswith((".conv.fused_conv.weight", ".conv.lk_conv.weight"))
    ]
    untrained = sum(_looks_untrained(kernel.float()) for kernel in kernels)
    if untrained:
        yield (
            f"the depthwise kernels of {untrained} of {len(kernels)} blocks are as random as "
            "before training (releases made of fused files lost them this way, and their norms "
            "were folded twice): use another file of this model"
        )


def _looks_untrained(kernel: Tensor) -> bool:
    """Whether the outer taps of (C, 1, K, K) are distributed as PyTorch initialises them.

    That is uniformly within +-1/K (Kaiming with a = sqrt 5), or normally with standard deviation
    0.02; training gives them another size and long tails, and the centre belongs to the small
    kernel too.
    """
    side = kernel.shape[-1]
    margin = max((side - CENTRE) // 2, 1)
    outer = torch.ones(side, side, dtype=torch.bool)
    outer[margin : side - margin, margin : side - margin] = False
    taps = kernel[:, 0, outer].double().flatten()
    if taps.numel() < 100 or not bool(torch.isfinite(taps).all()):
        return False
    std, largest = float(taps.std()), float(taps.abs().max())
    if std == 0.0:
        return False
    kurtosis = float(((taps - taps.mean()) / std).pow(4).mean())
    noise = 3.0 / math.sqrt(taps.numel())
    bound = 1.0 / side
    uniform = (
        0.97 * bound < largest < 1.002 * bound
        and abs(std * math.sqrt(3.0) / bound - 1.0) < 0.02 + noise
        and abs(kurtosis - UNIFORM_KURTOSIS) < 0.05 + 2 * noise
    )
    normal = (
        abs(std / NORMAL_INIT_STD - 1.0) < 0.02 + noise
        and abs(kurtosis - NORMAL_KURTOSIS) < 0.1 + 5 * noise
        and largest < 6.0 * NORMAL_INIT_STD
    )
    return uniform or normal


def norms_folded_otherwise(_: Checkpoint, network: Network) -> Iterator[str]:
    """Running statistics that say the norms were folded more or less often than was assumed.

    A trained scale lies near 1. Folding divides it by the standard deviation s of its channel; so
    the reading is right under which w * s^k varies least over channels: k = 0 for norms that were
    never folded, 1 for folded ones, 2 for norms that were folded twice.
    """
    spreads = _folding_spreads(network.published)
    if spreads is None:
        return
    ranked = sorted(range(len(spreads)), key=lambda k: spreads[k])
    likely, next_best = ranked[0], ranked[1]
    if spreads[likely] > DECISIVE * spreads[next_best]:
        return
    assumed = network.constants.get("norm_folded", 0.0)
    if likely == 2:
        yield (
            "the norms look as if they had been folded twice: their scales are divided by the "
            "variance; use the file that this one was made from"
        )
    elif assumed and likely == 0:
        yield (
            "the norms look as if they had not been folded, but were taken as folded: compare "
            "with --set norm_folded=0"
        )
    elif not assumed and likely == 1:
        yield (
            "the norms look as if they had been folded already, and would be folded twice: "
            + (
                "compare with --set norm_folded=1"
                if "norm_folded" in network.constants
                else "use the file that this one was made from"
            )
        )


def _folding_spreads(published: Mapping[str, Tensor]) -> list[float] | None:
    """How much log |w * s^k| varies over all channels, for k = 0, 1, 2; None if it cannot tell."""
    logs: list[tuple[Tensor, Tensor]] = []
    for key, variance in published.items():
        if key.endswith("norm.running_var"):
            weight = published[key.replace("running_var", "weight")]
            logs.append((_log(weight), _log(variance) / 2))
    if not logs:
        return None
    spreads = [
        math.sqrt(sum(float((w + k * s).var(correction=0)) for w, s in logs) / len(logs))
        for k in range(3)
    ]
    return spreads if all(map(math.isfinite, spreads)) and max(spreads) > 0.1 else None


def _log(tensor: Tensor) -> Tensor:
    return tensor.double().flatten().abs().clamp_min(1e-12).log()


def half_overflow(_: Checkpoint, network: Network) -> Iterator[str]:
    """Values that float16 cannot hold."""
    peak, where = activation_peak(network)
    if not math.isfinite(peak):
        if _is_finite(network):
            yield f"values overflow in {where} on a test picture: the network gives no picture"
        return
    if peak * HALF_MARGIN > HALF_RANGE:
        yield (
            f"values reach {peak:.3g} in {where}, and float16 ends at {HALF_RANGE:g}: fp16 "
            "would overflow; use fp32 or bf16"
        )
    elif not network.fits_float16 and _is_finite(network):
        yield (
            f"on some pictures values may leave the range of float16, which ends at "
            f"{HALF_RANGE:g}: programs are told to run it in fp32 or bf16"
        )


def _is_finite(network: Network) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict.values())


def activation_peak(network: Network) -> tuple[float, str]:
    """The largest absolute value within the network on a picture of noise, and where it is."""
    fused = fuse(network)
    model = build_network(fused.config, float_weights(fused))
    peaks: dict[str, float] = {}

    def watch(name: str, module: nn.Module) -> None:
        def hook(_module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            for value in (*inputs, output):
                if isinstance(value, Tensor):
                    peak = float(value.detach().abs().max())
                    peaks[name] = max(peaks.get(name, 0.0), peak)

        module.register_forward_hook(hook)

    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if name and not list(module.children()):
            watch(name, module)
    _run_probe(model)
    where = max(peaks, key=lambda name: peaks[name])
    return peaks[where], where


def _run_probe(model: AetherNet) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.in_chans, PROBE_SIDE, PROBE_SIDE)
    with torch.inference_mode():
        model(torch.rand(shape, generator=generator))


def contradicting_metadata(checkpoint: Checkpoint, network: Network) -> Iterator[str]:
    """Metadata that describe another network than the tensors form."""
    stated = checkpoint.metadata.get("arch_config")
    if not isinstance(stated, Mapping):
        return
    config = network.config
    facts: dict[str, object] = {
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "scale": config.scale,
        "in_chans": config.in_chans,
        "norm_type": config.norm_type,
        "use_channel_attn": config.channel_attn,
        "use_spatial_attn": config.spatial_attn,
    }
    for name, found in facts.items():
        value = cast(Mapping[str, object], stated).get(name)
        value = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
        if value is not None and value != found:
            yield f"the metadata say {name} {str(value)[:60]}, the tensors {found}: these count"


DOUBTS: Final[tuple[Doubt, ...]] = (
    several_networks,
    altered_parts,
    contradicting_parts,
    broken_numbers,
    half_fused,
    untrained_kernels,
    norms_folded_otherwise,
    half_overflow,
    contradicting_metadata,
)
"""Every reason for doubt, in the order in which users read them."""


def find_doubts(checkpoint: Checkpoint, network: Network) -> tuple[str, ...]:
    """All doubts about a checkpoint and the network read from it."""
    return tuple(text for doubt in DOUBTS for text in doubt(checkpoint, network))
