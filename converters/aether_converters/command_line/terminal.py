"""What commands show in a terminal: failures, JSON, tables, progress bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aether_converters.pictures.jobs import Job

FAILED: Final = 1


def fail(text: str) -> int:
    """Say on stderr what went wrong; returns the exit status."""
    print(f"error: {text}", file=sys.stderr)
    return FAILED


def print_json(value: object) -> None:
    """Print plain values for scripts."""
    print(json.dumps(value, indent=2, default=str))


def rich_module(module: str) -> Any:
    """A module of rich, which only commands with progress bars and tables need."""
    from aether_converters.errors import require

    return require(f"rich.{module}")


def table_of(title: str, columns: Sequence[tuple[str, str]]) -> Any:
    """An empty table of named columns, each with its justification."""
    table = rich_module("table").Table(
        title=rich_module("markup").escape(title), title_justify="left"
    )
    for column, justify in columns:
        table.add_column(column, justify=justify, overflow="fold")
    return table


def console(stream: Any) -> Any:
    """A console of rich on a stream."""
    # Where nobody looks, in a pipe or a log, a table must not be squeezed into 80 columns.
    return rich_module("console").Console(file=stream, width=None if stream.isatty() else 160)


@contextmanager
def progress(title: str, steps: int, *, quiet: bool) -> Generator[Steps]:
    """A progress bar on stderr that moves on with each step that is named."""
    rich: Any = rich_module("progress")
    bar = rich.Progress(
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        console=console(sys.stderr),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        yield Steps(bar, title, bar.add_task(title, total=steps))


class Steps:
    """Moves a progress bar on with each step that is named."""

    def __init__(self, bar: Any, title: str, task: Any) -> None:
        """Move `task` of a progress bar."""
        self._bar = bar
        self._title = title
        self._task = task
        self._step = ""

    def __call__(self, step: str) -> None:
        """Begin a step, and so end the one before."""
        started = bool(self._step)
        self._step = f"{self._title}: {step}"
        self._bar.update(self._task, advance=1 if started else 0, description=self._step)

    def detail(self, part: str, done: int, total: int) -> None:
        """Say how far a part of the step is."""
        self._bar.update(self._task, description=f"{self._step}, {part} {done}/{total}")


@contextmanager
def picture_progress(
    pictures: int, *, quiet: bool
) -> Generator[tuple[Callable[[Job], None], Callable[[int, int], None]]]:
    """Progress bars on stderr for all pictures and for the current one."""
    rich: Any = rich_module("progress")
    bar = rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeRemainingColumn(elapsed_when_finished=True),
        console=console(sys.stderr),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        overall = bar.add_task("pictures", total=pictures)
        current = bar.add_task("", total=None)
        begun = 0

        def on_picture(job: Job) -> None:
            nonlocal begun
            begun += 1
            title = f"picture {begun} of {pictures}"
            bar.update(overall, completed=begun - 1, description=title)
            bar.update(current, completed=0, total=None, description=job.source.name)

        def on_pixels(done: int, total: int) -> None:
            bar.update(current, completed=done, total=total)

        yield on_picture, on_pixels
