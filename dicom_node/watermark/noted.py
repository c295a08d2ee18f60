"""W2 of a frame with hardly any room: one digest in the lowest bits of 128 samples.

Shifting 128 bits into a small, noisy frame reversibly moves nearly all of its samples (45 dB in an
MR frame of 64 x 64). Written over the lowest bits of 128 samples they move 64 of them by one; what
stood there is noted in the header block, which such a frame needs anyway. The digest is over the
frame with those bits cleared, so it vouches for every pixel even where the block is gone; only the
frame before marking is then not to be had.

Layout of the header block, version 1: ``"DNW2" 1 3 noted[16] core body sign`` (:mod:`payload`).
Places: samples whose two values, lowest bit 0 and 1, are both within the bounds and outside
padding; of these the 128 with the smallest draws of SHAKE256 over the shape, 8 bytes each.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.framing import Side, frame_digest
from dicom_node.watermark.tiles import Bounds, Frame

DIGEST_BYTES = 16
_SAMPLES = 8 * DIGEST_BYTES
_MOST_PIXELS = 1 << 20  # larger frames have room for more than a digest
Places = NDArray[np.intp]


@dataclass(frozen=True)
class Noted:
    """A frame as received, taken apart.

    Attributes
    ----------
    cleared
        With the lowest bits at the places 0.
    digest
        What the bits there say, 16 bytes.
    places
        Flat, in the order of the bits.
    """

    cleared: Frame
    digest: bytes
    places: Places

    def restored(self, noted: bytes) -> Frame:
        """Return the frame with the bits that were noted, 16 bytes."""
        return _with_bits(self.cleared, self.places, noted)


def take_apart(host: Frame, bounds: Bounds) -> Noted | None:
    """Return what the lowest bits say; None where a frame has no 128 samples for them."""
    places = _places(host, bounds)
    if places is None:
        return None
    bits = np.packbits((host.reshape(-1)[places] & 1).astype(np.uint8)).tobytes()
    return Noted(_with_bits(host, places, bytes(DIGEST_BYTES)), bits, places)


def put_in(noted: Noted, digest: bytes) -> Frame:
    """Return the frame with a digest of 16 bytes in its lowest bits."""
    return _with_bits(noted.cleared, noted.places, digest)


def digest_of(cleared: Frame, side: Side | None, key: bytes) -> bytes:
    """Return the keyed digest of a frame whose bits are cleared.

    Parameters
    ----------
    key
        Of `framing.frame_key`.
    """
    told = frame_digest(cleared, side)
    return hashlib.blake2b(
        told, key=key, digest_size=DIGEST_BYTES, person=b"dcmnode-noted"
    ).digest()


def _with_bits(host: Frame, places: Places, bits: bytes) -> Frame:
    out = host.copy()
    wanted = np.unpackbits(np.frombuffer(bits, np.uint8)).astype(np.int32)
    flat = out.reshape(-1)
    flat[places] = (flat[places] & ~1) | wanted
    return out


def _places(host: Frame, bounds: Bounds) -> Places | None:
    """Return where the bits stand; the same of a frame before and after they are written."""
    if host.size > _MOST_PIXELS:
        return None
    even, odd = host & ~1, host | 1
    free = (even >= bounds.low) & (odd <= bounds.high)
    if bounds.padding is not None:
        first, last = sorted(bounds.padding)
        free &= (odd < first) | (even > last)
    eligible = np.flatnonzero(free)
    if eligible.size < _SAMPLES:
        return None
    order = np.argsort(_draws(*host.shape)[eligible], kind="stable")
    found: Places = eligible[order[:_SAMPLES]]
    return found


@lru_cache(maxsize=4)
def _draws(rows: int, columns: int) -> NDArray[np.uint64]:
    """Return a draw for each sample of a frame of this shape, the same for ever."""
    stream = hashlib.shake_256(b"dicom-node W2 noted" + struct.pack("<II", rows, columns))
    drawn = np.frombuffer(stream.digest(8 * rows * columns), "<u8").astype(np.uint64)
    drawn.setflags(write=False)
    return drawn
