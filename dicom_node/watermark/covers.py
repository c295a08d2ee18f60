"""A frame about to be marked, what is chosen for it, and how large the residual may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark.synthesis import Int32

# Most that the part of a frame which carries the mark is changed at 40.9 dB, rms, in 1/256 of the
# window; half of it 5.5 dB higher. Where only a corner can carry, PSNR alone would allow too much.
LOCAL_GREY, LOCAL_DB, LOCAL_HALVES_DB = 5.4, 40.9, 5.5


def budget_rms(psnr_db: float, share: float) -> float:
    """Return the residual's rms over the frame, display values, if `share` of it carries."""
    local = LOCAL_GREY * 2 ** ((LOCAL_DB - psnr_db) / LOCAL_HALVES_DB)
    return float(min(10 ** (-psnr_db / 20), local / 256 * share**0.5))


def agreement_of(soft: Float32) -> Float32:
    """Return the cosine between soft bits times the code word, ``(..., 160)``, and all ones."""
    agreement: Float32 = soft.mean(axis=-1) / np.sqrt(np.mean(soft**2, axis=-1) + 1e-9)
    return agreement


def resample(display: Float32, side: int) -> Float32:
    """Return a picture as networks of that side see it, ``(side, side)``."""
    shrinks = min(display.shape) >= side
    small = cv2.resize(
        display, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(small, np.float32)


def unfolded(small: Float32, side: int) -> Float32:
    """Return a picture and its mirror images to the right and below, ``(side, side)``.

    Parameters
    ----------
    small
        ``(n, n)``, half of `side` or more.
    """
    beyond = side - len(small)
    return np.asarray(np.pad(small, ((0, beyond), (0, beyond)), mode="symmetric"), np.float32)


@dataclass(frozen=True)
class Cover:
    """A frame about to be marked, and how its own texture reads.

    Attributes
    ----------
    small, seen
        As E1's networks see it, and as what reads it does.
    display, stored
        In full; of colour the sample that stands for luma.
    step
        Stored values in 1/256 of the window.
    low, high
        Stored values outside this range hardly change.
    word
        The code word to put in.
    soft, aim
        Soft bits of the cover itself, times `word`: as it is looked at, and on average with and
        without a blur, each of norm 1.
    blur
        Sigmas, horizontal and vertical, through which it is looked at: what a 7 x 7 blur of the
        full frame is here. Of the attacks the mark is made for, the one that takes most from a
        small frame. None: as it is.
    """

    small: Float32
    seen: Float32
    display: Float32
    stored: Int32
    step: float
    low: int
    high: int
    word: Float32
    soft: Float32
    aim: Float32
    blur: tuple[float, float] | None


@dataclass(frozen=True)
class Choice:
    """What E1 chose for a frame, and how it reads when scaled to a budget.

    Attributes
    ----------
    shape
        The residual before it is scaled, ``(rows, columns)``.
    size
        Its rms over the frame, as far as it shows.
    share
        Of the frame that carries.
    gain
        What a residual of rms 1 adds to each soft bit, times the code word.
    shown
        A residual of rms 1 as what reads it sees it.
    tried
        Rms of the one that `gain` was found with.
    """

    amplitudes: NDArray[np.int8]
    strengths: NDArray[np.uint8]
    carrier_scale: tuple[int, int]
    shape: Int32
    size: float
    share: float
    gain: Float32
    shown: Float32
    tried: float


class Chosen(NamedTuple):
    """A choice for a frame, the least rms that is enough, and how well it reads (cosine)."""

    cover: Cover
    choice: Choice
    rms: float
    reads: float


class Look(NamedTuple):
    """What a mark is looked at through: side of the pictures, soft bits of ``(n, side, side)``.

    `folds` is 2 where the carrier is folded.
    """

    side: int
    soft_bits: Callable[[Float32], Float32]
    folds: int = 1

    def at(self, display: Float32) -> Float32:
        """Return a picture as it is looked at, ``(side, side)``."""
        return resample(display, self.side)
