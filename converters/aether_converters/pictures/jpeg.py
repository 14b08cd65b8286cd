"""JPEG, as far as decoders keep it to themselves: what it costs, and whether it is damaged."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import imagecodecs

from aether_converters.errors import ImageError
from aether_converters.pictures.limits import MAX_SCANS, check_cost, check_size
from aether_converters.pictures.metadata import XMP_PREFIX
from aether_converters.pictures.picture import Picture

MARKER: Final = re.compile(rb"\xff+([^\x00\xff])")
END_OF_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
RESTART: Final = re.compile(rb"\xff[\xd0-\xd7]")

START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
RESTART_INTERVAL, START_OF_SCAN, END_OF_IMAGE = 0xDD, 0xDA, 0xD9
ALONE: Final = frozenset((0x01, 0xD8, *range(0xD0, 0xD8)))  # markers without content

EXIF_OR_XMP, COMMENT = 0xE1, 0xFE
LONGEST_SEGMENT: Final = 65533  # bytes

DAMAGED: Final = "the JPEG is damaged: some of its pixels are missing or wrong"

TAIL: Final = 8  # bytes; fewer may be left over, as some cameras leave them
NO_CODE: Final = 8 * b"\xff\0"  # as many bits as a decoder reads ahead, no code of any picture


class Scan(NamedTuple):
    """Coded data: its header, where it starts and ends, and units between restart markers or 0."""

    header: bytes
    start: int
    end: int
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """The plan of a JPEG.

    Attributes:
        frame: The marker that says how it is coded.
        width: In px.
        height: In px.
        bits: Per sample.
        sampling: Horizontal and vertical samples of each component.
        scans: In their order.
        segments: Marker and content of what stands before the first scan.
        end: Where its end marker is; None if it has none.
    """

    frame: int
    width: int
    height: int
    bits: int
    sampling: tuple[tuple[int, int], ...]
    scans: tuple[Scan, ...]
    segments: tuple[tuple[int, bytes], ...]
    end: int | None

    @property
    def cost(self) -> int:
        """Bytes that a decoder fills; if there are several scans, it keeps coefficients."""
        pixels = self.width * self.height
        most = max((h * v for h, v in self.sampling), default=1) or 1
        samples = sum(h * v for h, v in self.sampling) * pixels // most
        several = len(self.scans) > 1 or self.frame == PROGRESSIVE
        return pixels * len(self.sampling) + (2 * samples if several else 0)


def parse_jpeg(content: bytes) -> Jpeg:
    """The plan of a JPEG, read as decoders read it: what is between markers is passed over.

    Raises:
        ValueError: It has no pixels.
        ImageError: It has too many scans.
    """
    frame, header, restarts, end = 0, b"", 0, None
    scans: list[Scan] = []
    segments: list[tuple[int, bytes]] = []
    for marker, start, stop, following in _markers(content):
        body = content[start:stop]
        if marker == END_OF_IMAGE:
            end = start - 2
        elif marker in START_OF_FRAME and not frame:
            frame, header = marker, body
        elif marker == RESTART_INTERVAL and len(body) >= 2:
            restarts = int.from_bytes(body[:2], "big")
        elif marker == START_OF_SCAN:
            scans.append(Scan(body, stop, following, restarts))
        elif not scans:
            segments.append((marker, body))
        if len(scans) > MAX_SCANS:
            raise ImageError(
                "the JPEG has more scans than any picture needs",
                expected=f"at most {MAX_SCANS}",
                advice="if it is sound, open it in a picture editor and save it again",
            )
    if len(header) < 6 or not scans:
        raise ValueError("a JPEG without pixels")
    return Jpeg(
        frame=frame,
        bits=header[0],
        height=int.from_bytes(header[1:3], "big"),
        width=int.from_bytes(header[3:5], "big"),
        sampling=tuple((byte >> 4, byte & 15) for byte in header[7 : 6 + 3 * header[5] : 3]),
        scans=tuple(scans),
        segments=tuple(segments),
        end=end,
    )


def _markers(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Each marker, where its content starts and ends, and where coded data behind it ends.

    They end with the first picture's end marker; previews behind it are none of ours.
    """
    place = 2
    while found := MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        if marker in ALONE:
            continue
        if marker == END_OF_IMAGE:
            yield marker, place, place, place
            return
        length = int.from_bytes(content[place : place + 2], "big")
        start, stop = place + 2, place + max(length, 2)
        place = stop
        if marker == START_OF_SCAN:
            following = END_OF_SCAN.search(content, stop)
            place = following.start() if following else len(content)
        yield marker, start, stop, place


def check_jpeg(jpeg: Jpeg, file_size: int) -> None:
    """Refuse what would cost too much.

    Raises:
        ImageError: By its size in px, or the bytes that decoding it takes.
    """
    check_size(jpeg.width, jpeg.height)
    check_cost(jpeg.cost, file_size, pixels=jpeg.width * jpeg.height)


class WatchedJpeg(io.BytesIO):
    """A JPEG as a stream that learns how much its decoder had to read.

    Decoders pass over damage: they fill up what is missing with grey. So the last bytes are handed
    out last, then bits that are no code, then the end marker: a decoder of a sound picture asks
    for the first and not for the end.
    """

    def __init__(self, content: bytes, jpeg: Jpeg) -> None:
        """Watch one reading of `content`."""
        _, start, end, _ = jpeg.scans[-1]
        self._watched = jpeg.end is not None and jpeg.frame in (BASELINE, EXTENDED)
        watched = b"".join((memoryview(content)[:end], NO_CODE, b"\xff\xd9\xff\xd9"))
        super().__init__(watched if self._watched else content)
        self._tail = max(start, end - TAIL)
        self._end = end + len(NO_CODE)
        self._reached = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes up to the next place that is watched."""
        if not self._watched:
            return super().read(size)
        place = self.tell()
        stop = next((stop for stop in (self._tail, self._end) if stop > place), None)
        if stop is not None:
            size = stop - place if size is None or size < 0 else min(size, stop - place)
        found = super().read(size)
        self._reached = max(self._reached, self.tell())
        return found

    @property
    def is_sound(self) -> bool:
        """Whether the decoder needed all of the coded data, and no more."""
        return not self._watched or self._tail < self._reached <= self._end


def is_damaged(content: bytes, jpeg: Jpeg, stream: WatchedJpeg) -> bool:
    """Whether a JPEG that has been decoded from `stream` lacks pixels, or has wrong ones.

    A decoder that starts anew at restart markers or reads several scans ends in order after damage
    between them: such a file is read once more by a stricter reader, if that knows its kind.
    """
    if not stream.is_sound or not _is_complete(jpeg):
        return True
    restarting = [scan for scan in jpeg.scans if scan.restarts]
    if not restarting and jpeg.frame in (BASELINE, EXTENDED) and len(jpeg.scans) == 1:
        return False
    if any(_restarts_out_of_order(content, jpeg, scan) for scan in restarting):
        return True
    known = jpeg.bits == 8 and len(jpeg.sampling) in (1, 3) and jpeg.frame <= PROGRESSIVE
    if not known or len({scan.restarts for scan in jpeg.scans}) > 1:
        return False
    end = len(content) if jpeg.end is None else jpeg.end + 2
    try:
        imagecodecs.jpegxl_encode_jpeg(content[:end])
    except (imagecodecs.JpegxlError, ValueError, RuntimeError):
        return True
    except ImportError:  # imagecodecs can be built without it
        pass
    return False


def _is_complete(jpeg: Jpeg) -> bool:
    """Whether the scans bring every coefficient of every component down to its last bit."""
    missing = {(c, k): True for c in range(len(jpeg.sampling)) for k in range(64)}
    order: dict[int, int] = {}
    for header, *_ in jpeg.scans:
        count = header[0] if header else 0
        names = header[1 : 1 + 2 * count : 2]
        if len(header) < 4 + 2 * count:
            return False
        first, last, bit = header[-3], header[-2], header[-1] & 15
        if jpeg.frame != PROGRESSIVE:
            first, last, bit = 0, 63, 0
        for name in names:
            component = order.setdefault(name, len(order))
            for coefficient in range(first, min(last, 63) + 1):
                missing[component, coefficient] = bit > 0
    return not any(missing.values())


def _restarts_out_of_order(content: bytes, jpeg: Jpeg, scan: Scan) -> bool:
    """Whether restart markers of a scan are missing, or do not count from 0 to 7 in turn."""
    found = RESTART.findall(content, scan.start, scan.end)
    in_turn = all(marker[1] & 7 == index & 7 for index, marker in enumerate(found))
    across = max((h for h, _ in jpeg.sampling), default=1) or 1
    down = max((v for _, v in jpeg.sampling), default=1) or 1
    if scan.header[0] == 1:  # a component by itself has units of one block
        return not in_turn
    units = -(-jpeg.width // (8 * across)) * -(-jpeg.height // (8 * down))
    return not in_turn or len(found) != (units - 1) // scan.restarts


def jpeg_segments(picture: Picture) -> bytes:
    """XMP and comments of a picture, as they stand in a JPEG."""
    bodies = [(COMMENT, text.split(b"\0")[-1]) for _, text in picture.texts]
    if picture.xmp:
        bodies.insert(0, (EXIF_OR_XMP, XMP_PREFIX + picture.xmp))
    return b"".join(
        struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
        for marker, body in bodies
        if len(body) <= LONGEST_SEGMENT
    )
