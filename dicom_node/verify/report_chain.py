"""The chain of a study or an instance: received, marked, delivered, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dicom_node.verify.report_text import printable

if TYPE_CHECKING:
    from dicom_node.registry.records import MarkedInstance
    from dicom_node.verify.study import StudyCheck

_NOT_ON_RECORD = "not on record"


@dataclass(frozen=True)
class Step:
    """One step: what happened, when, and what is known of it."""

    what: str
    when: str
    details: tuple[str, ...] = ()


def moment(unix_s: float) -> str:
    """Return a time as a report writes it: UTC, seconds."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def chain_of(check: StudyCheck, checked_by: str) -> tuple[Step, ...]:
    """Return the steps of a study's instances, taken together.

    A study without instances gets no last step: then it is the chain of its records alone.
    """
    steps = [_received(check.entries), _marked(check), *_delivered(check.entries)]
    if check.instances:
        steps.append(_checked(check, checked_by))
    return tuple(steps)


def _received(entries: Sequence[MarkedInstance]) -> Step:
    if not entries:
        return Step("Received", _NOT_ON_RECORD)
    senders = Counter(printable(entry.calling_ae or "unknown") for entry in entries)
    details = [f"{_count(n)} from {sender}" for sender, n in senders.most_common()]
    if len(entries) == 1:
        details.append(f"BLAKE2b-256 of the data set {entries[0].received_digest.hex()}")
    return Step("Received", _span([entry.received_at for entry in entries]), tuple(details))


def _marked(check: StudyCheck) -> Step:
    entries = check.entries
    if entries:
        actions = Counter((entry.action, entry.key_id) for entry in entries)
        details = [
            f"{_count(n)} {printable(action)}" + (f" with key {key.hex()}" if key else "")
            for (action, key), n in actions.most_common()
        ]
        if len(entries) == 1 and entries[0].delivered_digest:
            digest = entries[0].delivered_digest.hex()
            details.append(f"BLAKE2b-256 of the data set {digest}")
        return Step("Marked", _span([entry.marked_at for entry in entries]), tuple(details))
    said = [each.verdict for each in check.instances if each.verdict.marked_at is not None]
    if not said:
        return Step("Marked", _NOT_ON_RECORD)
    keys = Counter(verdict.signed_by.hex() for verdict in said)
    details = [f"{_count(n)} with key {key}, as the marks say" for key, n in keys.most_common()]
    return Step("Marked", _span([verdict.marked_at or 0 for verdict in said]), tuple(details))


def _delivered(entries: Sequence[MarkedInstance]) -> list[Step]:
    """Return a step for each destination."""
    told: dict[str, list[tuple[float, int]]] = {}
    for entry in entries:
        for delivery in entry.deliveries:
            place = printable(delivery.destination)
            told.setdefault(place, []).append((delivery.delivered_at, delivery.status))
    if not told:
        return [Step("Delivered", _NOT_ON_RECORD)]
    steps = []
    for place, deliveries in sorted(told.items()):
        statuses = Counter(status for _, status in deliveries)
        details = tuple(
            f"{_count(n)} to {place}, answered 0x{status:04X}"
            for status, n in statuses.most_common()
        )
        steps.append(Step("Delivered", _span([when for when, _ in deliveries]), details))
    return steps


def _checked(check: StudyCheck, checked_by: str) -> Step:
    details = [f"{_count(len(check.instances))}"]
    if checked_by:
        details.append(f"asked for by {printable(checked_by)}")
    return Step("Checked", moment(check.checked_at.timestamp()), tuple(details))


def _span(times: Sequence[float]) -> str:
    first, last = moment(min(times)), moment(max(times))
    return first if first == last else f"{first[:-4]} to {last}"


def _count(number: int) -> str:
    return "1 instance" if number == 1 else f"{number} instances"
