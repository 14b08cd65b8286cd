"""The command `aethernet`: demo, inspect, convert, release, upscale, verify, bench, doctor."""

from __future__ import annotations

import sys

# As `typing.TYPE_CHECKING`, without the import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, TracebackType
    from typing import Any, Final, NoReturn

# Imports stand in functions, so that signals are heard before anything takes time, `--help` answers
# at once, `inspect` needs no extra, and who presses Ctrl+C early is not shown where Python was.

_hook_before = sys.excepthook


def _before_main(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    """What Python does about an interruption until `main` is there to hear of it."""
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("error: interrupted; no unfinished file was left\n")
    else:
        _hook_before(kind, error, at)


sys.excepthook = _before_main

STOPPING: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGBREAK")
"""Signals by which people, terminals and schedulers ask a process to stop, where they exist."""

STOPPED_BY: Final = 128  # plus the signal's number: the exit status as shells have it


class _Stop(KeyboardInterrupt):
    """Somebody asked this process to stop."""


class _Ear:
    """Hears signals to stop and remembers them: a library may make another error of one."""

    def __init__(self) -> None:
        """Listen to those signals that this process was not started to ignore."""
        import signal

        self.heard = 0
        self._before: dict[int, Any] = {}
        for name in STOPPING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> NoReturn:
        self.heard = number
        raise _Stop

    def rest(self) -> None:
        """Leave signals to whom they were before."""
        import signal

        for number, handler in self._before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 for success, 1 for failure, 2 for usage.

    After a signal to stop it is 128 and the signal's number.
    """
    ear = _Ear()
    sys.excepthook = _hook_before
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments, debug=debug)
    except BaseException as error:
        if ear.heard:
            return _told(KeyboardInterrupt(), debug=False) and STOPPED_BY + ear.heard
        if isinstance(error, (Exception, KeyboardInterrupt)):
            return _told(error, debug=debug)
        raise
    finally:
        ear.rest()


def _run(arguments: Sequence[str] | None, *, debug: bool) -> int:
    from aether_converters.command_line.terminal import (
        finish_streams,
        prepare_streams,
        silence_libraries,
    )

    prepare_streams()
    if not debug:
        silence_libraries()
    from aether_converters.command_line.parser import read_arguments

    options = read_arguments(sys.argv[1:] if arguments is None else arguments)
    status: int = options.run(options)
    finish_streams()
    return status


def _told(error: BaseException, *, debug: bool) -> int:
    """Say what went wrong; returns the exit status."""
    from aether_converters.command_line.terminal import FAILED, abandon, fail, fail_with
    from aether_spandrel.errors import AetherError, reason

    match error:
        case AetherError():
            return fail_with(error)
        case KeyboardInterrupt():
            return fail("interrupted; no unfinished file was left")
        case MemoryError():
            return fail(
                "memory ran out", "  next      close other programs, or try a smaller --tile"
            )
        case BrokenPipeError():
            for stream in (sys.stdout, sys.stderr):
                abandon(stream)
            return FAILED
        case _:
            if debug:
                import traceback

                traceback.print_exception(error)
            return fail(
                f"unexpected {type(error).__name__}: {reason(error)}",
                "  next      run it again with --debug in front, and report the output",
            )
