"""What an auditor asks the verification service, and the elements of our private block."""

from __future__ import annotations

from pynetdicom.sop_class import CTImageStorage
from verifying import STUDY_FIND, STUDY_GET, client

VERDICT, AT, AGE, VERIFIED, TAMPERED, UNMARKED, MISSING, DETAILS, SUPERSEDED, PROGRESS = (
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21,
)  # fmt: skip
HEADERS_CHANGED, HEADERS_UNSEALED = 0x19, 0x1A


def find(service, identifier, ae_title="AUDITOR"):
    with client(service, STUDY_FIND, ae_title=ae_title) as assoc:
        answers = list(assoc.send_c_find(identifier, STUDY_FIND))
    assert all(status.Status in (0xFF00, 0xFF01) for status, _ in answers[:-1])
    return [match for _, match in answers[:-1]], answers[-1][0]


def get(service, identifier, ae_title="AUDITOR"):
    came = []

    def store(event):
        came.append(event.dataset)
        return 0x0000

    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=store,
                ae_title=ae_title) as assoc:  # fmt: skip
        answers = list(assoc.send_c_get(identifier, STUDY_GET))
    return came, answers[-1][0], answers[-1][1]
