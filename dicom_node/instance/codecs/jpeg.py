"""JPEG processes 1 to 14 (ISO/IEC 10918-1), through GDCM; there is no encoder."""

from __future__ import annotations

import gdcm
import numpy as np

from dicom_node.errors import PixelError
from dicom_node.instance.codecs.codestream import check_announced, read_jpeg
from dicom_node.instance.model import Codes, PixelForm

gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()

# Lossy and lossless code streams are told apart by themselves; these two name the process family.
_LOSSLESS_SOF = 0xC3
_SYNTAX_OF_SOF = {
    0xC0: "1.2.840.10008.1.2.4.50",
    0xC1: "1.2.840.10008.1.2.4.51",
    0xC2: "1.2.840.10008.1.2.4.55",
    _LOSSLESS_SOF: "1.2.840.10008.1.2.4.57",
}


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame, in the colour space as coded (PixelError)."""
    announced = read_jpeg(code)
    if announced.jpeg_ls:
        raise PixelError("the frame is a JPEG-LS code stream, not the JPEG one announced")
    check_announced(announced, form)
    uid = _SYNTAX_OF_SOF.get(announced.start_of_frame)
    if uid is None:
        raise PixelError(
            f"JPEG frames of type SOF{announced.start_of_frame & 15} are not supported"
        )
    plain = _decoded(code, form, uid, announced.precision)
    wide = announced.precision > 8
    codes = np.frombuffer(plain, "<u2" if wide else np.uint8)
    if codes.size != form.pixels * form.samples:
        raise PixelError(
            f"the JPEG decoder gave {codes.size} samples of {form.pixels * form.samples}"
        )
    if announced.precision not in (8, 16):
        codes = codes & codes.dtype.type((1 << announced.precision) - 1)
    return codes.reshape(form.shape), announced.precision


def _decoded(code: bytes, form: PixelForm, uid: str, precision: int) -> bytes:
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(code)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form.columns, form.rows, 1))
    image.SetDataElement(element)
    # Named like the code stream, so that GDCM converts no colour.
    space = "MONOCHROME2" if form.samples == 1 else "RGB"
    kind = gdcm.PhotometricInterpretation.GetPIType(space)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if form.samples == 3:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(uid)))
    allocated = 16 if precision > 8 else 8
    image.SetPixelFormat(
        gdcm.PixelFormat(form.samples, allocated, precision, precision - 1, int(form.signed))
    )
    try:
        text = image.GetBuffer()
    except Exception as error:  # SWIG turns C++ exceptions into several types
        raise PixelError(f"the JPEG decoder failed: {error}") from error
    # GDCM hands its char buffer over as text.
    plain: bytes = text.encode("utf-8", "surrogateescape")
    if not plain:
        raise PixelError("the JPEG decoder could not decode the frame")
    return plain
