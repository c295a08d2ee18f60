"""One picture, looked at through the carrier patterns: how much speaks for a frame at a place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark.fourier import ShiftBank, TurnBank, enlarged, evidence
from dicom_node.watermark.placement import Placement, as_seen, inside, resampled, shrunk

_FINE = 4  # times a whitened picture is enlarged for small moves
# Degrees, logs of size and of shape, samples right and down: what halves the evidence.
_STEPS = np.array([0.35, 0.008, 0.008, 0.5, 0.5])
_SQUARE = 0.02  # log of columns over rows up to which a frame counts as square


class Tools:
    """What depends on the networks only, and is kept from picture to picture."""

    def __init__(self, engine: RobustEngine) -> None:
        self.engine, self.side = engine, engine.side
        patterns = engine.patterns.astype(np.float32)
        patterns /= np.linalg.norm(patterns, axis=1, keepdims=True)
        self.patterns: Float32 = patterns
        self._turns = lru_cache(maxsize=2)(self._turn_bank)

    @cached_property
    def shifts(self) -> ShiftBank:
        """The bank that asks all shifts."""
        return ShiftBank(self.patterns.reshape(-1, self.side, self.side))

    def turns(self, aspect: float) -> TurnBank:
        """Return the bank that asks all angles of frames of an aspect, columns over rows."""
        return self._turns(1.0 if abs(np.log(aspect)) < _SQUARE else round(aspect, 3))

    def _turn_bank(self, aspect: float) -> TurnBank:
        return TurnBank(self.patterns.reshape(-1, self.side, self.side), aspect)


@lru_cache(maxsize=2)
def tools_of(engine: RobustEngine) -> Tools:
    """Return the tools made for an engine's patterns, once."""
    return Tools(engine)


class View:
    """A picture as the search sees it: small, and whitened wherever it is asked about.

    Parameters
    ----------
    display
        Display values 0..1, ``(rows, columns)``.
    """

    def __init__(self, display: Float32, tools: Tools) -> None:
        self.tools = tools
        self.picture = shrunk(display)
        self.shape = self.picture.shape

    def soft_bits(self, place: Placement) -> Float32:
        """Return D1's soft bits of the frame at `place`, ``(K,)``."""
        soft: Float32 = self.tools.engine.decode(self.frame(place)[None, None])[0]
        return soft

    def frame(self, place: Placement, side: int | None = None) -> Float32:
        """Return the frame at `place` as the networks see it, ``(side, side)``; D1's if none."""
        return as_seen(self.picture, place, side or self.tools.side)

    def whitened(self, place: Placement) -> Float32:
        """Return the whitened frame at `place`, 0 outside the picture, ``(side, side)``."""
        side = self.tools.side
        frame = as_seen(self.picture, place, side)
        flat = np.asarray(self.tools.engine.whiten(frame[None, None])[0], np.float32)
        seen: Float32 = (flat - flat.mean()).reshape(side, side)
        seen *= inside(place, self.shape, side)
        return seen

    def moved_in(
        self, place: Placement, noise: float, rounds: Sequence[float]
    ) -> tuple[Placement, float]:
        """Return the nearby place with most evidence, and how much.

        Each round looks from where it stands: moving an already whitened picture shows the way,
        but only whitening it anew shows how good the place is.

        Parameters
        ----------
        noise
            Mean square of a soft bit where nothing is marked.
        rounds
            How far each round looks, as a part of what halves the evidence.
        """
        best, most = place, -np.inf
        for part in (*rounds, 0.0):
            seen = self.whitened(place)
            here = float(self._evidence_of(seen[None], noise)[0])
            if here > most:
                best, most = place, here
            if part:
                place = self._step(seen, place, here, noise, _STEPS * part)
        return best, most

    def _step(
        self, seen: Float32, place: Placement, here: float, noise: float, steps: NDArray[np.float64]
    ) -> Placement:
        """Return where parabolas through the evidence on both sides, a change each, peak."""
        side, fine = self.tools.side, enlarged(seen, _FINE)
        each = np.diag(steps)
        nearby = [_changed(place, change, side) for change in (*each, *-each)]
        planes = np.stack([resampled(fine, _FINE, place, other, side) for other in nearby])
        plus, minus = np.split(self._evidence_of(planes, noise), 2)
        bend = np.minimum(plus - 2 * here + minus, -1e-3)
        vertex = np.clip(0.5 * (minus - plus) / bend, -1, 1)
        return _changed(place, vertex * steps, side)

    def _evidence_of(self, planes: Float32, noise: float) -> Float32:
        soft = planes.reshape(len(planes), -1) @ self.tools.patterns.T
        return evidence(np.square(soft).sum(1), np.abs(soft).sum(1), soft.shape[1], noise)


def _changed(place: Placement, change: NDArray[np.float64], side: int) -> Placement:
    turn, size, shape, right, down = map(float, change)
    return place.changed(turn, size, shape).moved(right, down, side)
