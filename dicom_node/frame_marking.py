"""Both marks on one frame: as strong as they must be, as little seen as they can be.

    original ──W1──▶ I1 ──W2──▶ I2      I2 keeps 41 dB in the display window, and W1 reads from it

W1 is chosen first, W2 shows its price only when it is in. Where the two together would be seen,
W1 is made weaker if it still reads with a margin; else W2 gives up localisation before it is seen.
Where W1 does not read from the finished frame it is put in more strongly, then left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import RobustEngine
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.instance.display import Display
from dicom_node.instance.frames import Instance
from dicom_node.instance.model import StoredFrame
from dicom_node.keys import KeySet
from dicom_node.planes import (
    KnownResidual,
    bounds_of,
    polarity,
    robust_part,
    split,
    with_host,
    with_robust_part,
)
from dicom_node.watermark import assured, expecting, fingerprint, integrity, quality
from dicom_node.watermark.detecting import FOLDS, SMALL_PX, ways_of
from dicom_node.watermark.integrity import FrameRecord, KnownDigest, Sealing
from dicom_node.watermark.robust import RobustMark, RobustWatermark

WORST_DB = 41.0  # PSNR in the display window that both marks together leave every frame
# Kept free for what W2 takes more the next time: its bits are others then.
_SPARES_DB = (0.1, 0.3, 0.6)
# Where soft bits agree with the word by no more than this above what reading asks, another way to
# put W1 in is tried first: that the likeliest guess is asked for little makes no mark weaker.
_SPARE = 0.1
# Or where they agree by less than this through a blur: hardly any strength was to be had.
_WELL = 0.7
# A weaker W1 is asked for only where its soft bits will agree by so much with the code word.
_STILL_READS, _LOSS_A_DB = 0.72, 0.02
# Hounsfield units and uptake are measured: both marks together change no sample by more than this
# share of the window; nor, where another stands in for the header's, of either. W2 has 0.3 % of it,
# of narrow windows up to half: noise takes some steps.
_QUANTITATIVE, _LARGEST, _FOR_W2 = frozenset(("CT", "PT")), 0.02, 0.003
_STEPS_FOR_W2 = 3
_FEW_STEPS = 6  # of so few W1 has all but one, once it was found to need them
# With fewer stored values in a grey level W2 with features takes 1.9 dB and more of a frame near
# the limit: on 24 CT slices of 1.6 it was tried in vain 13 times, on 35 frames of 3 to 36 never.
_COARSE_STEP = 2.5
_FEATURES_DB = 1.85
_NO_DIGEST = bytes(32)
_KEPT_PIXELS = 2 << 20  # as `marking` keeps frames until they are read back
_NO_MARK = RobustMark(np.empty(0, np.int32), b"", None)


@dataclass(frozen=True)
class FrameMarks:
    """One marked frame and what came of it.

    Attributes
    ----------
    after
        The marked frame.
    message
        W1's message, hex; "" where the frame carries no W1.
    header_block
        What W2 keeps in the header, b"" for most frames.
    digest
        Of the original frame.
    carried
        What W2's check has to recover.
    cover, shown
        The original and the marked frame in display values, ``(rows, columns)``, both in the
        window of the original.
    features
        The content fingerprint of the original.
    features_signed
        Whether W2 had room for it.
    residual
        What W1 added; None where there is no W1.
    agreement
        `RobustMark.reads` of that W1.
    sealed_as
        Profile and tile size of W2, and whether it has the fingerprint.
    """

    after: StoredFrame
    message: str
    header_block: bytes
    digest: bytes
    carried: KnownDigest
    cover: NDArray[np.float32]
    shown: NDArray[np.float32]
    features: bytes
    features_signed: bool
    residual: KnownResidual | None
    agreement: float
    sealed_as: tuple[str, int, bool]


class FrameMarker:
    """Marks the frames of one instance after another.

    Parameters
    ----------
    profile
        ``[watermark] profile``.
    """

    def __init__(self, engine: RobustEngine, profile: str, keys: KeySet) -> None:
        self._keys = keys
        self._fingerprinter = open_fingerprinter()
        # Tried in turn until W1 reads from the finished frame.
        self._robust = (
            RobustWatermark(engine, profile),
            RobustWatermark(engine, "robust", second=True),
            RobustWatermark(engine, "robust", second=True, any_word=True),
        )
        self._folded = RobustWatermark(engine, "robust", second=True, folds=FOLDS)

    def mark(
        self, instance: Instance, display: Display, frame: StoredFrame, index: int,
        attribute_digests: tuple[bytes, ...], marked_at: datetime, stages: dict[str, float],
        *, sop_instance_uid: str = "",
    ) -> FrameMarks:  # fmt: skip
        """Put both marks into frame `index` (from 0); CPU seconds are added to `stages`.

        They are bound to `sop_instance_uid`, ``""`` for the instance's own.
        """
        with timed(stages, "w1"):
            cover = display.image(frame, index)
        with timed(stages, "fingerprint"):
            features = fingerprint.compute(cover, self._fingerprinter)
        record = FrameRecord(
            owner=self._keys.owner,
            sop_instance_uid=sop_instance_uid or instance.sop_instance_uid,
            frame_number=index + 1, frame_count=instance.frame_count,
            marked_at=int(marked_at.timestamp()), original_digest=_NO_DIGEST,
            attribute_digests=attribute_digests, features=features,
        )  # fmt: skip
        work = _Work(instance, display, frame, index, record, self._keys, cover, stages)
        barely: FrameMarks | None = None
        weak: FrameMarks | None = None
        small = max(instance.rows, instance.columns) <= SMALL_PX
        for robust in (self._folded, *self._robust) if small else self._robust:
            made = work.both(robust)
            if not made.message:
                if robust is self._folded:
                    continue
                break
            spare = 0.0 if robust.any_word else _SPARE
            # More of W1 is not worth less of W2: localisation is what it would take.
            if weak is not None and made.sealed_as != weak.sealed_as:
                return weak
            if work.reads(made, robust, spare=spare):
                if robust.second or made.agreement >= _WELL:
                    return made
                weak = made
                continue
            if barely is None and work.reads(made, robust):
                barely = made
        return weak or barely or (work.both(None) if made.message else made)


@dataclass(eq=False)
class _Inner:
    """A frame with W1 in it, or as it was; what W2 makes of it is remembered.

    Attributes
    ----------
    most
        Largest change that W2 may make to a sample, stored values; None: no bound.
    sealing
        W2's attempts on it, once there is one.
    latest
        Host plane of the last of them.
    seen
        Those that are known not to be good enough.
    """

    frame: StoredFrame
    mark: RobustMark
    most: int | None
    sealing: Sealing | None = None
    latest: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    seen: list[NDArray[np.int32]] = field(default_factory=list)

    @property
    def restoration(self) -> bytes:
        """What taking W1 off needs."""
        return self.mark.record.to_bytes() if self.mark.record is not None else b""

    @property
    def residual(self) -> KnownResidual | None:
        """What W1 added to the frame; a large one is built again rather than kept."""
        record, delta = self.mark.record, self.mark.delta
        if record is None or delta is None or delta.size > _KEPT_PIXELS:
            return None
        return KnownResidual(record, delta)


@dataclass(eq=False)
class _Work:
    """One frame on its way.

    Attributes
    ----------
    record
        What W2 is to say, less the digest of the original frame.
    """

    instance: Instance
    display: Display
    frame: StoredFrame
    index: int
    record: FrameRecord
    keys: KeySet
    cover: NDArray[np.float32]
    stages: dict[str, float]
    digest: bytes | None = None

    def both(self, robust: RobustWatermark | None) -> FrameMarks:
        """Put both marks in; once more, gently, where the two together would be seen."""
        inner = self._robust(robust, 0.0)
        made = self._integrity(inner, gentle=False, features=self._leaves_room(inner.mark))
        if self._unseen(made.shown):
            return made
        inner.seen.append(inner.latest)
        first = inner
        # What W2 took is known now: if W1 reads from the rest as well, it gets no more.
        weaker = self._within(robust, inner.mark, made, _SPARES_DB[0], least=_STILL_READS)
        if weaker is not None and weaker.mark.reads >= _STILL_READS:
            first = weaker
        # W1 gives way before W2 is a digest alone, but does not go: both are worth more than W2 in
        # full. Without W1 such a frame is known as ours by its header alone: then W2 is full.
        without: FrameMarks | None = None
        for compact in (False, True):
            made = self._gently(robust, first, compact=compact)
            if self._unseen(made.shown):
                if made.message or robust is None:
                    return made
                without = without or made
        return without or self._integrity(self._bare, gentle=True)

    def _gently(
        self, robust: RobustWatermark | None, inner: _Inner, *, compact: bool
    ) -> FrameMarks:
        """Let W2 retreat, then W1 give way to the least that W2 can be."""
        made = self._integrity(inner, gentle=True, compact=compact)
        for spare_db in _SPARES_DB:
            if self._unseen(made.shown):
                break
            inner = self._within(robust, inner.mark, made, spare_db) or self._bare
            made = self._integrity(inner, gentle=True, compact=compact)
        return made

    def _within(
        self, robust: RobustWatermark | None, mark: RobustMark, made: FrameMarks, spare_db: float,
        *, least: float = 0.0,
    ) -> _Inner | None:  # fmt: skip
        """Return W1 as strong as what W2 took leaves room for; None where that is too little.

        None as well where it cannot be hoped to read by `least`.
        """
        taken = quality.mean_square_error(self.cover, made.shown) - mark.mse
        left = 10 ** (-(WORST_DB + spare_db) / 10) - taken
        if robust is None or mark.record is None or left < 10 ** (-robust.most_db / 10):
            return None
        least_db = float(-10 * np.log10(left))
        weaker_db = least_db + 10 * np.log10(mark.mse)
        if mark.reads - _LOSS_A_DB * weaker_db < least:
            return None
        return self._robust(robust, least_db)

    def reads(self, made: FrameMarks, robust: RobustWatermark, *, spare: float = 0.0) -> bool:
        """Whether W1 is read, blind, from an 8-bit picture of the finished frame.

        The file will hold exactly these samples: reading it back proves that through W2.

        Parameters
        ----------
        spare
            It also is where soft bits agree with the word by so much of a cosine less.
        """
        with timed(self.stages, "readback"):
            shown = np.rint(made.shown * 255) * np.float32(1 / 255)
            message, keys = bytes.fromhex(made.message), self.keys
            soft, ways = robust.look(shown, robust.folds)[0], ways_of(robust.folds)
            if assured.must_be_read(soft, message, keys, ways=ways):
                return True
            picture = robust.resample(shown, robust.second_side)
            rank = expecting.rank_of(message[:8], picture)
            of_d1 = spare + assured.SPARE_OF_D1
            if assured.must_be_recognised(soft, message, keys, rank, spare=of_d1, ways=ways):
                return True
            soft = robust.look_closely(shown, robust.folds)[0]
            if assured.must_be_read(soft, message, keys, ways=ways):
                return True
            if assured.must_be_recognised(soft, message, keys, rank, spare=spare, ways=ways):
                return True
            return spare == 0 and robust.detect(shown, [keys], weak=True).message == message

    @cached_property
    def _bare(self) -> _Inner:
        """The frame without W1."""
        return _Inner(self.frame, _NO_MARK, self._largest(None)[1])

    def _robust(self, robust: RobustWatermark | None, least_db: float) -> _Inner:
        """Return the frame with W1 in it, or as it was where it can carry none."""
        if robust is None:
            return self._bare
        with timed(self.stages, "w1"):
            part, bounds = robust_part(self.frame, self.instance), bounds_of(self.instance)
            mark = robust.embed(
                part, self.cover, low=bounds.low, high=bounds.high, padding=bounds.padding,
                step=self.display.step(self.index) * polarity(part, self.cover),
                key=self.keys, least_db=least_db,
                largest=self._largest(robust)[0],
            )  # fmt: skip
            if mark.record is None:
                return self._bare
            marked = with_robust_part(self.frame, self.instance, mark.marked)
            return _Inner(marked, mark, self._largest(robust)[1])

    def _leaves_room(self, mark: RobustMark) -> bool:
        """Whether W2 with features may stay unseen beside W1; where not, it is not even tried."""
        coarse = abs(self.display.step(self.index)) < _COARSE_STEP
        return not coarse or mark.mse <= 10 ** (-(WORST_DB + _FEATURES_DB) / 10)

    def _integrity(
        self, inner: _Inner, *, gentle: bool, compact: bool = True, features: bool = False
    ) -> FrameMarks:
        """Put W2 into a frame that carries W1."""
        host_index = self.instance.host_index

        def unseen(host: NDArray[np.int32]) -> bool:
            if any(host is known for known in inner.seen):
                return False
            if self._unseen(self._shown(with_host(inner.frame, host_index, host))):
                return True
            inner.seen.append(host)
            return False

        with timed(self.stages, "w2"):
            if inner.sealing is None:
                inner.sealing = self._sealing(inner)
            sealed = inner.sealing.embed(
                unseen=unseen if gentle else None, compact=compact, features=features
            )
            inner.latest = sealed.marked
            after = with_host(inner.frame, host_index, sealed.marked)
            shown = self._shown(after)
        assert self.digest is not None, "the first sealing finds it"
        return FrameMarks(
            after, inner.mark.message.hex() if inner.mark.record is not None else "",
            sealed.header_block, self.digest, sealed.carried, self.cover, shown,
            self.record.features, bool(sealed.features), inner.residual, inner.mark.reads,
            (sealed.profile, sealed.tile_px, bool(sealed.features)),
        )  # fmt: skip

    def _sealing(self, inner: _Inner) -> Sealing:
        """Prepare a frame for W2; the digest of the original is found beside its own."""
        before = split(self.frame, self.instance.host_index)
        planes = before if inner is self._bare else split(inner.frame, self.instance.host_index)
        if self.digest is not None:
            known = inner is self._bare
            digest = self.digest if known else integrity.frame_digest(planes.host, planes.side)
        elif inner is self._bare:
            self.digest = digest = integrity.frame_digest(planes.host, planes.side)
        else:
            self.digest, digest = integrity.frame_digests(
                (before.host, before.side), (planes.host, planes.side)
            )
        record = replace(self.record, restoration=inner.restoration, original_digest=self.digest)
        return Sealing(planes.host, planes.side, bounds_of(self.instance), record, self.keys,
                       digest=digest, most=inner.most)  # fmt: skip

    def _largest(self, robust: RobustWatermark | None) -> tuple[int | None, int | None]:
        """Most that W1 and W2 may change a sample, in stored values; None: no bound."""
        measured = self.instance.modality in _QUANTITATIVE
        if not measured and not self.display.stands_in(self.index):
            return None, None
        width = self.display.width(self.index)
        both = int(_LARGEST * width)
        scarce = robust is not None and robust.second
        if both <= (_FEW_STEPS if scarce else 2):
            least = 1.0
        else:
            least = 2 if scarce else max(2, min(_STEPS_FOR_W2, both / 2))
        integrity = int(max(least, _FOR_W2 * width))
        return max(both - integrity, both // 2, 1), integrity

    def _shown(self, after: StoredFrame) -> NDArray[np.float32]:
        return self.display.image(after, self.index, like=self.frame)

    def _unseen(self, shown: NDArray[np.float32]) -> bool:
        """Whether a marked frame keeps `WORST_DB` in the display window."""
        return quality.mean_square_error(self.cover, shown) <= 10 ** (-WORST_DB / 10)


@contextmanager
def timed(stages: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of the block to a stage."""
    started = time.thread_time()
    try:
        yield
    finally:
        stages[name] = stages.get(name, 0.0) + time.thread_time() - started
