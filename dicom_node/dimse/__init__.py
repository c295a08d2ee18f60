"""What pynetdicom needs to be fast and safe.

pynetdicom 3.0.4 (see `settings.TESTED_PYNETDICOM`) supplies the state machine, the association
PDUs, context negotiation and the service classes. Replaced here, and why:

* `upper_layer`: one thread per association instead of two that race for a C-STORE response;
  PDU lengths are checked before memory is taken.
* `transport`: ``poll`` instead of ``select``, TCP_QUICKACK and TCP_NODELAY, gathered writes.
* `messages`: C-STORE data sets stream through; no temporary files of pynetdicom's.
* `storage_scp`: half-open connections bounded, TLS handshakes off the accept loop, backlog 128.
* `storage_scu`: files are sent as they lie on disk; a timed-out association is never used again.
* `settings`: no identifiers in any log.
"""

from dicom_node.dimse.commands import MoveOriginator, StoreRequest, StoreResponse
from dicom_node.dimse.contexts import LOSSLESS_FALLBACKS, MAX_CONTEXTS, Pair
from dicom_node.dimse.messages import Incoming, InstanceCut, StoreHandler
from dicom_node.dimse.part10 import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    FileMeta,
    encode_file_meta,
    read_file_meta,
)
from dicom_node.dimse.settings import TESTED_PYNETDICOM, pynetdicom_version
from dicom_node.dimse.stopping import StopEvent, stopped_by
from dicom_node.dimse.storage_scp import (
    CALLING_AE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    TEMPORARY_CONGESTION,
    Admits,
    Refusal,
    StorageSCP,
)
from dicom_node.dimse.storage_scu import NeverHeard, StoreAssociation

__all__ = [
    "CALLING_AE_NOT_RECOGNIZED", "IMPLEMENTATION_CLASS_UID", "IMPLEMENTATION_VERSION_NAME",
    "LOCAL_LIMIT_EXCEEDED", "LOSSLESS_FALLBACKS", "MAX_CONTEXTS", "TEMPORARY_CONGESTION",
    "TESTED_PYNETDICOM", "Admits",
    "FileMeta", "Incoming", "InstanceCut", "MoveOriginator", "NeverHeard", "Pair", "Refusal",
    "StopEvent", "StorageSCP", "StoreAssociation", "StoreHandler", "StoreRequest", "StoreResponse",
    "encode_file_meta", "pynetdicom_version", "read_file_meta", "stopped_by",
]  # fmt: skip
