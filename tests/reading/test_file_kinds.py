"""A file that is not what its name says is told as what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import helper
from PIL import Image

from aether_spandrel import CheckpointError
from aether_spandrel.checkpoint import read_checkpoint
from aether_spandrel.file_kinds import HEAD_BYTES, KINDS, describe_head, kind_of


def picture(form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, form, **options)
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.pth"))
    return stream.getvalue()


def onnx_model() -> bytes:
    graph = helper.make_graph([], "a", [], [])
    return helper.make_model(graph, producer_name="").SerializeToString()


def saved(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4" * 64 + b"\nsize 123456\n"


def box(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of the ISO base media format."""
    content = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(content) + 4) + content + bytes(100)


FILES = {
    "a Git LFS pointer, not the file itself": [LFS, LFS.replace(b"git-lfs", b"hawser")],
    "a web page": [
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"\n\n  <!doctype HTML>\n<html lang=en>",
        b"\xef\xbb\xbf<html><head><title>Sign in</title>",
        b"<!-- made by a proxy -->\n<HTML>",
        b'<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">',
    ],
    "an XML text": [b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'],
    "a JSON text": [b'{"error":"Repository not found"}', b'[\n  {"a": 1}]', b"{}"],
    "a text": [b"Not Found", "Nicht gefunden: Größe".encode(), "kein Bild".encode("utf-16")],
    "an SVG drawing": [b'<svg xmlns="http://www.w3.org/2000/svg">'],
    "an OpenVINO model": [b'<?xml version="1.0"?>\n<net name="a" version="11">'],
    "a PNG picture": [picture("PNG")],
    "a JPEG picture": [picture("JPEG"), picture("JPEG", progressive=True)],
    "a GIF picture": [picture("GIF")],
    "a WebP picture": [picture("WEBP"), picture("WEBP", lossless=True)],
    "a TIFF picture": [picture("TIFF"), b"MM\0*" + bytes(50), b"II+\0" + bytes(50)],
    "a BMP picture": [picture("BMP")],
    "an icon": [picture("ICO", sizes=[(8, 8)])],
    "a PNM picture": [picture("PPM")],
    "a DDS texture": [picture("DDS")],
    "a JPEG 2000 picture": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(9)],
    "a JPEG XL picture": [b"\xff\x0a" + b"\x7f" * 9, b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9)],
    "a HEIC picture": [
        box(b"heic", b"mif1", b"heic"),
        box(b"mif1", b"heic", b"miaf"),
        box(b"hevc"),
    ],
    "an AVIF picture": [box(b"avif", b"mif1"), box(b"mif1", b"miaf", b"avif")],
    "a video": [box(b"isom", b"mp42"), b"\x1a\x45\xdf\xa3" + bytes(40)],
    "a PDF document": [b"%PDF-1.7\n"],
    "a safetensors file": [safetensors.torch.save({"a": torch.zeros(3)})],
    "a zip archive, perhaps a PyTorch file": [saved(True)],
    "a pickle": [saved(False)],
    "perhaps an ONNX file": [onnx_model(), b"\x08\x08\x12\x07pytorch"],
    "a NumPy file": [numpy_file()],
    "an HDF5 file, as Keras writes them": [b"\x89HDF\r\n\x1a\n" + bytes(20)],
    "a GGUF file": [b"GGUF\3\0\0\0"],
    "the parameters of an ncnn model": [b"7767517\n75 83\n"],
    "a gzip archive": [gzip.compress(b"a")],
    "a bzip2 archive": [bz2.compress(b"a")],
    "an xz archive": [lzma.compress(b"a")],
    "a tar archive": [tar()],
    "a program": [b"\x7fELF\2\1\1" + bytes(50), b"MZ\x90\0" + bytes(100)],
    "a script": [b"#!/bin/sh\n"],
    "what macOS keeps beside a file on foreign disks": [b"\0\x05\x16\x07\0\x02\0\0Mac OS X"],
    "zeros alone, as a download leaves them that has not ended": [bytes(10_000)],
    "nothing": [b""],
    "bytes 13 37 c0 de": [b"\x13\x37\xc0\xde"],
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_first_bytes(name: str):
    assert {describe_head(content[:HEAD_BYTES]) for content in FILES[name]} == {name}


def test_an_onnx_model_of_this_library_is_one(tmp_path: Path):
    onnx.save(onnx.load_model_from_string(onnx_model()), str(tmp_path / "a.onnx"))
    assert describe_head((tmp_path / "a.onnx").read_bytes()) == "perhaps an ONNX file"


def test_random_bytes_are_seldom_taken_for_a_kind():
    rng = np.random.default_rng(0)
    told = sum(kind_of(rng.bytes(HEAD_BYTES)) is not None for _ in range(5000))
    assert told < 10


def test_each_kind_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("a Git LFS pointer, not the file itself", "git lfs pull"),
        ("a web page", "download the file itself"),
        ("a HEIC picture", "save it as PNG"),
        ("a gzip archive", "unpack it first"),
        ("a JSON text", "download the file itself"),
    ],
)
def test_a_checkpoint_that_is_something_else_comes_with_the_step_that_helps(
    tmp_path: Path, kind: str, advice: str
):
    path = tmp_path / "model.pth"
    for content in FILES[kind]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert caught.value.found == kind
        assert advice in (caught.value.advice or "")
