"""Many steps of which each computes little."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def in_one_thread() -> Generator[None]:
    """Compute in one thread.

    Threads of torch wait for each other after each operation. Where that takes a few microseconds,
    and another program is busy on one of the cores, they wait ten times as long as they compute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
