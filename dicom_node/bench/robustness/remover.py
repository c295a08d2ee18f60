"""Surrogate removal: a small network, trained on marked frames and their covers, takes marks off.

The attacker is taken to have covers, which is more than an attacker usually has. The network sees
a picture at 256 x 256, where a carrier pattern's waves are five to ten pixels long:

    picture ──11 x 11, 24 filters──▶ ReLU ──1 x 1──▶ residual, taken off at the picture's own size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.bench.attacks.base import Pair, Picture

Float32 = NDArray[np.float32]

_SIDE_PX = 256
_REACH_PX = 5
_FILTERS = 24
_PATCHES = 40_000
_STEPS, _BATCH, _RATE = 1500, 512, 3e-3
_DECAY = (0.9, 0.999)  # of Adam's two averages
_GREY = np.float32(1 / 32)  # grey levels as the network sees them


@dataclass(frozen=True)
class Network:
    """A trained remover.

    Attributes
    ----------
    filters, biases
        ``(24, 11, 11)`` and ``(24,)``.
    weights
        ``(24,)``, in grey levels.
    explained
        Share of the residual's variance that it predicts in patches it was not trained on.
    """

    filters: Float32
    biases: Float32
    weights: Float32
    explained: float

    def residual(self, picture: Picture) -> Float32:
        """Return the residual it predicts, in grey levels, as large as the picture."""
        small = _shrunk(picture)
        centred = (small - cv2.blur(small, (2 * _REACH_PX + 1,) * 2)) * _GREY
        residual = np.zeros_like(small)
        for kernel, bias, weight in zip(self.filters, self.biases, self.weights, strict=True):
            seen = cv2.filter2D(centred, cv2.CV_32F, kernel)
            residual += weight * np.maximum(seen + bias, 0)
        size = picture.shape[1], picture.shape[0]
        return np.asarray(cv2.resize(residual, size, interpolation=cv2.INTER_LINEAR), np.float32)

    def save(self, path: Path) -> None:
        """Write it to a file for `load`."""
        np.savez(path, filters=self.filters, biases=self.biases,
                 weights=self.weights, explained=np.float64(self.explained))  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read what `save` wrote."""
        with np.load(path) as kept:
            return cls(kept["filters"], kept["biases"], kept["weights"], float(kept["explained"]))


def train(pairs: Sequence[Pair], seed: int) -> Network:
    """Train a remover on marked pictures and their covers (Adam, squared error).

    A tenth of the patches is kept aside to tell what the network has learned.
    """
    rng = np.random.default_rng(seed)
    patches, residuals = _patches(pairs, rng)
    kept = len(patches) // 10
    first = (rng.standard_normal((patches.shape[1], _FILTERS)) * 0.1).astype(np.float32)
    parameters = [first, np.zeros(_FILTERS, np.float32), np.zeros(_FILTERS, np.float32)]
    averages = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    for step in range(1, _STEPS + 1):
        drawn = rng.integers(kept, len(patches), _BATCH)
        gradients = _gradients(parameters, patches[drawn], residuals[drawn])
        rate = _RATE * (1 - step / (_STEPS + 1))
        for p, gradient, (mean, square) in zip(parameters, gradients, averages, strict=True):
            mean += (1 - _DECAY[0]) * (gradient - mean)
            square += (1 - _DECAY[1]) * (gradient**2 - square)
            unbiased = mean / (1 - _DECAY[0] ** step), square / (1 - _DECAY[1] ** step)
            p -= np.float32(rate) * unbiased[0] / (np.sqrt(unbiased[1]) + np.float32(1e-8))
    predicted = np.maximum(patches[:kept] @ parameters[0] + parameters[1], 0) @ parameters[2]
    wanted = residuals[:kept]
    missed = float(np.mean((wanted - predicted) ** 2) / max(float(np.mean(wanted**2)), 1e-9))
    side = 2 * _REACH_PX + 1
    filters = np.ascontiguousarray(parameters[0].T.reshape(_FILTERS, side, side))
    return Network(filters, parameters[1], parameters[2], 1 - missed)


def _gradients(parameters: Sequence[Float32], patches: Float32, wanted: Float32) -> list[Float32]:
    """Return the gradients of half the mean squared error."""
    filters, biases, weights = parameters
    before = patches @ filters + biases
    hidden = np.maximum(before, 0)
    error = (hidden @ weights - wanted) / np.float32(len(wanted))
    back = np.where(before > 0, error[:, None] * weights, np.float32(0))
    return [patches.T @ back, back.sum(axis=0), hidden.T @ error]


def _patches(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[Float32, Float32]:
    """Return patches of the marked pictures, less their means, and the residuals amid them."""
    each = -(-_PATCHES // len(pairs))
    side = 2 * _REACH_PX + 1
    patches, residuals = [], []
    for pair in pairs:
        marked, cover = _shrunk(pair.marked), _shrunk(pair.cover)
        windows = np.lib.stride_tricks.sliding_window_view(marked, (side, side))
        row, column = (rng.integers(0, n, each) for n in windows.shape[:2])
        some = windows[row, column].reshape(each, side * side)
        patches.append((some - some.mean(axis=1, keepdims=True)) * _GREY)
        residuals.append((marked - cover)[row + _REACH_PX, column + _REACH_PX])
    order = rng.permutation(each * len(pairs))
    return np.concatenate(patches)[order], np.concatenate(residuals)[order]


def _shrunk(picture: Picture) -> Float32:
    how = cv2.INTER_AREA if min(picture.shape) > _SIDE_PX else cv2.INTER_LINEAR
    small = cv2.resize(picture.astype(np.float32), (_SIDE_PX, _SIDE_PX), interpolation=how)
    return np.asarray(small, np.float32)
