"""What is told of a match: the last verdicts of the registry, or a check made just now."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from dicom_node.registry.records import VerdictEntry
from dicom_node.verify.headers import Headers
from dicom_node.verify.identifiers import Level, Standing
from dicom_node.verify.study import SUSPECT, StudyCheck
from dicom_node.verify.telling import MISSING, SUPERSEDED
from dicom_node.verify.verdict import ORDER, Verdict, worst

_MOST_FINDINGS = 20
"""Instances named in the details of a study or series: the rest is counted."""
# As JSON writes it without spaces; inside a text its quotes would be escaped.
_OLDER = f'"{SUPERSEDED}":true'
_UNCHANGED, _SEALED = '"header":{"changed":[]}', '"header_seal":"valid"'


def last_standing(level: Level, entries: Sequence[VerdictEntry]) -> Standing:
    """Return what the registry's last verdicts say of one match."""
    checked = [each for each in entries if each.verdict in ORDER]
    missing = sum(each.verdict == MISSING for each in entries)
    if not entries:
        return Standing()
    counts = Counter(each.verdict for each in checked)
    details: dict[str, Any] = {"counts": dict(counts), "checked_by": entries[-1].checked_by}
    if level == "IMAGE" and checked:
        details = json.loads(checked[-1].details) | {"checked_by": checked[-1].checked_by}
    else:
        bad = [each for each in checked if each.verdict != "authentic"]
        bad.sort(key=lambda each: -ORDER.index(cast(Verdict, each.verdict)))
        details["findings"] = [json.loads(each.details) for each in bad[:_MOST_FINDINGS]]
        details["missing"] = [
            each.sop_instance_uid for each in entries if each.verdict == MISSING
        ][:_MOST_FINDINGS]  # fmt: skip
    headers = _headers_of(checked)
    older = [each.sop_instance_uid for each in checked if _OLDER in each.details]
    if level != "IMAGE":
        details["superseded"] = older[:_MOST_FINDINGS]
        details["headers"] = headers.to_json()
    return Standing(
        worst([cast(Verdict, each.verdict) for each in checked]) if checked else "",
        min(each.checked_at for each in entries), len(checked),
        sum(counts[each] for each in SUSPECT), counts["unmarked"], missing, details,
        superseded=len(older), headers_changed=headers.changed,
        headers_unsealed=headers.unsealed,
    )  # fmt: skip


def _headers_of(checked: Sequence[VerdictEntry]) -> Headers:
    """Return what the last checks found of headers; only what has something to say is parsed."""
    found = Headers()
    for each in checked:
        sealed = each.verdict != "authentic" or _SEALED in each.details
        if sealed and _UNCHANGED in each.details:
            continue
        line = json.loads(each.details)
        changed = line.get("header", {}).get("changed", ())
        found.take(each.sop_instance_uid, each.verdict, changed, line.get("header_seal") or "")
    return found


def checked_standing(level: Level, check: StudyCheck) -> Standing:
    """Return what a check made now says of one match."""
    counts, headers = check.counts, check.headers
    found = sorted(check.instances, key=lambda each: -ORDER.index(each.verdict.verdict))
    if level == "IMAGE" and found:
        details = found[0].to_json()
        details.pop("path", None)
    else:
        bad = [each.to_json() for each in found if each.verdict.verdict != "authentic"]
        details = {
            "counts": counts,
            "findings": [{k: v for k, v in e.items() if k != "path"} for e in bad[:_MOST_FINDINGS]],
            "missing": list(check.missing[:_MOST_FINDINGS]),
            "unsent": list(check.unsent[:_MOST_FINDINGS]),
            "failure": check.failure or None,
            "extra": list(check.extra[:_MOST_FINDINGS]),
            "transcoded": list(check.transcoded[:_MOST_FINDINGS]),
            "stripped": list(check.stripped[:_MOST_FINDINGS]),
            "superseded": list(check.superseded[:_MOST_FINDINGS]),
            "registry": check.registry,
            "headers": headers.to_json(),
        }
    return Standing(
        check.verdict, check.checked_at.timestamp(),
        len(check.instances), sum(counts.get(each, 0) for each in SUSPECT),
        counts.get("unmarked", 0), len(check.missing), details,
        superseded=len(check.superseded), headers_changed=headers.changed,
        headers_unsealed=headers.unsealed,
    )  # fmt: skip
