"""Both marks on one frame: as strong as they must be, as little seen as they can be.

    original ──W1──▶ I1 ──W2──▶ I2      I2 keeps 40 dB in the display window, and W1 reads from it

W1 is chosen first, W2 shows its price only when it is in. Where the two together would be seen,
W1 is made weaker if it still reads with a margin; else W2 gives up localisation before it is seen.
Where W1 does not read from the finished frame it is put in more strongly, then left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from dicom_node.inference.base import RobustEngine
from dicom_node.instance.display import Display
from dicom_node.instance.frames import Instance
from dicom_node.instance.model import StoredFrame
from dicom_node.keys import KeySet
from dicom_node.planes import (
    bounds_of,
    polarity,
    robust_part,
    split,
    with_host,
    with_robust_part,
)
from dicom_node.watermark import integrity, quality
from dicom_node.watermark.integrity import FrameRecord, KnownDigest
from dicom_node.watermark.robust import RobustMark, RobustWatermark

WORST_DB = 40.0  # PSNR in the display window that both marks together leave every frame
# Kept free for what W2 takes more the next time: its bits are others then.
_SPARES_DB = (0.1, 0.3, 0.6)
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
    """

    after: StoredFrame
    message: str
    header_block: bytes
    digest: bytes
    carried: KnownDigest
    cover: NDArray[np.float32]
    shown: NDArray[np.float32]


class FrameMarker:
    """Marks the frames of one instance after another.

    Parameters
    ----------
    profile
        ``[watermark] profile``.
    """

    def __init__(self, engine: RobustEngine, profile: str, keys: KeySet) -> None:
        self._keys = keys
        # Tried in turn until W1 reads from the finished frame.
        self._robust = (
            RobustWatermark(engine, profile), RobustWatermark(engine, "robust", second=True)
        )  # fmt: skip

    def mark(
        self, instance: Instance, display: Display, frame: StoredFrame, index: int,
        attribute_digests: tuple[bytes, ...], marked_at: datetime, stages: dict[str, float],
    ) -> FrameMarks:  # fmt: skip
        """Put both marks into frame `index` (from 0); CPU seconds are added to `stages`."""
        original = split(frame, instance.host_index)
        record = FrameRecord(
            owner=self._keys.owner, sop_instance_uid=instance.sop_instance_uid,
            frame_number=index + 1, frame_count=instance.frame_count,
            marked_at=int(marked_at.timestamp()),
            original_digest=integrity.frame_digest(original.host, original.side),
            attribute_digests=attribute_digests,
        )  # fmt: skip
        with timed(stages, "w1"):
            cover = display.image(frame, index)
        work = _Work(instance, display, frame, index, record, self._keys, cover, stages)
        for robust in (*self._robust, None):
            made = work.both(robust)
            if not made.message or robust is None or work.reads(made, robust):
                break
        return made


@dataclass(frozen=True)
class _Work:
    """One frame on its way."""

    instance: Instance
    display: Display
    frame: StoredFrame
    index: int
    record: FrameRecord
    keys: KeySet
    cover: NDArray[np.float32]
    stages: dict[str, float]

    def both(self, robust: RobustWatermark | None) -> FrameMarks:
        """Put both marks in; once more, gently, where the two together would be seen."""
        inner, mark = self._robust(robust, 0.0)
        made = self._integrity(inner, mark, gentle=False)
        if self._unseen(made.shown):
            return made
        first = inner, mark
        # What W2 took is known now: if W1 reads from the rest as well, it gets no more.
        weaker = self._within(robust, mark, made, _SPARES_DB[0])
        if weaker is not None and weaker[1].margin >= 1.0:
            first = weaker
        # W1 goes before W2 goes compact: a compact frame is known as ours by its header alone.
        for compact in (False, True):
            made = self._gently(robust, *first, compact=compact)
            if self._unseen(made.shown):
                return made
        return self._integrity(self.frame, _NO_MARK, gentle=True)

    def _gently(
        self, robust: RobustWatermark | None, inner: StoredFrame, mark: RobustMark, *,
        compact: bool,
    ) -> FrameMarks:  # fmt: skip
        """Let W2 retreat, then W1 give way to the least that W2 can be."""
        made = self._integrity(inner, mark, gentle=True, compact=compact)
        for spare_db in _SPARES_DB:
            if self._unseen(made.shown):
                break
            inner, mark = self._within(robust, mark, made, spare_db) or (self.frame, _NO_MARK)
            made = self._integrity(inner, mark, gentle=True, compact=compact)
        return made

    def _within(
        self, robust: RobustWatermark | None, mark: RobustMark, made: FrameMarks, spare_db: float
    ) -> tuple[StoredFrame, RobustMark] | None:
        """Return W1 as strong as what W2 took leaves room for; None where that is too little."""
        taken = quality.mean_square_error(self.cover, made.shown) - mark.mse
        left = 10 ** (-(WORST_DB + spare_db) / 10) - taken
        if robust is None or mark.record is None or left < 10 ** (-robust.most_db / 10):
            return None
        return self._robust(robust, float(-10 * np.log10(left)))

    def reads(self, made: FrameMarks, robust: RobustWatermark) -> bool:
        """Whether W1 is read, blind, from an 8-bit picture of the finished frame.

        The file will hold exactly these samples: reading it back proves that through W2.
        """
        with timed(self.stages, "readback"):
            shown = np.rint(made.shown * 255) * np.float32(1 / 255)
            return robust.detect(shown, [self.keys]).message.hex() == made.message

    def _robust(
        self, robust: RobustWatermark | None, least_db: float
    ) -> tuple[StoredFrame, RobustMark]:
        """Return the frame with W1 in it, or as it was where it can carry none."""
        if robust is None:
            return self.frame, _NO_MARK
        with timed(self.stages, "w1"):
            part, bounds = robust_part(self.frame, self.instance), bounds_of(self.instance)
            mark = robust.embed(
                part, self.cover, low=bounds.low, high=bounds.high, padding=bounds.padding,
                step=self.display.step(self.index) * polarity(part, self.cover),
                key=self.keys, least_db=least_db,
            )  # fmt: skip
            if mark.record is None:
                return self.frame, mark
            return with_robust_part(self.frame, self.instance, mark.marked), mark

    def _integrity(
        self, inner: StoredFrame, mark: RobustMark, *, gentle: bool, compact: bool = True
    ) -> FrameMarks:
        """Put W2 into a frame that carries W1."""
        restoration = mark.record.to_bytes() if mark.record is not None else b""
        host_index = self.instance.host_index
        with timed(self.stages, "w2"):
            planes = split(inner, host_index)
            sealed = integrity.embed(
                planes.host, planes.side, bounds_of(self.instance),
                replace(self.record, restoration=restoration), self.keys,
                unseen=(lambda host: self._unseen(self._shown(with_host(inner, host_index, host))))
                if gentle else None,
                compact=compact,
            )  # fmt: skip
            after = with_host(inner, host_index, sealed.marked)
            shown = self._shown(after)
        return FrameMarks(
            after, mark.message.hex() if restoration else "", sealed.header_block,
            self.record.original_digest, sealed.carried, self.cover, shown,
        )  # fmt: skip

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
