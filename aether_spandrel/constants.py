"""Values that no tensor carries: what decides them, and what the decision was.

A value that the caller gives wins over the file's metadata, and those over the revision's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict, cast

from aether_core import AetherConfig
from aether_spandrel import folding
from aether_spandrel.errors import CheckpointError
from aether_spandrel.revisions import SMALL_DIM, Entries, Revision


class Constants(TypedDict, total=False):
    """Values that no tensor carries, to be given where a file does not say them or says them wrong.

    Attributes:
        res_scale: Factor of a block's result before it is added to its input.
        norm_eps: Added to the variance of a running-statistics normalisation.
        img_range: Largest pixel value that the inner layers see.
        error_comp: 1 to add the stage fusion's error_comp, 0 to leave it out.
        norm_folded: Whether running statistics that a fused file keeps are folded already: 1 or 0.
        revision: Name of the revision, where several have the same keys.
    """

    res_scale: float
    norm_eps: float
    img_range: float
    error_comp: float
    norm_folded: float
    revision: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides which constants matter, and their defaults."""

    revision: Revision
    config: AetherConfig
    tensors: Entries = field(repr=False)
    qat: bool

    @property
    def res_scale(self) -> float | None:
        """The revision's default."""
        small = self.revision.small_res_scale
        return small if small and self.config.embed_dim <= SMALL_DIM else self.revision.res_scale

    @property
    def live_norms(self) -> bool:
        """Whether there are running statistics that may still have to be applied."""
        return "norm.running_var" in self.tensors

    @property
    def stale_norms(self) -> bool:
        """Whether there are running statistics in a fused file that may be folded already."""
        blocks = folding.block_prefixes(self.tensors)
        fused = any(folding.is_fused_block(self.tensors, block) for block in blocks)
        return self.live_norms and fused and not self.revision.kept_statistics


@dataclass(frozen=True, kw_only=True)
class _Constant:
    """A value that no tensor carries.

    Attributes:
        default: The revision's value and why, or None where the constant has no part.
        least: Smallest value that makes sense.
        most: Largest value that makes sense.
        whole: Only 0 and 1 make sense.
    """

    default: Callable[[Facts], tuple[float, str] | None]
    least: float
    most: float
    whole: bool = False


def _default_res_scale(facts: Facts) -> tuple[float, str] | None:
    return None if facts.res_scale is None else (facts.res_scale, "")


def _default_norm_eps(facts: Facts) -> tuple[float, str] | None:
    if facts.live_norms and not (facts.stale_norms and facts.revision.stale_statistics):
        return facts.revision.norm_eps, ""
    return None


def _default_error_comp(facts: Facts) -> tuple[float, str] | None:
    if not facts.revision.qat_drops_error_comp:
        return None
    if facts.qat:
        return 0.0, "as in its quantisation-aware training"
    return 1.0, "as the file has no entries of quantisation-aware training, which leaves it out"


def _default_norm_folded(facts: Facts) -> tuple[float, str] | None:
    return (float(facts.revision.stale_statistics), "") if facts.stale_norms else None


CONSTANTS: Final[Mapping[str, _Constant]] = {
    "img_range": _Constant(default=lambda _: (1.0, ""), least=1e-3, most=1e6),
    "res_scale": _Constant(default=_default_res_scale, least=1e-3, most=1e3),
    "norm_eps": _Constant(default=_default_norm_eps, least=0.0, most=0.1),
    "error_comp": _Constant(default=_default_error_comp, least=0, most=1, whole=True),
    "norm_folded": _Constant(default=_default_norm_folded, least=0, most=1, whole=True),
}
"""By the names under which metadata, `--set` and keywords give them."""


def default_constants(facts: Facts) -> dict[str, float]:
    """The value that each constant has where only the tensors are known."""
    defaults = {key: constant.default(facts) for key, constant in CONSTANTS.items()}
    return {key: default[0] for key, default in defaults.items() if default is not None}


def split_revision(given: Mapping[str, object]) -> tuple[str | None, dict[str, float]]:
    """The name of the revision and the numbers among the constants that a caller gave.

    Raises:
        CheckpointError: There is no such constant, or it is of the wrong type.
    """
    revision: str | None = None
    numbers: dict[str, float] = {}
    for key, value in given.items():
        if key == "revision" and isinstance(value, str):
            revision = value
        elif key in CONSTANTS and isinstance(value, (int, float)):
            numbers[key] = float(value)
        else:
            raise CheckpointError(
                f"{key} cannot be set to {value!r:.60}",
                expected=f"a number for {', '.join(CONSTANTS)}, or a name for revision",
                advice="see `aethernet inspect`, which names the constants of a file",
            )
    return revision, numbers


def resolve_constants(
    facts: Facts, metadata: Mapping[str, object], given: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Value by name, and value with reason for those that were assumed."""
    name = facts.revision.name
    values: dict[str, float] = {}
    assumed: dict[str, str] = {}
    for key, constant in CONSTANTS.items():
        default = constant.default(facts)
        if default is None:
            if key in given:
                raise CheckpointError(
                    f"{key} has no part in this network of revision {name}",
                    advice=f"leave {key} away",
                )
            continue
        if key in given:
            values[key] = _in_range(key, given[key])
            continue
        stated = _metadata_number(metadata, key)
        if stated is not None and _fits(constant, stated):
            values[key] = stated
            continue
        values[key], why = default
        assumed[key] = f"{values[key]:g}, " + (
            why
            or f"the default of {name}: no tensor carries it and the file's metadata do not "
            + ("name it" if stated is None else f"give a usable value ({stated:g})")
        )
    return values, assumed


def _fits(constant: _Constant, value: float) -> bool:
    within = constant.least <= value <= constant.most
    return within and (not constant.whole or value in (0, 1))


def _in_range(key: str, value: float) -> float:
    constant = CONSTANTS[key]
    if not _fits(constant, value):
        raise CheckpointError(
            f"{key} is out of range",
            expected="0 or 1" if constant.whole else f"{constant.least:g} to {constant.most:g}",
            found=f"{value:g}",
            advice="choose a value in this range",
        )
    return float(value)


def _metadata_number(metadata: Mapping[str, object], key: str) -> float | None:
    """A number that the metadata give, within `arch_config` or beside it; text counts as such."""
    arch_config = metadata.get("arch_config")
    places = [cast(Mapping[str, object], arch_config)] if isinstance(arch_config, Mapping) else []
    for place in (*places, metadata):
        value = place.get(key)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                continue
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                continue
    return None
