"""W1, the robust mark: whose image this is, and what it looked like.

A message of 96 bits (64-bit pHash, 32-bit keyed tag) becomes a whitened code word of 160 bits.
E1 chooses the residual that carries it, :mod:`synthesis` builds it in integers, D1 reads it back
from any 8-bit picture of the frame. The frame is always seen at ``128 x 128``, whatever its size
or aspect, so scaling needs no search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import repeat

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.correlator import superpose
from dicom_node.inference.reader import WeakReader, open_reader
from dicom_node.watermark import perceptual, reading, synthesis
from dicom_node.watermark.reading import (
    DIHEDRAL,
    UPRIGHT,
    Detection,
    Hashes,
    Pose,
    RobustKey,
    code_word,
)
from dicom_node.watermark.residual import visible
from dicom_node.watermark.synthesis import Int32, RobustRecord

__all__ = [
    "BLUR_SIGMA_PX", "DIHEDRAL", "MIN_SIDE_PX", "PROFILES", "Detection", "Pose",
    "RobustKey", "RobustMark", "RobustWatermark", "budget_rms", "code_word", "remove",
]  # fmt: skip

# Agreement (cosine) with the code word that a mark is made for. Recognising it takes 0.56 to 0.62.
READS = 0.87  # through a 7 x 7 blur
HARDLY = 0.5  # below, a mark is made to be read without a blur
NOISY, NOISE_SIGMA = 0.54, 0.1  # D1 through noise of variance 0.01; R2 sees more
NOISE_DB = 44.8  # noise alone is no reason for more strength than this
BLUR_SIGMA_PX = 1.4  # what cv2.GaussianBlur takes for a 7 x 7 window
EDGE_GREY_LEVELS = 3  # nearer the ends of the stored range hardly anything is changed
MIN_SIDE_PX = 48  # a smaller frame has too few samples for 160 bits


# Most and least PSNR of a frame with W1 alone, in the display window, peak 1: the least strength
# that reads back with a margin is taken.
PROFILES = {"diagnostic": (47.5, 41.3), "robust": (42.5, 41.2)}
# Most that the part of a frame which carries the mark is changed at 40.9 dB, rms, in 1/256 of the
# window; half of it 5.5 dB higher. Where only a corner can carry, PSNR alone would allow too much.
LOCAL_GREY, LOCAL_DB, LOCAL_HALVES_DB = 5.4, 40.9, 5.5
_STEP_DB = 0.1
_ROUNDS_DOWN = 0.4  # of a stored value: less than a half, whatever the fixed-point scale rounds to
# Where the carrier is cut, in its standard deviations; where the largest change is bound also the
# largest level of the strength grid, and both for a second attempt.
CREST, FLAT, FLATTEST = 1.6, (0.8, 2), (0.6, 1)
# In a window of fewer stored values a grey level the bound alone is little: no level is spared.
NARROW_STEP = 4.0
# More contrast or brightness saturates what lies outside: such cells keep so much strength.
SAFE, UNSAFE = (0.2, 0.78), 0.3
SECOND_SOFTNESS = 2.2


def budget_rms(psnr_db: float, share: float) -> float:
    """Return the residual's rms over the frame, display values, if `share` of it carries."""
    local = LOCAL_GREY * 2 ** ((LOCAL_DB - psnr_db) / LOCAL_HALVES_DB)
    return float(min(10 ** (-psnr_db / 20), local / 256 * share**0.5))


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


@dataclass(frozen=True)
class _Cover:
    """A frame about to be marked, and how its own texture reads.

    Attributes
    ----------
    small
        As the networks see it.
    display, stored
        In full; of colour the sample that stands for luma.
    step
        Stored values in 1/256 of the window.
    low, high
        Stored values outside this range hardly change.
    word
        The code word to put in.
    soft
        Soft bits of the cover itself, times `word`.
    blur
        Sigmas, horizontal and vertical, through which it is looked at: what a 7 x 7 blur of the
        full frame is here. Of the attacks the mark is made for, the one that takes most from a
        small frame. None: as it is.
    """

    small: Float32
    display: Float32
    stored: Int32
    step: float
    low: int
    high: int
    word: Float32
    soft: Float32
    blur: tuple[float, float] | None


@dataclass(frozen=True)
class _Choice:
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
        A residual of rms 1 as the networks see it.
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

    Attributes
    ----------
    most_db
        No mark is weaker than this PSNR.
    """

    def __init__(
        self, engine: RobustEngine, profile: str = "diagnostic", *, second: bool = False
    ) -> None:
        self.second = second
        self.engine = engine
        self.most_db, self._least_db = PROFILES[profile]

    def embed(
        self, host: Int32, display: Float32, *, step: float, low: int, high: int,
        padding: tuple[int, int] | None, key: RobustKey, least_db: float = 0.0,
        largest: float | None = None,
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
            Most that a sample may change, as a share of the window (or by one stored value); None:
            the budget decides.
        """
        small = self.resample(display)
        message = self.message(small if min(display.shape) > self.engine.side else display, key)
        if min(display.shape) < MIN_SIDE_PX:
            return RobustMark(host, message, None, f"a side is below {MIN_SIDE_PX} px")
        cover = self._cover(host, display, small, step, low, high, code_word(message, key))
        worst_db = min(max(self._least_db, least_db), self.most_db)
        chosen = self._choose(cover, (self.most_db + worst_db) / 2, largest)
        if chosen is None:
            return RobustMark(host, message, None, "the frame is flat or saturated throughout")
        rms, reads = self._least_enough(cover, chosen, worst_db, largest)
        if reads < HARDLY:
            # No strength survives a blur: all there is goes into reading as it is.
            cover = self._as_it_is(cover)
            chosen = self._choose(cover, worst_db, largest) or chosen
            rms, reads = self._least_enough(cover, chosen, worst_db, largest)
        scale = synthesis.fixed_point(rms * 256 * abs(step) / chosen.size)
        delta = synthesis.scale(chosen.shape, *scale)
        marked, exceptions = synthesis.apply(host, delta, low, high, padding)
        record = RobustRecord(self.engine.model_id, chosen.amplitudes, chosen.strengths,
                              chosen.carrier_scale, scale, exceptions)  # fmt: skip
        return RobustMark(marked, message, record, mse=rms**2, reads=reads, delta=delta)

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
        small = self.resample(display)
        soft = self.engine.decode(small[None, None])
        found = reading.read(soft[0], keys, UPRIGHT)
        if found.decoded:
            return found
        if dihedral:
            views = np.stack([pose.upright(small) for pose in DIHEDRAL])
            soft = self.engine.decode(views[:, None])
            found = _first(reading.read(*each) for each in zip(soft, repeat(keys), DIHEDRAL))
        if found.decoded or not weak:
            return found
        poses = (UPRIGHT, *DIHEDRAL) if dihedral else (UPRIGHT,)
        return self._detect_weak(self.resample(display, self.second_side), poses, keys, known)

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

    def _detect_weak(
        self, picture: Float32, poses: Sequence[Pose], keys: Sequence[RobustKey],
        known: Hashes | None,
    ) -> Detection:  # fmt: skip
        """Read what `detect` could not, in every way there is; most lie as they were marked."""
        looked: list[Float32] = []
        for some in (poses[:1], poses[1:]):
            views = [pose.upright(picture) for pose in some]
            soft = self.look_again(np.stack(views)) if views else ()
            looked += list(soft)
            found = _first(
                reading.read_weak(each, view, keys, pose, known)
                for each, view, pose in zip(soft, views, some, strict=True)
            )
            if found.decoded:
                return found
        best = int(np.argmax(_evenness(np.stack(looked))))
        return reading.read(looked[best], keys, poses[best], order=reading.DEEP)

    def resample(self, display: Float32, side: int | None = None) -> Float32:
        """Return the frame as the networks see it, ``(side, side)``; D1's side if none is given."""
        side = side or self.engine.side
        shrinks = min(display.shape) >= side
        small = cv2.resize(
            display, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return np.asarray(small, np.float32)

    def _cover(
        self, host: Int32, display: Float32, small: Float32, step: float, low: int, high: int,
        word: Float32,
    ) -> _Cover:  # fmt: skip
        room = int(EDGE_GREY_LEVELS * abs(step)) + 1
        stored = host if host.ndim == 2 else np.ascontiguousarray(host[..., 1])
        rows, columns = (BLUR_SIGMA_PX * self.engine.side / n for n in display.shape)
        cover = _Cover(small, display, stored, step, low + room, high - room, word, word,
                       (columns, rows))  # fmt: skip
        return replace(cover, soft=self._soft(small, cover))

    def _as_it_is(self, cover: _Cover) -> _Cover:
        """Return a cover that is looked at without a blur."""
        sharp = replace(cover, blur=None)
        return replace(sharp, soft=self._soft(cover.small, sharp))

    def _soft(self, picture: Float32, cover: _Cover) -> Float32:
        """Return the soft bits of a picture times the code word, seen as `cover` is."""
        if cover.blur is not None:
            columns, rows = cover.blur
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), columns, sigmaY=rows))
        soft: Float32 = self.engine.decode(picture[None, None].astype(np.float32))[0] * cover.word
        return soft

    def _choose(
        self, cover: _Cover, psnr_db: float, largest: float | None
    ) -> _Choice | None:
        """Return what E1 chooses for a budget; None where it finds no room."""
        rms = np.full((1, 1), budget_rms(psnr_db, 1.0), np.float32)
        amplitudes, grids = self.engine.encode(
            cover.small[None, None], cover.word[None], rms,
            before=(cover.soft * cover.word)[None],
            softness=SECOND_SOFTNESS if self.second and cover.blur is None else None,
        )  # fmt: skip
        grid = np.clip(grids[0], 0, 7).astype(np.uint8)
        levels = np.clip(amplitudes[0], -31, 31).astype(np.int8)
        if cover.step < 0:
            levels = (-levels).astype(np.int8)
        carrier = superpose(levels.astype(np.int32), self.engine.patterns)
        crest, level = CREST, 7
        if largest is not None:
            crest, level = FLATTEST if self.second else FLAT
            level = 1 if abs(cover.step) < NARROW_STEP else level
        grid = np.minimum(_midtones(grid, cover.small), level)
        carrier_scale = synthesis.carrier_scale(carrier, crest)
        shape = synthesis.residual_shape(carrier, grid, carrier_scale, *cover.display.shape)
        seen, energy = visible(shape, cover.display, cover.stored, cover.low, cover.high)
        size = float(np.sqrt(energy / seen.size))
        if not grid.any() or size == 0.0:
            return None
        share = float(np.mean(grid > 0))
        shown = self.resample(seen) * np.float32(np.sign(cover.step) / size)
        tried = np.float32(budget_rms(psnr_db, share))
        soft = self._soft(np.clip(cover.small + tried * shown, 0, 1), cover)
        gain = (soft - cover.soft) / tried
        return _Choice(levels, grid, carrier_scale, shape, size, share, gain, shown, float(tried))

    def _least_enough(
        self, cover: _Cover, choice: _Choice, worst_db: float, largest: float | None
    ) -> tuple[float, float]:
        """Return the least rms that is enough, and how well it reads through a blur.

        Soft bits grow with the residual so evenly that two pictures tell all others (measured
        between 48 and 40.9 dB). Enough is what agrees with the code word by `READS` through a
        blur, and by `NOISY` through strong noise if that takes no more than `NOISE_DB`.
        """
        budgets = np.arange(self.most_db, worst_db - _STEP_DB / 2, -_STEP_DB)
        rms = np.array([budget_rms(float(b), choice.share) for b in budgets], np.float32)
        if largest is not None:
            grey = 256 * abs(cover.step)
            whole = max(np.floor(largest * grey + 1e-6), 1.0) + _ROUNDS_DOWN
            rms = np.minimum(rms, whole / grey * choice.size / float(np.abs(choice.shape).max()))
        reads = _agreement(cover.soft + rms[:, None] * choice.gain)
        enough = reads >= READS
        enough &= (budgets <= NOISE_DB) | (self._noisy(cover, choice, rms) >= NOISY)
        best = int(np.argmax(enough)) if enough.any() else int(np.argmax(reads))
        return float(rms[best]), float(reads[best])

    def _noisy(self, cover: _Cover, choice: _Choice, rms: Float32) -> Float32:
        """Return how marks of each rms agree with the code word through strong noise.

        Of noise that hides the mark, signal over noise grows with the residual.
        """
        samples = cover.small.size
        sigma = NOISE_SIGMA * min(1.0, (samples / cover.display.size) ** 0.5)
        picture = cover.small + np.float32(choice.tried) * choice.shown
        picture = np.clip(picture + np.float32(sigma) * _noise(cover.small.shape), 0, 1)
        there = float(_agreement(self.engine.decode(picture[None, None])[0] * cover.word))
        ratio = max(there, 0.0) / max(1 - there**2, 1e-6) ** 0.5 * rms / choice.tried
        agreement: Float32 = ratio / np.sqrt(1 + ratio**2)
        return agreement


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


def _first(found: Iterable[Detection]) -> Detection:
    """Return the first that decoded, else one that did not."""
    return next((each for each in found if each.decoded), Detection(False))


def _agreement(soft: Float32) -> Float32:
    """Return the cosine between soft bits times the code word, ``(..., 160)``, and all ones."""
    agreement: Float32 = soft.mean(axis=-1) / np.sqrt(np.mean(soft**2, axis=-1) + 1e-9)
    return agreement


def _midtones(grid: NDArray[np.uint8], small: Float32) -> NDArray[np.uint8]:
    """Return strengths that are less where brightening or more contrast would saturate a cell."""
    inside = ((small > SAFE[0]) & (small < SAFE[1])).astype(np.float32)
    share = cv2.resize(inside, grid.shape[::-1], interpolation=cv2.INTER_AREA)
    spared = np.rint(grid * (UNSAFE + (1 - UNSAFE) * share))
    return np.asarray(np.where(grid > 0, np.maximum(spared, 1), 0), np.uint8)


@lru_cache(maxsize=2)
def _noise(shape: tuple[int, int]) -> Float32:
    """Return white noise of variance 1, always the same: marks are deterministic."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _evenness(soft: Float32) -> Float32:
    """Return how even the sizes of soft bits are: those of a mark are more so than chance's."""
    ratio: Float32 = np.abs(soft).mean(axis=1) / np.sqrt(np.mean(soft**2, axis=1) + 1e-9)
    return ratio
