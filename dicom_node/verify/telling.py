"""What the audit trail says of checks and verdicts; apart from the registry, which loads slowly."""

from __future__ import annotations

from datetime import UTC, datetime

from dicom_node.audit.events import VerdictGiven, Verified
from dicom_node.verify.study import CheckedInstance, StudyCheck

MISSING = "missing"
"""Kept in the registry as the verdict on what did not come back."""
SUPERSEDED = "superseded"
"""Key in the details of a verdict on an older version than the last that was delivered."""


def verdict_given(
    check: StudyCheck, given_to: str, how: str, *, address: str = "", missing: int = 0
) -> VerdictGiven:
    """Return what the audit trail says of a verdict on a study that somebody was told.

    `missing` is for those who know that all of it was looked for: what a broken transfer did not
    bring may still be there. Where nothing came at all, ``missing`` is what was told.
    """
    others = {MISSING: missing, SUPERSEDED: len(check.superseded)}
    counts = check.counts | {name: count for name, count in others.items() if count}
    return VerdictGiven(
        at=datetime.now(UTC), given_to=given_to, verdict=check.verdict or MISSING, address=address,
        how=how, study_instance_uid=check.study_instance_uid, counts=counts,
    )


def verified(found: CheckedInstance, checked_by: str, at: datetime) -> Verified:
    """Return what the audit trail says of one check."""
    verdict = found.verdict
    return Verified(
        at=at, sop_instance_uid=found.sop_instance_uid, verdict=verdict.verdict,
        sop_class_uid=found.sop_class_uid, study_instance_uid=found.study_instance_uid,
        series_instance_uid=found.series_instance_uid, checked_by=checked_by,
        signed_by=verdict.signed_by.hex(), changed=verdict.changed, reason=verdict.reason,
        header_seal="" if verdict.header_seal == "valid" else verdict.header_seal,
    )  # fmt: skip
