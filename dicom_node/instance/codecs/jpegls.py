"""JPEG-LS (ISO/IEC 14495-1), through pyjpegls (CharLS)."""

from __future__ import annotations

import jpeg_ls
import numpy as np

from dicom_node.errors import PixelError
from dicom_node.instance.codecs.codestream import check_announced, read_jpeg
from dicom_node.instance.codecs.limit import limited
from dicom_node.instance.model import Codes, PixelForm


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame (PixelError)."""
    announced = read_jpeg(code)
    if not announced.jpeg_ls:
        raise PixelError("the frame is a JPEG code stream, not the JPEG-LS one announced")
    check_announced(announced, form)
    try:
        with limited(form):
            plain, info = jpeg_ls.decode_buffer(code)
    except MemoryError:
        raise
    except Exception as error:  # CharLS errors come as RuntimeError or ValueError
        raise PixelError(f"the JPEG-LS decoder failed: {error}") from error
    dtype = np.uint8 if announced.precision <= 8 else np.dtype("<u2")
    flat = np.frombuffer(plain, dtype)
    if form.samples == 3 and info["interleave_mode"] == 0:
        return flat.reshape(3, form.rows, form.columns).transpose(1, 2, 0), announced.precision
    return flat.reshape(form.shape), announced.precision


def encode(codes: Codes, form: PixelForm, precision: int) -> bytes:
    """Return one lossless frame, samples interleaved (PixelError).

    References
    ----------
    DICOM PS3.5 8.2.3: signed samples are coded as the unsigned integers of the same bits.
    """
    try:
        with limited(form):
            return bytes(
                jpeg_ls.encode_buffer(
                    np.ascontiguousarray(codes).tobytes(),
                    form.rows,
                    form.columns,
                    form.samples,
                    precision,
                    interleave_mode=2 if form.samples == 3 else 0,
                )
            )
    except MemoryError:
        raise
    except Exception as error:
        raise PixelError(f"the JPEG-LS encoder failed: {error}") from error
