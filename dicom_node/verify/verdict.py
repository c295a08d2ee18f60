"""The verdict ladder: what the marks of a frame say about it, and of the instance as a whole.

1. W2 valid: *authentic*. 2. W2 valid in part: *tampered*, with the tiles. 3. W2 gone, W1 decodes
with a valid tag: *content-preserved* if the frame still looks as it did, *tampered* where its
fingerprint says otherwise, with the cells, else *foreign* (a copied mark): likelihood, not proof,
and the reason says so. 4. Nothing decodes: *unmarked*, never authentic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from dicom_node.watermark.box import Box

Verdict = Literal[
    "authentic", "content-preserved", "unmarked", "foreign", "tampered", "unreadable"
]
# From best to worst: an instance's verdict is its worst frame's.
ORDER: tuple[Verdict, ...] = (
    "authentic", "content-preserved", "unmarked", "foreign", "tampered", "unreadable",
)  # fmt: skip
# Of 64 pHash bits. Benign processing moves a few; two unrelated pictures differ in about 32.
SAME_PICTURE_BITS = 14


@dataclass(frozen=True)
class RobustReading:
    """W1 of one frame; `bit_accuracy` and `phash_distance` only where it decoded."""

    decoded: bool
    message: str = ""
    bit_accuracy: float | None = None
    phash_distance: int | None = None

    @property
    def same_picture(self) -> bool:
        """Whether the frame still looks like the one the mark was made for."""
        return self.phash_distance is not None and self.phash_distance <= SAME_PICTURE_BITS

    def to_json(self) -> dict[str, Any]:
        """Return it as ``verify --json`` prints it."""
        return {
            "decoded": self.decoded,
            "bit_accuracy": None if self.bit_accuracy is None else round(self.bit_accuracy, 4),
            "phash_distance": self.phash_distance,
        }


@dataclass(frozen=True)
class FrameVerdict:
    """One frame.

    Attributes
    ----------
    frame
        Counted from 1.
    integrity
        ``valid``; ``partial``; ``other`` (whole, but of another instance or frame); ``absent``.
    tampered
        Changed regions in frame pixels.
    reason
        In words, where the verdict needs one.
    """

    frame: int
    verdict: Verdict
    integrity: str
    robust: RobustReading
    tampered: tuple[Box, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as ``verify --json`` prints it."""
        boxes = [
            dict(zip(("row", "column", "rows", "columns"), map(int, box), strict=True))
            for box in self.tampered
        ]
        said = {"reason": self.reason} if self.reason else {}
        return {"frame": self.frame, "verdict": self.verdict, "integrity": self.integrity,
                "robust": self.robust.to_json(), "tampered": boxes, **said}  # fmt: skip


@dataclass(frozen=True)
class InstanceVerdict:
    """One SOP instance.

    Attributes
    ----------
    owner, signed_by, marked_at
        From the first record that verified: whose mark, key id, unix seconds.
    changed
        Keywords of header attributes that differ from what was signed.
    header_seal
        ``valid``: `changed` names every attribute that differs. ``absent`` or ``invalid``
        (damaged, or of a key that is not known): only those that the pixels' record names were
        compared, and the reason says so. "" where no header could be read.
    """

    path: str
    sop_instance_uid: str
    verdict: Verdict
    owner: str = ""
    signed_by: bytes = b""
    marked_at: int | None = None
    changed: tuple[str, ...] = ()
    frames: tuple[FrameVerdict, ...] = field(default_factory=tuple)
    reason: str = ""
    header_seal: Literal["", "valid", "absent", "invalid"] = ""

    def to_json(self) -> dict[str, Any]:
        """Return one line of ``verify --json``."""
        when = None
        if self.marked_at is not None:
            when = datetime.fromtimestamp(self.marked_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line: dict[str, Any] = {
            "path": self.path,
            "sop_instance_uid": self.sop_instance_uid,
            "verdict": self.verdict,
            "owner": self.owner or None,
            "signed_by": self.signed_by.hex() or None,
            "marked_at": when,
            "header": {"changed": list(self.changed)},
            "header_seal": self.header_seal or None,
            "frames": [frame.to_json() for frame in self.frames],
        }
        return line | ({"reason": self.reason} if self.reason else {})


def worst(verdicts: list[Verdict]) -> Verdict:
    """Return the worst of some verdicts (``unmarked`` for none)."""
    return max(verdicts, key=ORDER.index) if verdicts else "unmarked"
