"""W1, the robust mark: whose image this is, and what it looked like.

A message of 96 bits (64-bit pHash, 32-bit keyed tag) becomes a whitened code word of 160 bits.
E1 chooses the residual that carries it, :mod:`synthesis` builds it in integers, D1 reads it back
from any 8-bit picture of the frame. The frame is always seen at ``128 x 128``, whatever its size
or aspect, so scaling needs no search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from Crypto.Hash import KMAC256, SHAKE256
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.watermark import ecc, perceptual, synthesis
from dicom_node.watermark.synthesis import Int32, RobustRecord

TAG_BYTES = 4
MIN_AGREEMENT = 0.35  # cosine between soft bits and code word below which no tag is believed
ENOUGH = 0.1  # margin wanted of the second-weakest percent of the bits, in rms of the soft bits
BLUR_SIGMA_PX = 1.4  # what cv2.GaussianBlur takes for a 7 x 7 window
EDGE_GREY_LEVELS = 3  # nearer the ends of the stored range hardly anything is changed
MIN_SIDE_PX = 48  # a smaller frame has too few samples for 160 bits
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Budget:
    """How much one attempt may change.

    Attributes
    ----------
    psnr_db
        Least PSNR of the frame in the display window, peak 1.
    local_grey
        Most that the part of the frame which carries the mark is changed, rms, in 1/256 of the
        window: where only a corner of the frame can carry, PSNR alone would allow too much there.
    """

    psnr_db: float
    local_grey: float

    def rms(self, share: float) -> float:
        """Return the residual's rms over the frame, display values, if `share` of it carries."""
        return float(min(10 ** (-self.psnr_db / 20), self.local_grey / 256 * share**0.5))


# Tried in turn until the frame reads back with a margin: few frames need the later ones.
PROFILES: dict[str, tuple[Budget, ...]] = {
    "diagnostic": (Budget(46.4, 2.7), Budget(44.8, 3.4), Budget(43.0, 4.4), Budget(40.9, 5.4)),
    "robust": (Budget(42.2, 4.6), Budget(40.9, 5.4)),
}


class RobustKey(Protocol):
    """The part of a key set that W1 needs."""

    @property
    def owner(self) -> str:
        """Whose key it is."""

    @property
    def key_id(self) -> bytes:
        """8 bytes."""

    @property
    def robust_key(self) -> bytes:
        """Secret of whitening and tag, 32 bytes."""


@dataclass(frozen=True)
class RobustMark:
    """One frame with W1 in it; `record` is None where the frame can carry none (`reason`)."""

    marked: Int32
    message: bytes
    record: RobustRecord | None
    reason: str = ""


@dataclass(frozen=True)
class Pose:
    """How the picture lies against the frame that was marked."""

    rotation_deg: float = 0.0
    flip: bool = False
    scale: float = 1.0

    def upright(self, picture: Float32) -> Float32:
        """Return `picture` turned back to how the frame was marked (quarter turns and flips)."""
        mirrored = picture[:, ::-1] if self.flip else picture
        return np.ascontiguousarray(np.rot90(mirrored, -round(self.rotation_deg / 90)))


# The poses beside the upright one: three quarter turns, and four of the mirrored picture.
DIHEDRAL = tuple(
    Pose(90.0 * quarter, flip) for flip in (False, True) for quarter in range(4) if flip or quarter
)


@dataclass(frozen=True)
class Detection:
    """What D1 read. `decoded` only with a valid tag; the rest is then of that message."""

    decoded: bool
    message: bytes = b""
    owner: str = ""
    key_id: bytes = b""
    bit_accuracy: float = 0.0
    pose: Pose = Pose()

    @property
    def perceptual_hash(self) -> bytes:
        """Return the pHash the frame had when it was marked, 8 bytes."""
        return self.message[:8]


@dataclass(frozen=True)
class _Cover:
    """A frame about to be marked: as the networks see it, in full, and where a change will show."""

    small: Float32
    display: Float32
    step: float
    seen: NDArray[np.bool_]

    @classmethod
    def of(
        cls, small: Float32, display: Float32, host: Int32, step: float, low: int, high: int
    ) -> _Cover:  # fmt: skip
        """Find the samples that can change and whose change the window shows."""
        seen = (display > 0) & (display < 1)
        room = int(EDGE_GREY_LEVELS * abs(step)) + 1
        stored = host if host.ndim == 2 else host[..., 1]
        if int(stored.min()) < low + room or int(stored.max()) > high - room:
            seen &= (stored >= low + room) & (stored <= high - room)
        return cls(small, display, step, seen)


@dataclass(frozen=True)
class _Choice:
    """What E1 chose for a frame, and the residual's shape before it is scaled to a budget."""

    amplitudes: NDArray[np.int8]
    strengths: NDArray[np.uint8]
    carrier_scale: tuple[int, int]
    shape: Int32
    size: float


class RobustWatermark:
    """Embed and detect W1 with one engine.

    Parameters
    ----------
    engine
        The networks on some backend.
    profile
        ``diagnostic`` or ``robust``: the budgets tried.
    """

    def __init__(self, engine: RobustEngine, profile: str = "diagnostic") -> None:
        self.engine = engine
        self._budgets = PROFILES[profile]

    def embed(
        self, host: Int32, display: Float32, *, step: float, low: int, high: int,
        padding: tuple[int, int] | None, key: RobustKey, least_db: float = 0.0,
    ) -> RobustMark:  # fmt: skip
        """Put W1 into one frame.

        E1 chooses amplitudes and strengths for a middling budget; the budgets are then tried by
        scaling what it chose. Only a frame that none of them satisfies is looked at again, with
        the last.

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
            Budgets below this PSNR are not tried.
        """
        message = self.message(display, key)
        if min(display.shape) < MIN_SIDE_PX:
            return RobustMark(host, message, None, f"a side is below {MIN_SIDE_PX} px")
        word = _code_word(message, key)
        cover = _Cover.of(self.resample(display), display, host, step, low, high)
        budgets = [b for b in self._budgets if b.psnr_db >= least_db] or [self._budgets[0]]
        chosen = self._choose(cover, word, budgets[len(budgets) // 2])
        if chosen is None:
            return RobustMark(host, message, None, "the frame is flat or saturated throughout")
        margin, record, delta = self._first_enough(cover, word, chosen, budgets)
        if margin < 1.0 and len(budgets) > 1:
            again = self._choose(cover, word, budgets[-1])
            if again is not None:
                other = self._first_enough(cover, word, again, budgets[-1:])
                if other[0] > margin:
                    margin, record, delta = other
        marked, exceptions = synthesis.apply(host, delta, low, high, padding)
        return RobustMark(marked, message, replace(record, exceptions=exceptions))

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
        return hashed + _tag(hashed, key)

    def detect(
        self, display: Float32, keys: Sequence[RobustKey], *, dihedral: bool = False
    ) -> Detection:
        """Read W1 from a picture in display values 0..1, ``(rows, columns)``.

        With `dihedral`, the seven other flips and quarter turns are tried when the upright one
        does not decode.
        """
        small = self.resample(display)
        found = self._read(self.engine.decode(small[None, None])[0], keys, Pose())
        if found.decoded or not dihedral:
            return found
        soft = self.engine.decode(np.stack([pose.upright(small) for pose in DIHEDRAL])[:, None])
        attempts = [self._read(s, keys, pose) for s, pose in zip(soft, DIHEDRAL, strict=True)]
        return next((a for a in attempts if a.decoded), found)

    def resample(self, display: Float32) -> Float32:
        """Return the frame as the networks see it, ``(side, side)``."""
        side = self.engine.side
        shrinks = min(display.shape) >= side
        small = cv2.resize(
            display, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return np.asarray(small, np.float32)

    def _choose(self, cover: _Cover, word: Float32, budget: Budget) -> _Choice | None:
        """Return what E1 chooses for a budget; None where it finds no room."""
        amplitudes, strengths = self.engine.encode(
            cover.small[None, None], word[None], np.full((1, 1), budget.rms(1.0), np.float32)
        )
        grid = np.clip(strengths[0], 0, 7).astype(np.uint8)
        levels = np.clip(amplitudes[0], -31, 31).astype(np.int8)
        if cover.step < 0:
            levels = (-levels).astype(np.int8)
        carrier = synthesis.carrier_of(levels, self.engine.patterns)
        carrier_scale = synthesis.carrier_scale(carrier)
        shape = synthesis.residual_shape(carrier, grid, carrier_scale, *cover.display.shape)
        squared = np.square(shape, dtype=np.float32)
        squared *= cover.seen
        size = float(np.sqrt(squared.sum(dtype=np.float64) / cover.display.size))
        if not grid.any() or size == 0.0:
            return None
        return _Choice(levels, grid, carrier_scale, shape, size)

    def _first_enough(
        self, cover: _Cover, word: Float32, choice: _Choice, budgets: Sequence[Budget]
    ) -> tuple[float, RobustRecord, Int32]:
        """Scale a choice to each budget in turn; return the first, or the best, that reads."""
        best: tuple[float, RobustRecord, Int32] | None = None
        for budget in budgets:
            rms = budget.rms(float(np.mean(choice.strengths > 0)))
            scale = synthesis.fixed_point(rms * 256 * abs(cover.step) / choice.size)
            delta = synthesis.scale(choice.shape, *scale)
            margin = self._margin(cover, delta, word)
            if best is None or margin > best[0]:
                record = RobustRecord(
                    self.engine.model_id, choice.amplitudes, choice.strengths,
                    choice.carrier_scale, scale, NOTHING,
                )  # fmt: skip
                best = (margin, record, delta)
            if margin >= 1.0:
                break
        assert best is not None, "there is always a budget"
        return best

    def _margin(self, cover: _Cover, delta: Int32, word: Float32) -> float:
        """Return how safely the word reads back: 1 or more is enough, 0 or less is wrong.

        Judged through a 7 x 7 blur of the frame, the attack that takes most from a small one.
        """
        shown = delta * np.float32(1 / (256 * cover.step))
        shown *= cover.seen
        picture = np.clip(cover.small + self.resample(shown), 0, 1)
        rows, columns = (BLUR_SIGMA_PX * self.engine.side / n for n in cover.display.shape)
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), columns, sigmaY=rows), np.float32)
        soft = self.engine.decode(picture[None, None])[0] * word
        weakest = float(np.partition(soft, len(soft) // 50)[len(soft) // 50])  # the code mends 2 %
        return weakest / (ENOUGH * float(np.sqrt(np.mean(soft**2))) + 1e-9)

    def _read(self, soft: Float32, keys: Sequence[RobustKey], pose: Pose) -> Detection:
        for key in keys:
            plain = soft * _whitening(key)
            for message, agreement in ecc.candidates(plain):
                if agreement >= MIN_AGREEMENT and _tag(message[:8], key) == message[8:]:
                    word = _code_word(message, key)
                    right = float(np.mean((soft > 0) == (word > 0)))
                    return Detection(True, message, key.owner, key.key_id, right, pose)
        return Detection(False, pose=pose)


def remove(
    marked: Int32, record: RobustRecord, patterns: Float32, model_id: bytes, low: int, high: int,
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


def _tag(hashed: bytes, key: RobustKey) -> bytes:
    """Return the keyed tag over pHash and owner."""
    mac = KMAC256.new(key=key.robust_key, mac_len=8, custom=b"dicom-node W1 tag")
    return bytes(mac.update(hashed + key.owner.encode("ascii")).digest()[:TAG_BYTES])


def _whitening(key: RobustKey) -> Float32:
    """Return the keyed signs that hide the code word from whoever lacks the key."""
    stream = SHAKE256.new(b"dicom-node W1 whitening" + key.robust_key).read(ecc.CODE_BITS // 8)
    return np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.float32) * 2 - 1


def _code_word(message: bytes, key: RobustKey) -> Float32:
    return (ecc.encode(message).astype(np.float32) * 2 - 1) * _whitening(key)
