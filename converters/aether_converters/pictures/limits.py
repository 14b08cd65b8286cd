"""What a picture may cost to read, known before anything of it is decoded."""

from __future__ import annotations

from typing import Final

from aether_converters.errors import ImageError

MAX_PIXELS: Final = 2**29
"""Largest picture read, in px: 1.6 GB of 8-bit RGB. Beyond it, headers are damaged or hostile."""

ALLOWANCE: Final = 2**27  # bytes, of pixels in any file: 44 million px of 8-bit RGB
ALLOWANCE_PER_BYTE: Final = 128  # of the file: more than cameras and scanners compress

LEAST_PER_PIXEL: Final = 2
"""Bytes that each px counts at least: grey and bilevel ones are enlarged as slowly as others."""

MAX_SCANS: Final = 100  # of a JPEG, each of which is a pass over all pixels; sound ones have 14


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


def decoding_budget(file_size: int) -> int:
    """Bytes that decoding a file of `file_size` bytes may fill, or may have to go through."""
    return ALLOWANCE + ALLOWANCE_PER_BYTE * file_size


def check_cost(needed: int, file_size: int, *, pixels: int = 0) -> None:
    """Refuse a file that would swell out of proportion, before it is decoded.

    Args:
        needed: Bytes that its decoder fills, with what it keeps beside the pixels.
        file_size: Bytes of the file.
        pixels: Of the picture, which are then all enlarged.

    Raises:
        ImageError: More than `decoding_budget`.
    """
    budget = decoding_budget(file_size)
    counted = max(needed, LEAST_PER_PIXEL * pixels)
    if counted > budget:
        raise ImageError(
            "the picture is far larger than its file lets expect",
            expected=f"at most {budget} bytes of pixels in a file of {file_size} bytes, "
            f"{LEAST_PER_PIXEL} or more a px",
            found=f"{counted} bytes",
            advice="if it is sound, cut it into parts in a picture editor, and upscale them "
            "one by one",
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
