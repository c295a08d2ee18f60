"""Look for W1 in a picture as it lies, in quarter turns and mirrored.

D1 sees most marks at a glance. What it cannot read is looked at through R2, upright and in the
likeliest of the other poses, and read in the other ways of :mod:`closely`. Which pose is likeliest
is told by the upright picture as a network whitened it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice, product

import numpy as np

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import closely, expecting, partial, reading, words
from dicom_node.watermark.covers import resample, unfolded
from dicom_node.watermark.fourier import evidence
from dicom_node.watermark.reading import (
    DIHEDRAL,
    UPRIGHT,
    Detection,
    Hashes,
    Pose,
)
from dicom_node.watermark.second_look import SecondLook
from dicom_node.watermark.words import RobustKey, code_word

# Frames up to SMALL_PX have a folded carrier; pictures up to SMALL_ENLARGED_PX may show one, and up
# to TURNED_PX it is looked for in all poses.
_AGREES = 3.2  # standard deviations; one picture in twelve has it by chance, as the best of 128
FOLDS, SMALL_PX, TURNED_PX, SMALL_ENLARGED_PX = 2, 96, 192, 256


class RobustDetector:
    """Detect W1 with one engine.

    Parameters
    ----------
    engine
        The networks on some backend.
    """

    def __init__(self, engine: RobustEngine) -> None:
        self.engine = engine

    def detect(
        self, display: Float32, keys: Sequence[RobustKey], *, dihedral: bool = False,
        weak: bool = False, known: Hashes | None = None, turned: int = len(DIHEDRAL),
    ) -> Detection:  # fmt: skip
        """Read W1 from a picture in display values 0..1, ``(rows, columns)``.

        Parameters
        ----------
        dihedral
            The seven other flips and quarter turns are tried when the upright one does not decode.
        weak
            What does not decode is looked for in the other ways of :mod:`closely`: 60 to 90 ms
            a picture without a mark, and as much again for each of its other poses.
        known
            Hashes of frames remembered as marked, ``(n, 8)``, for pictures that have changed too
            much to tell their own.
        turned
            In how many of the other poses that is done, the likeliest. The right one is among
            the first two for 96 % of the marks that are read after JPEG 30.
        """
        poses, found = (UPRIGHT, *DIHEDRAL) if dihedral else (UPRIGHT,), Detection(False)
        for folds in folds_of(display):
            some = poses if folds == 1 or max(display.shape) <= TURNED_PX else poses[:1]
            # What is remembered may be found where the picture no longer tells its own hash.
            remembered = known is not None and len(known) > 0
            guessed = folds > 1 and max(display.shape) > SMALL_PX and not remembered
            if guessed and not self._may_be_folded(display, some, keys, folds):
                continue
            closer = turned if weak else None
            found = _first(self._readings(display, some, keys, known, folds, closer))
            if found.decoded:
                break
        return found

    def look(
        self, display: Float32, folds: int = 1, poses: Sequence[Pose] = (UPRIGHT,)
    ) -> Float32:
        """Return the soft bits of D1 in each pose, ``(poses, code_bits)``.

        Parameters
        ----------
        folds
            2: of the picture beside its mirror images, as a small frame is marked.
        """
        views = _views(display, self.engine.side, folds, poses)
        soft: Float32 = self.engine.decode(views[:, None])
        return soft

    def look_closely(
        self, display: Float32, folds: int = 1, poses: Sequence[Pose] = (UPRIGHT,)
    ) -> Float32:
        """Return the soft bits of R2 in each pose; the rest as `look` takes it."""
        return self.engine.soft_bits(self._whiten_again(display, folds, poses))

    def word_in(
        self, display: Float32, message: bytes, key: RobustKey
    ) -> tuple[Float32, int]:
        """Return which word of a message a picture shows, and how its carrier is folded."""
        shown = []
        for folds in folds_of(display):
            soft = _normed(self.look(display, folds))[0]
            word = code_word(message, key)
            if folds > 1:
                word = words.nearest_way(message, key, soft)
            shown.append((float(soft @ word), folds))
        folds = max(shown)[1]
        nearest = words.nearest_way if folds > 1 else words.nearest_word
        return nearest(message, key, self.look_closely(display, folds)[0]), folds

    def look_again(self, pictures: Float32) -> Float32:
        """Return the soft bits of R2, ``(batch, code_bits)``, for ``(batch, side, side)``."""
        return self.engine.soft_bits(self._second.whiten(pictures))

    def resample(self, display: Float32, side: int | None = None) -> Float32:
        """Return the frame as the networks see it, ``(side, side)``; D1's side if none is given."""
        return resample(display, side or self.engine.side)

    @property
    def second_side(self) -> int:
        """Side of the pictures that `look_again` takes."""
        return self._second.side

    @cached_property
    def _second(self) -> SecondLook:
        return SecondLook(self.engine)

    @cached_property
    def _second_at_small(self) -> SecondLook:
        return SecondLook(self.engine, FOLDS)

    def _look_at_small(self, pictures: Float32) -> Float32:
        """Return the soft bits of R2 for small frames, ``(batch, code_bits)``."""
        return self.engine.soft_bits(self._second_at_small.whiten(pictures))

    def _whiten_again(self, display: Float32, folds: int, poses: Sequence[Pose]) -> Float32:
        """Return what R2 whitened in each pose, ``(poses, samples of D1)``."""
        second = self._second if folds == 1 else self._second_at_small
        seen = resample(display, second.side)
        return second.whiten(np.stack([pose.upright(seen) for pose in poses]))

    def _readings(
        self, display: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey],
        known: Hashes | None, folds: int, turned: int | None,
    ) -> Iterator[Detection]:  # fmt: skip
        """Yield what D1 sees upright and in the other poses, and what a closer look reads.

        A small frame is seen by its own reader upright: that is small enough for a glance.
        `turned`: as `detect` takes it; None for no closer look.
        """
        if folds == 1:
            upright = _views(display, self.engine.side, folds, poses[:1])
            whitened = self.engine.whiten(upright[:, None])
        else:
            whitened = self._whiten_again(display, folds, poses[:1])
        soft = self.engine.soft_bits(whitened)[0]
        yield reading.read(soft, keys, UPRIGHT, ways=ways_of(folds))
        glances = (
            reading.read(self.look(display, folds, [pose])[0], keys, pose)
            for pose in self._ranked(whitened[0], poses, folds) if pose is not UPRIGHT
        )  # fmt: skip
        yield from islice(glances, 1)
        if turned is not None:
            yield from self._closer(display, poses, keys, known, folds, turned, whitened, glances)
        yield from glances

    def _may_be_folded(
        self, display: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey], folds: int
    ) -> bool:
        """Whether what D1 sees folded agrees with the hash of a picture, in any pose and way.

        Few pictures are small frames enlarged, and to read all of them so would take longer than
        to read them as they are. Not to read what would not be read makes no false accept likelier.
        """
        small, ways = self.resample(display), product(keys, range(ways_of(folds)))
        signs = np.stack([words.whitening(key, way)[: expecting.HASH_BITS] for key, way in ways])
        for soft, pose in zip(_normed(self.look(display, folds, poses)), poses, strict=True):
            belief = expecting.told(pose.upright(small)).belief
            least = _AGREES * float(np.linalg.norm(belief)) / np.sqrt(soft.size)
            if np.max(signs @ (belief * soft[: len(belief)]), initial=0.0) > least:
                return True
        return False

    def _closer(
        self, display: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey],
        known: Hashes | None, folds: int, turned: int, glanced: Float32,
        glances: Iterator[Detection],
    ) -> Iterator[Detection]:  # fmt: skip
        """Yield what R2's soft bits say that are not just decoded.

        Most pictures lie as they were marked: where R2 sees most of a mark upright, that is read
        before D1 has glanced at all poses.
        """
        picture, ways = self.resample(display, self.second_side), ways_of(folds)
        # A small frame that was enlarged beyond that has mostly kept its tones.
        in_full = folds == 1 or max(display.shape) <= TURNED_PX

        def read(
            soft: Float32, pose: Pose, *, decoded: bool = False, both: Float32 | None = None
        ) -> Detection:
            return closely.read_weak(
                soft, pose.upright(picture), keys, pose, known,
                toned=in_full and pose is UPRIGHT, ways=ways, decoded=decoded, both=both,
            )  # fmt: skip

        whitened = glanced if folds > 1 else self._whiten_again(display, folds, poses[:1])
        ranked = self._ranked(whitened[0], poses, folds)
        if ranked[0] is not UPRIGHT:
            yield from glances
        looked = [(self.engine.soft_bits(whitened)[0], UPRIGHT)]
        both = None
        if folds == 1:
            both = _together(self.engine.soft_bits(glanced)[0], looked[0][0])
        yield read(*looked[0], decoded=folds > 1, both=both)
        yield from glances
        for pose in [each for each in ranked if each is not UPRIGHT][:turned]:
            looked.append((self.look_closely(display, folds, [pose])[0], pose))
            yield read(*looked[-1])
        most, pose = max(looked, key=lambda each: _evenness(each[0]))
        together = both if pose is UPRIGHT else None
        yield closely.read_deepest(
            most, pose.upright(picture), keys, pose, ways=ways, both=together
        )
        for told in partial.parts(picture) if folds == 1 else ():
            yield closely.read_in_part(looked[0][0], told, keys, UPRIGHT, known)

    def _ranked(self, whitened: Float32, poses: Sequence[Pose], folds: int) -> Sequence[Pose]:
        """Return `poses` by what the picture, whitened in the first of them, shows in each.

        Whitening hardly depends on how a picture is turned: that is enough to rank them.
        """
        if len(poses) == 1:
            return poses
        side = self.engine.side
        shown = whitened.reshape(side, side)[: side // folds, : side // folds]
        planes = np.stack([unfolded(pose.upright(shown), side) for pose in poses])
        soft = self.engine.soft_bits(planes.reshape(len(poses), -1))
        energy = np.square(soft).sum(1)
        noise = float(np.median(energy)) / soft.shape[1]
        there = evidence(energy, np.abs(soft).sum(1), soft.shape[1], noise)
        return [poses[n] for n in np.argsort(-there)]


def folds_of(display: Float32) -> tuple[int, ...]:
    """Return how the carrier of a picture may be folded, the likeliest first."""
    if max(display.shape) <= SMALL_PX:
        return (FOLDS, 1)
    return (1, FOLDS) if min(display.shape) <= SMALL_ENLARGED_PX else (1,)


def ways_of(folds: int) -> int:
    """Return in how many ways the word of such a carrier may be whitened."""
    return words.WAYS if folds > 1 else 1


def _views(display: Float32, side: int, folds: int, poses: Sequence[Pose]) -> Float32:
    """Return a picture in each pose, and its mirror images with it, ``(poses, side, side)``."""
    small = resample(display, side // folds)
    return np.stack([unfolded(pose.upright(small), side) for pose in poses])


def _first(found: Iterable[Detection]) -> Detection:
    """Return the first that decoded, else one that did not."""
    return next((each for each in found if each.decoded), Detection(False))


def _normed(soft: Float32) -> Float32:
    normed: Float32 = soft / (np.linalg.norm(soft, axis=1, keepdims=True) + 1e-9)
    return normed


def _together(one: Float32, other: Float32) -> Float32:
    """Return the sum of two readers' soft bits, each of norm 1, ``(code_bits,)``."""
    both: Float32 = _normed(np.stack([one, other])).sum(axis=0)
    return both


def _evenness(soft: Float32) -> float:
    """Return how even the sizes of soft bits are: those of a mark are more so than chance's."""
    return float(np.abs(soft).mean() / np.sqrt(np.mean(soft**2) + 1e-9))
