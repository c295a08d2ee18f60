"""Frames of which a corner is kept: four places of a size, asked apart from all others.

Whoever cuts a picture mostly leaves a corner of it. Each is asked with its neighbours half a sample
away, and chance finds far less in so few shifts than in all: marks stand out here that do not
there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dicom_node.inference.base import Float32
from dicom_node.watermark.fourier import chance
from dicom_node.watermark.shifts import Peak, ShiftBank, Shifts

EACH = 3  # shifts asked for a corner, each way
_AROUND = (-0.5, 0.0, 0.5)  # samples
_LACKING = 1.0  # below chance, of evidence by some patterns: there all are not asked


def around(slack: float) -> Float32:
    """Return the shifts that keep the start of a frame and its end, `EACH` in turn, samples.

    Parameters
    ----------
    slack
        How far the middle of what is kept lies from the frame's, samples.
    """
    return np.asarray([kept + part for kept in (-slack, slack) for part in _AROUND], np.float32)


def by_corner(there: Float32) -> Float32:
    """Return what was asked of every shift by corner, ``(4, EACH * EACH)``.

    Parameters
    ----------
    there
        ``(down, right)``, both as `around` gives them.
    """
    return there.reshape(2, EACH, 2, EACH).transpose(0, 2, 1, 3).reshape(4, EACH * EACH)


def shift_of(asked: Shifts, corner: int, one: int) -> tuple[float, float]:
    """Return the shift down and right, samples, of an entry of `by_corner`."""
    (down, right), (y, x) = divmod(corner, 2), divmod(one, EACH)
    return float(asked.down[EACH * down + y]), float(asked.right[EACH * right + x])


def peaks(bank: ShiftBank, asked: Shifts) -> Iterator[Peak]:
    """Yield the likeliest shift of every corner that is as likely as chance, or nearly."""
    there, expected = by_corner(asked.roughly), chance(asked.roughly.size // 4)
    likely = np.flatnonzero(there.max(1) >= expected - _LACKING)
    if not len(likely):
        return
    shifts = [shift_of(asked, int(n), int(there[n].argmax())) for n in likely]
    down, right = np.asarray(shifts, np.float32).T
    for each, shift in zip(bank.evidence_at(asked, down, right), shifts, strict=True):
        yield Peak(float(each) - expected, *shift, asked.noise)
