"""Under which SOP Instance UID an instance is sent, and what references to others become.

Nothing here guesses what may turn out wrong later. Who first needs to know the UID an instance is
sent under says it, for all time: its own mark worker, or an object that refers to it and cannot
wait any longer. So every reference that leaves the node resolves once the instance leaves it,
whichever comes first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from dicom_node.errors import ReferencesPending
from dicom_node.instance.uids import derive_uid
from dicom_node.spool import Spool

_SHORTEST_S, _LONGEST_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Naming:
    """What one instance and those it refers to are called when it is sent.

    Attributes
    ----------
    uid
        Its SOP Instance UID.
    references
        New SOP Instance UIDs by old ones, of those it refers to that have a new one.
    """

    uid: str
    references: dict[str, str] = field(default_factory=dict)


class Names(Protocol):
    """Who decides."""

    def own(self, uid: str, *, marked: bool) -> str:
        """Return the UID an instance is sent under; `marked`: its pixels will change."""

    def references(self, uids: Collection[str], since: datetime) -> dict[str, str]:
        """Return the new UIDs of those of `uids` that have one.

        Raises
        ------
        ReferencesPending
            When it is too early to say; `since` is when it was first asked for.
        """


class JournalNames:
    """Decisions of a node, in the spool's journal.

    Parameters
    ----------
    key
        Makes new UIDs; None: no more are made (``uid_policy = "keep"``), and those that were made
        before stay.
    wait_s
        How long an object waits for the instances it refers to.
    """

    def __init__(self, spool: Spool, key: bytes | None, wait_s: float) -> None:
        self._spool = spool
        self._key = key
        self._wait_s = wait_s

    def own(self, uid: str, *, marked: bool) -> str:
        """Return the UID an instance is sent under."""
        if not uid:
            return uid
        if self._key is None:
            return self._spool.fate_of(uid).sent_as or uid
        return self._spool.assign_uid(uid, derive_uid(uid, self._key) if marked else uid)

    def references(self, uids: Collection[str], since: datetime) -> dict[str, str]:
        """Return the new UIDs of those that have one; after `wait_s` the rest keeps its own.

        An instance that is here is waited for as long as that takes.
        """
        fates = {uid: self._spool.fate_of(uid) for uid in uids}
        open_uids = [uid for uid, fate in fates.items() if fate.sent_as is None]
        if self._key is not None and open_uids:
            waited_s = time.time() - since.timestamp()
            here = sum(fates[uid].pending for uid in open_uids)
            if here or waited_s < self._wait_s:
                left_s = _LONGEST_S if here else self._wait_s - waited_s
                raise ReferencesPending(
                    f"waits for {len(open_uids)} of {len(fates)} instances it refers to,"
                    f" {here} of them are here and not marked yet",
                    retry_in_s=max(_SHORTEST_S, min(waited_s / 2, left_s, _LONGEST_S)),
                )
            for uid in open_uids:
                self._spool.assign_uid(uid, uid)
        return {uid: fate.sent_as for uid, fate in fates.items() if fate.sent_as not in (None, uid)}


class BatchNames:
    """Decisions about the files of one command: those named in it, and no others.

    The files are tried once each; what has to wait for others is tried again after `all_tried`.

    Parameters
    ----------
    sent_as
        What was said before, new UIDs by old ones.
    """

    def __init__(self, key: bytes, sent_as: Mapping[str, str] | None = None) -> None:
        self._key = key
        self._sent_as = dict(sent_as or {})
        self._told = len(self._sent_as)
        self._all_tried = False

    def news(self) -> dict[str, str]:
        """Return what was said since this was last asked."""
        new = dict(itertools.islice(self._sent_as.items(), self._told, None))
        self._told = len(self._sent_as)
        return new

    def all_tried(self) -> None:
        """Say that no more files come."""
        self._all_tried = True

    def own(self, uid: str, *, marked: bool) -> str:
        """Return the UID an instance is sent under."""
        return self._sent_as.setdefault(uid, derive_uid(uid, self._key) if marked else uid)

    def references(self, uids: Collection[str], since: datetime) -> dict[str, str]:
        """Return the new UIDs of those that have one."""
        del since
        if not self._all_tried and any(uid not in self._sent_as for uid in uids):
            raise ReferencesPending("waits for files it may refer to", retry_in_s=0.0)
        return {uid: new for uid in uids if (new := self._sent_as.get(uid, uid)) != uid}
