"""What the registry keeps and gives back: frozen records. Times are Unix seconds, UTC.

No patient data: UIDs, digests, the look of a frame in 64 bits, AE titles, and what became of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dicom_node.facts import MarkedFrame

__all__ = [
    "DeliveryEntry", "FrameMatch", "ManifestEntry", "MarkedFrame", "MarkedInstance",
    "SeriesManifest", "VerdictEntry",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeliveryEntry:
    """One instance taken by one destination.

    Attributes
    ----------
    destination
        Name of the ``[[destination]]``.
    status
        DIMSE status of its answer: success or a warning.
    reference
        Where the registrar read it, ``<spool>:<row>``; the same delivery told twice is kept once.
    transfer_syntax_uid
        What it was recoded to for this destination; "": sent as the instance's file is coded.
    """

    destination: str
    status: int
    delivered_at: float
    reference: str = ""
    transfer_syntax_uid: str = ""


@dataclass(frozen=True, slots=True)
class MarkedInstance:
    """One SOP instance as it left the node. The same file sent again is the same record.

    Attributes
    ----------
    transfer_syntax_uid
        Of the file as it was marked; a delivery says where it was sent in another.
    action
        ``marked``; ``sealed`` (header only); ``untouched`` (sent as received).
    received_digest, delivered_digest
        BLAKE2b-256 of the data set as received and as sent, File Meta Information left out
        (`spool.files.dataset_digest`).
    key_id
        Key set that signed; ``b""`` where nothing was signed.
    marked_at
        The time the marks carry; of untouched instances when they were passed on.
    calling_ae
        AE title of the modality.
    instance_number
        None where the instance has none.
    frames
        In order; empty where frames were not looked at, or were not asked for.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    action: str
    received_digest: bytes
    delivered_digest: bytes
    key_id: bytes
    marked_at: int
    received_at: float
    calling_ae: str
    modality: str = ""
    instance_number: int | None = None
    frame_count: int = 0
    frames: tuple[MarkedFrame, ...] = ()
    deliveries: tuple[DeliveryEntry, ...] = ()

    def delivered_to(self, destination: str) -> bool:
        """Whether a destination of this name has taken it."""
        return any(entry.destination == destination for entry in self.deliveries)

    def sent_in(self, destination: str = "") -> frozenset[str]:
        """Return the transfer syntaxes in which this destination ("": any) was given it.

        One that never took it is compared with the file as it was marked.
        """
        return frozenset(
            entry.transfer_syntax_uid or self.transfer_syntax_uid
            for entry in self.deliveries if destination in ("", entry.destination)
        ) or frozenset((self.transfer_syntax_uid,))  # fmt: skip


@dataclass(frozen=True, slots=True)
class VerdictEntry:
    """What a check of one instance found.

    Attributes
    ----------
    verdict
        One of `verify.verdict.ORDER`, or ``missing`` for an instance the PACS did not give back.
    checked_by
        AE title of the client that asked, or ``audit`` or ``cli``.
    details
        JSON text as ``verify --json`` prints it.
    """

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    verdict: str
    checked_at: float
    checked_by: str
    details: str = "{}"


@dataclass(frozen=True, slots=True)
class FrameMatch:
    """One frame that something was found by.

    Attributes
    ----------
    frame
        Counted from 1.
    distance
        Bits of 64 by which the perceptual hashes differ; 0 when it was found otherwise.
    query
        Index of the hash that was asked for, where several were.
    """

    instance: MarkedInstance
    frame: int
    facts: MarkedFrame
    distance: int = 0
    query: int = 0


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One instance of a series that this node sent.

    Attributes
    ----------
    delivered_to
        Names of the destinations that took it.
    """

    sop_instance_uid: str
    sop_class_uid: str
    instance_number: int | None
    frame_count: int
    action: str
    delivered_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeriesManifest:
    """Which instances of a series this node sent, by instance number."""

    series_instance_uid: str
    study_instance_uid: str
    entries: tuple[ManifestEntry, ...] = ()

    def missing(self, present: Iterable[str], destination: str = "") -> tuple[ManifestEntry, ...]:
        """Return what is not among the SOP Instance UIDs `present`.

        Parameters
        ----------
        destination
            Only what this destination has taken; "" for all that was sent to anybody.
        """
        there = set(present)
        return tuple(
            entry for entry in self.entries
            if entry.sop_instance_uid not in there
            and (destination in entry.delivered_to if destination else entry.delivered_to)
        )  # fmt: skip
