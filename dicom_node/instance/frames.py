"""From a file to stored frames: what can be marked, what cannot and why, one frame at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.errors import DecoderLost, PixelError, Unmarkable
from dicom_node.instance.codecs import jpeg, jpeg2000, jpegls, native, rle
from dicom_node.instance.codecs.codestream import CodeStream, read_jpeg
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.elements import PIXEL_DATA, UNDEFINED
from dicom_node.instance.encapsulated import Fragments, frame_fragments
from dicom_node.instance.model import Codes, PixelForm, StoredFrame, unpack
from dicom_node.instance.syntaxes import SYNTAXES, Syntax, name_of

__all__ = ["Instance", "StoredFrame", "open_instance"]

_DECODERS: dict[str, Callable[[bytes, PixelForm], tuple[Codes, int]]] = {
    "rle": rle.decode,
    "jpeg": jpeg.decode,
    "jpeg-ls": jpegls.decode,
    "jpeg-2000": jpeg2000.decode,
}
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_LUMA_FIRST = ("YBR_FULL", "YBR_FULL_422")
_COLOUR = ("RGB", *_LUMA_FIRST, "YBR_RCT", "YBR_ICT")

_TAGS = {
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "LossyImageCompression": 0x00282110,
}

# Pixel data that is no picture: masks and measurements would be falsified by a mark.
_NO_IMAGE = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose grid",
}


class Instance:
    """One SOP instance whose frames can be decoded; made by `open_instance`.

    Attributes
    ----------
    photometric_interpretation
        Of the frames as `frames` yields them: ``RGB`` for YBR_RCT and YBR_ICT (the codec undoes
        them), ``YBR_FULL`` for JPEG 4:2:2.
    low, high
        Range of stored values.
    padding
        Stored values that are padding, both ends included, or None.
    lossy
        The pixels went through lossy compression, by the header's or the transfer syntax's word.
    form
        How samples are stored in the source.
    """

    def __init__(self, data: DataFile, max_pixels: int) -> None:
        self.data = data
        self.path = data.path
        self.transfer_syntax_uid = data.transfer_syntax_uid
        self.sop_class_uid = _uid(data, "SOPClassUID") or data.meta.uid(0x00020002).strip(" \0")
        self.sop_instance_uid = _uid(data, "SOPInstanceUID") or data.meta.uid(0x00020003).strip(
            " \0"
        )
        self.study_instance_uid = _uid(data, "StudyInstanceUID")
        self.series_instance_uid = _uid(data, "SeriesInstanceUID")
        self.modality = _text(data, "Modality").strip()
        self.syntax = _checked_kind(self)
        self.form = _form_of(data)
        self.frame_count = _number(data, "NumberOfFrames", 1) or 1
        _check_form(self.form, max_pixels)
        self.rows, self.columns = self.form.rows, self.form.columns
        self.samples, self.signed = self.form.samples, self.form.signed
        self.bits_allocated, self.bits_stored = self.form.bits_allocated, self.form.bits_stored
        self.low, self.high = self.form.low, self.form.high
        self._places = self._frame_places()
        self.photometric_interpretation = self._decoded_photometric()
        self.padding = _padding(data, self.form)
        said_lossy = _text(data, "LossyImageCompression") == "01"
        self.lossy = said_lossy or self.syntax.loss == "always"

    @property
    def header(self) -> Dataset:
        """Everything but pixel data and values over 1 MiB, to read: not to write.

        `read_header` gives a fresh one to change. Raises PixelError if pydicom cannot parse it.
        """
        return self.data.header

    @property
    def host_index(self) -> int | None:
        """Sample plane that hosts the marks: None if there is one, G of RGB, Y of YCbCr."""
        if self.form.samples == 1:
            return None
        return 1 if self.photometric_interpretation == "RGB" else 0

    def frames(self) -> Iterator[StoredFrame]:
        """Yield every frame in order, decoded when asked for.

        Raises
        ------
        PixelError
            If a frame cannot be decoded; the message names it.
        """
        for index in range(self.frame_count):
            yield self.frame(index)

    def frame(self, index: int) -> StoredFrame:
        """Return the frame at `index`, from 0 (PixelError, DecoderLost)."""
        code = b"".join(self.data.source.read(at, length) for at, length in self._places[index])
        try:
            return unpack(*self._decode(code), self.form)
        except (PixelError, ValueError, struct.error) as error:
            raise PixelError(f"frame {index + 1} of {self.frame_count}: {error}") from error
        except DecoderLost as error:
            raise DecoderLost(f"frame {index + 1} of {self.frame_count}: {error}") from error

    @property
    def coded_bytes(self) -> int:
        """Bytes of all frames as they are coded in the source."""
        return sum(length for place in self._places for _, length in place)

    def read_header(self) -> Dataset:
        """Return a header of one's own to change (PixelError)."""
        return self.data.read_header()

    def close(self) -> None:
        """Close the file; idempotent."""
        self.data.close()

    def _decode(self, code: bytes) -> tuple[Codes, int]:
        if self.syntax.family == "native":
            if self._word_swapped:
                code = np.frombuffer(code, "<u2").byteswap().tobytes()
            return native.decode(code, self.form, little=self.syntax.little)
        return _DECODERS[self.syntax.family](code, self.form)

    def _frame_places(self) -> list[Fragments]:
        pixel = self.data.pixel
        if pixel is None or pixel.length == 0:
            raise Unmarkable("the instance has no pixel data")
        if (pixel.length == UNDEFINED) != self.syntax.encapsulated:
            raise PixelError(
                f"the transfer syntax is {self.syntax.name}, but the pixel data is "
                f"{'native' if self.syntax.encapsulated else 'encapsulated'}"
            )
        if self.syntax.encapsulated:
            return frame_fragments(self.data, self.frame_count)
        size = self.form.native_bytes
        if pixel.length < size * self.frame_count:
            raise PixelError(
                f"the header announces {self.frame_count} frames of {size} bytes, "
                f"the pixel data has {pixel.length} bytes"
            )
        if self.form.subsampled and pixel.length >= self.form.pixels * 3 * self.frame_count:
            raise Unmarkable("the pixel data is too long for YBR_FULL_422: it is another format")
        if self._word_swapped and size % 2:
            raise Unmarkable("8-bit pixels of odd frame size in big endian words")
        return [[(pixel.value + k * size, size)] for k in range(self.frame_count)]

    @property
    def _word_swapped(self) -> bool:
        """Whether 8-bit samples were written as big endian words."""
        pixel = self.data.pixel
        words = pixel is not None and pixel.vr == "OW"
        return words and self.form.bits_allocated == 8 and not self.syntax.little

    def _decoded_photometric(self) -> str:
        said = self.form.photometric
        if said in ("YBR_RCT", "YBR_ICT"):
            return "RGB"
        if self.form.samples == 1 or self.syntax.family not in ("jpeg", "jpeg-ls"):
            return said
        stream = self._first_code_stream()
        if stream.rgb_ids:
            return "RGB"
        return "YBR_FULL" if stream.jfif or said in _LUMA_FIRST else said

    def _first_code_stream(self) -> CodeStream:
        at, length = self._places[0][0]
        try:
            return read_jpeg(self.data.source.read(at, min(length, 1 << 18)))
        except struct.error as error:
            raise PixelError("the first frame's JPEG header is cut short") from error


def open_instance(path: Path, *, max_pixels: int, scratch: Path | None = None) -> Instance:
    """Open an instance to decode its frames.

    Parameters
    ----------
    path
        A DICOM file; preamble and meta header may be missing.
    max_pixels
        Pixels a frame may announce; more is taken for a decompression bomb.
    scratch
        Folder to inflate a deflated data set into; None: the system's for temporary files.

    Raises
    ------
    Unmarkable
        If the instance is intact, but is no image whose pixels can carry marks.
    PixelError
        If it cannot be parsed, or its pixel data is not what its header announces.
    """
    data = open_data_file(path, max_pixels=max_pixels, scratch=scratch)
    try:
        return Instance(data, max_pixels)
    except PixelError:
        data.close()
        raise


def _checked_kind(instance: Instance) -> Syntax:
    """Return the row of the transfer syntax (Unmarkable where there is nothing to decode)."""
    if instance.sop_class_uid in _NO_IMAGE:
        raise Unmarkable(f"{_NO_IMAGE[instance.sop_class_uid]} is not an image to mark")
    elements = instance.data.elements
    if 0x7FE00008 in elements or 0x7FE00009 in elements:
        raise Unmarkable("floating point pixels cannot be marked")
    if PIXEL_DATA not in elements:
        raise Unmarkable("the instance has no pixel data")
    if not instance.sop_instance_uid:
        raise Unmarkable("the instance has no SOP Instance UID to bind the marks to")
    syntax = SYNTAXES.get(instance.transfer_syntax_uid)
    if syntax is None:
        raise Unmarkable(f"no decoder for {name_of(instance.transfer_syntax_uid)}")
    if not instance.data.meta.announced and elements[PIXEL_DATA].length == UNDEFINED:
        raise Unmarkable("compressed pixel data, and no meta header that says how")
    return syntax


def _form_of(data: DataFile) -> PixelForm:
    samples = _number(data, "SamplesPerPixel", 1)
    allocated = _number(data, "BitsAllocated")
    stored = _number(data, "BitsStored", allocated)
    if _number(data, "HighBit", stored - 1) != stored - 1:
        raise Unmarkable("High Bit is not Bits Stored - 1")
    return PixelForm(
        rows=_number(data, "Rows"),
        columns=_number(data, "Columns"),
        samples=samples,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=_number(data, "PixelRepresentation", 0) == 1,
        photometric=_text(data, "PhotometricInterpretation").strip(),
        planar=_number(data, "PlanarConfiguration", 0) if samples > 1 else 0,
    )


def _check_form(form: PixelForm, max_pixels: int) -> None:
    if form.bits_allocated == 1 or form.bits_stored == 1:
        raise Unmarkable("pixels of 1 bit cannot be marked")
    if form.photometric not in _MONOCHROME + _COLOUR:
        raise Unmarkable(f"the photometric interpretation {form.photometric or '(none)'}")
    if form.samples != (1 if form.photometric in _MONOCHROME else 3):
        raise Unmarkable(f"{form.samples} samples per pixel in {form.photometric}")
    if form.bits_allocated not in (8, 16) or not 2 <= form.bits_stored <= form.bits_allocated:
        raise Unmarkable(f"{form.bits_stored} bits stored in {form.bits_allocated}")
    if form.planar not in (0, 1):
        raise Unmarkable(f"planar configuration {form.planar}")
    if form.samples == 3 and form.signed:
        raise Unmarkable("signed colour samples")
    if form.pixels == 0:
        raise PixelError(f"the header announces {form.rows} x {form.columns} pixels")
    if form.pixels > max_pixels:
        raise Unmarkable(
            f"{form.rows} x {form.columns} pixels are announced, over the limit of {max_pixels}"
        )
    if form.subsampled and form.columns % 2:
        raise Unmarkable("4:2:2 pixels in an odd number of columns")


def _padding(data: DataFile, form: PixelForm) -> tuple[int, int] | None:
    """Return the range of padding values (PS3.3 C.7.5.1.1.2), read as the samples are stored."""
    value = _sample(data, "PixelPaddingValue", form)
    if value is None or form.samples == 3:
        return None
    limit = _sample(data, "PixelPaddingRangeLimit", form)
    ends = (value, value if limit is None else limit)
    low, high = max(min(ends), form.low), min(max(ends), form.high)
    return (low, high) if low <= high else None


def _sample(data: DataFile, keyword: str, form: PixelForm) -> int | None:
    """Return a US or SS value; many writers choose the wrong one of the two."""
    value = data.sample(_TAGS[keyword])
    if value is None:
        return None
    return value - 0x10000 if form.signed and value >= 0x8000 else value


def _number(data: DataFile, keyword: str, default: int | None = None) -> int:
    try:
        number = data.whole(_TAGS[keyword])
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises by the element's VR
        raise PixelError(f"{keyword} cannot be read: {error}") from error
    if number is None and default is None:
        raise PixelError(f"the header has no {keyword}")
    return number if number is not None else default or 0


def _text(data: DataFile, keyword: str) -> str:
    try:
        return data.text(_TAGS[keyword])
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises by the element's VR
        raise PixelError(f"{keyword} cannot be read: {error}") from error


def _uid(data: DataFile, keyword: str) -> str:
    return _text(data, keyword).strip(" \0")
