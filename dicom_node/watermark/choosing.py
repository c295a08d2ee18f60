"""E1: what carries W1's message in one frame, and the least strength at which it reads.

The engine's networks choose amplitudes and strengths; :mod:`synthesis` builds the residual that
comes of them in integers. How strongly it is put in is decided here, by looking at two pictures of
the frame through D1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import AMPLITUDE, Float32, RobustEngine
from dicom_node.inference.correlator import superpose
from dicom_node.watermark import small as small_frame
from dicom_node.watermark import synthesis
from dicom_node.watermark.covers import Choice, Chosen, Cover, Look, agreement_of, budget_rms
from dicom_node.watermark.residual import visible
from dicom_node.watermark.synthesis import Int32

# Agreement (cosine) with the code word that a mark is made for. Recognising it takes 0.48 to 0.61.
READS = 0.87  # through a 7 x 7 blur
HARDLY = 0.5  # below, a mark is made to be read without a blur
NOISY, NOISE_SIGMA = 0.54, 0.1  # D1 through noise of variance 0.01; R2 sees more
# Noise alone is no reason for more strength than this, of a smooth frame less: there it would be
# seen, and files grow most. Smooth: the median sample differs from its surroundings by less.
NOISE_DB, NOISE_SMOOTH_DB, SMOOTH = 44.8, 46.8, 1.5 / 256
# D1 through a narrower window, which is also what more contrast or brightness leaves: where more
# strength can bring that about, up to so much, it is put in. Where it cannot, or hardly, it is not.
NARROWED, NARROWED_DB, HOPELESS, WORTHWHILE = 0.6, 43.5, 0.38, 0.05
NARROW = 0.2, 0.8  # the window, in display values
BLUR_SIGMA_PX = 1.4  # what cv2.GaussianBlur takes for a 7 x 7 window
EDGE_GREY_LEVELS = 3  # nearer the ends of the stored range hardly anything is changed

_STEP_DB = 0.1
_ROUNDS_DOWN = 0.4  # of a stored value: less than a half, whatever the fixed-point scale rounds to
# Where the carrier is cut, in its standard deviations; where the largest change is bound, which
# leaves one strength for all that carries; and there, for a second attempt.
CREST, FLAT, FLATTEST = 1.6, 0.8, 0.6
# More contrast or brightness saturates what lies outside: such cells keep so much strength.
SAFE, UNSAFE = (0.2, 0.78), 0.3
SECOND_SOFTNESS = 2.2
ALONG = 1.25  # how far along the word, in standard deviations of what the cover adds across it
ALONG_FOLDED, CREST_FOLDED = 3.0, 2.2  # of folded carriers
BARELY, LEAST_SHARE = (0.02, 0.98), 0.5
GREY, LEAST_GREY_PX = (0.1, 0.92), 200  # neither black nor white: it tells how smooth a frame is


class Chooser:
    """Chooses for one frame after another, with one engine.

    Parameters
    ----------
    second
        As `robust.RobustWatermark` takes it.
    look
        What will read the mark.
    any_word
        In whichever word.
    """

    def __init__(
        self, engine: RobustEngine, *, look: Look, second: bool, any_word: bool = False
    ) -> None:
        self._engine, self._second, self._look, self._any_word = engine, second, look, any_word
        self._folds = look.folds

    def covers(
        self, host: Int32, display: Float32, small: Float32, step: float, low: int, high: int,
        word: Float32, nearest: Callable[[Float32], Float32] | None = None,
    ) -> list[Cover]:  # fmt: skip
        """Return a frame about to be marked, in each way to do so; the rest as `robust.embed`.

        Parameters
        ----------
        word
            To put in.
        nearest
            Tells, from the frame's own soft bits, which word to put in instead.
        """
        room, side = int(EDGE_GREY_LEVELS * abs(step)) + 1, self._look.side
        stored = host if host.ndim == 2 else np.ascontiguousarray(host[..., 1])
        rows, columns = (BLUR_SIGMA_PX * side / n for n in display.shape)
        plain = side == self._engine.side and self._folds == 1
        seen = small if plain else self._look.at(display)
        cover = Cover(small, seen, display, stored, step, low + room, high - room, word, word, word,
                      (columns, rows))  # fmt: skip
        if self._folds > 1:
            return small_frame.covers(self.as_it_is(cover), self._look, nearest)
        cover = replace(cover, soft=self._soft(seen, cover))
        if nearest is None:
            return [cover]
        aim = self._aim(cover)
        better = nearest(aim)
        soft = cover.soft * word * better
        return [replace(cover, word=better, soft=soft, aim=aim * better)]

    def _aim(self, cover: Cover) -> Float32:
        """Return the soft bits of a frame, on average with and without a blur."""
        sharp = self._soft(cover.seen, replace(cover, blur=None))
        both = (each / (np.linalg.norm(each) + 1e-9) for each in (cover.soft, sharp))
        return np.asarray(sum(both) * cover.word, np.float32)

    def as_it_is(self, cover: Cover) -> Cover:
        """Return a cover that is looked at without a blur."""
        sharp = replace(cover, blur=None)
        return replace(sharp, soft=self._soft(cover.seen, sharp))

    def _soft(self, picture: Float32, cover: Cover) -> Float32:
        """Return the soft bits of a picture times the code word, seen as `cover` is."""
        if cover.blur is not None:
            columns, rows = cover.blur
            picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), columns, sigmaY=rows))
        soft: Float32 = self._look.soft_bits(picture[None].astype(np.float32))[0] * cover.word
        return soft

    def choose(self, cover: Cover, psnr_db: float, largest: int | None) -> Choice | None:
        """Return what E1 chooses for a budget; None where it finds no room."""
        bound = largest is not None
        straight = self._any_word or self._folds > 1
        levels, grid = self._straight(cover) if straight else self._encoded(cover, psnr_db)
        if cover.step < 0:
            levels = (-levels).astype(np.int8)
        carrier = superpose(levels.astype(np.int32), self._engine.patterns)
        carrier = synthesis.folded(carrier, self._folds)
        crest, level = self.limits(bound=bound)
        grid = np.minimum(midtones(grid, cover.small), level)
        if bound and self._any_word:
            grid = wherever_grey(cover.display, self._engine.grid)
        carrier_scale = synthesis.carrier_scale(carrier, crest)
        shape = synthesis.residual_shape(carrier, grid, carrier_scale, *cover.display.shape)
        seen, energy = visible(shape, cover.display, cover.stored, cover.low, cover.high)
        size = float(np.sqrt(energy / seen.size))
        if not grid.any() or size == 0.0:
            return None
        share = float(np.mean(grid > 0))
        shown = self._look.at(seen) * np.float32(np.sign(cover.step) / size)
        tried = np.float32(budget_rms(psnr_db, share))
        soft = self._soft(np.clip(cover.seen + tried * shown, 0, 1), cover)
        gain = (soft - cover.soft) / tried
        return Choice(levels, grid, carrier_scale, shape, size, share, gain, shown, float(tried))

    def _encoded(
        self, cover: Cover, psnr_db: float
    ) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """Return amplitudes and strengths of E1."""
        rms = np.full((1, 1), budget_rms(psnr_db, 1.0), np.float32)
        amplitudes, grids = self._engine.encode(
            cover.small[None, None], cover.word[None], rms,
            before=(cover.soft * cover.word)[None],
            softness=SECOND_SOFTNESS if self._second and cover.blur is None else None,
        )  # fmt: skip
        levels = np.clip(amplitudes[0], -31, 31).astype(np.int8)
        return levels, np.clip(grids[0], 0, 7).astype(np.uint8)

    def _straight(self, cover: Cover) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """Return amplitudes that turn the cover's soft bits towards the word, and E1's strengths.

        Where strength is short, the way to the most agreement leads along the word and against what
        the cover adds across it, in equal measure or so: bits that are right already are let go.
        Folded patterns are no longer orthogonal: what one does to the others is taken off.
        """
        aim = cover.aim - cover.aim.mean()
        along = ALONG if self._folds == 1 else ALONG_FOLDED
        amplitudes = cover.word * (along * np.sqrt(np.mean(aim**2)) - aim)
        if self._folds > 1:
            amplitudes = small_frame.apart(self._engine.patterns, self._folds) @ amplitudes
        levels = np.rint(amplitudes * (AMPLITUDE / np.abs(amplitudes).max()))
        grid = self._engine.strengths(cover.small[None, None])[0]
        return levels.astype(np.int8), np.clip(grid, 0, 7).astype(np.uint8)

    def survives(self, chosen: Chosen) -> float:
        """Return what JPEG leaves of a choice for a small frame: the more, the better."""
        return small_frame.survives(chosen, self._look)

    def limits(self, *, bound: bool) -> tuple[float, int]:
        """Return where the carrier is cut, in its standard deviations, and the largest strength."""
        if not bound:
            return (CREST if self._folds == 1 else CREST_FOLDED), 7
        return (FLATTEST if self._second else FLAT), 1

    def least_enough(
        self, cover: Cover, choice: Choice, most_db: float, worst_db: float, largest: int | None
    ) -> tuple[float, float]:
        """Return the least rms that is enough, and how well it reads through a blur.

        Soft bits grow with the residual so evenly that two pictures tell all others (measured
        between 48 and 40.9 dB). Enough is what agrees with the code word by `READS` through a
        blur, by `NOISY` through strong noise if that takes no more than `NOISE_DB`, and by
        `NARROWED` through a narrower window if that takes no more than `NARROWED_DB`.
        """
        budgets = np.arange(most_db, worst_db - _STEP_DB / 2, -_STEP_DB)
        rms = np.array([budget_rms(float(b), choice.share) for b in budgets], np.float32)
        if largest is not None:
            most = (largest + _ROUNDS_DOWN) / (256 * abs(cover.step))
            rms = np.minimum(rms, most * choice.size / float(np.abs(choice.shape).max()))
        reads = agreement_of(cover.soft + rms[:, None] * choice.gain)
        enough = reads >= READS
        noise_db = NOISE_SMOOTH_DB if is_smooth(cover.small) else NOISE_DB
        if self._folds == 1:  # small frames take all there is
            enough &= (budgets <= noise_db) | (self._noisy(cover, choice, rms) >= NOISY)
        best = int(np.argmax(enough)) if enough.any() else int(np.argmax(reads))
        last = int(np.argmax(budgets <= NARROWED_DB))
        # Where all are at the frame's bound there is nothing to choose from.
        if self._folds == 1 and rms[best] < rms[last]:
            best += self._narrowed(cover, choice, rms[best : last + 1])
        return float(rms[best]), float(reads[best])

    def _narrowed(self, cover: Cover, choice: Choice, rms: Float32) -> int:
        """Return which of the marks of each rms is enough for a narrower window: the last at most.

        The first where all of them are, where none comes near, or where strength brings little:
        what a window cuts off is lost however strong it is.
        """
        low, high = NARROW
        least, most = float(rms[0]), float(rms[-1])
        marked = cover.seen + np.stack([rms[0] * choice.shown, rms[-1] * choice.shown])
        narrow = (np.clip(marked, low, high) - low) / np.float32(high - low)
        weakest, strongest = self._look.soft_bits(narrow) * cover.word
        share = (rms - least) / max(most - least, 1e-9)
        agreement = agreement_of(weakest + share[:, None] * (strongest - weakest))
        if agreement[-1] < HOPELESS or agreement[-1] < agreement[0] + WORTHWHILE:
            return 0
        enough = agreement >= NARROWED
        return int(np.argmax(enough)) if enough.any() else len(rms) - 1

    def _noisy(self, cover: Cover, choice: Choice, rms: Float32) -> Float32:
        """Return how marks of each rms agree with the code word through strong noise.

        Of noise that hides the mark, signal over noise grows with the residual.
        """
        samples = cover.seen.size
        sigma = NOISE_SIGMA * min(1.0, (samples / cover.display.size) ** 0.5)
        picture = cover.seen + np.float32(choice.tried) * choice.shown
        picture = np.clip(picture + np.float32(sigma) * _noise(cover.seen.shape), 0, 1)
        there = float(agreement_of(self._look.soft_bits(picture[None])[0] * cover.word))
        ratio = max(there, 0.0) / max(1 - there**2, 1e-6) ** 0.5 * rms / choice.tried
        agreement: Float32 = ratio / np.sqrt(1 + ratio**2)
        return agreement


def midtones(grid: NDArray[np.uint8], small: Float32) -> NDArray[np.uint8]:
    """Return strengths that are less where brightening or more contrast would saturate a cell."""
    inside = ((small > SAFE[0]) & (small < SAFE[1])).astype(np.float32)
    share = cv2.resize(inside, grid.shape[::-1], interpolation=cv2.INTER_AREA)
    spared = np.rint(grid * (UNSAFE + (1 - UNSAFE) * share))
    return np.asarray(np.where(grid > 0, np.maximum(spared, 1), 0), np.uint8)


def wherever_grey(display: Float32, cells: int) -> NDArray[np.uint8]:
    """Return strength 1 for every cell that shows something between black and white.

    ``(cells, cells)``. For frames that show little: E1 leaves cells out that are mostly saturated,
    whose rest is all such a frame has.
    """
    inside = ((display > BARELY[0]) & (display < BARELY[1])).astype(np.float32)
    share = cv2.resize(inside, (cells, cells), interpolation=cv2.INTER_AREA)
    return (share > LEAST_SHARE).astype(np.uint8)


def is_smooth(small: Float32) -> bool:
    """Whether a frame, as the networks see it, has hardly any noise of its own where it is grey."""
    grey = (small > GREY[0]) & (small < GREY[1])
    finest = np.abs(small - cv2.blur(small, (3, 3)))[grey]
    return finest.size >= LEAST_GREY_PX and float(np.median(finest)) < SMOOTH


@lru_cache(maxsize=2)
def _noise(shape: tuple[int, int]) -> Float32:
    """Return white noise of variance 1, always the same: marks are deterministic."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)
