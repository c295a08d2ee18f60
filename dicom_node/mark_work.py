"""What the mark worker remembers of an instance while its frames stream through."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dicom_node.facts import MarkedFrame, stored_digest
from dicom_node.frame_marking import FrameMarks
from dicom_node.instance.model import StoredFrame, reach
from dicom_node.planes import KnownResidual, split
from dicom_node.watermark import integrity, perceptual, quality
from dicom_node.watermark.integrity import KnownDigest


@dataclass(frozen=True)
class Kept:
    """What reading a frame back has to find, so that equal things need not be computed again."""

    original: StoredFrame
    carried: KnownDigest
    residual: KnownResidual | None


@dataclass
class MarkWork:
    """What is remembered of the frames while they stream through."""

    messages: list[str] = field(default_factory=list)
    features_signed: list[bool] = field(default_factory=list)
    blocks: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    facts: list[MarkedFrame] = field(default_factory=list)
    psnr_db: float | None = None
    ssim: float | None = None
    largest_change: int = 0
    smallest: int = 1 << 31
    largest: int = -(1 << 31)

    def add(self, before: StoredFrame, marks: FrameMarks, *, keep: bool) -> None:
        """Take in one marked frame; `keep` what it was until it is read back."""
        after = marks.after.values
        self.messages.append(marks.message)
        self.features_signed.append(marks.features_signed)
        self.blocks.append(marks.header_block)
        self.digests.append(marks.digest)
        message = bytes.fromhex(marks.message)
        look = message[:8] or perceptual.perceptual_hash(marks.cover)
        self.facts.append(
            MarkedFrame(marks.digest, stored_digest(after), look, message, marks.features)
        )
        if keep:
            self.kept.append(Kept(before, marks.carried, marks.residual))
        change, smallest, largest = reach(before.values, after)
        self.largest_change = max(self.largest_change, change)
        self.smallest = min(self.smallest, smallest)
        self.largest = max(self.largest, largest)

    def is_original(self, index: int, restored: StoredFrame, host_index: int | None) -> bool:
        """Whether a frame came back exactly: compared where it was kept, else by its digest."""
        if self.kept:
            frame = self.kept[index].original
            return np.array_equal(frame.values, restored.values) and (
                np.array_equal(frame.high_bits, restored.high_bits)
                if frame.high_bits is not None and restored.high_bits is not None
                else frame.high_bits is restored.high_bits
            )
        again = split(restored, host_index)
        return integrity.frame_digest(again.host, again.side) == self.digests[index]

    def compare(self, marks: FrameMarks) -> None:
        """Keep the worst frame's display-window quality, in the window of the cover."""
        psnr_db = quality.psnr_db(marks.cover, marks.shown)
        ssim = quality.ssim(marks.cover, marks.shown)
        self.psnr_db = psnr_db if self.psnr_db is None else min(self.psnr_db, psnr_db)
        self.ssim = ssim if self.ssim is None else min(self.ssim, ssim)
