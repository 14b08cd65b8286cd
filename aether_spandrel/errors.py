"""The one exception that reading a checkpoint raises."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(Exception):
    """A checkpoint cannot be read, and why.

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
        return "\n".join([head, *(f"  {name:<9} {text}" for name, text in details if text)])

    def in_file(self, file: Path) -> CheckpointError:
        """The same error with the name of the file that it concerns."""
        return CheckpointError(
            self.problem,
            file=file,
            key=self.key,
            expected=self.expected,
            found=self.found,
            advice=self.advice,
        )
