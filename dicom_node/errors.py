"""Every error of the node, and the DIMSE status a peer is answered with.

* NodeError             0x0110  Processing failure
  x ConfigError         (never answered: the node does not start)
  x KeyRingError        0xA700  Out of resources
  x SpoolError          0xA700  Out of resources
    - SpoolFull
    - LeaseLost         (never answered: the result is thrown away)
  x AuditError          0xA700  Out of resources
  x RegistryError       0x0110
  x PixelError          0xC000  Cannot understand
    - Unmarkable        (the policy decides)
  x DecoderLost         (never answered: the job is retried)
  x WatermarkError      0x0110
    - CapacityError
    - ReadBackError
  x EngineError         0x0110
  x ReferencesPending   (never answered: the job waits)
  x ForwardError        (never answered: the job is retried or held)
    - AssociationRejected
    - AssociationLost
    - ContextRefused
    - StoreFailed

References
----------
DICOM PS3.4 B.2.3 (Storage status values), PS3.7 Annex C (general status values).
"""

from __future__ import annotations

from typing import ClassVar


class NodeError(Exception):
    """Base of everything this package raises on purpose."""

    status: ClassVar[int] = 0x0110


class ConfigError(NodeError):
    """A configuration that cannot be used; the message names the key, the value and the fix."""


class KeyRingError(NodeError):
    """A key is missing, unreadable or readable by others."""

    status = 0xA700


class SpoolError(NodeError):
    """The spool could not make an instance durable, or could not be read."""

    status = 0xA700


class SpoolFull(SpoolError):
    """Too little disk is free, or too many instances wait: new ones are refused for now."""


class LeaseLost(SpoolError):
    """A claim ended before its result arrived: the lease ran out, or the job was dropped."""


class AuditError(NodeError):
    """The audit trail could not be written or read."""

    status = 0xA700


class RegistryError(NodeError):
    """The registry of what was marked cannot be reached, read or written."""


class PixelError(NodeError):
    """The pixel data cannot be decoded; the message says of which instance and why."""

    status = 0xC000


class Unmarkable(PixelError):
    """The instance is intact but cannot carry our marks; ``on_unmarkable`` decides what happens."""


class DecoderLost(NodeError):
    """A decoder was killed or starved over a frame: nothing is known of the frame."""


class WatermarkError(NodeError):
    """A mark could not be put in or read."""


class CapacityError(WatermarkError):
    """The frame cannot hold the payload in this profile."""


class ReadBackError(WatermarkError):
    """The marked frame did not give back both marks and the exact original."""


class EngineError(NodeError):
    """A network is missing, altered, or of another shape than its card says."""


class ReferencesPending(NodeError):
    """It refers to instances of which nobody can say yet under which UID they are sent."""

    def __init__(self, reason: str, retry_in_s: float) -> None:
        super().__init__(reason)
        self.retry_in_s = retry_in_s


class ForwardError(NodeError):
    """A destination did not take an instance."""


class AssociationRejected(ForwardError):
    """The destination could not be reached or rejected the association (transient)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} did not accept an association: {reason}")


class AssociationLost(ForwardError):
    """The association ended before the C-STORE was answered (transient)."""

    def __init__(self, name: str, sop_instance_uid: str, reason: str) -> None:
        super().__init__(f"{name} gave no answer for {sop_instance_uid}: {reason}")


class ContextRefused(ForwardError):
    """The destination accepts the SOP class in none of the transfer syntaxes we can offer."""

    def __init__(self, name: str, sop_class_uid: str, transfer_syntax_uid: str) -> None:
        super().__init__(
            f"{name} accepted no presentation context for {sop_class_uid} in {transfer_syntax_uid}"
        )


class StoreFailed(ForwardError):
    """The destination answered C-STORE with a Failure status."""

    def __init__(self, name: str, sop_instance_uid: str, status: int, comment: str = "") -> None:
        self.store_status = status
        self.without_comment = f"{name} refused {sop_instance_uid} with status 0x{status:04X}"
        said = f" ({comment})" if comment else ""
        super().__init__(self.without_comment + said)
