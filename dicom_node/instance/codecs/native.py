"""Uncompressed frames (PS3.5 A.1 to A.3, A.5; 8.1 and 8.2 for the order of samples)."""

from __future__ import annotations

import numpy as np

from dicom_node.errors import PixelError
from dicom_node.instance.model import Codes, PixelForm


def decode(code: bytes, form: PixelForm, *, little: bool = True) -> tuple[Codes, int]:
    """Return the sample containers of one native frame (PixelError if too short)."""
    if len(code) < form.native_bytes:
        raise PixelError(
            f"a frame needs {form.native_bytes} bytes of pixel data, {len(code)} are there"
        )
    dtype = np.dtype(np.uint8 if form.bits_allocated == 8 else "<u2" if little else ">u2")
    flat = np.frombuffer(code, dtype, form.native_bytes // dtype.itemsize)
    codes = _shaped(flat, form)
    return codes.astype(codes.dtype.newbyteorder("="), copy=False), form.bits_allocated


def encode(codes: Codes, form: PixelForm, *, little: bool = True) -> bytes:
    """Return one native frame, in the planar configuration of `form`."""
    if form.bits_allocated == 16:
        codes = codes.astype("<u2" if little else ">u2", copy=False)
    if form.subsampled:
        quads = np.empty((form.pixels // 2, 4), codes.dtype)
        pairs = codes.reshape(-1, 2, 3)
        quads[:, :2] = pairs[:, :, 0]
        quads[:, 2:] = pairs[:, 0, 1:]
        return quads.tobytes()
    if form.samples == 3 and form.planar == 1:
        return codes.transpose(2, 0, 1).tobytes()
    return codes.tobytes()


def _shaped(flat: Codes, form: PixelForm) -> Codes:
    if form.samples == 1:
        return flat.reshape(form.shape)
    if form.subsampled:
        quads = flat.reshape(-1, 4)
        pairs = np.empty((len(quads), 2, 3), flat.dtype)
        pairs[:, :, 0] = quads[:, :2]
        pairs[:, :, 1] = quads[:, 2:3]
        pairs[:, :, 2] = quads[:, 3:4]
        return pairs.reshape(form.shape)
    if form.planar == 1:
        return flat.reshape(3, form.rows, form.columns).transpose(1, 2, 0)
    return flat.reshape(form.shape)
