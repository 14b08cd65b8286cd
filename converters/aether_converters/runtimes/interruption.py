"""Work in libraries that do not hear of Ctrl-C, ended by it nonetheless."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")

PATIENCE: Final = 0.1  # s; how soon an interruption is noticed
LAST_WORD: Final = 5.0  # s; how long work is waited for that was told to end


def interruptible(work: Callable[[], Result], end: Callable[[], None]) -> Result:
    """What `work` gives, computed in a thread of its own while this one hears of interruptions.

    Args:
        work: What is to be done; what it raises is raised here.
        end: Tells it to end, where it can be told.
    """
    results: list[Result] = []
    failures: list[BaseException] = []
    ended = threading.Event()

    def done() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again in the thread that waits
            failures.append(error)
        finally:
            ended.set()

    # What cannot be told to end must not keep the program from ending.
    threading.Thread(target=done, name="aether-interruptible", daemon=True).start()
    try:
        while not ended.wait(PATIENCE):
            pass
    except BaseException:
        end()
        ended.wait(LAST_WORD)
        raise
    for failure in failures:
        raise failure
    return results[0]
