"""W1, the robust mark: whose image this is, and what it looked like.

A message of 96 bits (64-bit pHash, 32-bit keyed tag) becomes a whitened code word of 160 bits.
E1 chooses the residual that carries it, :mod:`synthesis` builds it in integers, D1 reads it back
from any 8-bit picture of the frame. The frame is always seen at ``128 x 128``, whatever its size
or aspect, so scaling needs no search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from dicom_node.errors import WatermarkError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.reader import WeakReader, open_reader
from dicom_node.watermark import informed, perceptual, reading, synthesis
from dicom_node.watermark.choosing import HARDLY, Chooser
from dicom_node.watermark.covers import Look, resample, unfolded
from dicom_node.watermark.reading import (
    DIHEDRAL,
    UPRIGHT,
    Detection,
    Hashes,
    Pose,
    RobustKey,
    code_word,
)
from dicom_node.watermark.synthesis import Int32, RobustRecord

__all__ = [
    "DIHEDRAL", "MIN_SIDE_PX", "PROFILES", "Detection", "Pose", "RobustKey", "RobustMark",
    "RobustWatermark", "code_word", "remove",
]  # fmt: skip

# Most and least PSNR of a frame with W1 alone, in the display window, peak 1: the least strength
# that reads back with a margin is taken.
PROFILES = {"diagnostic": (47.5, 41.3), "robust": (42.5, 41.2)}
MIN_SIDE_PX = 48  # a smaller frame has too few samples for 160 bits
# Frames up to SMALL_PX have a folded carrier; pictures up to SMALL_ENLARGED_PX may show one, and up
# to TURNED_PX it is looked for in all poses.
FOLDS, SMALL_PX, TURNED_PX, SMALL_ENLARGED_PX = 2, 96, 192, 256
_SMALL_DB = (41.3, 41.05)  # such a frame takes all there is


@dataclass(frozen=True)
class RobustMark:
    """One frame with W1 in it; `record` is None where the frame can carry none (`reason`).

    `mse` is what W1 changed, mean square over the frame, display values; `reads` how well its soft
    bits agree with the code word through a blur (cosine). `delta` is what `record` comes to,
    ``(rows, columns)`` stored values.
    """

    marked: Int32
    message: bytes
    record: RobustRecord | None
    reason: str = ""
    mse: float = 0.0
    reads: float = 0.0
    delta: Int32 | None = None


class RobustWatermark:
    """Embed and detect W1 with one engine.

    Parameters
    ----------
    engine
        The networks on some backend.
    profile
        ``diagnostic`` or ``robust``: how little and how much may be changed.
    second
        For frames that another did not make readable: where there is no more strength to give, it
        is at least given otherwise.
    any_word
        The word is put in that the frame is nearest to (:mod:`informed`): a mark that is
        recognised, not decoded.
    folds
        2: the carrier is folded (`synthesis.folded`), for frames up to `SMALL_PX`: at 128 x 128
        most of it lies above what their samples can hold.

    Attributes
    ----------
    most_db
        No mark is weaker than this PSNR.
    """

    def __init__(
        self, engine: RobustEngine, profile: str = "diagnostic", *, second: bool = False,
        any_word: bool = False, folds: int = 1,
    ) -> None:  # fmt: skip
        self.second, self.any_word, self.folds = second, any_word, folds
        self.engine = engine
        self.most_db, self._least_db = PROFILES[profile] if folds == 1 else _SMALL_DB

    def embed(
        self, host: Int32, display: Float32, *, step: float, low: int, high: int,
        padding: tuple[int, int] | None, key: RobustKey, least_db: float = 0.0,
        largest: int | None = None,
    ) -> RobustMark:  # fmt: skip
        """Put W1 into one frame.

        E1 chooses amplitudes and strengths for a middling budget; what it chose is then scaled to
        the least budget at which it reads back through a blur with a margin. A frame that cannot,
        a small one mostly, is marked to be read as it is, as strongly as is allowed.

        Parameters
        ----------
        host
            Stored values, ``(rows, columns)``; ``(rows, columns, 3)`` for RGB, whose samples are
            changed alike so that luma alone moves.
        display
            The same frame in display values 0..1, ``(rows, columns)``.
        step
            Stored values in 1/256 of the window; negative where display falls as stored rises.
        low, high, padding
            Stored range and padding range, inclusive.
        least_db
            No budget below this PSNR is taken.
        largest
            Most that a sample may change, in stored values, at least 1; None: the budget decides.
        """
        small = self.resample(display)
        message = self.message(small if min(display.shape) > self.engine.side else display, key)
        if min(display.shape) < MIN_SIDE_PX:
            return RobustMark(host, message, None, f"a side is below {MIN_SIDE_PX} px")
        chooser = self._chooser
        cover = chooser.cover(host, display, small, step, low, high, code_word(message, key),
                              self._nearest(message, key))  # fmt: skip
        worst_db = min(max(self._least_db, least_db), self.most_db)
        chosen = chooser.choose(cover, (self.most_db + worst_db) / 2, largest)
        if chosen is None:
            return RobustMark(host, message, None, "the frame is flat or saturated throughout")
        rms, reads = chooser.least_enough(cover, chosen, self.most_db, worst_db, largest)
        if reads < HARDLY and cover.blur is not None:
            # No strength survives a blur: all there is goes into reading as it is.
            cover = chooser.as_it_is(cover)
            chosen = chooser.choose(cover, worst_db, largest) or chosen
            rms, reads = chooser.least_enough(cover, chosen, self.most_db, worst_db, largest)
        scale = synthesis.fixed_point(rms * 256 * abs(step) / chosen.size)
        delta = synthesis.scale(chosen.shape, *scale)
        marked, exceptions = synthesis.apply(host, delta, low, high, padding)
        record = RobustRecord(self.engine.model_id, chosen.amplitudes, chosen.strengths,
                              chosen.carrier_scale, scale, exceptions, self.folds)  # fmt: skip
        return RobustMark(marked, message, record, mse=rms**2, reads=reads, delta=delta)

    def _nearest(self, message: bytes, key: RobustKey) -> Callable[[Float32], Float32] | None:
        """Return what tells the word to put in from a cover's soft bits; None for the code word."""
        if self.any_word:
            return partial(informed.nearest_word, message, key.robust_key, key.owner)
        return partial(reading.nearest_way, message, key) if self.folds > 1 else None

    def remove(
        self, marked: Int32, record: RobustRecord, *, low: int, high: int,
        padding: tuple[int, int] | None,
    ) -> Int32:  # fmt: skip
        """Return the frame as it was before :meth:`embed`, bit for bit."""
        engine = self.engine
        return remove(marked, record, engine.patterns, engine.model_id, low, high, padding)

    def message(self, display: Float32, key: RobustKey) -> bytes:
        """Return the 12 bytes that name this frame: pHash, then its keyed tag."""
        hashed = perceptual.perceptual_hash(display)
        return hashed + reading.tag(hashed, key)

    def detect(
        self, display: Float32, keys: Sequence[RobustKey], *, dihedral: bool = False,
        weak: bool = False, known: Hashes | None = None,
    ) -> Detection:  # fmt: skip
        """Read W1 from a picture in display values 0..1, ``(rows, columns)``.

        Parameters
        ----------
        dihedral
            The seven other flips and quarter turns are tried when the upright one does not decode.
        weak
            What does not decode is looked for in the other ways of :mod:`reading`: 20 to 60 ms
            a picture without a mark, and as much again for its seven poses.
        known
            Hashes of frames remembered as marked, ``(n, 8)``, for pictures that have changed too
            much to tell their own.
        """
        poses, found = (UPRIGHT, *DIHEDRAL) if dihedral else (UPRIGHT,), Detection(False)
        for folds in folds_of(display):
            some = poses if folds == 1 or max(display.shape) <= TURNED_PX else poses[:1]
            found = self._detect(display, some, keys, folds)
            if not found.decoded and weak:
                found = self._detect_weak(display, some, keys, known, folds)
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
        """Return the soft bits of R2, folded with half of D1's; the rest as `look` takes it.

        R2 was not trained on mirror images: there D1 sees almost as much, and errs elsewhere.
        """
        again = self.look_again(_views(display, self.second_side, folds, poses))
        if folds == 1:
            return again
        return _normed(again) + _normed(self.look(display, folds, poses)) * np.float32(0.5)

    def word_in(
        self, display: Float32, message: bytes, key: RobustKey
    ) -> tuple[Float32, int]:
        """Return which word of a message a picture shows, and how its carrier is folded."""
        shown = []
        for folds in folds_of(display):
            soft = _normed(self.look(display, folds))[0]
            word = code_word(message, key)
            if folds > 1:
                word = reading.nearest_way(message, key, soft)
            shown.append((float(soft @ word), folds))
        folds = max(shown)[1]
        nearest = reading.nearest_way if folds > 1 else reading.nearest_word
        return nearest(message, key, self.look_closely(display, folds)[0]), folds

    @cached_property
    def _chooser(self) -> Chooser:
        look = Look(self.engine.side, lambda seen: self.engine.decode(seen[:, None]), self.folds)
        if self.any_word:
            look = Look(self.second_side, self.look_again)
        return Chooser(self.engine, second=self.second, look=look, any_word=self.any_word)

    @cached_property
    def _reader(self) -> WeakReader | None:
        return open_reader(self.engine.model_id)

    @property
    def second_side(self) -> int:
        """Side of the pictures that `look_again` takes."""
        return self._reader.side if self._reader is not None else self.engine.side

    def look_again(self, pictures: Float32) -> Float32:
        """Return the soft bits of R2, ``(batch, code_bits)``, for ``(batch, side, side)``."""
        if self._reader is None:
            return self.engine.decode(pictures[:, None])
        return self.engine.soft_bits(self._reader.whiten(pictures[:, None]))

    def _detect(
        self, display: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey], folds: int
    ) -> Detection:
        """Read what D1 sees; most pictures lie as they were marked."""
        for some in (poses[:1], poses[1:]):
            soft = self.look(display, folds, some) if some else ()
            ways = ways_of(folds) if UPRIGHT in some else 1
            found = _first(
                reading.read(each, keys, pose, ways=ways)
                for each, pose in zip(soft, some, strict=True)
            )
            if found.decoded:
                break
        return found

    def _detect_weak(
        self, display: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey],
        known: Hashes | None, folds: int,
    ) -> Detection:  # fmt: skip
        """Read what `_detect` could not, in every way there is."""
        picture, looked = self.resample(display, self.second_side), list[Float32]()
        # A small frame that was enlarged beyond that has mostly kept its tones.
        in_full = folds == 1 or max(display.shape) <= TURNED_PX
        ways = [(self.look_closely, poses[:1]), (self.look_closely, poses[1:])]
        if folds > 1:  # chosen through D1, which sees all of a small picture
            ways.insert(0, (self.look, poses[:1]))
        for look, some in ways:
            soft = look(display, folds, some) if some else ()
            looked += list(soft) if look == self.look_closely else []
            found = _first(
                reading.read_weak(
                    each, pose.upright(picture), keys, pose, known,
                    toned=in_full and pose is UPRIGHT, ways=ways_of(folds),
                )
                for each, pose in zip(soft, some, strict=True)
            )
            if found.decoded:
                return found
        best = int(np.argmax(_evenness(np.stack(looked))))
        pose = poses[best]
        return reading.read_deepest(
            looked[best], pose.upright(picture), keys, pose, ways=ways_of(folds)
        )

    def resample(self, display: Float32, side: int | None = None) -> Float32:
        """Return the frame as the networks see it, ``(side, side)``; D1's side if none is given."""
        return resample(display, side or self.engine.side)


def remove(
    marked: Int32, record: RobustRecord, patterns: Int8, model_id: bytes, low: int, high: int,
    padding: tuple[int, int] | None,
) -> Int32:  # fmt: skip
    """Take W1 off without any network: only the record and the integer patterns are needed."""
    if record.model_id != model_id:
        raise WatermarkError(
            f"the mark was made with carrier patterns {record.model_id.hex()}, this installation "
            f"has {model_id.hex()}; restore with the version that marked it"
        )
    delta = synthesis.delta_of(record, patterns, *marked.shape[:2])
    return synthesis.remove(marked, delta, low, high, padding, record.exceptions)


def folds_of(display: Float32) -> tuple[int, ...]:
    """Return how the carrier of a picture may be folded, the likeliest first."""
    if max(display.shape) <= SMALL_PX:
        return (FOLDS, 1)
    return (1, FOLDS) if min(display.shape) <= SMALL_ENLARGED_PX else (1,)


def ways_of(folds: int) -> int:
    """Return in how many ways the word of such a carrier may be whitened."""
    return reading.WAYS if folds > 1 else 1


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


def _evenness(soft: Float32) -> Float32:
    """Return how even the sizes of soft bits are: those of a mark are more so than chance's."""
    ratio: Float32 = np.abs(soft).mean(axis=1) / np.sqrt(np.mean(soft**2, axis=1) + 1e-9)
    return ratio
