"""What the comparator's scores are worth: thresholds, overlap, what is found (NumPy and OpenCV).

Scores are ``(frames, 16, 16)``; labels are 1 for changed cells, 0 for untouched ones, -1 for those
in between.
"""

from __future__ import annotations

import cv2
import numpy as np


def alarm_of(calm: np.ndarray, share: float) -> float:
    """Return what the highest cell of unchanged frames is below, but for this share of them."""
    return float(np.quantile(calm.max((1, 2)), 1 - share))


def auc(scores: np.ndarray, marked: np.ndarray) -> float:
    """Return the area under the ROC curve of cells."""
    yes, no = scores[marked == 1], np.sort(scores[marked == 0])
    return float(np.searchsorted(no, yes).mean() / len(no))


def found_at_one_in_a_hundred(
    calm: np.ndarray, tense: np.ndarray, marked: np.ndarray
) -> list[float]:
    """Return AUC of cells and the share of changed frames found, at 1 % false alarms of `calm`."""
    hit = (marked == 1).any((1, 2))
    found = (np.where(marked == 1, tense, -99).max((1, 2)) >= alarm_of(calm, 0.01))[hit].mean()
    return [round(auc(tense, marked), 4), round(float(found), 3)]


def overlap(scores: np.ndarray, marked: np.ndarray, alarm: float, near: float) -> float:
    """Return the mean intersection over union of what the node would call changed."""
    ratios = []
    for score, truth in zip(scores, marked, strict=True):
        _, regions = cv2.connectedComponents((score >= near).astype(np.uint8), connectivity=8)
        sure = np.unique(regions[score >= alarm])
        found = np.isin(regions, sure) & (score >= near) & (truth >= 0)
        both = found & (truth == 1)
        ratios.append(both.sum() / max(1, (found | (truth == 1)).sum()))
    return float(np.mean(ratios))
