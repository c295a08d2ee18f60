"""A hash that has moved far is looked for where the soft bits themselves point.

What is clipped, covered or cut off turns 6 to 14 bits of a picture's hash over: one of 2**25 to
2**40 hashes, more than can be tagged. But the first 64 bits of a code word *are* the hash. Together
with what the picture says they leave a few ten thousand hashes, and the right one is mostly among
them; tag and parity tell it from the others.

False accepts: which hashes are looked at depends on the soft bits, so that their number says
nothing. What is asked of a hash therefore goes by what the *picture* says of it alone: by how many
hashes would have cost as little or less. Over all hashes there are, looked at or not, the chances
add up to 2**-32 (one over the rank summed over all of them is 43; that is asked as well).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import chance, expecting
from dicom_node.watermark.expecting import Expected, Told
from dicom_node.watermark.keyed_tags import scores

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bytes = NDArray[np.uint8]

GUESSES = 32_768
# What a soft bit of rms size says, and how much of what a picture believes counts.
_BELIEVED, _PICTURE = 2.25, 0.6
# Cosine between the first soft bits and a picture's own hash from which that is worth while, in the
# likeliest two: one picture without a mark in twenty has it.
_AGREES, _PICTURES = 0.2, 2
_STEPS = 400  # grid of costs
_HARMONIC = 1 + math.log(math.comb(64, 32))  # sum of 1 / rank over all balanced hashes


def likeliest(
    soft: Float32, earlier: Sequence[Told], whitening: Float32, key: bytes, owner: str,
    *, among: int = 1,
) -> Expected | None:  # fmt: skip
    """Return the message that soft bits point to; None where chance explains it.

    Parameters
    ----------
    soft
        ``(160,)``.
    earlier
        What the picture tells of its hash, taken for one or another, itself first. The few whose
        hash agrees most with the soft bits are looked at; each is an attempt.
    whitening
        Signs that hide code words of this key, ``(160,)``.
    key, owner
        Of the tag.
    among
        As `expecting.likeliest` takes it.
    """
    plain = soft * whitening
    pointed = plain[: expecting.HASH_BITS]
    size = float(np.linalg.norm(pointed)) * math.sqrt(len(pointed)) or 1.0
    agreeing = [(float(_own(each.above) @ pointed) / size, n) for n, each in enumerate(earlier)]
    for agreed, number in sorted(agreeing, reverse=True)[:_PICTURES]:
        if agreed <= _AGREES:
            break
        found = _pointed_to(soft, plain, earlier[number], key, owner, among)
        if found is not None:
            return found
    return None


def _own(above: Float64) -> Float64:
    """Return the bits of a picture's own hash, -1 and +1; 0 throughout where it shows nothing."""
    bits: Float64 = np.where(above > 0, 1.0, -1.0) * bool(above.any())
    return bits


def _pointed_to(
    soft: Float32, plain: Float32, told: Told, key: bytes, owner: str, among: int
) -> Expected | None:
    """Return the likeliest message of a picture that tells so much of its hash.

    `plain` are the soft bits of the code word.
    """
    rms = float(np.sqrt(np.mean(plain**2)))
    both = plain[: expecting.HASH_BITS] * (_BELIEVED / rms) + _PICTURE * told.belief
    guesses = expecting.exchanged(both.astype(np.float64) - np.median(both), GUESSES)
    guessed = expecting.messages(guesses, key, owner)
    agreed, keyed = scores(guessed, plain)
    rank_bits = rarity(told.above, guesses)
    more = math.log2(_HARMONIC) + math.log2(among)
    asked = (expecting.FALSE_ACCEPT_BITS + more + rank_bits) * math.log(2)
    over = chance.over(soft, agreed, asked)
    passing = np.flatnonzero(over >= 0)
    asked_of_keyed = (expecting.NEAR_MISS_BITS + math.log2(len(guesses))) * math.log(2)
    nats = chance.nats(soft[expecting.HASH_BITS :], keyed[passing])
    over[passing[nats < asked_of_keyed]] = -np.inf
    best = int(np.argmax(over))
    if over[best] < 0:
        return None
    return Expected(guessed[best].tobytes(), float(agreed[best]) / expecting.whole(soft))


def rarity(above: Float64, hashes: Bytes) -> Float64:
    """Return the binary logarithm of how many hashes would have cost a picture as little, or less.

    Rounded so that there are never more. Hashes have as many bits turned on as off.

    Parameters
    ----------
    above
        Of `expecting.margins`, ``(64,)``: what turning each bit costs, by its size.
    hashes
        ``(n, 8)``.
    """
    own = np.packbits(above > 0)
    sizes = np.abs(above)
    costs = np.unpackbits(hashes ^ own, axis=1) @ sizes
    step = float(sizes.sum()) / 2 / _STEPS
    counts = np.cumsum(_balanced(sizes[above > 0], sizes[above <= 0], step))
    place = np.floor(costs / step + 1e-6).astype(np.int64)
    bits = np.full(len(hashes), float(len(above)))
    told = place <= _STEPS
    bits[told] = np.log2(counts[place[told]])
    return bits


def _balanced(ones: Float64, others: Float64, step: float) -> Float64:
    """Return how many ways to exchange as many of both cost 0, 1, 2 ... `_STEPS` steps."""
    both = [_subsets(side, step) for side in (ones, others)]
    total = np.zeros(_STEPS + 1)
    for some, more in zip(*both, strict=False):
        total += np.convolve(some, more)[: _STEPS + 1]
    return total


def _subsets(costs: Float64, step: float) -> Float64:
    """Return how many subsets of each size cost so many steps, ``(sizes, _STEPS + 1)``."""
    counts = np.zeros((len(costs) + 1, _STEPS + 1))
    counts[0, 0] = 1
    for cost in np.floor(costs / step).astype(np.int64):
        if cost <= _STEPS:
            counts[1:, cost:] += counts[:-1, : _STEPS + 1 - cost].copy()
    return counts
