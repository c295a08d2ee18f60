"""The keyed tags of many perceptual hashes at once, and the code words that go with them.

A tag is KMAC256, which hashes two blocks that only the key decides before the one with the hash:
their state is kept, so that a tag costs one permutation (0.6 us) instead of a whole KMAC (25 us).

References
----------
NIST FIPS 202, SHA-3 (Keccak-p[1600, 24]); NIST SP 800-185, cSHAKE and KMAC.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled
from dicom_node.watermark import ecc

UInt64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]

CUSTOM = b"dicom-node W1 tag"
MAC_BYTES = 8  # of which the tag is the first four
TAG_BYTES = 4
_RATE = 136  # bytes of a block of cSHAKE256
_LONGEST_OWNER = _RATE - 8 - 3  # with the hash, the coded length and the padding in one block


def _round_constants() -> UInt64:
    """Return the 24 constants of step iota: bits of a shift register (FIPS 202, algorithm 5)."""
    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for place in range(7):
            if register & 1:
                constant |= 1 << ((1 << place) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return np.array(constants, np.uint64)


def _rotations() -> tuple[UInt64, NDArray[np.int64]]:
    """Return by how much step rho turns lane ``x + 5 y``, and where step pi puts it."""
    turns, places = [0] * 25, [0] * 25
    x, y = 1, 0
    for t in range(24):
        turns[x + 5 * y] = (t + 1) * (t + 2) // 2 % 64
        x, y = y, (2 * x + 3 * y) % 5
    for x in range(5):
        for y in range(5):
            places[x + 5 * y] = y + 5 * ((2 * x + 3 * y) % 5)
    return np.array(turns, np.uint64), np.array(places, np.int64)


_CONSTANTS = _round_constants()
_TURNS, _PLACES = _rotations()


@compiled
def _permute(lanes: UInt64, constants: UInt64, turns: UInt64, places: NDArray[np.int64]) -> None:
    """Apply Keccak-f[1600] in place, lane ``x + 5 y``."""
    column, moved = np.empty(5, np.uint64), np.empty(25, np.uint64)
    one, all_bits = np.uint64(1), np.uint64(64)
    for number in range(24):
        for x in range(5):
            column[x] = lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20]
        for x in range(5):
            after = column[(x + 1) % 5]
            change = column[(x + 4) % 5] ^ ((after << one) | (after >> np.uint64(63)))
            for y in range(0, 25, 5):
                lanes[x + y] ^= change
        for lane in range(25):
            turn, value = turns[lane], lanes[lane]
            if turn != 0:
                value = (value << turn) | (value >> (all_bits - turn))
            moved[places[lane]] = value
        for y in range(0, 25, 5):
            for x in range(5):
                lanes[x + y] = moved[x + y] ^ (~moved[(x + 1) % 5 + y] & moved[(x + 2) % 5 + y])
        lanes[0] ^= constants[number]


@compiled
def _macs(
    hashes: UInt64, state: UInt64, constants: UInt64, turns: UInt64, places: NDArray[np.int64]
) -> UInt64:
    macs = np.empty((hashes.size, 3), np.uint64)
    lanes = np.empty(25, np.uint64)
    for i in range(hashes.size):
        lanes[:] = state
        lanes[0] ^= hashes[i]
        _permute(lanes, constants, turns, places)
        macs[i] = lanes[:3]
    return macs


@compiled
def _scores(messages: Bytes, parity: UInt64, sums: Float32) -> Float32:
    """Return what each code word sums of the soft bits; tables by place and value of a byte."""
    scores = np.empty((2, len(messages)), np.float32)
    for i in range(len(messages)):
        check, hashed, keyed = np.uint64(0), np.float32(0), np.float32(0)
        for place in range(messages.shape[1]):
            value = messages[i, place]
            check ^= parity[place, value]
            if place < 8:
                hashed += sums[place, value]
            else:
                keyed += sums[place, value]
        for place in range(8):
            value = np.uint8((check >> np.uint64(56 - 8 * place)) & np.uint64(255))
            keyed += sums[messages.shape[1] + place, value]
        scores[0, i], scores[1, i] = hashed + keyed, keyed
    return scores


@compiled
def _hash_scores(hashes: Bytes, sums: Float32) -> Float32:
    """Return what each hash sums of the soft bits; `sums` as `_scores` takes them."""
    found = np.empty(len(hashes), np.float32)
    for i in range(len(hashes)):
        total = np.float32(0)
        for place in range(hashes.shape[1]):
            total += sums[place, hashes[i, place]]
        found[i] = total
    return found


class KeyedTags:
    """The tags of one key and owner.

    Parameters
    ----------
    key
        32 bytes.
    owner
        ASCII, follows the hash under the tag.
    custom, mac_bytes
        What the MACs are for, and how long they are, 24 bytes at most.

    Raises
    ------
    ValueError
        The owner's name is too long for one block.
    """

    def __init__(
        self, key: bytes, owner: str, custom: bytes = CUSTOM, mac_bytes: int = MAC_BYTES
    ) -> None:
        name = owner.encode("ascii")
        if len(name) > _LONGEST_OWNER:
            raise ValueError(f"an owner of {len(name)} bytes; {_LONGEST_OWNER} at most")
        self._state = np.zeros(25, np.uint64)
        for block in (_padded(_string(b"KMAC") + _string(custom)), _padded(_string(key))):
            self._state ^= _lanes(block)
            _permute(self._state, _CONSTANTS, _TURNS, _PLACES)
        last = bytearray(_RATE)
        coded = bytes(8) + name + bytes([8 * mac_bytes, 1, 0x04])
        last[: len(coded)] = coded
        last[-1] ^= 0x80
        self._state ^= _lanes(bytes(last))
        self._mac_bytes = mac_bytes

    def messages(self, hashes: Bytes) -> Bytes:
        """Return hashes ``(n, 8)``, each followed by its tag, ``(n, 12)`` bytes."""
        return np.hstack([hashes, self.macs(hashes)[:, :TAG_BYTES]])

    def macs(self, hashes: Bytes) -> Bytes:
        """Return the MAC over each hash ``(n, 8)`` and the owner, ``(n, mac_bytes)``."""
        words = np.ascontiguousarray(hashes).view("<u8").reshape(-1).astype(np.uint64)
        lanes = _macs(words, self._state, _CONSTANTS, _TURNS, _PLACES).astype("<u8")
        return np.ascontiguousarray(lanes.view(np.uint8)[:, : self._mac_bytes])


def scores(messages: Bytes, soft: Float32) -> Float32:
    """Return the inner products of soft bits with the code words of messages, ``(2, n)``.

    The second row is of the bits after the hash, which the key decides.

    Parameters
    ----------
    messages
        ``(n, 12)``.
    soft
        ``(160,)``, positive for 1.
    """
    return _scores(messages, _parity_table(), _sums_by_byte(soft))


def hash_scores(hashes: Bytes, soft: Float32) -> Float32:
    """Return the inner products of soft bits ``(64,)`` with hashes ``(n, 8)``, ``(n,)``."""
    return _hash_scores(hashes, _sums_by_byte(soft))


def _sums_by_byte(soft: Float32) -> Float32:
    """Return what each value of each byte of a word sums of the soft bits, ``(bytes, 256)``."""
    by_byte = soft.reshape(-1, 8).astype(np.float32)
    return np.ascontiguousarray(by_byte @ (2 * _byte_bits().T.astype(np.float32) - 1))


@cache
def _byte_bits() -> Bytes:
    """Return the bits of every byte, the highest first, ``(256, 8)``."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


@cache
def _parity_table() -> UInt64:
    """Return what each byte of a message adds to the 64 parity bits, ``(12, 256)``."""
    generator = ecc.generator()
    rows = generator[:, len(generator) :].reshape(-1, 8, 64)
    checks = np.einsum("vb,pbc->pvc", _byte_bits(), rows) % 2
    packed = np.packbits(checks.astype(np.uint8), axis=2)
    return np.ascontiguousarray(packed.view(">u8")[..., 0].astype(np.uint64))


def _string(value: bytes) -> bytes:
    """Return `value` behind its length in bits (SP 800-185, encode_string)."""
    return _left(8 * len(value)) + value


def _left(number: int) -> bytes:
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "big")


def _padded(value: bytes) -> bytes:
    whole = _left(_RATE) + value
    return whole + bytes(-len(whole) % _RATE)


def _lanes(block: bytes) -> UInt64:
    """Return a block as the lanes it is added to, the capacity 0."""
    return np.frombuffer(block + bytes(200 - _RATE), "<u8").astype(np.uint64)
