"""Read what a compressed frame announces about itself, before a decoder takes memory for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicom_node.errors import PixelError
from dicom_node.instance.model import PixelForm

_RGB_IDS = (b"RGB", b"rgb")


@dataclass(frozen=True, slots=True)
class CodeStream:
    """Size and colour as the code stream's own header has them.

    Attributes
    ----------
    start_of_frame
        The SOF marker's second byte (JPEG), else 0.
    rgb_ids, jfif
        Component identifiers spell RGB; a JFIF marker is present (so the samples are YCbCr).
    """

    rows: int
    columns: int
    components: int
    precision: int
    start_of_frame: int = 0
    rgb_ids: bool = False
    jfif: bool = False

    @property
    def jpeg_ls(self) -> bool:
        """Whether the frame is JPEG-LS (SOF55)."""
        return self.start_of_frame == 0xF7


def read_jpeg(code: bytes) -> CodeStream:
    """Read a JPEG or JPEG-LS header up to its frame header (PixelError).

    References
    ----------
    ISO/IEC 10918-1 Annex B; ISO/IEC 14495-1 Annex C.
    """
    if code[:2] != b"\xff\xd8":
        raise PixelError(f"the frame is no JPEG code stream but {_recognised(code)}")
    offset, jfif = 2, False
    while offset + 4 <= len(code):
        if code[offset] != 0xFF:
            raise PixelError("the JPEG code stream has no frame header")
        marker = code[offset + 1]
        if marker == 0xFF:
            offset += 1
            continue
        (length,) = struct.unpack_from(">H", code, offset + 2)
        body = code[offset + 4 : offset + 2 + length]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return _frame_header(body, marker, jfif)
        jfif = jfif or (marker == 0xE0 and body.startswith(b"JFIF"))
        offset += 2 + length
    raise PixelError("the JPEG code stream has no frame header")


def _frame_header(body: bytes, marker: int, jfif: bool) -> CodeStream:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise PixelError("the JPEG frame header is cut short")
    precision, rows, columns, components = struct.unpack_from(">BHHB", body)
    ids = bytes(body[6 + 3 * k] for k in range(components))
    return CodeStream(rows, columns, components, precision, marker, ids in _RGB_IDS, jfif)


def read_jpeg_2000(code: bytes) -> CodeStream:
    """Read the SIZ marker of a JPEG 2000 code stream, boxed (JP2) or not (PixelError).

    References
    ----------
    ISO/IEC 15444-1 A.5.1.
    """
    start = 0 if code[:4] == b"\xff\x4f\xff\x51" else code.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise PixelError(f"the frame is no JPEG 2000 code stream but {_recognised(code)}")
    body = code[start + 8 : start + 48]
    if len(body) < 35:
        raise PixelError("the JPEG 2000 header is cut short")
    width, height, left, top = struct.unpack_from(">IIII", body)
    (components,) = struct.unpack_from(">H", body, 32)
    precision = (body[34] & 0x7F) + 1
    return CodeStream(height - top, width - left, components, precision)


def check_announced(found: CodeStream, form: PixelForm) -> None:
    """Refuse a code stream of another size than the header announces (PixelError)."""
    if (found.rows, found.columns) != (form.rows, form.columns):
        raise PixelError(
            f"the header announces {form.rows} x {form.columns} pixels, "
            f"the code stream {found.rows} x {found.columns}"
        )
    if found.components != form.samples:
        raise PixelError(
            f"the header announces {form.samples} samples per pixel, "
            f"the code stream {found.components}"
        )
    if found.precision > form.bits_allocated:
        raise PixelError(
            f"the code stream has {found.precision} bits per sample, Bits Allocated is "
            f"{form.bits_allocated}"
        )


def _recognised(code: bytes) -> str:
    if code[:2] == b"\xff\xd8":
        return "JPEG"
    if code[:4] == b"\xff\x4f\xff\x51" or code[4:8] == b"jP  ":
        return "JPEG 2000"
    if code[:2] == b"\xff\x0a" or code[4:8] == b"JXL ":
        return "JPEG XL"
    if len(code) >= 64 and 0 < int.from_bytes(code[:4], "little") < 16:
        return "possibly RLE"
    return "of unknown kind"
