"""WebP: the size, before Pillow makes room for it."""

from __future__ import annotations


def webp_size(content: bytes) -> tuple[int, int]:
    """Width and height in px of a WebP, from its first chunk.

    Raises:
        ValueError: It ends before, or has none of the three kinds of first chunk.
    """
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        raise ValueError("a WebP that ends in its header")
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[i : i + 3], "little") + 1 for i in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
    else:
        raise ValueError("a WebP without a picture")
    return width, height
