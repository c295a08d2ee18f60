"""What soft bits say: the message with its tag, and in which pose the picture was read.

They are decoded, and the tag decides whether the message is ours; or messages that the picture may
have are looked for in them. In which order, and how often that can go wrong: :mod:`closely`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32
from dicom_node.watermark import ecc, expecting, guided, informed
from dicom_node.watermark.words import RobustKey, code_word, tag, whitening

MIN_AGREEMENT = 0.35  # cosine between soft bits and code word below which no tag is believed
_BELIEVED = 2.25  # log-likelihood ratio of a soft bit of the size of their rms

Hashes = NDArray[np.uint8]  # (n, 8)


@dataclass(frozen=True)
class Pose:
    """How the picture lies against the frame that was marked."""

    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    def upright(self, picture: Float32) -> Float32:
        """Return `picture` turned back to how the frame was marked (quarter turns and flips)."""
        mirrored = picture[:, ::-1] if self.flip else picture
        return np.ascontiguousarray(np.rot90(mirrored, -round(self.rotation_deg / 90)))


UPRIGHT = Pose()
# The poses beside the upright one: three quarter turns, and four of the mirrored picture.
DIHEDRAL = tuple(
    Pose(90.0 * quarter, flip) for flip in (False, True) for quarter in range(4) if flip or quarter
)


@dataclass(frozen=True)
class Detection:
    """What D1 read. `decoded` only with a valid tag; the rest is then of that message.

    Attributes
    ----------
    recognised
        The soft bits were too weak to be decoded; they agree with the message this picture, or one
        of those remembered, must have had.
    """

    decoded: bool
    message: bytes = b""
    owner: str = ""
    key_id: bytes = b""
    bit_accuracy: float = 0.0
    pose: Pose = UPRIGHT
    recognised: bool = False

    @property
    def perceptual_hash(self) -> bytes:
        """Return the pHash the frame had when it was marked, 8 bytes."""
        return self.message[:8]


def read(
    soft: Float32, keys: Sequence[RobustKey], pose: Pose, *, order: int = 2, ways: int = 1
) -> Detection:
    """Return what soft bits ``(160,)`` say to one of `keys`; decoded only with a valid tag.

    Parameters
    ----------
    ways
        In how many ways the code word may have been whitened.
    """
    for key, way in product(keys, range(ways)):
        plain = soft * whitening(key, way)
        for message, agreement in ecc.candidates(plain, order=order):
            if agreement >= MIN_AGREEMENT and tag(message[:8], key) == message[8:]:
                return _found(soft, message, key, pose, code_word(message, key, way))
    return Detection(False, pose=pose)


def read_with_belief(
    soft: Float32, belief: Float32, keys: Sequence[RobustKey], pose: Pose, *, ways: int = 1
) -> Detection:
    """Return what soft bits say together with what the picture tells of its own hash.

    Parameters
    ----------
    soft, ways
        As `read` takes them.
    belief
        Of `expecting.Told`, ``(64,)``.
    """
    rms = float(np.sqrt(np.mean(soft**2))) or 1.0
    for key, way in product(keys, range(ways)):
        ratios = soft * whitening(key, way) * np.float32(_BELIEVED / rms)
        ratios[: len(belief)] += belief
        for message, _ in ecc.candidates(ratios):
            word = code_word(message, key, way)
            agreed = float(soft @ word) / (rms * len(soft))
            if agreed >= MIN_AGREEMENT and tag(message[:8], key) == message[8:]:
                return _found(soft, message, key, pose, word)
    return Detection(False, pose=pose)


def recognise(
    soft: Float32, guesses: Hashes, keys: Sequence[RobustKey], pose: Pose, *, ways: int = 1,
    among: int = 1,
) -> Detection:  # fmt: skip
    """Return the message of one of `guesses` that soft bits ``(160,)`` agree with, if any.

    Parameters
    ----------
    guesses
        Hashes the frame may have had, the likeliest first, ``(n, 8)``. Nothing in their choice may
        depend on the soft bits or the keys.
    ways
        In how many ways the code word may have been whitened: more is asked then.
    among
        As `expecting.likeliest` takes it.
    """
    for key in keys:
        whitenings = np.stack([whitening(key, way) for way in range(ways)])
        found = expecting.likeliest(
            guesses, soft, whitenings, key.robust_key, key.owner, among=among
        )
        if found is not None:
            word = code_word(found.message, key, found.way)
            return _found(soft, found.message, key, pose, word, recognised=True)
    return Detection(False, pose=pose)


def recognise_any(
    soft: Float32, guesses: Hashes, keys: Sequence[RobustKey], pose: Pose
) -> Detection:
    """Return the message of one of `guesses` in any of its words (:mod:`informed`), if any.

    The rest as `recognise` takes it.
    """
    for key in keys:
        found = informed.likeliest(guesses, soft, key.robust_key, key.owner)
        if found is not None:
            return _found(soft, found.message, key, pose, found.word, recognised=True)
    return Detection(False, pose=pose)


def recognise_guided(
    soft: Float32, earlier: Sequence[expecting.Told], keys: Sequence[RobustKey], pose: Pose, *,
    ways: int = 1, among: int = 1,
) -> Detection:  # fmt: skip
    """Return the message that soft bits point to themselves, if any.

    `soft`, `earlier` and `among` as `guided.likeliest` takes them, `ways` as `recognise` does.
    """
    for key, way in product(keys, range(ways)):
        found = guided.likeliest(
            soft, earlier, whitening(key, way), key.robust_key, key.owner, among=among * ways
        )
        if found is not None:
            word = code_word(found.message, key, way)
            return _found(soft, found.message, key, pose, word, recognised=True)
    return Detection(False, pose=pose)


def _found(
    soft: Float32, message: bytes, key: RobustKey, pose: Pose, word: Float32, *,
    recognised: bool = False,
) -> Detection:  # fmt: skip
    """Return what was found, in this word of the message."""
    right = float(np.mean((soft > 0) == (word > 0)))
    return Detection(True, message, key.owner, key.key_id, right, pose, recognised)
