"""What is said of a hostile file: how it is made, and what reading it must give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tests.support.hostile_files import (
    Raw,
    network,
    torch_zip,
)

Verdict = Literal["refused", "same", "other"]


REFUSED: Final = "refused"


SAME: Final = "same"


OTHER: Final = "other"


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One file, and what becomes of it.

    Attributes:
        place: Writes it into a folder and says where.
        verdict: Whether it is refused, or read as the same network as its clean kind or another.
        kind: Of the clean network.
    """

    place: Callable[[Path], Path]
    verdict: Verdict = "refused"
    kind: str = "G1"


Group = Iterator[tuple[str, Hostile]]


def of(
    content: Callable[[], bytes],
    verdict: Verdict = "refused",
    kind: str = "G1",
    suffix: str = ".pth",
) -> Hostile:
    """A file of these bytes, which are made only when it is its turn."""

    def place(folder: Path) -> Path:
        path = folder / f"hostile{suffix}"
        path.write_bytes(content())
        return path

    return Hostile(place=place, verdict=verdict, kind=kind)


def pickled(
    body: Callable[[], bytes], stored: Mapping[str, bytes] | None = None, verdict: Verdict = REFUSED
) -> Hostile:
    """A PyTorch file of these instructions."""
    return of(lambda: torch_zip(Raw(body()), stored), verdict)


def beside(extra: Callable[[], object], verdict: Verdict = REFUSED) -> Hostile:
    """A PyTorch file of a good network with something beside it."""
    return of(lambda: torch_zip({"params": network(), "extra": extra()}), verdict)
