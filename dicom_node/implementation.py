"""Who wrote a file or opened an association, in DICOM's words (PS3.7 D.3.3.2, PS3.10 7.1)."""

from __future__ import annotations

import uuid

from dicom_node import __version__

# PS3.5 B.2: a UID made from a UUID needs no registered root; this one is ours for good.
IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.UUID('8b7c1a52-3f0e-5d49-9a61-4c2f7d90e6b3').int}"
IMPLEMENTATION_VERSION_NAME = f"DICOM-NODE_{__version__}"[:16]
