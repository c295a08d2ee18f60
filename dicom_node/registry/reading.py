"""Rows of the tables as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, select

from dicom_node.registry.records import (
    DeliveryEntry,
    FrameMatch,
    MarkedFrame,
    MarkedInstance,
    VerdictEntry,
)
from dicom_node.registry.schema import DELIVERY, FRAME, INSTANCE
from dicom_node.registry.writing import ASKED_AT_ONCE, unsigned

_VERDICT = tuple(VerdictEntry.__dataclass_fields__)


def uids(
    table: Table, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
) -> list[ColumnElement[bool]]:
    """Return what selects the rows of `table` under the UIDs that are named, at least one."""
    named = {
        "study_instance_uid": study_instance_uid,
        "series_instance_uid": series_instance_uid,
        "sop_instance_uid": sop_instance_uid,
    }
    which = [table.c[column] == uid for column, uid in named.items() if uid]
    if not which:
        raise ValueError("name a study, a series or an instance")
    return which


def instances(
    connection: Connection, rows: Sequence[Row[Any]], *, frames: bool
) -> tuple[MarkedInstance, ...]:
    """Return the records of rows of INSTANCE, in their order."""
    ids = [row.id for row in rows]
    delivered: dict[int, list[DeliveryEntry]] = {}
    shown: dict[int, list[MarkedFrame]] = {}
    for start in range(0, len(ids), ASKED_AT_ONCE):
        some = ids[start : start + ASKED_AT_ONCE]
        for each in connection.execute(_of(DELIVERY, some).order_by(DELIVERY.c.delivered_at)):
            entry = DeliveryEntry(
                each.destination, each.status, each.delivered_at, each.reference,
                each.transfer_syntax_uid,
            )  # fmt: skip
            delivered.setdefault(each.instance_id, []).append(entry)
        if frames:
            for each in connection.execute(_of(FRAME, some).order_by(FRAME.c.id)):
                shown.setdefault(each.instance_id, []).append(_facts(each))
    return tuple(
        MarkedInstance(
            row.sop_instance_uid, row.series_instance_uid, row.study_instance_uid,
            row.sop_class_uid, row.transfer_syntax_uid, row.action, bytes(row.received_digest),
            bytes(row.delivered_digest), bytes(row.key_id), row.marked_at, row.received_at,
            row.calling_ae, row.modality, row.instance_number, row.frame_count,
            tuple(shown.get(row.id, ())), tuple(delivered.get(row.id, ())),
        )
        for row in rows
    )  # fmt: skip


def _of(table: Table, ids: Sequence[int]) -> Select[Any]:
    return select(table).where(table.c.instance_id.in_(ids))


def matches(connection: Connection, frames: Sequence[Row[Any]]) -> tuple[FrameMatch, ...]:
    """Return rows of FRAME with the instances they are of, these without their other frames."""
    ids = sorted({row.instance_id for row in frames})
    found: dict[int, MarkedInstance] = {}
    for start in range(0, len(ids), ASKED_AT_ONCE):
        some = ids[start : start + ASKED_AT_ONCE]
        rows = connection.execute(
            select(INSTANCE).where(INSTANCE.c.id.in_(some)).order_by(INSTANCE.c.id)
        ).all()
        found |= zip(
            (row.id for row in rows), instances(connection, rows, frames=False), strict=True
        )
    return tuple(FrameMatch(found[row.instance_id], row.number, _facts(row)) for row in frames)


def _facts(row: Row[Any]) -> MarkedFrame:
    hash_ = row.perceptual_hash
    return MarkedFrame(
        bytes(row.original_digest or b""), bytes(row.marked_digest or b""),
        b"" if hash_ is None else unsigned(hash_).to_bytes(8, "big"),
        bytes(row.message or b""), bytes(row.fingerprint or b""),
    )  # fmt: skip


def verdict(row: Row[Any]) -> VerdictEntry:
    """Return the record of a row of VERDICT."""
    return VerdictEntry(**{name: getattr(row, name) for name in _VERDICT})
