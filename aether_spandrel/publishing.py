"""A network in the layout of its own revision, fused, as the author's code writes and reads it.

Constants that no tensor carries are at the revision's defaults in it, so that a program which
reads tensors alone assumes the right ones.
"""

from __future__ import annotations

from torch import Tensor

from aether_spandrel import folding
from aether_spandrel.network import Network, affine_norms, float_weights, fuse


def fused_state_dict(network: Network) -> dict[str, Tensor]:
    """The fused tensors under the published keys, those that fusing changed in float32.

    Running statistics are folded into scale and shift as the revision does it: removed, left
    behind without effect, or kept in use. A network that its revision cannot fuse, as it
    normalises each image by itself, is in this project's own layout instead.
    """
    if not network.published or network.config.sample_norm:
        return float_weights(fuse(network))
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
