"""Frames up to 96 pixels: what their mark is chosen for, and which choice JPEG leaves most of.

Such a frame has all the strength there is and is still at the edge of what JPEG leaves. So its mark
is chosen for the frame as it is and after JPEG, stronger and weaker; each choice is coded, and the
one of which most is left is put in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark import synthesis
from dicom_node.watermark.covers import Chosen, Cover, Look, agreement_of

# Qualities that a mark is chosen for beside the frame as it is; those it is then looked at after.
_CHOSEN_FOR = ((70,), (70, 50), (50,))
_LOOKED_AT = (70, 60, 50)
_ENOUGH = 0.56  # agreement that is read for certain: more is worth nothing
APART = 0.6  # how far folded patterns are taken apart


def covers(sharp: Cover, look: Look, nearest: Callable[[Float32], Float32] | None) -> list[Cover]:
    """Return a frame with an aim, and a word to put in, for each way to choose its mark.

    Parameters
    ----------
    sharp
        Looked at without a blur.
    nearest
        Tells from soft bits which word to put in; None: that of `sharp`.
    """
    word, qualities = sharp.word, sorted({each for some in _CHOSEN_FOR for each in some})
    seen = np.stack([look.at(_coded(sharp.display, quality)) for quality in qualities])
    coded = dict(zip(qualities, look.soft_bits(seen) * word, strict=True))
    made = []
    for some in _CHOSEN_FOR:
        looks = [sharp.soft, *(coded[quality] for quality in some)]
        aim = np.mean([each / (np.linalg.norm(each) + 1e-9) for each in looks], axis=0)
        better = nearest(aim * word) if nearest is not None else word
        made.append(replace(sharp, word=better, soft=sharp.soft * word * better,
                            aim=np.asarray(aim * word * better, np.float32)))  # fmt: skip
    return made


def survives(chosen: Chosen, look: Look) -> float:
    """Return what JPEG leaves of a choice: agreements with the word, of enough at most, added."""
    cover, choice = chosen.cover, chosen.choice
    # In whole stored values: where those are grey levels, rounding decides what JPEG keeps.
    change = np.rint(choice.shape * (chosen.rms * 256 * abs(cover.step) / choice.size))
    marked = cover.display + (change / (256 * cover.step)).astype(np.float32)
    # What would leave the range is left as it is.
    marked = np.where((marked >= 0) & (marked <= 1), marked, cover.display)
    coded = np.stack([look.at(_coded(marked, quality)) for quality in _LOOKED_AT])
    return float(np.minimum(agreement_of(look.soft_bits(coded) * cover.word), _ENOUGH).sum())


def apart(patterns: NDArray[np.int8], folds: int) -> Float32:
    """Return what makes amplitudes of folded patterns of the bits wanted, ``(K, K)``.

    Least squares, with as much restraint as a frame's own texture asks for.
    """
    return _apart_of(patterns.tobytes(), len(patterns), folds)


@lru_cache(maxsize=4)
def _apart_of(patterns: bytes, count: int, folds: int) -> Float32:
    each = np.frombuffer(patterns, np.int8).reshape(count, -1).astype(np.int32)
    small = np.stack([synthesis.folded(pattern, folds) for pattern in each]).astype(np.float64)
    alike = small @ small.T
    alike /= np.mean(np.diag(alike))
    inverse: Float32 = np.linalg.inv(alike + APART * np.eye(count)).astype(np.float32)
    return inverse


def _coded(display: Float32, quality: int) -> Float32:
    """Return a frame after JPEG, in display values."""
    grey = np.rint(display * 255).astype(np.uint8)
    code = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    coded = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)
    return np.asarray(coded, np.float32) * np.float32(1 / 255)
