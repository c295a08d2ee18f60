"""Hashing several messages at once gives what hashing each by itself gives."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dicom_node.watermark.lanes import keyed_blake2b, sha3_256_of_two

# Lengths at which a block ends, and a piece of 120 blocks of SHA-3.
EDGES = (0, 1, 135, 136, 137, 272, 16319, 16320, 16321, 50_000)


def _random(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", EDGES)
def test_two_messages_of_one_length_have_the_sha3_of_each(size: int) -> None:
    first, second = _random(1, size), _random(2, size)
    found = sha3_256_of_two([first[:31], memoryview(first)[31:]], [second])
    assert found == (hashlib.sha3_256(first).digest(), hashlib.sha3_256(second).digest())


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=300), max_size=4), st.lists(st.binary(max_size=300), max_size=4))
@example([b"a" * 135, b""], [b"b" * 135])
def test_pieces_and_lengths_may_be_any(first: list[bytes], second: list[bytes]) -> None:
    wanted = tuple(hashlib.sha3_256(b"".join(each)).digest() for each in (first, second))
    assert sha3_256_of_two(first, second) == wanted


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 256, 8260])
@pytest.mark.parametrize("count", [1, 7, 8, 9])
@pytest.mark.parametrize("key", [b"", b"k" * 32, b"k" * 64])
def test_many_messages_have_the_blake2b_of_each(size: int, count: int, key: bytes) -> None:
    messages = np.frombuffer(_random(size, size * count), np.uint8).reshape(count, size)
    wanted = [
        hashlib.blake2b(row.tobytes(), key=key, digest_size=8, person=b"dcmnode-tile").digest()
        for row in messages
    ]
    assert keyed_blake2b(messages, key=key, digest_size=8, person=b"dcmnode-tile") == wanted


def test_no_messages_have_no_digests() -> None:
    assert keyed_blake2b(np.empty((0, 5), np.uint8), key=b"k", digest_size=8, person=b"") == []
