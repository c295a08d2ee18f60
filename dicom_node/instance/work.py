"""What was done to an instance, for its header to tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

DERIVATION_CODE = ("REVWM", "99DICOMNODE", "Reversible watermark embedded")


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedWork:
    """What was done to an instance whose pixels stay as they are.

    Attributes
    ----------
    marked_at
        Time zone aware.
    key_id
        Of the key set that signed.
    sop_instance_uid
        New UID of the instance (``uid_policy = "derive"``); "" to keep the source's.
    references
        New SOP Instance UIDs of instances it refers to, by their old ones.
    """

    marked_at: datetime
    owner: str
    key_id: bytes
    station_name: str
    sop_instance_uid: str = ""
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def time(self) -> str:
        """`marked_at` as DICOM writes it (VR DT)."""
        return self.marked_at.strftime("%Y%m%d%H%M%S.%f%z")

    @property
    def said(self) -> str:
        """What Contributing Equipment says of it."""
        done = ["references follow the new SOP Instance UIDs"] if self.references else []
        done += ["SOP Instance UID replaced"] if self.sop_instance_uid else []
        return f"header sealed, {', '.join(done)}; owner {self.owner}; key {self.key_id.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(SealedWork):
    """What was done to the pixels.

    Attributes
    ----------
    largest_change
        Largest absolute change of a stored value.
    smallest, largest
        Extremes of the marked stored values over all frames and samples.
    marks
        What was embedded, a few words.
    """

    largest_change: int
    smallest: int
    largest: int
    marks: str = "robust and integrity watermark"
    image_type: Literal["keep", "derived"] = "keep"

    @property
    def said(self) -> str:
        """What Contributing Equipment says of it."""
        return (
            f"{self.marks}; owner {self.owner}; key {self.key_id.hex()}; "
            f"largest change {self.largest_change} stored values"
        )
