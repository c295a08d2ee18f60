"""Put what the registrar was told into the tables: many records in one transaction, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, select

from dicom_node.registry.records import MarkedFrame, MarkedInstance
from dicom_node.registry.schema import DELIVERY, FRAME, INSTANCE

ASKED_AT_ONCE = 500  # values in one IN (...)
_WRITTEN_AT_ONCE = 5000  # rows of one statement, so that a cine run of any length fits
_SIGN = 1 << 63

Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Added:
    """What was new in a batch."""

    instances: int = 0
    frames: int = 0
    deliveries: int = 0


def signed(hash_: bytes) -> int | None:
    """Return a perceptual hash as the signed number a database keeps; None for none."""
    return int.from_bytes(hash_, "big", signed=True) if hash_ else None


def unsigned(number: int) -> int:
    """Return the 64 bits of what `signed` gave."""
    return number if number >= 0 else number + 2 * _SIGN


def add_all(connection: Connection, instances: Iterable[MarkedInstance]) -> Added:
    """Add records; what is known already only gains the frames and deliveries it lacks.

    To be called in a writer's turn: ids are counted up from the largest.
    """
    wanted = _merged(instances)
    known = _known(connection, wanted)
    new = [key for key in wanted if key not in known]
    next_id = (connection.scalar(select(func.max(INSTANCE.c.id))) or 0) + 1
    ids = known | {key: next_id + index for index, key in enumerate(new)}
    _insert(connection, INSTANCE.insert(), (_instance_row(ids[key], wanted[key]) for key in new))
    without = _without_frames(connection, [known[key] for key in known if wanted[key].frames])
    framed = [key for key in wanted if key not in known or known[key] in without]
    next_frame = (connection.scalar(select(func.max(FRAME.c.id))) or 0) + 1
    rows = ((ids[key], number, facts) for key in framed
            for number, facts in enumerate(wanted[key].frames, 1))  # fmt: skip
    frames = _insert(
        connection, FRAME.insert(),
        (_frame_row(next_frame + index, *row) for index, row in enumerate(rows)),
    )  # fmt: skip
    deliveries = _add_deliveries(connection, ids, wanted)
    return Added(len(new), frames, deliveries)


def _merged(instances: Iterable[MarkedInstance]) -> dict[Key, MarkedInstance]:
    """Return one record for each file: the first told of, with the frames and deliveries of all."""
    wanted: dict[Key, MarkedInstance] = {}
    for instance in instances:
        key = instance.sop_instance_uid, instance.delivered_digest
        before = wanted.get(key)
        if before is None:
            wanted[key] = instance
            continue
        fuller = before if before.frames or not instance.frames else instance
        wanted[key] = replace(fuller, deliveries=before.deliveries + instance.deliveries)
    return wanted


def _known(connection: Connection, wanted: Mapping[Key, MarkedInstance]) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for some in _parts(list({uid for uid, _ in wanted}), ASKED_AT_ONCE):
        rows = connection.execute(
            select(INSTANCE.c.id, INSTANCE.c.sop_instance_uid, INSTANCE.c.delivered_digest)
            .where(INSTANCE.c.sop_instance_uid.in_(some))
        )  # fmt: skip
        for row in rows:
            key = row.sop_instance_uid, bytes(row.delivered_digest)
            if key in wanted:
                found[key] = row.id
    return found


def _without_frames(connection: Connection, ids: Sequence[int]) -> set[int]:
    """Return which instances were first told of without their frames."""
    have: set[int] = set()
    for some in _parts(ids, ASKED_AT_ONCE):
        rows = connection.execute(
            select(FRAME.c.instance_id).where(FRAME.c.instance_id.in_(some)).distinct()
        )
        have |= {row.instance_id for row in rows}
    return set(ids) - have


def _add_deliveries(
    connection: Connection, ids: Mapping[Key, int], wanted: Mapping[Key, MarkedInstance]
) -> int:
    known = _known_deliveries(connection, ids, wanted)
    new = {
        (ids[key], entry.reference): entry
        for key, instance in wanted.items()
        for entry in instance.deliveries
        if (ids[key], entry.reference) not in known
    }
    return _insert(connection, DELIVERY.insert(), (
        {"instance_id": instance_id, "reference": reference, "destination": entry.destination,
         "status": entry.status, "delivered_at": entry.delivered_at,
         "transfer_syntax_uid": entry.transfer_syntax_uid}
        for (instance_id, reference), entry in new.items()
    ))  # fmt: skip


def _known_deliveries(
    connection: Connection, ids: Mapping[Key, int], wanted: Mapping[Key, MarkedInstance]
) -> set[tuple[int, str]]:
    told = [ids[key] for key, instance in wanted.items() if instance.deliveries]
    return {
        (row.instance_id, row.reference)
        for some in _parts(told, ASKED_AT_ONCE)
        for row in connection.execute(
            select(DELIVERY.c.instance_id, DELIVERY.c.reference)
            .where(DELIVERY.c.instance_id.in_(some))
        )
    }  # fmt: skip


def _insert(connection: Connection, insert: Any, rows: Iterable[dict[str, Any]]) -> int:
    """Insert rows by some statement; return how many there were."""
    count = 0
    for some in _parts(rows, _WRITTEN_AT_ONCE):
        connection.execute(insert, some)
        count += len(some)
    return count


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    part: list[Any] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _instance_row(instance_id: int, instance: MarkedInstance) -> dict[str, Any]:
    return {
        "id": instance_id,
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "modality": instance.modality,
        "instance_number": instance.instance_number,
        "action": instance.action,
        "received_digest": instance.received_digest,
        "delivered_digest": instance.delivered_digest,
        "key_id": instance.key_id,
        "marked_at": instance.marked_at,
        "received_at": instance.received_at,
        "calling_ae": instance.calling_ae,
        "frame_count": instance.frame_count,
    }


def _frame_row(frame_id: int, instance_id: int, number: int, facts: MarkedFrame) -> dict[str, Any]:
    return {
        "id": frame_id,
        "instance_id": instance_id,
        "number": number,
        "original_digest": facts.original_digest or None,
        "marked_digest": facts.marked_digest or None,
        "perceptual_hash": signed(facts.perceptual_hash),
        "message": facts.message or None,
        "fingerprint": facts.fingerprint or None,
    }
