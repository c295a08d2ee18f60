"""What is remembered of a marked frame after it has left: digests, features, the robust message.

Told by the mark worker, carried by the spool's outbox, kept by the registry. No pixel and nothing
about the patient: the perceptual hash is 64 bits of what the frame looks like.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class MarkedFrame:
    """One frame of a marked instance. What is not known is ``b""``.

    Attributes
    ----------
    original_digest
        W2's SHA3-256 of the frame before it was marked: what restoring it has to give.
    marked_digest
        `stored_digest` of the frame as it was sent.
    perceptual_hash
        pHash of the original in its display window, 8 bytes.
    message
        W1's message, 12 bytes; ``b""`` where the frame carries no robust mark.
    fingerprint
        Content fingerprint f, as `watermark.fingerprint` encodes it.
    """

    original_digest: bytes = b""
    marked_digest: bytes = b""
    perceptual_hash: bytes = b""
    message: bytes = b""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What is remembered of a whole instance beside its UIDs.

    Attributes
    ----------
    instance_number
        None where the instance has none.
    frames
        In order; empty where frames were not looked at.
    """

    modality: str = ""
    instance_number: int | None = None
    frame_count: int = 0
    frames: tuple[MarkedFrame, ...] = ()


def stored_digest(values: NDArray[np.int32]) -> bytes:
    """Return the BLAKE2b-256 of a frame's stored values, whatever they were coded in.

    Parameters
    ----------
    values
        int32, ``(rows, columns)`` or ``(rows, columns, samples)``.

    Returns
    -------
    bytes
        32 bytes, over the shape and each value's low 16 bits, both little-endian: stored values
        have at most 16 bits. Digests of 16 bits cost half of what 32 would.
    """
    digest = hashlib.blake2b(np.asarray(values.shape, "<u4").tobytes(), digest_size=DIGEST_BYTES)
    digest.update(np.ascontiguousarray(values.astype("<u2")).data)
    return digest.digest()
