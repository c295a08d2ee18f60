"""The words of a message: what W1 carries, hidden by a key.

A message is the 64-bit pHash of the frame and a 32-bit tag that the key makes of it. Its code word
(:mod:`ecc`) is whitened by keyed signs, in one of `WAYS`; instead of it a frame may carry the one
of 2**40 words (:mod:`informed`) that is nearest to it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from Crypto.Hash import KMAC256, SHAKE256

from dicom_node.inference.base import Float32
from dicom_node.watermark import ecc, informed, keyed_tags

WAYS = 16  # of whitening a code word: a small frame has the nearest, all others the first


class RobustKey(Protocol):
    """The part of a key set that W1 needs."""

    @property
    def owner(self) -> str:
        """Whose key it is."""

    @property
    def key_id(self) -> bytes:
        """8 bytes."""

    @property
    def robust_key(self) -> bytes:
        """Secret of whitening and tag, 32 bytes."""


def tag(hashed: bytes, key: RobustKey) -> bytes:
    """Return the keyed tag over pHash and owner."""
    mac = KMAC256.new(
        key=key.robust_key, mac_len=keyed_tags.MAC_BYTES, custom=keyed_tags.CUSTOM
    )
    coded = hashed + key.owner.encode("ascii")
    return bytes(mac.update(coded).digest()[: keyed_tags.TAG_BYTES])


def whitening(key: RobustKey, way: int = 0) -> Float32:
    """Return the keyed signs that hide the code word from whoever lacks the key, ``(160,)``.

    Parameters
    ----------
    way
        Of `WAYS`.
    """
    named = b"dicom-node W1 whitening" + key.robust_key + (bytes([way]) if way else b"")
    stream = SHAKE256.new(named).read(ecc.CODE_BITS // 8)
    return np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.float32) * 2 - 1


def code_word(message: bytes, key: RobustKey, way: int = 0) -> Float32:
    """Return the whitened code word of a 12-byte message, -1 and +1, ``(160,)``."""
    return (ecc.encode(message).astype(np.float32) * 2 - 1) * whitening(key, way)


def nearest_way(message: bytes, key: RobustKey, soft: Float32) -> Float32:
    """Return the code word of a message, whitened so that soft bits agree with it most."""
    words = (code_word(message, key, way) for way in range(WAYS))
    return max(words, key=lambda word: float(word @ soft))


def nearest_word(message: bytes, key: RobustKey, soft: Float32) -> Float32:
    """Return that word of a message, its code word among them, which soft bits agree with most."""
    words = (code_word(message, key),
             informed.nearest_word(message, key.robust_key, key.owner, soft))  # fmt: skip
    return max(words, key=lambda word: float(word @ soft))
