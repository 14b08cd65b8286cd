"""Texts of other people, such as names of files, for pages that others read."""

from __future__ import annotations

from aether_spandrel.errors import one_line


def printable(text: str) -> str:
    r"""The text with what cannot be shown, or is half of a character, in escapes; lines stay.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "\n".join(map(one_line, text.split("\n")))
