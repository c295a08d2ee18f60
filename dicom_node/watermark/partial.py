"""A picture that shows a part of its frame: what the whole frame's hash may have been.

What was cut off, blackened or covered is not seen, but it is not anything either: grey levels go
over into one another, the less the farther apart. Given what is seen, the rest is normal with a
known mean and spread (Gaussian process, exponential covariance), and so is each coefficient that
decides a bit of the hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark import perceptual
from dicom_node.watermark.borders import borderless
from dicom_node.watermark.expecting import Told

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

WHOLE = 0.97  # share of a frame from which all of it counts as seen
_LEAST = 0.1  # share below which nothing is told
_REACH = 6.0  # samples of 32 at which grey levels are alike by 1 / e
_OWN = 0.01  # part of the variance that is each sample's own
_SEEN = 0.6  # of a sample has to be seen for it to count
_LEAST_SPREAD = 2.0  # of a coefficient: what rounding and the mark do to it
# Log-likelihood ratio of a bit one standard deviation from turning over (the normal distribution is
# the logistic one of 1.7 within 0.01), and of the surest. Frames are not quite normal: 1.2 would be
# right as often as it says, but of 33 pictures under a cover 12 instead of 15 are read with it.
_BELIEVED, _SUREST = 1.7, 3.75
_COVER_PX, _COVER_STEP = 9, 1 / 255  # a cover is of one level, and no thinner than that
_LEAST_COVER = 0.04


def told(picture: Float32, shown: Float32) -> Told | None:
    """Return what a part of a frame tells of the bits of its hash; None where that is nothing.

    Parameters
    ----------
    picture
        The whole frame in display values 0..1, ``(side, side)``, anything where it is not seen.
    shown
        1 where it is seen, 0 where not, ``(side, side)``.
    """
    small = perceptual.small(picture).reshape(-1)
    side = perceptual.SMALL_SIDE
    seen = cv2.resize(shown, (side, side), interpolation=cv2.INTER_AREA).reshape(-1) > _SEEN
    if not _LEAST <= float(seen.mean()) < WHOLE:
        return None
    waves, alike = perceptual.waves(), _alike()
    hidden = ~seen
    to_seen = alike[np.ix_(seen, hidden)] @ waves[:, hidden].T
    sides = np.column_stack([small[seen], np.ones(int(seen.sum())), to_seen])
    solved = np.linalg.solve(alike[np.ix_(seen, seen)], sides)
    mean = solved[:, 0].sum() / solved[:, 1].sum()
    around = small[seen] - mean
    variance = float(around @ (solved[:, 0] - mean * solved[:, 1])) / len(around)
    expected = waves[:, seen] @ small[seen] + waves[:, hidden].sum(1) * mean
    expected += around @ solved[:, 2:]
    spread = np.einsum("kn,nm,km->k", waves[:, hidden], alike[np.ix_(hidden, hidden)],
                       waves[:, hidden], optimize=True)  # fmt: skip
    spread -= np.einsum("nk,nk->k", to_seen, solved[:, 2:])
    above = expected - np.median(expected)
    above /= np.sqrt(np.maximum(variance * spread, 0) + _LEAST_SPREAD**2)
    return Told(above, np.clip(_BELIEVED * above, -_SUREST, _SUREST).astype(np.float32))


def parts(picture: Float32) -> Iterator[Told]:
    """Yield what a picture tells if it shows its frame inside a border, and beside a cover.

    Either is of one grey level. Black is no cover: most frames have it around what they show.

    Parameters
    ----------
    picture
        Display values 0..1, ``(side, side)``.
    """
    for seen in (inside_border(picture), beside_cover(picture)):
        part = told(picture, seen) if seen is not None else None
        if part is not None:
            yield part


def inside_border(picture: Float32) -> Float32 | None:
    """Return 1 inside a picture's border, 0 in it; None where it has none."""
    inside = borderless(picture)
    if inside is None:
        return None
    seen = np.zeros(picture.shape, np.float32)
    seen[inside] = 1
    return seen


def beside_cover(picture: Float32) -> Float32 | None:
    """Return 0 where a picture is covered, 1 elsewhere; None where it is not."""
    counts = np.bincount(np.rint(picture.reshape(-1) * 255).astype(np.int64), minlength=256)
    level = (1 + int(np.argmax(counts[1:]))) / 255
    of_it = (np.abs(picture - level) < _COVER_STEP).astype(np.uint8)
    cover = cv2.morphologyEx(of_it, cv2.MORPH_OPEN, np.ones((_COVER_PX, _COVER_PX), np.uint8))
    return None if cover.mean() < _LEAST_COVER else (1 - cover).astype(np.float32)


@cache
def _alike() -> Float64:
    """Return how alike any two samples of a small picture are, ``(1024, 1024)``."""
    down, right = np.divmod(np.arange(perceptual.SMALL_SIDE**2), perceptual.SMALL_SIDE)
    apart = np.hypot(down[:, None] - down, right[:, None] - right)
    alike: Float64 = np.exp(-apart / _REACH)
    alike[np.diag_indices_from(alike)] += _OWN
    return alike
