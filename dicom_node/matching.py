"""Which registered frame a picture shows: by its samples, by its robust message, else by its looks.

Samples prove it. A message names the frames that looked alike to the bit when they were marked:
mostly one. Looks are compared with every frame there is: first 64 bits of each, in eight poses,
then the fingerprints of the nearest. The bounds below were read off 160 frames of 1,500 from 528
groups, exported as a person would: after JPEG, another window or gamma, noise, two degrees of
turning or a twentieth cut off, the frame itself keeps within 12 bits (14 at most) and 17 % of its
cells, while nine in ten nearest frames of other studies differ in 24 % of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.facts import stored_digest
from dicom_node.inference.base import Float32
from dicom_node.inference.fingerprinter import Fingerprinter
from dicom_node.registry import FrameMatch, Registry
from dicom_node.watermark import fingerprint, perceptual
from dicom_node.watermark.borders import borderless
from dicom_node.watermark.placement import Placement, as_seen
from dicom_node.watermark.robust import DIHEDRAL, Detection, Pose

LOOK_BITS = 14  # of 64, that a frame's looks may change on the way
ALONE_BITS = 4  # where no fingerprint can be compared
CHANGED_SHARE = 0.2  # of the cells, from which it is another frame
CANDIDATES = 24
REMEMBERED = 20_000  # 1.2 us each, key and look, and the search takes a few dozen looks
_SURE, _SURE_OF_LOOKS = 0.999, 0.95
_UPRIGHT = Pose()
_AS_GOOD = 0.01  # of the bits: nearer than that, one frame is as likely as the other

By = Literal["samples", "message", "look"]


@dataclass(frozen=True)
class Match:
    """A registered frame and how sure it is that a picture shows it.

    Attributes
    ----------
    confidence
        0 to 1: less where several frames would do, or its looks have changed.
    by
        ``samples``: bit for bit; ``message``: its robust mark; ``look``.
    changed_share
        Part of the fingerprint's cells that differ; None where none was compared.
    """

    found: FrameMatch
    confidence: float
    by: By
    pose: Pose = _UPRIGHT
    changed_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return `match` of ``trace --json``."""
        instance = self.found.instance
        return {
            "study_instance_uid": instance.study_instance_uid,
            "series_instance_uid": instance.series_instance_uid,
            "sop_instance_uid": instance.sop_instance_uid,
            "frame": self.found.frame,
            "confidence": round(self.confidence, 3),
            "by": self.by,
            "distance_bits": self.found.distance,
        }


@dataclass(frozen=True)
class _Candidate:
    """A frame that may be it.

    Attributes
    ----------
    share
        Of the fingerprint's cells that were changed; None where there is none to compare.
    differing
        Part of the fingerprint's bits that differ. Neighbouring slices have no changed cell, and
        still other bits: of 80 pictures it told 76 to 80 from them, where the hash told 64 to 75.
    """

    found: FrameMatch
    pose: Pose
    share: float | None = None
    differing: float | None = None


class Matcher:
    """Looks pictures up in one registry.

    Parameters
    ----------
    network
        Compares fingerprints.
    """

    def __init__(self, registry: Registry, network: Fingerprinter) -> None:
        self._registry = registry
        self._network = network

    @cached_property
    def hashes(self) -> NDArray[np.uint8]:
        """Perceptual hashes a weak mark is compared with, ``(n, 8)``: of the frames marked last."""
        return self._registry.hashes(REMEMBERED)

    def by_samples(self, sop_instance_uid: str, values: NDArray[np.int32]) -> Match | None:
        """Return the registered frame that holds just these stored values."""
        digest = stored_digest(values)
        for instance in reversed(self._registry.instances(sop_instance_uid=sop_instance_uid)):
            for number, facts in enumerate(instance.frames, 1):
                if facts.marked_digest == digest:
                    return Match(FrameMatch(instance, number, facts), 1.0, "samples")
        return None

    def by_message(self, detection: Detection, picture: Float32) -> Match | None:
        """Return the frame that carries the message found in `picture`.

        Several frames that look alike may carry one message: then looks decide.
        """
        frames = self._registry.by_message(detection.message)
        candidates = [self._compared(each, detection.pose, picture) for each in frames]
        return _best(candidates, "message", _SURE)

    def by_look(self, picture: Float32) -> Match | None:
        """Return the frame that `picture` shows, upright, turned by quarters or mirrored.

        A border of one grey level may be somebody's, or the frame's own: looked at with and
        without.
        """
        inner = borderless(picture)
        parts = [picture] if inner is None else [picture, np.ascontiguousarray(picture[inner])]
        views = [(part, pose) for part in parts for pose in (_UPRIGHT, *DIHEDRAL)]
        hashes = [perceptual.perceptual_hash(pose.upright(part)) for part, pose in views]
        frames = self._registry.similar(hashes, LOOK_BITS, CANDIDATES)
        candidates = [self._compared(each, views[each.query][1], views[each.query][0])
                      for each in frames]  # fmt: skip
        return _best([each for each in candidates if _is_alike(each)], "look", _SURE_OF_LOOKS)

    def _compared(self, found: FrameMatch, pose: Pose, picture: Float32) -> _Candidate:
        features, network = found.facts.fingerprint, self._network
        card = network.card
        try:
            comparison = fingerprint.compare(features, picture, network, pose)
            code = fingerprint.unpack(features, card.model, (card.bits, card.cells, card.cells))
        except WatermarkError:
            # Of networks that this release has no more, or none at all.
            return _Candidate(found, pose)
        if not comparison.compared.any():
            return _Candidate(found, pose)
        if isinstance(pose, Placement):
            seen = as_seen(picture, pose, card.side)
        else:
            way = cv2.INTER_AREA if min(picture.shape) >= card.side else cv2.INTER_LINEAR
            whole = cv2.resize(pose.upright(picture), (card.side, card.side), interpolation=way)
            seen = np.asarray(whole, np.float32)
        differing = (code != network.code(seen))[:, comparison.compared]
        share = float(np.mean(comparison.changed[comparison.compared]))
        return _Candidate(found, pose, share, float(np.mean(differing)))


def _is_alike(candidate: _Candidate) -> bool:
    if candidate.share is None:
        return candidate.found.distance <= ALONE_BITS
    return candidate.share <= CHANGED_SHARE


def _best(candidates: Sequence[_Candidate], by: By, sure: float) -> Match | None:
    """Return the likeliest; its confidence is shared with all that are as good."""
    if not candidates:
        return None
    ordered = sorted(candidates, key=_rank)
    best = ordered[0]
    equals = {
        (each.found.instance.sop_instance_uid, each.found.frame)
        for each in ordered
        if _as_good(each, best)
    }
    confidence = sure / len(equals)
    if by == "look":
        lost = best.share / (2 * CHANGED_SHARE) if best.share is not None else 0.5
        confidence *= 1.0 - lost
    return Match(best.found, confidence, by, best.pose, best.share)


def _rank(candidate: _Candidate) -> tuple[float, int]:
    differing = candidate.differing if candidate.differing is not None else float("inf")
    return differing, candidate.found.distance


def _as_good(candidate: _Candidate, best: _Candidate) -> bool:
    if candidate.differing is None or best.differing is None:
        unknown = candidate.differing is best.differing
        return unknown and candidate.found.distance == best.found.distance
    return candidate.differing - best.differing < _AS_GOOD
