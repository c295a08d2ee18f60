"""Marks too weak to be decoded, read in one dearer way after the other.

*Recognised*: the message that this picture would have is looked for in the soft bits
(:mod:`expecting`). *In any word*: it is looked for in all its code words (:mod:`informed`). *With
belief*: they are decoded together with what the picture tells of its own hash. *Known*: messages
that somebody remembers are looked for. *By both*: in the soft bits of D1 and R2 together. *Deep*:
soft bits are decoded among more words, then more guesses are looked for, then those that soft bits
point to (:mod:`guided`). *In part*: all that for a picture that shows a part of its frame
(:mod:`partial`).

A wrong word passes as ours once in 2**32 attempts: four each time that soft bits are read, with
belief or not; one for all guesses when they are recognised, in their code words or in any word, or
compared; eight by both readers together, eleven more of the deepest, nine of a picture in part.
Eight poses, read by D1 and by the second reader, the upright one also taken for a picture whose
tones were changed in one of five ways and for one in part in two, come to 203 attempts at most:
4.8e-8 a picture and key. A small picture is read folded as well, upright in all `WAYS`, which comes
to 549 together: less than 1.3e-7.
"""

from __future__ import annotations

from collections.abc import Sequence

from dicom_node.inference.base import Float32
from dicom_node.watermark import expecting, informed
from dicom_node.watermark.expecting import Told
from dicom_node.watermark.reading import (
    Detection,
    Hashes,
    Pose,
    read,
    read_with_belief,
    recognise,
    recognise_any,
    recognise_guided,
)
from dicom_node.watermark.words import WAYS, RobustKey

DEEP = 3  # surest bits that may be wrong together; read at sight: 2


def read_weak(
    soft: Float32, frame: Float32, keys: Sequence[RobustKey], pose: Pose,
    known: Hashes | None = None, *, toned: bool = True, ways: int = 1, decoded: bool = False,
    both: Float32 | None = None,
) -> Detection:  # fmt: skip
    """Return what soft bits say when they are read in every way but the deepest.

    Parameters
    ----------
    soft
        Of a second look (R2's), ``(160,)``.
    frame
        Display values of the picture in this pose, whose own message is tried.
    known
        Hashes of frames that are remembered as marked, ``(n, 8)``.
    toned
        The picture is also taken for one whose tones were changed, and more is guessed: as it lies,
        it mostly was marked.
    ways
        In how many ways the code word may have been whitened; as it lies it is decoded in all.
    decoded
        `read` was asked already.
    both
        Sum of D1's and R2's, each of norm 1, in which the guesses are looked for as well: they err
        differently where tones were changed; through noise R2 alone sees more.
    """
    sought = ways if toned else 1
    if not decoded:
        found = read(soft, keys, pose, ways=sought)
        if found.decoded:
            return found
    told = expecting.told(frame)
    guesses = expecting.exchanged(told.above, expecting.MESSAGES)
    found = recognise(soft, guesses, keys, pose, ways=ways)
    if not found.decoded:
        found = recognise_any(soft, guesses if toned else guesses[: informed.FEW], keys, pose)
    if not found.decoded:
        found = read_with_belief(soft, told.belief, keys, pose, ways=sought)
    lowered = expecting.without_floor(frame) if not found.decoded else None
    if lowered is not None:
        found = recognise(soft, expecting.hashes(lowered), keys, pose, ways=ways)
    if both is not None and not found.decoded:
        found = recognise(both, guesses, keys, pose)
    if toned and not found.decoded:
        found = read_toned(soft, frame, keys, pose, ways=ways, both=both)
    if not found.decoded and known is not None and len(known):
        found = _read_known(soft, known, guesses[0], keys, pose, ways)
    return found


def read_toned(
    soft: Float32, frame: Float32, keys: Sequence[RobustKey], pose: Pose, *, ways: int = 1,
    both: Float32 | None = None,
) -> Detection:  # fmt: skip
    """Return what soft bits say of a picture whose tones were changed (`expecting.other_tones`).

    Parameters
    ----------
    soft, frame, ways, both
        As `read_weak` takes them.
    """
    for earlier in expecting.other_tones(frame):
        told = expecting.told(earlier)
        guesses = expecting.exchanged(told.above, expecting.MESSAGES)
        found = recognise(soft, guesses, keys, pose, ways=ways)
        if not found.decoded and ways == 1:
            found = recognise_any(soft, guesses[: informed.FEWEST], keys, pose)
        if not found.decoded:
            found = read_with_belief(soft, told.belief, keys, pose)
        if not found.decoded and both is not None:
            found = recognise(both, guesses, keys, pose)
        if found.decoded:
            return found
    return Detection(False, pose=pose)


def read_deepest(
    soft: Float32, frame: Float32, keys: Sequence[RobustKey], pose: Pose, *, ways: int = 1,
    both: Float32 | None = None,
) -> Detection:  # fmt: skip
    """Return what soft bits say among more words, and more guesses, than anything before asked.

    Parameters
    ----------
    soft, frame, ways
        As `read_weak` takes them.
    both
        As well; they point to hashes, too.
    """
    found = read(soft, keys, pose, order=DEEP)
    if not found.decoded:
        guesses = expecting.hashes(frame, expecting.MANY)
        found = recognise(soft, guesses, keys, pose, ways=ways)
    if not found.decoded and ways == 1:
        earlier = [expecting.told(each) for each in (frame, *expecting.other_tones(frame))]
        for pointing in (soft, both):
            if pointing is not None and not found.decoded:
                found = recognise_guided(pointing, earlier, keys, pose)
    return found


def read_in_part(
    soft: Float32, told: Told, keys: Sequence[RobustKey], pose: Pose, known: Hashes | None = None
) -> Detection:
    """Return what soft bits say of a picture that shows a part of its frame.

    Parameters
    ----------
    soft, known
        As `read_weak` takes them; `read` was asked already.
    told
        Of `partial.told`.
    """
    guesses = expecting.exchanged(told.above, expecting.MESSAGES)
    found = recognise(soft, guesses, keys, pose)
    if not found.decoded:
        found = recognise_any(soft, guesses[: informed.FEW], keys, pose)
    if not found.decoded:
        found = read_with_belief(soft, told.belief, keys, pose)
    if not found.decoded and known is not None and len(known):
        found = _read_known(soft, known, guesses[0], keys, pose)
    if not found.decoded:
        found = recognise_guided(soft, [told], keys, pose)
    return found


def read_favoured(
    soft: Float32, told: Told, keys: Sequence[RobustKey], pose: Pose, among: int
) -> Detection:
    """Return what soft bits say of a place that was chosen with the key's help.

    Parameters
    ----------
    soft, told
        As `read_in_part` takes them, or of a picture that shows all of its frame.
    among
        Of so many places. Words that decode prove as much as anywhere: nothing of their tags was
        known. Of messages that are recognised as much more is asked.
    """
    found = read(soft, keys, pose)
    if found.decoded:
        return found
    found = recognise_favoured(soft, told, keys, pose, among)
    if not found.decoded:
        found = read_with_belief(soft, told.belief, keys, pose)
    if not found.decoded:
        found = recognise_guided(soft, [told], keys, pose, among=among)
    if not found.decoded:
        found = read(soft, keys, pose, order=DEEP)
    return found


def recognise_favoured(
    soft: Float32, told: Told, keys: Sequence[RobustKey], pose: Pose, among: int, *, ways: int = 1
) -> Detection:
    """Return the message of a place that was chosen with the key's help, if it is recognised.

    `ways` as `recognise` takes it, the rest as `read_favoured`.
    """
    guesses = expecting.exchanged(told.above, expecting.MESSAGES)
    return recognise(soft, guesses, keys, pose, ways=ways, among=among)


def read_small(
    soft: Float32, told: Told, keys: Sequence[RobustKey], pose: Pose, among: int, *,
    decoded: bool = False,
) -> Detection:  # fmt: skip
    """Return what soft bits say of a small frame at a place that was chosen with the key's help.

    Parameters
    ----------
    soft, told
        As `read_in_part` takes them; the carrier is folded, its word whitened in any way.
    among
        As `read_favoured` takes it.
    decoded
        They are not decoded: a place so near was.
    """
    found = recognise_favoured(soft, told, keys, pose, among, ways=WAYS)
    if not found.decoded and not decoded:
        found = read_with_belief(soft, told.belief, keys, pose, ways=WAYS)
    return found


def _read_known(
    soft: Float32, known: Hashes, own: Hashes, keys: Sequence[RobustKey], pose: Pose, ways: int = 1
) -> Detection:
    """Return that message of those remembered, the most like a picture's own first."""
    nearest = expecting.nearest_first(known, own)
    found = recognise(soft, nearest, keys, pose, ways=ways)
    if not found.decoded:
        found = recognise_any(soft, nearest[: expecting.MESSAGES], keys, pose)
    return found
