"""What a picture says about itself, as far as it stays true of its enlargement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from PIL import Image

from aether_converters.pictures.faults import DECODER_FAULTS

ICC_TAG: Final = 34675

EXIF_PREFIX: Final = b"Exif\0\0"
ORIENTATION_TAG: Final = 274
EXIF_DIRECTORY: Final = 34665
GPS_DIRECTORY: Final = 34853
CAPTION_TAGS: Final = frozenset(
    (
        *(269, 270, 271, 272),  # document name, description, make and model of the camera
        *(282, 283, 296),  # resolution and its unit
        *(305, 306, 315, 316, 33432),  # software, date, artist, host computer, copyright
        *(18246, 18249, 40091, 40092, 40093, 40094, 40095),  # rating and captions by Windows
        *(EXIF_DIRECTORY, GPS_DIRECTORY),
    )
)
"""The main EXIF tags kept; others tell how one file stores its pixels, untrue of the next file."""

EXIF_SIZE_TAGS: Final = (40962, 40963)  # width and height as the camera wrote them


def read_exif(load: Callable[[], Image.Exif]) -> tuple[int, bytes | None]:
    """Orientation, 1 by default, and the EXIF block that is left when it is applied."""
    orientation = 1
    try:
        exif = load()
        orientation = exif.get(ORIENTATION_TAG, 1)
        for tag in set(exif) - CAPTION_TAGS:
            del exif[tag]
        if EXIF_DIRECTORY in exif:
            for tag in EXIF_SIZE_TAGS:
                exif.get_ifd(EXIF_DIRECTORY).pop(tag, None)
        return orientation, exif.tobytes() if len(exif) else None
    except DECODER_FAULTS:
        return orientation, None
