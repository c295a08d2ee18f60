"""Whether a mark just made is read: known without decoding, where few bits are wrong.

Decoding has to find 96 bits; here they are known, and only whether it would find them is asked.
"""

from __future__ import annotations

import numpy as np

from dicom_node.inference.base import Float32
from dicom_node.watermark import ecc, expecting
from dicom_node.watermark.reading import MIN_AGREEMENT
from dicom_node.watermark.words import RobustKey, code_word, nearest_way

# R2 is not run where D1 agrees by so much more than is asked of R2: on plain copies of 14 CT slices
# R2 agreed less by 0.04 at most, and more where D1 was weak.
SPARE_OF_D1 = 0.06
# Of the surest 96 bits so many may be wrong for `ecc.candidates` to come to the word.
_MENDED = 2
_LEAST_DISTANCE = 17  # of two words: a BCH code that corrects 8 errors


def must_be_read(soft: Float32, message: bytes, key: RobustKey, *, ways: int = 1) -> bool:
    """Whether decoding cannot but come to `message`; False where only decoding can tell.

    With no more than two wrong bits its word is among the decoder's candidates. Any other word
    differs in at least 17 bits: it gains what the wrong ones weigh and loses what
    the others weigh, at least the lightest of them. Where that is more, none is likelier.

    Parameters
    ----------
    soft
        Of D1, ``(160,)``.
    message
        12 bytes, with a valid tag of `key`.
    ways
        In how many ways its code word may be whitened.
    """
    agreeing = np.sort(soft * _word(soft, message, key, ways))
    wrong = int(np.searchsorted(agreeing, 0.0, side="right"))
    if wrong > _MENDED:
        return False
    gained = -float(agreeing[:wrong].sum())
    lost = float(agreeing[wrong:_LEAST_DISTANCE].sum())
    cosine = float(agreeing.sum()) / (float(np.linalg.norm(soft) * np.sqrt(ecc.CODE_BITS)) or 1.0)
    return lost > gained and cosine > MIN_AGREEMENT


def must_be_recognised(
    soft: Float32, message: bytes, key: RobustKey, rank: int | None, *, spare: float = 0.0,
    ways: int = 1,
) -> bool:  # fmt: skip
    """Whether `message` is recognised in a picture among whose guesses it has this rank.

    Another guess could be taken for it only where it agrees by chance: as rare as a false accept.

    Parameters
    ----------
    rank
        Of `expecting.rank_of`; None: it is not guessed.
    spare
        So much more than is asked has to agree: `SPARE_OF_D1` where the soft bits are not R2's.
    ways
        In how many ways its code word may be whitened.
    """
    if rank is None:
        return False
    return expecting.recognised(soft, _word(soft, message, key, ways), rank, spare, ways)


def _word(soft: Float32, message: bytes, key: RobustKey, ways: int) -> Float32:
    return nearest_way(message, key, soft) if ways > 1 else code_word(message, key)
