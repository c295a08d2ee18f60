"""What an attack is: from an 8-bit picture to another one, and the way back for who knows it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dicom_node.watermark.robust import RobustKey, RobustWatermark

Picture = NDArray[np.uint8]  # (rows, columns)
Rng = np.random.Generator
Shape = tuple[int, ...]  # rows, columns
Source = Literal["plain", "wide", "narrow", "shifted", "stored"]

PLAIN = "plain 8-bit export"


class Remover(Protocol):
    """Something that was trained to tell a mark from the picture under it."""

    def residual(self, picture: Picture) -> NDArray[np.float32]:
        """Return what it takes for the mark, in grey levels, as large as the picture."""
        ...


@dataclass(frozen=True)
class Pair:
    """A marked picture and its cover."""

    marked: Picture
    cover: Picture


@dataclass(frozen=True)
class Scene:
    """All that an attacker who knows the method may have, but not our keys.

    Attributes
    ----------
    exports
        The marked frame, as it left by each way.
    cover
        The plain export of the frame before it was marked.
    others
        Other frames marked with the same keys.
    robust, keys
        The embedder, and keys of the attacker's own.
    remover
        A network trained on `others` of other files; None where there were none.
    """

    exports: Mapping[Source, Picture]
    cover: Picture
    others: Sequence[Pair]
    robust: RobustWatermark
    keys: Sequence[RobustKey]
    remover: Remover | None


def keep(picture: Picture, shape: Shape, rng: Rng) -> Picture:
    """Return the picture as it is: the attack did not move it."""
    del shape, rng
    return picture


@dataclass(frozen=True)
class Attack:
    """One attack of the suite.

    Attributes
    ----------
    family
        Under which it is listed and can be chosen.
    apply
        From an 8-bit picture to an 8-bit picture, perhaps of another size; never in place.
    upright
        Lays the attacked picture back over the frame (its size may differ), given the shape that
        had and a generator seeded as for `apply`. Counts bits with the pose known; the blind
        decoder is not told.
    target
        Least share of frames whose message must be recovered; None where nothing was promised.
    paper
        What the papers report for their own marks, per cent, as they print it.
    source
        Which export is attacked: the plain one, one through another window, or one of stored
        values that were compressed first.
    searched
        Whether the decoder has to search for the geometry: beyond size, flips and quarter turns.
    curve
        Curve and abscissa, where the attack is a point of one.
    knowing
        Instead of `apply`, for an attacker who needs more than the picture; None where the scene
        does not have it.
    """

    name: str
    family: str
    apply: Callable[[Picture, Rng], Picture]
    upright: Callable[[Picture, Shape, Rng], Picture] = keep
    target: float | None = None
    paper: str = ""
    source: Source = "plain"
    searched: bool = False
    curve: tuple[str, float] | None = None
    knowing: Callable[[Scene, Rng], Picture | None] | None = None

    def rng(self, *frame: int | str) -> Rng:
        """Return the generator for one frame: the same for the same frame in every run."""
        text = "/".join(map(str, (self.name, *frame)))
        return np.random.default_rng(zlib.crc32(text.encode("utf-8")))

    def on(self, scene: Scene, rng: Rng) -> Picture | None:
        """Attack the marked frame of a scene; None where the scene lacks what it takes."""
        if self.knowing is not None:
            return self.knowing(scene, rng)
        return self.apply(scene.exports[self.source], rng)


def steady(function: Callable[[Picture], object]) -> Callable[[Picture, Rng], Picture]:
    """Return an attack that draws nothing, from a function of the picture alone."""
    return lambda picture, rng: np.ascontiguousarray(function(picture), np.uint8)


def rounded(values: NDArray[np.floating]) -> Picture:
    """Return grey values clipped to 0..255 and rounded."""
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
