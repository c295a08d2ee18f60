"""Whether a mark just made is read: known without decoding, where few bits are wrong.

Decoding has to find 96 bits; here they are known, and only whether it would find them is asked.
"""

from __future__ import annotations

import numpy as np

from dicom_node.inference.base import Float32
from dicom_node.watermark import ecc
from dicom_node.watermark.reading import MIN_AGREEMENT, UPRIGHT, RobustKey, code_word, read

# Of the surest 96 bits so many may be wrong for `ecc.candidates` to come to the word.
_MENDED = 2
_LEAST_DISTANCE = 17  # of two words: a BCH code that corrects 8 errors


def is_read(soft: Float32, message: bytes, key: RobustKey) -> bool:
    """Whether `reading.read` reads `message` from soft bits ``(160,)``.

    Parameters
    ----------
    message
        12 bytes, with a valid tag of `key`.
    """
    return must_be_read(soft, message, key) or read(soft, [key], UPRIGHT).message == message


def must_be_read(soft: Float32, message: bytes, key: RobustKey) -> bool:
    """Whether decoding cannot but come to `message`; False where only decoding can tell.

    With no more than two wrong bits its word is among the decoder's candidates. Any other word
    differs in at least 17 bits: it gains what the wrong ones weigh and loses what
    the others weigh, at least the lightest of them. Where that is more, none is likelier.
    """
    agreeing = np.sort(soft * code_word(message, key))
    wrong = int(np.searchsorted(agreeing, 0.0, side="right"))
    if wrong > _MENDED:
        return False
    gained = -float(agreeing[:wrong].sum())
    lost = float(agreeing[wrong:_LEAST_DISTANCE].sum())
    cosine = float(agreeing.sum()) / (float(np.linalg.norm(soft) * np.sqrt(ecc.CODE_BITS)) or 1.0)
    return lost > gained and cosine > MIN_AGREEMENT
