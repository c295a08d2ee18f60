"""The code of W1: a shortened binary BCH code, read with soft decisions.

BCH(255, 191, t = 8) over GF(2^8) with primitive polynomial x^8+x^4+x^3+x^2+1, shortened to
(160, 96): 96 message bits first, 64 parity bits after. Ordered-statistics decoding (order 2)
comes close to maximum likelihood at this length; two matrix products try all 4,657 candidates.

References
----------
Lin and Costello, "Error Control Coding", 2nd ed., chapter 6 (BCH).
Fossorier and Lin, "Soft-decision decoding of linear block codes based on ordered statistics",
IEEE Trans. Inf. Theory 41(5), 1995.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.compiled import compiled

MESSAGE_BITS = 96
CODE_BITS = 160
_CORRECTS = 8
_PRIMITIVE = 0x11D

Bits = NDArray[np.uint8]  # 0 or 1


def encode(message: bytes) -> Bits:
    """Return the code word of a 12-byte message, ``(160,)`` zeros and ones, message bits first."""
    if len(message) * 8 != MESSAGE_BITS:
        raise ValueError(f"a message has {MESSAGE_BITS // 8} bytes, not {len(message)}")
    bits = np.unpackbits(np.frombuffer(message, np.uint8))
    word: Bits = (bits @ generator().astype(np.int64) % 2).astype(np.uint8)
    return word


def candidates(
    soft: NDArray[np.float32], most: int = 4, *, order: int = 2
) -> Iterator[tuple[bytes, float]]:
    """Yield messages by falling likelihood, each with its correlation to `soft`.

    Parameters
    ----------
    soft
        Soft bits ``(160,)``; positive means 1, the size says how sure.
    most
        How many to yield at most.
    order
        Of the surest 96 bits, how many may be wrong together: 2 (0.5 ms), or 3 alone, among
        142,880 more words (20 ms).

    Yields
    ------
    message, correlation
        12 bytes, and the cosine between code word (-1/+1) and `soft`: 1 when every bit agrees
        and all are equally sure.
    """
    hard = (soft > 0).astype(np.uint8)
    scale = float(np.linalg.norm(soft) * np.sqrt(CODE_BITS)) or 1.0
    if not np.any(_parity_check() @ hard.astype(np.int64) % 2):
        yield np.packbits(hard[:MESSAGE_BITS]).tobytes(), float(np.abs(soft).sum()) / scale
        return
    search = _triples if order == 3 else _ordered_statistics
    for word in search(soft, most):
        agreement = float(np.dot(soft, 2.0 * word - 1.0)) / scale
        yield np.packbits(word[:MESSAGE_BITS]).tobytes(), agreement


def _ordered_statistics(soft: NDArray[np.float32], most: int) -> list[Bits]:
    """Return the `most` likeliest code words that differ in at most two of the surest bits."""
    order = np.argsort(-np.abs(soft), kind="stable")
    basis, pivots = _reduce(np.ascontiguousarray(generator()[:, order]))
    sure = soft[order].astype(np.float64)
    first = (((sure[pivots] > 0).astype(np.int64)) @ basis.astype(np.int64) % 2).astype(np.uint8)
    signed = sure * (2.0 * first - 1.0)  # what each bit of `first` adds to the correlation
    rows = basis.astype(np.float64)
    single = -2.0 * (rows @ signed)  # flipping row i changes the correlation by single[i]
    pair = single[:, None] + single[None, :] + 4.0 * ((rows * signed) @ rows.T)
    np.fill_diagonal(pair, single)
    upper_i, upper_j = _pairs(len(rows))
    gains = np.concatenate([[0.0], pair[upper_i, upper_j]])
    best = np.argpartition(-gains, most)[:most]
    words = []
    for place in best[np.argsort(-gains[best], kind="stable")]:
        word = first.copy()
        if place:
            i, j = int(upper_i[place - 1]), int(upper_j[place - 1])
            word ^= basis[i]
            if i != j:
                word ^= basis[j]
        back = np.empty_like(word)
        back[order] = word
        words.append(back)
    return words


def _triples(soft: NDArray[np.float32], most: int) -> list[Bits]:
    """Return the `most` likeliest code words that differ in three of the surest bits."""
    order = np.argsort(-np.abs(soft), kind="stable")
    basis, pivots = _reduce(np.ascontiguousarray(generator()[:, order]))
    sure = soft[order].astype(np.float32)
    first = (((sure[pivots] > 0).astype(np.int64)) @ basis.astype(np.int64) % 2).astype(np.uint8)
    signed = sure * (np.float32(2) * first - np.float32(1))
    upper_i, upper_j = np.triu_indices(len(basis), 1)
    pairs = basis[upper_i] ^ basis[upper_j]
    kept = signed * (np.float32(1) - np.float32(2) * pairs)  # what is left to each third row
    gains = -2 * ((pairs.astype(np.float32) @ signed)[:, None] + kept @ basis.T.astype(np.float32))
    gains[np.arange(len(basis)) <= upper_j[:, None]] = -np.inf
    flat = gains.reshape(-1)
    best = np.argpartition(-flat, most)[:most]
    words = []
    for place in best[np.argsort(-flat[best], kind="stable")]:
        pair, third = divmod(int(place), len(basis))
        back = np.empty_like(first)
        back[order] = first ^ pairs[pair] ^ basis[third]
        words.append(back)
    return words


@cache
def _pairs(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of every pair ``i <= j``; ``i == j`` stands for one row alone."""
    first, second = np.triu_indices(count)
    return first, second


@compiled
def _reduce(matrix: Bits) -> tuple[Bits, NDArray[np.int64]]:
    """Return the row-reduced generator and its pivot columns (the surest independent bits)."""
    rows = matrix.copy()
    count, columns = rows.shape
    pivots = np.zeros(count, np.int64)
    rank = 0
    for column in range(columns):
        top = rank
        while top < count and not rows[top, column]:
            top += 1
        if top == count:
            continue
        for i in range(columns):
            rows[rank, i], rows[top, i] = rows[top, i], rows[rank, i]
        for row in range(count):
            if row != rank and rows[row, column]:
                for i in range(columns):
                    rows[row, i] ^= rows[rank, i]
        pivots[rank] = column
        rank += 1
        if rank == count:
            break
    return rows, pivots


@cache
def generator() -> Bits:
    """Return the systematic generator matrix ``(96, 160)``."""
    polynomial = _generator_polynomial()
    parity_bits = len(polynomial) - 1
    rows = np.zeros((MESSAGE_BITS, CODE_BITS), np.uint8)
    divisor = np.array(polynomial, np.uint8)  # highest power first
    for i in range(MESSAGE_BITS):
        remainder = np.zeros(CODE_BITS, np.uint8)
        remainder[i] = 1
        for place in range(MESSAGE_BITS):
            if remainder[place]:
                remainder[place : place + parity_bits + 1] ^= divisor
        rows[i, i] = 1
        rows[i, MESSAGE_BITS:] = remainder[MESSAGE_BITS:]
    return rows


@cache
def _parity_check() -> NDArray[np.int64]:
    parity = generator()[:, MESSAGE_BITS:]
    return np.hstack([parity.T, np.eye(CODE_BITS - MESSAGE_BITS, dtype=np.uint8)]).astype(np.int64)


def _generator_polynomial() -> list[int]:
    """Return the product of the minimal polynomials of alpha, alpha^3 ... alpha^15."""
    power = [1]
    for _ in range(254):
        following = power[-1] << 1
        power.append(following ^ _PRIMITIVE if following & 0x100 else following)
    log = {value: exponent for exponent, value in enumerate(power)}

    def times(a: int, b: int) -> int:
        return power[(log[a] + log[b]) % 255] if a and b else 0

    product, done = [1], set[int]()
    for root in range(1, 2 * _CORRECTS, 2):
        conjugates = {root * 2**i % 255 for i in range(8)}
        if conjugates & done:
            continue
        done |= conjugates
        for exponent in sorted(conjugates):  # multiply by (x + alpha^exponent)
            shifted = [*product, 0]
            for i, coefficient in enumerate(product):
                shifted[i + 1] ^= times(coefficient, power[exponent])
            product = shifted
    return product
