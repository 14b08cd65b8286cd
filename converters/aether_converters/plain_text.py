"""Texts of other people, such as names of files, for pages that others read."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with what cannot be shown, or is half of a character, in escapes; lines stay.

    >>> printable("a\x1b[31m")
    'a\\x1b[31m'
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
