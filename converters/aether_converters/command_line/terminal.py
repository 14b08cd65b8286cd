"""What commands show in a terminal: failures, JSON, tables, progress bars."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from aether_converters.errors import OutputError
from aether_spandrel.errors import AetherError, one_line

if TYPE_CHECKING:
    from aether_converters.pictures.jobs import Job

FAILED: Final = 1
LONGEST_ROW: Final = 2000  # characters
STDERR: Final = 2  # its number wherever C is written


def say(*rows: str) -> None:
    """Print rows on stdout: the one way there for texts, whoever wrote them.

    A row is a line whatever it holds: names and metadata of files cannot forge another, nor
    command the terminal.
    """
    _write(sys.stdout, rows)


def tell(*rows: str) -> None:
    """Print rows on stderr, as `say` does."""
    _write(sys.stderr, rows)


def _write(stream: TextIO, rows: Sequence[str]) -> None:
    with written_to(stream):
        for row in rows:
            text = one_line(row)
            if len(text) > LONGEST_ROW:
                text = f"{text[: LONGEST_ROW // 2]}…{text[-LONGEST_ROW // 2 :]}"
            print(text, file=stream)
        stream.flush()  # or files and pipes would have it in the end alone


@contextmanager
def written_to(stream: TextIO) -> Generator[None]:
    """Turn what the operating system says of a stream into an error with advice.

    Raises:
        BrokenPipeError: Whoever read it has gone.
        OutputError: It cannot be written to.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(stream)
        raise OutputError(
            f"what is printed cannot be written: {error.strerror or error}",
            advice="print it to another place",
        ) from error


def fail(*rows: str) -> int:
    """Say on stderr what went wrong; returns the exit status."""
    tell(f"error: {rows[0]}", *rows[1:])
    return FAILED


def fail_with(error: AetherError) -> int:
    """Say on stderr what is wrong, and all that the error knows; returns the exit status."""
    return fail(*str(error).split("\n"))


def print_json(value: object) -> None:
    """Print plain values for scripts, in ASCII, so that every pipe takes them."""
    with written_to(sys.stdout):
        print(json.dumps(value, indent=2, default=str))


def prepare_streams() -> None:
    """Let everything be printed, whatever stdout and stderr are: closed, or of few characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  for as long as we run
            setattr(sys, name, nowhere)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_libraries() -> None:
    """Keep for ourselves the way to stderr, on which libraries in C print what they please.

    What they have to say reaches users in errors, of which each says more.
    """
    stream = sys.stderr
    with contextlib.suppress(OSError, ValueError):
        if stream is not sys.__stderr__ or stream.fileno() != STDERR:
            return
        stream.flush()
        ours = os.dup(STDERR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, STDERR)
        os.close(nowhere)
        sys.stderr = os.fdopen(
            ours, "w", encoding=stream.encoding, errors=stream.errors, buffering=1
        )


def finish_streams() -> None:
    """Write what is still waiting to be printed.

    Raises:
        BrokenPipeError: Whoever read it has gone.
        OutputError: It cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        with written_to(stream):
            stream.flush()


def abandon(stream: TextIO) -> None:
    """Let what waits in a stream go nowhere; Python would complain about it while exiting."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def rich_module(module: str) -> Any:
    """A module of rich, which only commands with progress bars and tables need."""
    from aether_converters.errors import require

    return require(f"rich.{module}")


class Table:
    """Rows of cells that are shown as they are: neither markup nor control characters count."""

    def __init__(self, title: str, columns: Sequence[tuple[str, str]]) -> None:
        """Begin a table of named columns, each with its justification."""
        self._rich = rich_module("table").Table(title=cell(title), title_justify="left")
        for column, justify in columns:
            self._rich.add_column(column, justify=justify, overflow="fold")

    def add_row(self, *cells: str, stressed: bool = False) -> None:
        """Add a row, whose last cell may stand out."""
        *texts, last = map(cell, cells)
        self._rich.add_row(*texts, f"[bold]{last}[/]" if stressed else last)

    def add_section(self) -> None:
        """Draw a line below the rows so far."""
        self._rich.add_section()

    def show(self) -> None:
        """Print the table on stdout."""
        with written_to(sys.stdout):
            console(sys.stdout).print(self._rich)


def cell(text: str) -> str:
    """A text for rich that means nothing but itself."""
    return rich_module("markup").escape(one_line(text))


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
        self._bar.update(self._task, advance=1 if started else 0, description=cell(self._step))

    def detail(self, part: str, done: int, total: int) -> None:
        """Say how far a part of the step is."""
        self._bar.update(self._task, description=cell(f"{self._step}, {part} {done}/{total}"))


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
        redirect_stdout=sys.stdout.isatty(),  # elsewhere lines would go where the bar goes
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
            bar.update(current, completed=0, total=None, description=cell(job.source.name))

        def on_pixels(done: int, total: int) -> None:
            bar.update(current, completed=done, total=total)

        yield on_picture, on_pixels
