"""From stored frames back to a file: losslessly coded, streamed, the same bytes every time."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pydicom.dataset import Dataset

from dicom_node.instance.codecs import jpeg2000, jpegls, native, rle
from dicom_node.instance.frames import Instance
from dicom_node.instance.model import Codes, PixelForm, StoredFrame, pack
from dicom_node.instance.parsing import own_copy, text_in
from dicom_node.instance.rewrite import (
    EXTENDED_OFFSETS,
    Sink,
    copy_with_header,
    item_header,
    write_file,
)
from dicom_node.instance.syntaxes import EXPLICIT_LE, JPEG_2000, JPEG_LS, SYNTAXES, Syntax
from dicom_node.instance.values import tag_of

__all__ = ["FrameWriter", "OutputFormat", "copy_with_header", "output_format"]

_IN_MEMORY_BYTES = 8 << 20
_CHUNK = 1 << 20
_PHOTOMETRIC = 0x00280004
_ENCODERS: dict[str, Callable[[Codes, PixelForm, int], bytes]] = {
    "rle": rle.encode,
    "jpeg-ls": jpegls.encode,
    "jpeg-2000": jpeg2000.encode,
}


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How the marked instance will be coded, and what its header has to say about it."""

    transfer_syntax_uid: str
    photometric_interpretation: str
    planar_configuration: int

    @property
    def syntax(self) -> Syntax:
        """The row of the transfer syntax."""
        return SYNTAXES[self.transfer_syntax_uid]

    def apply(self, header: Dataset) -> None:
        """Set the attributes that describe the coding, where they differ."""
        if text_in(header, _PHOTOMETRIC) != self.photometric_interpretation:
            header.PhotometricInterpretation = self.photometric_interpretation
        coloured = not self.photometric_interpretation.startswith("MONOCHROME")
        if coloured and header.get("PlanarConfiguration") != self.planar_configuration:
            header.PlanarConfiguration = self.planar_configuration
        present = header.keys()
        for tag in map(tag_of, EXTENDED_OFFSETS):
            if tag in present:
                del header[tag]


def output_format(instance: Instance) -> OutputFormat:
    """Return the format a marked `instance` is written in.

    ``YBR_RCT`` is announced exactly where the JPEG 2000 encoder applies that transform: for
    sources that were transformed themselves.

    References
    ----------
    DICOM PS3.5 8.2.4 and PS3.3 C.7.6.3.1.2.
    """
    target = SYNTAXES[_encodable(instance)]
    said, decoded = instance.form.photometric, instance.photometric_interpretation
    if target.family == instance.syntax.family and target.family in ("native", "rle"):
        return OutputFormat(target.uid, said, instance.form.planar)
    if target.family == "jpeg-2000" and said in ("YBR_RCT", "YBR_ICT"):
        decoded = "YBR_RCT"
    elif decoded == "YBR_FULL_422":
        decoded = "YBR_FULL"
    return OutputFormat(target.uid, decoded, 0)


def _encodable(instance: Instance) -> str:
    """Return the transfer syntax to write, with what the encoders cannot do of small frames."""
    uid, form = instance.syntax.marked_as, instance.form
    if uid == JPEG_2000 and min(form.rows, form.columns) < 32:
        uid = JPEG_LS  # openjpeg's five wavelet levels halve 32 pixels to one
    if uid == JPEG_LS and form.pixels < 256:
        uid = EXPLICIT_LE  # pyjpegls sizes its buffer without the header
    return uid


class FrameWriter:
    """Codes frames as they come and keeps them on disk until the header is known.

    Parameters
    ----------
    directory
        Folder for the coded frames' temporary file (beyond 8 MiB).
    instance
        The source; frames must be of its form.
    target
        How to code it; None: as a marked instance is coded.

    Notes
    -----
    Use as a context manager, or call `close`.
    """

    def __init__(
        self, directory: Path, instance: Instance, target: OutputFormat | None = None
    ) -> None:
        self._instance = instance
        self.format = target or output_format(instance)
        self._form = replace(
            instance.form,
            photometric=self.format.photometric_interpretation,
            planar=self.format.planar_configuration,
        )
        self._directory = directory
        self._in_memory: list[bytes] = []
        self._spool: IO[bytes] | None = None
        self._lengths: list[int] = []
        self._size = 0

    def append(self, frame: StoredFrame) -> None:
        """Code the next frame.

        Raises
        ------
        ValueError
            If the frame is not of the source's shape or range.
        PixelError
            If the encoder fails.
        """
        coded = self._encoded(frame)
        self._lengths.append(len(coded))
        self._size += len(coded)
        if self._spool is None and self._size > _IN_MEMORY_BYTES:
            self._spool = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - see close()
            self._spool.writelines(self._in_memory)
            self._in_memory.clear()
        if self._spool is None:
            self._in_memory.append(coded)
        else:
            self._spool.write(coded)

    def finish(self, header: Dataset, out: Path) -> str:
        """Write the file (temporary file, fsync, rename) and return its transfer syntax UID.

        Parameters
        ----------
        header
            The header to write; attributes that describe the coding are set here.

        Raises
        ------
        ValueError
            If not every frame was appended.
        PixelError
            If an element of `header` cannot be encoded.
        """
        if len(self._lengths) != self._instance.frame_count:
            announced = self._instance.frame_count
            raise ValueError(f"{len(self._lengths)} of {announced} frames appended")
        final = own_copy(header)
        self.format.apply(final)
        encapsulated = self.format.syntax.encapsulated
        pixels = self._write_encapsulated if encapsulated else self._write_native
        write_file(self._instance.data, final, self.format.transfer_syntax_uid, pixels, out)
        return self.format.transfer_syntax_uid

    def close(self) -> None:
        """Drop the temporary file; idempotent."""
        self._in_memory.clear()
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encoded(self, frame: StoredFrame) -> bytes:
        syntax, form = self.format.syntax, self._form
        if not syntax.encapsulated:
            codes = pack(frame, form, form.bits_allocated)
            return native.encode(codes, form, little=syntax.little)
        whole = syntax.family == "rle" or frame.high_bits is not None
        precision = form.bits_allocated if whole else form.bits_stored
        return _ENCODERS[syntax.family](pack(frame, form, precision), form, precision)

    def _write_native(self, sink: Sink) -> None:
        data, frames = self._instance.data, sum(self._lengths)
        # Bytes behind the last frame are nobody's pixels, and still the sender's.
        rest = b""
        if not self._instance.syntax.encapsulated and data.pixel is not None:
            rest = data.source.read(data.pixel.value + frames, data.pixel.length - frames)
        length = frames + len(rest)
        sink.write(self._native_head(length + length % 2))
        pieces = [_CHUNK] * (frames // _CHUNK) + [frames % _CHUNK]
        for coded in self._coded(pieces):
            sink.write(coded)
        sink.write(rest + bytes(length % 2))

    def _native_head(self, length: int) -> bytes:
        syntax = self.format.syntax
        order = "<" if syntax.little else ">"
        tag = struct.pack(order + "HH", 0x7FE0, 0x0010)
        if syntax.implicit:
            return tag + struct.pack(order + "I", length)
        pixel = self._instance.data.pixel
        narrow = self._form.bits_allocated == 8
        vr = "OB" if narrow else "OW"
        if not self._instance.syntax.encapsulated and pixel is not None and pixel.vr is not None:
            # 8-bit samples in big endian words would have to be swapped: bytes say the same.
            vr = vr if narrow and not syntax.little else pixel.vr
        return tag + vr.encode() + struct.pack(order + "HI", 0, length)

    def _write_encapsulated(self, sink: Sink) -> None:
        padded = [length + length % 2 for length in self._lengths]
        offsets = [0]
        for length in padded[:-1]:
            offsets.append(offsets[-1] + 8 + length)
        table = b""
        if offsets[-1] <= 0xFFFFFFFE:
            table = struct.pack(f"<{len(offsets)}I", *offsets)
        else:
            for tag, numbers in zip(EXTENDED_OFFSETS, (offsets, self._lengths), strict=True):
                head = (tag >> 16, tag & 0xFFFF, b"OV", 0, 8 * len(numbers))
                sink.write(struct.pack(f"<HH2sHI{len(numbers)}Q", *head, *numbers))
        sink.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
        sink.write(item_header(len(table)) + table)
        for coded in self._coded(self._lengths):
            sink.write(item_header(len(coded) + len(coded) % 2))
            sink.write(coded + bytes(len(coded) % 2))
        sink.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))

    def _coded(self, sizes: Iterable[int]) -> Iterator[bytes]:
        """Yield what was appended, from the file in pieces of `sizes`."""
        if self._spool is None:
            yield from self._in_memory
            return
        self._spool.seek(0)
        for size in sizes:
            yield self._spool.read(size)
