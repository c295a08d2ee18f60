"""The spool: where an instance is durable between receiving, marking and forwarding.

Files on a local disk plus a SQLite journal in WAL mode. Every process opens its own `Spool` on the
same folder; any of them may die at any instruction and be started again.

A job reads as a sentence: it is *received*, then *marking*, then *marked* (it has deliveries), and
ends *delivered*, *held*, *rejected* or *dropped*. A delivery is *waiting*, then *sending*, and ends
*delivered*, *held* or *dropped*.

=====================  ==================================================================
who                    calls
=====================  ==================================================================
Storage SCP            ``check_room()``, ``receive(...) -> Receipt``
mark worker            ``claim() -> Job | None``, ``work_path(job)``, ``renew(job)``, then one of
                       ``finish`` / ``hold`` / ``reject`` / ``retry`` / ``postpone`` / ``unclaim``;
                       ``fate_of(uid)``, ``assign_uid(uid, sent_as)``;
                       ``wait_for_job(timeout_s)``; ``make_room()`` where no space was left
forwarder              ``claim_delivery(destination) -> list[Delivery]``, ``renew_delivery``, then
                       one of ``delivered`` / ``retry_delivery`` / ``hold_delivery`` /
                       ``unclaim_delivery``; ``waiting_contexts(destination)``;
                       ``wait_for_delivery(destination, timeout_s)``
start, a dead child    ``recover()``, ``reclaim()``
registrar              ``outbox(limit) -> list[OutboxRow]``, ``forget(row)``, ``outbox_depth()``;
                       ``wait_for_news(timeout_s)``
administrator          ``jobs``, ``job``, ``deliveries``, ``tally``, ``retry_now``, ``release``,
                       ``drop``
=====================  ==================================================================

Every call raises only `SpoolError` (0xA700): `SpoolFull` when there is no room, `LeaseLost` when a
claim expired or was dropped meanwhile and its result must be thrown away. On a full disk what is
recorded of known jobs has a reserve (`reserve`); only new ones are refused. A `Spool` may be shared
by threads. The waits return early when another process has something new, within milliseconds,
and never later than the next due time.
"""

from dicom_node.spool.outbox import OutboxRow
from dicom_node.spool.records import (
    DELIVERY_STATES,
    JOB_STATES,
    Delivery,
    Fate,
    Job,
    Receipt,
    Recovery,
)
from dicom_node.spool.spool import Spool

__all__ = [
    "DELIVERY_STATES",
    "JOB_STATES",
    "Delivery",
    "Fate",
    "Job",
    "OutboxRow",
    "Receipt",
    "Recovery",
    "Spool",
]
