"""Whose a model is, as far as anybody says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model was trained; what was not said is None or empty.

    Attributes:
        iterations: Updates of the weights.
        epochs: Rounds through the data.
        batch_size: Pictures of one update.
        hr_size: Side of these in px, before they are made smaller.
        otf: Whether they were damaged on the fly.
        dataset: In words, or by the names of a model hub, such as someone/photographs.
        dataset_size: Pictures in it.
        base: Models from whose weights it began, by the names of OpenModelDB (2x-Some-Model) or of
            a model hub (someone/some-model).
    """

    iterations: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    hr_size: int | None = None
    otf: bool | None = None
    dataset: str = ""
    dataset_size: int | None = None
    base: tuple[str, ...] = ()

    def or_else(self, other: Training) -> Training:
        """This, with what it does not say taken from another."""
        said = {name: value for name, value in vars(self).items() if value not in (None, "", ())}
        return Training(**{**vars(other), **said})


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What its author says of a model; what was not said is empty, and never invented.

    Attributes:
        name: Of the model.
        author: One or more people, separated by commas.
        licence: By its SPDX identifier where it has one, such as CC-BY-4.0.
        description: What the model is for, in Markdown.
        tags: Such as photo or anime.
        training: How it was trained.
    """

    name: str = ""
    author: str = ""
    licence: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        """Leave out halves of characters, which no file can hold."""
        for name in ("name", "author", "licence", "description"):
            whole = str(getattr(self, name)).encode("utf-8", "replace").decode()
            object.__setattr__(self, name, whole)

    def or_else(self, other: ModelCard) -> ModelCard:
        """This card, with what it does not say taken from another."""
        said = {name: value for name, value in vars(self).items() if value}
        whole = ModelCard(**{**vars(other), **said})
        return replace(whole, training=self.training.or_else(other.training))

    def as_dict(self) -> dict[str, object]:
        """All of it as JSON-ready values."""
        return asdict(self)

    def as_metadata(self) -> dict[str, object]:
        """What artefacts say of it, under the field's usual keys."""
        return {
            key: value
            for key, value in (("author", self.author), ("license", self.licence))
            if value
        }


def card_in(metadata: Mapping[str, object]) -> ModelCard:
    """What a file states: author and licence, one line each and not too long; its training."""
    found = {
        name: next((text for key in keys if (text := _line(metadata.get(key)))), "")
        for name, keys in ENTRIES.items()
    }
    return ModelCard(
        author=found["author"],
        licence=found["licence"],
        training=Training(
            iterations=_count(metadata, ("iter", "iteration", "iterations", "global_step")),
            epochs=_count(metadata, ("epoch", "epochs")),
        ),
    )


MOST_COUNTED: Final = 10**9


def _count(metadata: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    """The first positive number among entries, of those that a training can have."""
    values = (metadata.get(name) for name in names)
    counts = (value for value in values if type(value) is int and 0 < value <= MOST_COUNTED)
    return next(counts, None)


def _line(value: object) -> str:
    """A text without what cannot be seen; empty if it is none."""
    if not isinstance(value, str):
        return ""
    text = " ".join("".join(c if c.isprintable() else " " for c in value[: 4 * LONGEST]).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


LONGEST: Final = 200  # characters of an entry that is taken from a file


ENTRIES: Final[Mapping[str, tuple[str, ...]]] = {
    "author": ("author", "authors", "modelspec.author", "creator"),
    "licence": ("license", "licence", "modelspec.license"),
}
"""By what names files state each, the first one found is taken."""
