"""What can be asked for is what can be made: lists that are copied, so that starting stays fast."""

from __future__ import annotations

from typing import get_args

from aether_converters.command_line.conversion_options import FORMATS, PRECISIONS
from aether_converters.command_line.upscale import IMAGE_FORMATS
from aether_converters.measuring.exhibit import RUNTIMES
from aether_converters.pictures.formats import ImageFormat
from aether_converters.pictures.jobs import ENDINGS
from aether_converters.runtimes.upscaler import Format
from aether_converters.wanted import Precision


def test_every_format_of_files_can_be_asked_for():
    assert get_args(Format) == FORMATS
    assert set(RUNTIMES) == set(FORMATS)


def test_every_precision_can_be_asked_for():
    assert get_args(Precision) == PRECISIONS


def test_every_format_of_pictures_can_be_asked_for():
    assert (*get_args(ImageFormat), "same") == IMAGE_FORMATS
    assert set(ENDINGS) == set(get_args(ImageFormat))
