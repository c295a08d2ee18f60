"""Informed embedding: of the 2**40 words that a message has, a frame carries the one nearest to it.

The cover is the main noise of a frame that shows little in its window. One word of 160 signs agrees
with the cover's own soft bits by a cosine of 0 on average; the best of 2**40 by 0.49, so most of
the way is gone before anything is changed. In return more is asked of what is recognised, because
so many words could agree by chance: 0.67 to 0.75 instead of 0.48 to 0.53. What remains for the
residual is a turn of 14 degrees instead of 31: 6 dB. Where noise is what hides a mark, there is
nothing to gain: it does not know the words.

A word is 160 keyed signs of the message, times a path through :mod:`trellis`. It is only ever
*recognised*, in the messages that the picture may have had (:mod:`expecting`); a mark that can be
decoded has the code word of :mod:`ecc` instead. All bits of a word depend on all of the message, so
that messages that look alike have nothing in common.

References
----------
Miller, Doerr and Cox, "Applying informed coding and embedding to design a robust high-capacity
watermark", IEEE Transactions on Image Processing 13(6), 2004.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import chance, ecc, expecting, trellis
from dicom_node.watermark.keyed_tags import KeyedTags

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CUSTOM = b"dicom-node W1 word"
# Guesses that are looked for where a picture hardly lies, 3 ms instead of 11, and where its tones
# are guessed as well.
FEW, FEWEST = 512, 64
_WORD_BYTES = ecc.CODE_BITS // 8
_FALSE_ACCEPT_BITS = expecting.FALSE_ACCEPT_BITS + ecc.CODE_BITS // trellis.PER_BIT


class Recognised(NamedTuple):
    """The likeliest message, 12 bytes, and the word of it that soft bits agree with, ``(160,)``."""

    message: bytes
    word: Float32


def nearest_word(message: bytes, key: bytes, owner: str, soft: Float32) -> Float32:
    """Return the word of a 12-byte message that soft bits agree with most, -1 and +1, ``(160,)``.

    Of a cover: the word to put in. Of a marked picture: the one that was.

    Parameters
    ----------
    key, owner
        Of the message's tag.
    soft
        ``(160,)``.
    """
    signs = _signs(np.frombuffer(message[:8], np.uint8)[None], key, owner)[0]
    word: Float32 = signs * trellis.best_word(signs * soft)
    return word


def likeliest(candidates: Bytes, soft: Float32, key: bytes, owner: str) -> Recognised | None:
    """Return the message one of whose words soft bits agree with; None where chance explains it.

    Parameters
    ----------
    candidates
        Of `expecting.hashes`, ``(n, 8)``.
    soft
        ``(160,)``.
    key, owner
        Of the tag.
    """
    asked = chance.asked(len(candidates), _FALSE_ACCEPT_BITS)
    for some in (slice(expecting.FIRST), slice(expecting.FIRST, None)):
        if not len(candidates[some]):
            break
        sums = trellis.best_sums(_signs(candidates[some], key, owner) * soft)
        over = chance.over(soft, sums, asked[some])
        best = int(np.argmax(over))
        if over[best] >= 0:
            message = expecting.messages(candidates[some][best : best + 1], key, owner)[0].tobytes()
            return Recognised(message, nearest_word(message, key, owner, soft))
    return None


def _signs(hashes: Bytes, key: bytes, owner: str) -> Float32:
    """Return the keyed signs of messages with these hashes ``(n, 8)``, ``(n, 160)``."""
    bits = np.unpackbits(_keyed(key, owner).macs(hashes), axis=1)
    signs: Float32 = bits.astype(np.float32) * 2 - 1
    return signs


@lru_cache(maxsize=64)
def _keyed(key: bytes, owner: str) -> KeyedTags:
    return KeyedTags(key, owner, CUSTOM, _WORD_BYTES)
