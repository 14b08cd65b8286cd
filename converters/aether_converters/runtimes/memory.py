"""Whether this computer has the memory that something will take."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from aether_converters.errors import ModelError

GIB: Final = 2**30
GROUP: Final = Path("/sys/fs/cgroup")


def refuse_beyond_memory(what: str, needed: int, smaller: str) -> None:
    """Raise ModelError for work that needs more memory than can be had.

    Args:
        what: In words, what is to be done.
        needed: Bytes that it takes, as estimated.
        smaller: What would take less.
    """
    there = available_memory()
    if there is not None and needed > there:
        raise ModelError(
            f"there is not the memory for this: {what}",
            expected=f"at most {there / GIB:.1f} GiB, which can be had here",
            found=f"about {needed / GIB:,.1f} GiB, as estimated",
            advice=f"try {smaller}",
        )


def available_memory() -> int | None:
    """Bytes that this process can have beyond what it has; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    limits: list[int] = []
    with suppress(OSError, ValueError):
        limits.append(_kibibytes(Path("/proc/meminfo"), "MemAvailable:"))
    with suppress(OSError, ValueError):
        taken = int((GROUP / "memory.current").read_text())
        limits.append(int((GROUP / "memory.max").read_text()) - taken)
    with suppress(OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            limits.append(limit - _kibibytes(Path("/proc/self/status"), "VmSize:"))
    return max(min(limits), 0) if limits else None


def _kibibytes(path: Path, name: str) -> int:
    return 1024 * int(path.read_text().partition(name)[2].split()[0])
