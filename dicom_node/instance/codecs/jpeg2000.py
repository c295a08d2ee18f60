"""JPEG 2000 and HTJ2K (ISO/IEC 15444-1 and -15), through pylibjpeg-openjpeg."""

from __future__ import annotations

import numpy as np
import openjpeg.utils as _openjpeg

from dicom_node.errors import PixelError
from dicom_node.instance.codecs.codestream import check_announced, read_jpeg_2000
from dicom_node.instance.codecs.limit import limited
from dicom_node.instance.model import Codes, PixelForm


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame; colour transforms are undone (PixelError)."""
    announced = read_jpeg_2000(code)
    check_announced(announced, form)
    try:
        with limited(form):
            plain = _openjpeg.decode_pixel_data(code, version=2)
    except MemoryError:
        raise
    except Exception as error:  # the wrapper raises RuntimeError and ValueError
        raise PixelError(f"the JPEG 2000 decoder failed: {error}") from error
    precision = announced.precision
    codes = np.frombuffer(plain, np.uint8 if precision <= 8 else "<u2")
    if precision not in (8, 16):
        # A signed code stream leaves its sign in the spare bits of the container.
        codes = codes & codes.dtype.type((1 << precision) - 1)
    return codes.reshape(form.shape), precision


def encode(codes: Codes, form: PixelForm, precision: int) -> bytes:
    """Return one lossless code stream (PixelError).

    The reversible colour transform is used exactly where `form` says ``YBR_RCT``.
    """
    signed = form.signed
    if signed and precision not in (8, 16):
        spare = codes.dtype.itemsize * 8 - precision
        kind = np.dtype(np.int8 if codes.dtype.itemsize == 1 else np.int16)
        raised: Codes = (codes << spare).view(kind)
        codes = (raised >> spare).view(codes.dtype)
    transform = form.photometric == "YBR_RCT"
    try:
        with limited(form):
            return bytes(
                _openjpeg.encode_buffer(
                    np.ascontiguousarray(codes).tobytes(),
                    form.columns,
                    form.rows,
                    form.samples,
                    precision,
                    signed,
                    photometric_interpretation=1 if transform else 0,
                    use_mct=transform,
                )
            )
    except MemoryError:
        raise
    except Exception as error:
        raise PixelError(f"the JPEG 2000 encoder failed: {error}") from error
