"""What fails for want of memory or descriptors is not blamed on the instance."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from dicom_objects import Making

from dicom_node.errors import PixelError
from dicom_node.instance import parsing
from dicom_node.instance.codecs import jpeg2000, jpegls, rle
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.frames import open_instance
from dicom_node.instance.model import PixelForm

FORM = PixelForm(64, 64, 1, 16, 16, False, "MONOCHROME2", 0)
CODES = np.arange(4096, dtype=np.uint16).reshape(64, 64)
CODECS: list[tuple[ModuleType, str, str, str]] = [
    (jpegls, "jpeg_ls", "decode_buffer", "encode_buffer"),
    (jpeg2000, "_openjpeg", "decode_pixel_data", "encode_buffer"),
    (rle, "_rle", "decode_pixel_data", "encode_pixel_data"),
]


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Return a function after which this process can open nothing more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("codec", "library", "decode", "encode"), CODECS)
def test_a_codec_out_of_memory_says_nothing_of_the_frame(
    codec: ModuleType, library: str, decode: str, encode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = codec.encode(CODES, FORM, 16)
    for error, expected in ((MemoryError(), MemoryError), (RuntimeError("bad"), PixelError)):
        monkeypatch.setattr(getattr(codec, library), decode, raising(error))
        monkeypatch.setattr(getattr(codec, library), encode, raising(error))
        with pytest.raises(expected):
            codec.decode(code, FORM)
        with pytest.raises(expected):
            codec.encode(CODES, FORM, 16)


def test_a_parser_out_of_memory_says_nothing_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((MemoryError(), MemoryError), (KeyError("bad"), PixelError)):
        monkeypatch.setattr(parsing, "read_dataset", raising(error))
        with pytest.raises(expected):
            parsing.parse_header(bytes(8), implicit=True, little=True)


def test_a_file_that_is_gone_is_reported_as_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_data_file(tmp_path / "gone.dcm")


def test_without_descriptors_nothing_is_said_of_the_file(
    tmp_path: Path, no_descriptors: Callable[[], None]
) -> None:
    source = Making(CODES).save(tmp_path / "source.dcm")
    open_instance(source, max_pixels=1 << 20).close()
    no_descriptors()
    with pytest.raises(OSError, match="Too many open files") as caught:
        open_instance(source, max_pixels=1 << 20)
    assert caught.value.errno == errno.EMFILE
