"""What a file is, told by its first bytes: for files that are not what their names say."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 512
"""So many of a file's first bytes tell every kind."""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: In words, with an article.
        begins: What its first bytes match.
        advice: The next step, whatever was expected instead; empty where there is none.
    """

    name: str
    begins: re.Pattern[bytes]
    advice: str = ""


def _kind(name: str, begins: bytes, advice: str = "") -> FileKind:
    return FileKind(name=name, begins=re.compile(begins, re.DOTALL), advice=advice)


UNPACK: Final = "if what was meant is inside, unpack it first"
SAVE_AS_PNG: Final = (
    "if this is the picture that was meant, save it as PNG in a program that shows it"
)
DOWNLOAD: Final = "download the file itself: this is a page about it, or says why there is none"
FRAMES: Final = (
    "mkdir frames && ffmpeg -i video.mp4 frames/%06d.png makes pictures of its frames, which can "
    "be enlarged; docs/video.md has the way back, with the sound, and the one through VapourSynth"
)

KINDS: Final = (
    _kind(
        "a Git LFS pointer, not the file itself",
        rb"version https://(git-lfs|hawser)\.github\.com/spec/",
        "fetch the file itself with: git lfs pull",
    ),
    _kind("an SVG drawing", rb"(?i)\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!DOCTYPE\s+)?svg\b"),
    _kind(
        "a web page",
        rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*"
        rb"<(!DOCTYPE\s+html|html|head|body|title|meta|script)\b",
        DOWNLOAD,
    ),
    _kind("an OpenVINO model", rb"\s*<\?xml[^>]*>\s*<net\b"),
    _kind("an XML text", rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml\b|[a-z][\w:]*[\s/>])", DOWNLOAD),
    _kind("a PNG picture", rb"\x89PNG"),
    _kind("a JPEG picture", rb"\xff\xd8\xff"),
    _kind("a GIF picture", rb"GIF8[79]a"),
    _kind("a WebP picture", rb"RIFF....WEBP"),
    _kind("a TIFF picture", rb"II[*+]\0|MM\0[*+]"),
    _kind("a BMP picture", rb"BM.{4}\0{4}"),
    _kind("an AVIF picture", rb"....ftyp(avi[fs]|(mif1|msf1).{4}(.{4}){0,12}?avi[fs])"),
    _kind("a HEIC picture", rb"....ftyp(hei[cmsxf]|hev[cmsx]|mif1|msf1)", SAVE_AS_PNG),
    _kind("a camera's raw picture", rb"....ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\0", SAVE_AS_PNG),
    _kind("a JPEG XL picture", rb"\xff\x0a|\0\0\0\x0cJXL ", SAVE_AS_PNG),
    _kind("a JPEG 2000 picture", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", SAVE_AS_PNG),
    _kind("a Photoshop picture", rb"8BPS", SAVE_AS_PNG),
    _kind("an OpenEXR picture", rb"\x76\x2f\x31\x01", SAVE_AS_PNG),
    _kind("a GIMP picture", rb"gimp xcf", SAVE_AS_PNG),
    _kind("a QOI picture", rb"qoif", SAVE_AS_PNG),
    _kind("a DDS texture", rb"DDS \x7c\0\0\0", SAVE_AS_PNG),
    _kind("an icon", rb"\0\0[\x01\x02]\0[^\0]\0"),
    _kind("a PNM picture", rb"P[1-7]\s"),
    _kind("a PDF document", rb"%PDF-"),
    _kind("a video", rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ", FRAMES),
    _kind("a safetensors file", rb".{3}\0{5}\{"),
    _kind("a zip archive, perhaps a PyTorch file", rb"PK(\x03\x04|\x05\x06)"),
    _kind("a pickle", rb"\x80[\x02-\x05]"),
    _kind("an HDF5 file, as Keras writes them", rb"\x89HDF"),
    _kind("a NumPy file", rb"\x93NUMPY"),
    _kind("a GGUF file", rb"GGUF"),
    _kind("a TensorFlow Lite model", rb"....TFL3"),
    _kind("the parameters of an ncnn model", rb"7767517\s"),
    _kind("a gzip archive", rb"\x1f\x8b", UNPACK),
    _kind("a 7-Zip archive", rb"7z\xbc\xaf", UNPACK),
    _kind("a RAR archive", rb"Rar!", UNPACK),
    _kind("an xz archive", rb"\xfd7zXZ", UNPACK),
    _kind("a Zstandard archive", rb"\x28\xb5\x2f\xfd", UNPACK),
    _kind("a bzip2 archive", rb"BZh[1-9]", UNPACK),
    _kind("a tar archive", rb".{257}ustar", UNPACK),
    _kind("a program", rb"\x7fELF|MZ.{58}|[\xcf\xce]\xfa\xed\xfe"),
    _kind("a script", rb"#!"),
    _kind(
        "what macOS keeps beside a file on foreign disks",
        rb"\0\x05\x16\x07",
        "name the file without the ._ before its name",
    ),
    _kind(
        "a shortcut to a file or page",
        rb"L\0\0\0\x01\x14\x02\0|\[InternetShortcut\]|book\0\0\0\0mark",
        "name the file to which it leads",
    ),
    _kind(
        "zeros alone, as a download leaves them that has not ended",
        rb"\0{256}",
        "download or copy the file again",
    ),
    _kind("a TensorRT engine", rb"[fp]trt"),
    _kind("perhaps an ONNX file", rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]"),
    _kind("a JSON text", rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[\]}]", DOWNLOAD),
)
"""Every kind that is told; the first that matches counts."""

TEXT: Final = FileKind(name="a text", begins=re.compile(b""))
"""What is no other kind and consists of characters."""


def kind_of(head: bytes) -> FileKind | None:
    """The kind of a file from its first `HEAD_BYTES`, or None if it is none of those known."""
    for kind in KINDS:
        if kind.begins.match(head):
            return kind
    return TEXT if _is_text(head) else None


def describe_head(head: bytes) -> str:
    """What a file is, in words: its kind, or else its first bytes.

    >>> describe_head(b"GIF89a"), describe_head(b"")
    ('a GIF picture', 'nothing')
    """
    kind = kind_of(head)
    if kind is not None:
        return kind.name
    return f"bytes {head[:8].hex(' ')}" if head else "nothing"


def _is_text(head: bytes) -> bool:
    utf_16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if utf_16 else "utf-8-sig")()
    try:
        text = decoder.decode(head)  # which may end within a character
    except UnicodeDecodeError:
        return False
    return bool(text) and all(char.isprintable() or char in "\t\r\n\f" for char in text)
