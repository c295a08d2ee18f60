"""W1 too weak to be decoded: the message that this picture's mark would have is looked for.

A message is the pHash of the frame and a tag that the key makes of it. Whoever holds the key and
has the picture can therefore write down what the message must have been, but for the few bits of
the hash that an attack turns over: `MESSAGES` guesses, the likeliest first. One of them is right
as soon as the soft bits agree with its code word more than chance does with any of them, and that
takes a third of the power that decoding 96 unknown bits takes.

False accepts: how rarely soft bits made without the key agree so much with a keyed word is bounded
by :mod:`chance`. What is asked of every guess makes the sum over all of them 2**-32, less of the
likelier ones: as rare as a wrong word with a right tag.
Under our own key, the hash of a frame that looks much alike agrees of itself. So the tag and the
parity bits have to agree alone, too, more than they do by chance with any guess but once in 1,024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import chance, perceptual
from dicom_node.watermark.keyed_tags import KeyedTags, hash_scores, scores

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
UInt64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

MESSAGES, MANY = 4096, 16_384  # guesses: as a rule, and as a last resort
FIRST = 256  # of them: looked at before the rest
FALSE_ACCEPT_BITS = 32
NEAR_MISS_BITS = 10  # as rarely is a wrong guess taken where our key wrote another message
HASH_BITS = perceptual.BITS
_TYPICAL, _SUREST = 3.0, 4.5  # log-likelihood ratios of a hash bit: median, and largest
_FLOOR_PX, _FLOOR_PERCENT, _LEAST_FLOOR = 9, 2, 0.008
_STEEPER = 1.5  # contrast
_BLACK, _FALLS_OFF_PX = 1 / 256, 3.0
_POWERS = 2, 8  # the eighth: most pictures are dark, so that equalising them raises nearly all
# Cosine between the first soft bits and a hash below which its tag is not asked: a message that is
# recognised agrees by 0.48 or more, and a part of its bits hardly ever by so little.
_OWN_AGREEMENT = 0.25
# Of each side of the median, the bits nearest to it that are exchanged: so many, so many at once.
_EXCHANGED = ((1, 32), (2, 14), (3, 9), (4, 7))
_EXCHANGED_OF_MANY = ((1, 32), (2, 22), (3, 13), (4, 9))


class Expected(NamedTuple):
    """The likeliest message.

    Attributes
    ----------
    message
        12 bytes.
    agreement
        Cosine between its code word and the soft bits.
    way
        In which way that is whitened.
    """

    message: bytes
    agreement: float
    way: int = 0


class Told(NamedTuple):
    """What a picture tells of the bits of its frame's hash.

    Attributes
    ----------
    above
        ``(64,)``: set where it is positive, and the size is what turning the bit over costs.
    belief
        The same as log-likelihood ratios, ``(64,)``.
    """

    above: Float64
    belief: Float32


def recognised(
    soft: Float32, word: Float32, rank: int, spare: float = 0.0, ways: int = 1
) -> bool:
    """Whether the message with this code word, a guess of this rank, is recognised in soft bits.

    Parameters
    ----------
    spare
        By so much of a cosine less they may agree, and still be.
    ways
        As many code words of it are looked for.
    """
    first, keyed = slice(HASH_BITS), slice(HASH_BITS, None)
    if soft[first] @ word[first] - spare * whole(soft[first]) < _OWN_AGREEMENT * whole(soft[first]):
        return False
    return all(
        chance.nats(some, np.array([some @ wanted - spare * whole(some)]))[0]
        >= chance.asked(MESSAGES, bits + math.log2(ways))[rank]
        for some, wanted, bits in (
            (soft, word, FALSE_ACCEPT_BITS), (soft[keyed], word[keyed], NEAR_MISS_BITS)
        )
    )  # fmt: skip


def rank_of(hashed: bytes, display: Float32) -> int | None:
    """Return which of the guesses at a picture's hash this one is, from 0; None if none of them.

    Parameters
    ----------
    hashed
        8 bytes.
    display
        Display values 0..1, ``(rows, columns)``.
    """
    if perceptual.perceptual_hash(display) == hashed:
        return 0
    alike = (hashes(display) == np.frombuffer(hashed, np.uint8)).all(axis=1)
    return int(np.argmax(alike)) if alike.any() else None


def hashes(display: Float32, most: int = MESSAGES) -> Bytes:
    """Return the hashes a picture may have had, the likeliest first, ``(most, 8)``.

    A pHash sets the half of its 64 bits whose coefficients lie above the median, so bits turn over
    in pairs, one from each side of it, and those nearest to it first.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    """
    return exchanged(margins(display), most)


def margins(display: Float32) -> Float64:
    """Return how far above the median the coefficients of a picture's hash lie, ``(64,)``.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    """
    coefficients = perceptual.coefficients(display).reshape(-1)
    above: Float64 = coefficients - np.median(coefficients)
    return above


def exchanged(above: Float64, most: int) -> Bytes:
    """Return hashes by how little has to be exchanged for them, ``(most, 8)``.

    Parameters
    ----------
    above
        Of each bit, ``(64,)``: set where it is positive, and the size is what turning it costs.
    """
    order = np.argsort(np.abs(above), kind="stable")
    bit = np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)
    sides = [order[above[order] > 0], order[above[order] <= 0]]
    own = int(np.bitwise_or.reduce(bit[above > 0], initial=np.uint64(0)))
    turned, costs = [np.zeros(1, np.uint64)], [np.zeros(1)]
    for at_once, nearest in _EXCHANGED if most <= MESSAGES else _EXCHANGED_OF_MANY:
        (some, prices), (others, theirs) = (
            _sets(bit[side], np.abs(above[side]), at_once, nearest) for side in sides
        )
        turned.append(np.bitwise_or.outer(some, others).reshape(-1))
        costs.append(np.add.outer(prices, theirs).reshape(-1))
    every, cost = np.concatenate(turned), np.concatenate(costs)
    cheapest = np.argpartition(cost, most)[:most] if most < len(cost) else np.arange(len(cost))
    likeliest = cheapest[np.argsort(cost[cheapest], kind="stable")]
    found = every[likeliest] ^ np.uint64(own)
    return np.ascontiguousarray(found.astype(">u8").view(np.uint8).reshape(-1, 8))


def told(display: Float32) -> Told:
    """Return what a picture that shows all of its frame tells of the bits of its hash.

    Bits far from the median keep their value through nearly anything; those near it say nothing.
    None is believed by more than `_SUREST`.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    """
    above = margins(display)
    typical = float(np.median(np.abs(above))) or 1.0
    ratios: Float32 = np.clip(_TYPICAL * above / typical, -_SUREST, _SUREST).astype(np.float32)
    return Told(above, ratios)


def without_floor(display: Float32) -> Float32 | None:
    """Return a picture with its darkest level at 0; None where it is there already.

    Noise that is cut off at black raises all that was black, and with it the whole hash.
    """
    floor = float(np.percentile(cv2.blur(display, (_FLOOR_PX, _FLOOR_PX)), _FLOOR_PERCENT))
    if not _LEAST_FLOOR < floor < 1.0:
        return None
    lowered: Float32 = np.clip((display - floor) / np.float32(1 - floor), 0, 1)
    return lowered


def other_tones(display: Float32) -> tuple[Float32, ...]:
    """Return what a picture may have been before its tones were changed.

    Before a gamma of 2; before half as much contrast again about the middle, which clips the
    darkest and the brightest sixth; before a gamma of 0.5; before its histogram was equalised. Each
    turns hash bits over by what it does to the dark. What was clipped was black, or darker, and at
    the other end brighter, the farther from what was not.
    """
    lifted = 0.5 + (display - 0.5) / _STEEPER
    falling = _falls_off(display < _BLACK) * (1 - _falls_off(display > 1 - _BLACK) * (1 - lifted))
    steeper = (np.where(display > 0, lifted, 0), falling)
    before = np.sqrt(display), *steeper, *(display**each for each in _POWERS)
    return tuple(np.asarray(each, np.float32) for each in before)


def _falls_off(clipped: NDArray[np.bool_]) -> Float32:
    """Return 1 where a picture was not clipped, and less the farther from there."""
    away = cv2.distanceTransform(clipped.astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(np.exp(-away / _FALLS_OFF_PX), np.float32)


def nearest_first(known: Bytes, own: Bytes) -> Bytes:
    """Return hashes ``(n, 8)`` by how many bits they differ in from `own`, ``(8,)``."""
    differing = np.unpackbits(known ^ own, axis=1).sum(axis=1)
    return np.ascontiguousarray(known[np.argsort(differing, kind="stable")])


def likeliest(
    candidates: Bytes, soft: Float32, whitenings: Float32, key: bytes, owner: str, *,
    among: int = 1,
) -> Expected | None:  # fmt: skip
    """Return the message that soft bits agree with, None where chance explains the best.

    Parameters
    ----------
    candidates
        Of `hashes`, ``(n, 8)``.
    soft
        ``(160,)``.
    whitenings
        Signs that may hide code words of this key, ``(ways, 160)``: the more, the more is asked.
    key, owner
        Of the tag.
    among
        Of so many places this one was chosen with the key's help: as much more is asked.
    """
    ways = math.log2(len(whitenings))
    asked = chance.asked(len(candidates), FALSE_ACCEPT_BITS + ways + math.ceil(math.log2(among)))
    # The choice of a place says nothing of tag and parity.
    asked_of_keyed = chance.asked(len(candidates), NEAR_MISS_BITS + ways)
    # Most pictures have hardly changed: their message is among the first guesses, beyond doubt.
    for count, beyond in ((FIRST, True), (len(candidates), False)):
        for way, whitening in enumerate(whitenings):
            plain = soft * whitening
            some = _agreeing(candidates[:count], plain)
            if not len(some):
                continue
            of_keyed = (asked if beyond else asked_of_keyed)[some]
            guessed = messages(candidates[some], key, owner)
            found = _likeliest(guessed, plain, asked[some], of_keyed)
            if found is not None:
                return found._replace(way=way)
    return None


def _agreeing(hashes: Bytes, plain: Float32) -> NDArray[np.int64]:
    """Return which hashes the first bits agree with: others are not worth their tags."""
    first = plain[:HASH_BITS]
    return np.flatnonzero(hash_scores(hashes, first) >= _OWN_AGREEMENT * whole(first))


def _likeliest(
    guessed: Bytes, plain: Float32, asked: Float64, asked_of_keyed: Float64
) -> Expected | None:
    """Return that of the messages ``(n, 12)`` which soft bits agree with by most above `asked`."""
    agreed, keyed = scores(guessed, plain)
    over = chance.over(plain, agreed, asked)
    passing = np.flatnonzero(over >= 0)
    near_miss = chance.over(plain[HASH_BITS:], keyed[passing], asked_of_keyed[passing]) < 0
    over[passing[near_miss]] = -np.inf
    best = int(np.argmax(over))
    if over[best] < 0:
        return None
    return Expected(guessed[best].tobytes(), float(agreed[best]) / whole(plain))


def messages(hashes: Bytes, key: bytes, owner: str) -> Bytes:
    """Return the messages of hashes ``(n, 8)``: each with the tag that a key makes, ``(n, 12)``."""
    return _tags(key, owner).messages(hashes)


def whole(soft: Float32) -> float:
    """Return what a code word that soft bits agree with wholly would sum of them."""
    return float(np.linalg.norm(soft)) * math.sqrt(len(soft)) or 1.0


@lru_cache(maxsize=64)
def _tags(key: bytes, owner: str) -> KeyedTags:
    return KeyedTags(key, owner)


def _sets(
    bits: UInt64, margins: NDArray[np.float64], at_once: int, nearest: int
) -> tuple[UInt64, NDArray[np.float64]]:
    """Return every set of `at_once` of the first `nearest` bits, as a mask, and its cost."""
    count = min(nearest, len(bits))
    members = _members(count, at_once)
    return np.bitwise_or.reduce(bits[members], axis=1), margins[members].sum(axis=1)


@cache
def _members(count: int, at_once: int) -> NDArray[np.int64]:
    rows: Sequence[tuple[int, ...]] = list(combinations(range(count), at_once))
    return np.array(rows, np.int64).reshape(-1, at_once)
