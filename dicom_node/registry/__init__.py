"""What was marked, searchable: the registry.

SQLite by default, PostgreSQL by URL. The registrar writes it from the spool's outbox; checks add
their verdicts; `trace`, the audit and reports ask. No patient data: see `records`.
"""

from dicom_node.registry.records import (
    DeliveryEntry,
    FrameMatch,
    ManifestEntry,
    MarkedFrame,
    MarkedInstance,
    SeriesManifest,
    VerdictEntry,
)
from dicom_node.registry.registry import Registry
from dicom_node.registry.writing import Added

__all__ = [
    "Added",
    "DeliveryEntry",
    "FrameMatch",
    "ManifestEntry",
    "MarkedFrame",
    "MarkedInstance",
    "Registry",
    "SeriesManifest",
    "VerdictEntry",
]
