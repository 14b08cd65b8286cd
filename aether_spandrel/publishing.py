"""A network in the layout of its own revision, fused, as the author's code writes and reads it.

Constants that no tensor carries are at the revision's defaults in it, so that a program which
reads tensors alone assumes the right ones.
"""

from __future__ import annotations

from torch import Tensor

from aether_spandrel import folding
from aether_spandrel.network import Network, affine_norms, float_weights, fuse
from aether_spandrel.revisions import find_revision


def fused_state_dict(network: Network) -> dict[str, Tensor]:
    """The fused tensors under the published keys, those that fusing changed in float32.

    In this project's own layout instead, which names its revision, where the published one cannot
    say it: for a network that normalises each image by itself, and for one whose fused keys
    another revision has too.
    """
    if network.published and not network.config.sample_norm:
        state = _fused(network)
        found = find_revision(state)
        if found is not None and found.computes_like(network.revision):
            return state
    return float_weights(fuse(network))


def _fused(network: Network) -> dict[str, Tensor]:
    """The published tensors with fused kernels, and norms as the revision leaves them.

    Running statistics are folded into scale and shift, and then removed, or left behind without
    effect; one revision keeps them in use.
    """
    revision = network.revision
    state = folding.fuse_kernels(network.published)
    if not revision.kept_statistics:
        norms = affine_norms(revision, network.config, network.published, network.constants)
        for norm, (scale, shift) in norms.items():
            shape = state[f"{norm}weight"].shape
            state[f"{norm}weight"] = scale.float().reshape(shape)
            state[f"{norm}bias"] = shift.float().reshape(shape)
            if not revision.stale_statistics:
                for name in folding.STATISTICS:
                    state.pop(norm + name, None)
    return {_published_key(network, key): tensor for key, tensor in state.items()}


def _published_key(network: Network, key: str) -> str:
    if key in network.names:
        return network.names[key]
    trained = key.replace(".fused_conv.bias", ".fused_conv.weight").replace(".fused_", ".lk_")
    return network.names[trained].replace(".lk_conv.weight", f".{key.partition('.conv.')[2]}")
