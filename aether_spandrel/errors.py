"""What goes wrong, in words a user can act on: one base type for all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self  # `doctor` must run where it is missing

Kind = TypeVar("Kind", bound="AetherError")


class AetherError(Exception):
    """Something cannot be done, and why; the base of every error this project raises on purpose.

    Attributes:
        problem: One sentence that says what is wrong.
        file: The file concerned, where one was opened.
        key: The state-dict key concerned.
        expected: What should have been there.
        found: What was there.
        advice: The next step.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | None = None,
        key: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        advice: str | None = None,
    ) -> None:
        """Describe one problem; every field but `problem` may stay away."""
        super().__init__(problem)
        self.problem = problem
        self.file = file
        self.key = key
        self.expected = expected
        self.found = found
        self.advice = advice

    def __str__(self) -> str:
        """The problem on one line, each known detail on a line of its own."""
        head = f"{self.file}: {self.problem}" if self.file else self.problem
        details = (
            ("key", self.key),
            ("expected", self.expected),
            ("found", self.found),
            ("next", self.advice),
        )
        shown = ((name, text if text.strip() else repr(text)) for name, text in details if text)
        lines = [head, *(f"  {name:<9} {text}" for name, text in shown)]
        return "\n".join(map(one_line, lines))

    def in_file(self, file: Path) -> Self:
        """The same error with the name of the file that it concerns."""
        found = self.as_kind(type(self))
        found.file = file
        return found

    def as_kind(self, kind: type[Kind]) -> Kind:
        """The same error as one of another kind."""
        return kind(
            self.problem,
            file=self.file,
            key=self.key,
            expected=self.expected,
            found=self.found,
            advice=self.advice,
        )


def one_line(text: str) -> str:
    r"""The text with what a terminal would obey, or cannot show, in escapes; line breaks, too.

    >>> one_line("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException, most: int = 300) -> str:
    r"""The first line that says something of what somebody else raised, or what it is.

    >>> reason(ValueError("\n  bad shape\nmore")), reason(KeyError())
    ('bad shape', 'KeyError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:most] for line in lines if line), type(error).__name__)


class CheckpointError(AetherError):
    """A checkpoint cannot be read: damaged, unsafe, or no AetherNet."""
