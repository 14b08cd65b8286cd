"""One of two processes that train the same network, each on batches of its own."""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from aether_core import prepare_qat
from tests.support.tiny import tiny


def batch(seed: int = 0) -> Tensor:
    """Two smooth pictures, (2, 3, 12, 16)."""
    noise = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (12, 16), mode="bilinear")


def train(rank: int, folder: str) -> None:
    """Three batches, of seeds `rank`, `rank + 2` and `rank + 4`; the state is left in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    network = prepare_qat(tiny(drop_path_rate=0.0), warmup=1).train()
    parallel = DistributedDataParallel(network)
    for seed in (rank, rank + 2, rank + 4):
        parallel(batch(seed)).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    torch.save([network.state_dict(), gradients], f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()
