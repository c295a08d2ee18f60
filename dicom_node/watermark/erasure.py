"""Reed-Solomon erasure code over GF(256) whose symbols are tiles.

The code is the usual narrow-sense one (field polynomial 0x11d, generator 2, first root 1), the same
as the ``reedsolo`` package, applied to all columns of an ``(n, width)`` array at once. A destroyed
tile destroys a whole row, so the columns share their error positions; this is what finds up to
``min(width, parity - 1)`` wrong rows without being told which, twice what one column allows.

References
----------
Metzner and Kapturowski, "A general decoding technique applicable to replicated file disagreement
location and concatenated code decoding", IEEE Trans. Inf. Theory 36(4), 1990.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import reedsolo
from numpy.typing import NDArray

from dicom_node.compiled import compiled

Bytes2D = NDArray[np.uint8]
MAX_SYMBOLS = 255
# Python-speed decoding of single columns stops here, so that hostile input cannot buy minutes.
_SLOW_COLUMNS = 16


def _tables() -> tuple[Bytes2D, NDArray[np.uint8], NDArray[np.uint8]]:
    exp = np.zeros(510, np.uint8)
    log = np.zeros(256, np.int64)
    x = 1
    for i in range(255):
        exp[i] = exp[i + 255] = x
        log[x] = i
        x = (x << 1) ^ (0x11D if x & 0x80 else 0)
    product = exp[log[:, None] + log[None, :]]
    product[0, :] = product[:, 0] = 0
    inverse = exp[(255 - log) % 255]
    return product, inverse, exp


_MUL, _INV, _EXP = _tables()


def _matmul(a: Bytes2D, b: Bytes2D) -> Bytes2D:
    """Return the product of `a` ``(m, k)`` and `b` ``(k, width)`` over GF(256)."""
    out = np.zeros((a.shape[0], b.shape[1]), np.uint8)
    _add_products(np.require(a, requirements="W"), np.require(b, requirements="W"), _MUL, out)
    return out


@compiled
def _add_products(a: Bytes2D, b: Bytes2D, table: Bytes2D, out: Bytes2D) -> None:
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            row = table[a[i, k]]
            for j in range(b.shape[1]):
                out[i, j] ^= row[b[k, j]]


@compiled
def _clear_column(system: Bytes2D, pivot: int, column: int, table: Bytes2D) -> None:
    """Take row `pivot`, 1 in `column`, from all other rows, so that they are 0 there."""
    for i in range(system.shape[0]):
        factor = system[i, column]
        if factor and i != pivot:
            for j in range(system.shape[1]):
                system[i, j] ^= table[factor, system[pivot, j]]


@lru_cache(maxsize=64)
def _parity_matrix(n: int, k: int) -> Bytes2D:
    """Rows of x**(n-1-i) mod g(x), transposed: parity ``(n-k, width)`` = matrix @ data."""
    parity = n - k
    g = np.zeros(parity + 1, np.uint8)
    g[0] = 1
    for root in range(parity):
        g[1:] ^= _MUL[_EXP[root], g[:-1]]
    matrix = np.zeros((parity, k), np.uint8)
    remainder = g[1:].copy()
    for i in range(k - 1, -1, -1):
        matrix[:, i] = remainder
        lead = remainder[0]
        remainder = np.append(remainder[1:], np.uint8(0)) ^ _MUL[lead, g[1:]]
    return matrix


@lru_cache(maxsize=64)
def _check_matrix(n: int, k: int) -> Bytes2D:
    power = np.arange(n - k)[:, None] * np.arange(n - 1, -1, -1)[None, :]
    return np.asarray(_EXP[power % 255])


def encode(data: Bytes2D, n: int) -> Bytes2D:
    """Return the code word rows for `data`.

    Parameters
    ----------
    data
        ``(k, width)``: row i is what tile i carries.
    n
        Tiles in the group, k <= n <= 255.

    Returns
    -------
    numpy.ndarray
        ``(n, width)``, `data` first, then n - k rows of parity.
    """
    k = data.shape[0]
    if not 1 <= k <= n <= MAX_SYMBOLS:
        raise ValueError(f"no Reed-Solomon code of {k} data and {n} symbols over GF(256)")
    if n == k:
        return data.copy()
    return np.concatenate([data, _matmul(_parity_matrix(n, k), data)])


def decode(values: Bytes2D, erased: NDArray[np.bool_], k: int) -> Bytes2D | None:
    """Return the `k` data rows of a damaged code word, or None if too much is damaged.

    Parameters
    ----------
    values
        ``(n, width)`` as extracted.
    erased
        ``(n,)``, True where a row is known to be lost; other rows may be wrong, too.
    k
        Data rows.
    """
    n = values.shape[0]
    known = values.copy()
    known[erased] = 0
    parity = n - k
    lost = np.flatnonzero(erased)
    if lost.size > parity or not 1 <= k <= n:
        return None
    if parity == 0:
        return known
    check = _check_matrix(n, k)
    syndrome = _matmul(check, known)
    if not lost.size and not syndrome.any():
        return known[:k]
    fixed, rest, rest_check = _solve(check, syndrome, lost)
    if not rest.any():
        known[lost] = fixed
        return known[:k]
    wrong = _locate(rest, rest_check, erased)
    if wrong is not None and lost.size + wrong.size <= parity:
        both = np.union1d(lost, wrong)
        known[both] = 0
        fixed, rest, _ = _solve(check, _matmul(check, known), both)
        if not rest.any():
            known[both] = fixed
            return known[:k]
    return _decode_columns(values, lost, k)


def _solve(
    check: Bytes2D, syndrome: Bytes2D, lost: NDArray[np.intp]
) -> tuple[Bytes2D, Bytes2D, Bytes2D]:
    """Solve ``check[:, lost] @ x = syndrome``.

    Returns
    -------
    tuple
        x ``(lost, width)``; the part of the syndrome that no x explains, ``(rest, width)``; the
        check matrix that belongs to it, ``(rest, n)``.
    """
    width = syndrome.shape[1]
    system = np.concatenate([check[:, lost], syndrome, check], axis=1)
    for i in range(lost.size):
        # Any `parity` columns of the check matrix are independent, so a pivot exists.
        pivot = i + int(np.flatnonzero(system[i:, i])[0])
        system[[i, pivot]] = system[[pivot, i]]
        system[i] = _MUL[_INV[system[i, i]], system[i]]
        _clear_column(system, i, i, _MUL)
    e = lost.size
    return system[:e, e : e + width], system[e:, e : e + width], system[e:, e + width :]


def _locate(rest: Bytes2D, check: Bytes2D, erased: NDArray[np.bool_]) -> NDArray[np.intp] | None:
    """Find the wrong rows: where every combination of checks that vanishes on `rest` is zero."""
    rows, width = rest.shape
    system = np.concatenate([rest, check], axis=1)
    rank = 0
    for column in range(width):
        candidates = np.flatnonzero(system[rank:, column])
        if not candidates.size:
            continue
        pivot = rank + int(candidates[0])
        system[[rank, pivot]] = system[[pivot, rank]]
        system[rank] = _MUL[_INV[system[rank, column]], system[rank]]
        _clear_column(system, rank, column, _MUL)
        rank += 1
        if rank == rows:
            return None
    vanishing = ~system[rank:, width:].any(axis=0) & ~erased
    return np.flatnonzero(vanishing)


def _decode_columns(values: Bytes2D, lost: NDArray[np.intp], k: int) -> Bytes2D | None:
    """Decode column by column: for shares so short that their errors are not independent."""
    n, width = values.shape
    if width > _SLOW_COLUMNS:
        return None
    codec = reedsolo.RSCodec(n - k, nsize=n)
    out = np.zeros((k, width), np.uint8)
    for column in range(width):
        try:
            data, _, _ = codec.decode(
                bytearray(values[:, column].tobytes()), erase_pos=[int(i) for i in lost]
            )
        except reedsolo.ReedSolomonError:
            return None
        out[:, column] = np.frombuffer(bytes(data), np.uint8)
    return out
