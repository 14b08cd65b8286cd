"""How large a picture may be, before anything of it is decoded."""

from __future__ import annotations

from typing import Final

from aether_converters.errors import ImageError

MAX_PIXELS: Final = 2**29
"""Largest picture read, in px: 1.6 GB of 8-bit RGB. Beyond it, headers are damaged or hostile."""


def check_size(width: int, height: int) -> None:
    """Refuse a declared size, in px, before memory is spent on it.

    Raises:
        ImageError: No pixels, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise ImageError(
            "the picture has no pixels",
            found=f"{width} x {height} px",
            advice="it is damaged: save it again with the program that made it",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            "the picture is too large",
            expected=f"at most {MAX_PIXELS} px in all",
            found=f"{width} x {height} px",
            advice="cut it into parts and upscale them one by one",
        )


def check_single(count: int, parts: str) -> None:
    """Refuse animations and documents.

    Raises:
        ImageError: `count` is more than 1.
    """
    if count > 1:
        raise ImageError(
            "this is not a single picture",
            expected="one still picture",
            found=f"{count} {parts}",
            advice=f"extract the {parts} first and upscale them one by one",
        )
