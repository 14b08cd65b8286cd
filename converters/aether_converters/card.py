"""Whose a model is, as far as anybody says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What its author says of a model; what was not said is empty, and never invented.

    Attributes:
        name: Of the model.
        author: One or more people, separated by commas.
        licence: By its SPDX identifier where it has one, such as CC-BY-4.0.
        description: What the model is for, in Markdown.
        tags: Such as photo or anime.
    """

    name: str = ""
    author: str = ""
    licence: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Leave out halves of characters, which no file can hold."""
        for name in ("name", "author", "licence", "description"):
            whole = str(getattr(self, name)).encode("utf-8", "replace").decode()
            object.__setattr__(self, name, whole)

    def or_else(self, other: ModelCard) -> ModelCard:
        """This card, with what it does not say taken from another."""
        said = {name: value for name, value in vars(self).items() if value}
        return ModelCard(**{**vars(other), **said})

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
    """Author and licence as a file states them: one line each, not too long."""
    found = {
        name: next((text for key in keys if (text := _line(metadata.get(key)))), "")
        for name, keys in ENTRIES.items()
    }
    return ModelCard(author=found["author"], licence=found["licence"])


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
