"""Is a backend good enough? Compared with ONNX Runtime on the CPU, on real frames.

Backends differ in rounding, and no restored bit depends on it. What may differ is what they
choose and how surely they read; the bounds here are set by what that costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import Card

# Half-precision convolutions, on 92 real frames: 0.004, 0.0006, 0.07 and 0.0009.
MOST_SOFT = 0.02  # of a soft bit, in rms of the frame's soft bits: a fifth of the margin we mark to
MOST_CELLS = 0.02  # share of strengths that are one off; none may be more
MOST_AMPLITUDE = 0.25  # mean, of 31
MOST_AGREEMENT = 0.01  # cosine between soft bits and code word that a frame may read worse
RMS = 0.007  # of the residual, display values: about 43 dB
_SEED = 20261122


@dataclass(frozen=True)
class Comparison:
    """How far one engine is from the reference, worst frame; `ok` if within every bound."""

    soft: float
    cells: float
    largest_cell: float
    amplitude: float
    agreement: float

    @property
    def ok(self) -> bool:
        """Whether the engine may be used."""
        return (
            self.soft <= MOST_SOFT
            and self.cells <= MOST_CELLS
            and self.largest_cell <= 1
            and self.amplitude <= MOST_AMPLITUDE
            and self.agreement <= MOST_AGREEMENT
        )

    def __str__(self) -> str:
        return (
            f"soft bits off by {self.soft:.4f} rms (at most {MOST_SOFT}), {self.cells:.4f}"
            f" of strengths (at most {MOST_CELLS}) by {self.largest_cell:g}, amplitudes"
            f" {self.amplitude:.3f} (at most {MOST_AMPLITUDE}), agreement worse by"
            f" {self.agreement:.4f} (at most {MOST_AGREEMENT})"
        )


def check_frames(card: Card) -> Float32:
    """Return the real frames that come with the networks, ``(frames, 1, side, side)``, 0..1.

    Raises
    ------
    EngineError
        They are missing or of another shape.
    """
    path = card.folder / "check_frames.npy"
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read: {error}; reinstall") from error
    if frames.dtype != np.uint8 or frames.shape[1:] != (card.side, card.side) or not len(frames):
        raise EngineError(f"{path}: {frames.dtype} {frames.shape} does not fit the card: reinstall")
    shown: Float32 = frames[:, None].astype(np.float32) / np.float32(255)
    return shown


def compare(engine: RobustEngine, reference: RobustEngine, frames: Float32) -> Comparison:
    """Run both engines on `frames` and measure how far apart they are.

    Raises
    ------
    EngineError
        The engine cannot run at all, or what it returns is no number.
    """
    soft, wanted = engine.decode(frames), reference.decode(frames)
    if not (np.isfinite(soft).all() and np.isfinite(engine.strengths(frames)).all()):
        raise EngineError(f"{engine.name} returns what is no number")
    words, rms = _questions(len(frames), reference.code_bits)
    chosen, grids = engine.encode(frames, words, rms)
    expected, cells = reference.encode(frames, words, rms)
    return Comparison(
        soft=float(np.max(np.abs(soft - wanted) / _size(wanted))),
        cells=float(np.mean(grids != cells)),
        largest_cell=float(np.max(np.abs(grids - cells))),
        amplitude=float(np.max(np.mean(np.abs(chosen - expected), axis=1))),
        agreement=float(
            np.max(
                read_back(reference, frames, words, rms, (expected, cells))
                - read_back(reference, frames, words, rms, (chosen, grids))
            )
        ),
    )


def reads_back(engine: RobustEngine, frames: Float32) -> float:
    """Return the share of bits that an engine reads from what it marked itself, worst frame."""
    words, rms = _questions(len(frames), engine.code_bits)
    picture = engine.picture(frames, *engine.encode(frames, words, rms), rms)
    return float(np.min(np.mean((engine.decode(picture) > 0) == (words > 0), axis=1)))


def read_back(
    reference: RobustEngine, frames: Float32, words: Float32, rms: Float32,
    choice: tuple[Float32, Float32],
) -> Float32:  # fmt: skip
    """Return how well `reference` reads what was chosen: cosine a frame, ``(frames,)``."""
    soft = reference.decode(reference.picture(frames, *choice, rms))
    cosine: Float32 = np.mean(soft * words, axis=1) / _size(soft)[:, 0]
    return cosine


def _questions(count: int, code_bits: int) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(_SEED)
    words = rng.choice(np.array([-1, 1], np.float32), (count, code_bits))
    return words, np.full((count, 1), RMS, np.float32)


def _size(soft: Float32) -> Float32:
    """Return the rms of every frame's soft bits, ``(frames, 1)``."""
    size: Float32 = np.sqrt(np.mean(np.square(soft), axis=1, keepdims=True))
    return size
