"""W1, the robust mark: whose image this is, and what it looked like.

A message of 96 bits (64-bit pHash, 32-bit keyed tag) becomes a whitened code word of 160 bits.
E1 chooses the residual that carries it, :mod:`synthesis` builds it in integers, D1 reads it back
from any 8-bit picture of the frame. The frame is always seen at ``128 x 128``, whatever its size
or aspect, so scaling needs no search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from dicom_node.errors import WatermarkError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.watermark import informed, perceptual, synthesis
from dicom_node.watermark.choosing import HARDLY, Chooser
from dicom_node.watermark.covers import Chosen, Cover, Look
from dicom_node.watermark.detecting import RobustDetector
from dicom_node.watermark.reading import DIHEDRAL, Detection, Pose
from dicom_node.watermark.synthesis import Int32, RobustRecord
from dicom_node.watermark.words import RobustKey, code_word, nearest_way, tag

__all__ = [
    "DIHEDRAL", "MIN_SIDE_PX", "PROFILES", "Detection", "Pose", "RobustKey", "RobustMark",
    "RobustWatermark", "code_word", "remove",
]  # fmt: skip

# Most and least PSNR of a frame with W1 alone, in the display window, peak 1: the least strength
# that reads back with a margin is taken.
PROFILES = {"diagnostic": (47.5, 41.3), "robust": (42.5, 41.2)}
MIN_SIDE_PX = 48  # a smaller frame has too few samples for 160 bits
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


class RobustWatermark(RobustDetector):
    """Embed W1, and detect it (:mod:`detecting`), with one engine.

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
        2: the carrier is folded (`synthesis.folded`), for frames up to `detecting.SMALL_PX`: at
        128 x 128 most of it lies above what their samples can hold.

    Attributes
    ----------
    most_db
        No mark is weaker than this PSNR.
    """

    def __init__(
        self, engine: RobustEngine, profile: str = "diagnostic", *, second: bool = False,
        any_word: bool = False, folds: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(engine)
        self.second, self.any_word, self.folds = second, any_word, folds
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
        covers = chooser.covers(host, display, small, step, low, high, code_word(message, key),
                                self._nearest(message, key))  # fmt: skip
        worst_db = min(max(self._least_db, least_db), self.most_db)
        chosen = [each for each in (self._chosen(cover, worst_db, largest) for cover in covers)
                  if each is not None]  # fmt: skip
        if not chosen:
            return RobustMark(host, message, None, "the frame is flat or saturated throughout")
        best = chosen[0] if len(chosen) == 1 else max(chosen, key=chooser.survives)
        choice, rms = best.choice, best.rms
        scale = synthesis.fixed_point(rms * 256 * abs(step) / choice.size)
        delta = synthesis.scale(choice.shape, *scale)
        marked, exceptions = synthesis.apply(host, delta, low, high, padding)
        record = RobustRecord(self.engine.model_id, choice.amplitudes, choice.strengths,
                              choice.carrier_scale, scale, exceptions, self.folds)  # fmt: skip
        return RobustMark(marked, message, record, mse=rms**2, reads=best.reads, delta=delta)

    def _chosen(self, cover: Cover, worst_db: float, largest: int | None) -> Chosen | None:
        """Return what is chosen for a frame seen in one way; None where it finds no room."""
        chooser = self._chooser
        choice = chooser.choose(cover, (self.most_db + worst_db) / 2, largest)
        if choice is None:
            return None
        rms, reads = chooser.least_enough(cover, choice, self.most_db, worst_db, largest)
        if reads < HARDLY and cover.blur is not None:
            # No strength survives a blur: all there is goes into reading as it is.
            cover = chooser.as_it_is(cover)
            choice = chooser.choose(cover, worst_db, largest) or choice
            rms, reads = chooser.least_enough(cover, choice, self.most_db, worst_db, largest)
        return Chosen(cover, choice, rms, reads)

    def _nearest(self, message: bytes, key: RobustKey) -> Callable[[Float32], Float32] | None:
        """Return what tells the word to put in from a cover's soft bits; None for the code word."""
        if self.any_word:
            return partial(informed.nearest_word, message, key.robust_key, key.owner)
        return partial(nearest_way, message, key) if self.folds > 1 else None

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
        return hashed + tag(hashed, key)

    @cached_property
    def _chooser(self) -> Chooser:
        look = Look(self.engine.side, lambda seen: self.engine.decode(seen[:, None]))
        if self.any_word:
            look = Look(self.second_side, self.look_again)
        elif self.folds > 1:
            look = Look(self._second_at_small.side, self._look_at_small, self.folds)
        return Chooser(self.engine, second=self.second, look=look, any_word=self.any_word)


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
