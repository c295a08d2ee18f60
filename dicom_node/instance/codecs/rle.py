"""RLE Lossless (PS3.5 Annex G), through pylibjpeg-rle."""

from __future__ import annotations

import numpy as np
import rle.utils as _rle

from dicom_node.errors import PixelError
from dicom_node.instance.model import Codes, PixelForm


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame (PixelError)."""
    segments = form.samples * form.bits_allocated // 8
    if len(code) < 64 or int.from_bytes(code[:4], "little") != segments:
        raise PixelError(f"an RLE frame of {segments} segments was announced; this is another")
    try:
        plain = _rle.decode_pixel_data(
            code,
            version=2,
            rows=form.rows,
            columns=form.columns,
            bits_allocated=form.bits_allocated,
        )
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust extension is no Exception
        raise PixelError(f"the RLE decoder failed: {error}") from error
    dtype = np.uint8 if form.bits_allocated == 8 else np.dtype("<u2")
    planes = np.frombuffer(plain, dtype).reshape(form.samples, form.rows, form.columns)
    return (planes[0] if form.samples == 1 else planes.transpose(1, 2, 0)), form.bits_allocated


def encode(codes: Codes, form: PixelForm, precision: int) -> bytes:
    """Return one RLE frame of whole containers (PixelError)."""
    if precision != form.bits_allocated:
        raise PixelError("RLE codes whole containers")
    try:
        return bytes(
            _rle.encode_pixel_data(
                np.ascontiguousarray(codes).tobytes(),
                rows=form.rows,
                columns=form.columns,
                samples_per_pixel=form.samples,
                bits_allocated=form.bits_allocated,
                byteorder="<",
            )
        )
    except MemoryError:
        raise
    except Exception as error:
        raise PixelError(f"the RLE encoder failed: {error}") from error
