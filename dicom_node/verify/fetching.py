"""Fetch instances from the PACS: C-GET where it has that, else C-MOVE to our inner Storage SCP.

What comes is handed on file by file while the rest is still on its way; the taker may wait, and
then the PACS waits, too.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from dicom_node.audit.events import Event
from dicom_node.config import Config
from dicom_node.dimse import Admits, Incoming
from dicom_node.dimse.contexts import LOSSLESS_FALLBACKS, MAX_CONTEXTS
from dicom_node.dimse.query_commands import Kind, QueryResponse, SubOperations
from dicom_node.dimse.query_scp import STUDY_ROOT, SUFFIX
from dicom_node.dimse.query_scu import QueryAssociation, Watch
from dicom_node.errors import ConfigError, ContextRefused
from dicom_node.instance.syntaxes import JPEG_2000, JPEG_LS, RLE, SYNTAXES
from dicom_node.verify import identifiers
from dicom_node.verify.expecting import Take
from dicom_node.verify.inner_storage import InnerStorage, write_instance
from dicom_node.verify.lodging import Lodger
from dicom_node.verify.pacs import Pacs, PacsRefused, Planned, Wanted

log = structlog.get_logger(__name__)

Opened = Callable[[QueryAssociation], None]

GET, MOVE = STUDY_ROOT + SUFFIX["get"], STUDY_ROOT + SUFFIX["move"]
_WARNING = 0xB000
_FALLBACK_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.1",  # CR
    "1.2.840.10008.5.1.4.1.1.1.1",  # DX
    "1.2.840.10008.5.1.4.1.1.6.1",  # ultrasound
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
)


@dataclass(frozen=True)
class Fetched:
    """How a fetch ended.

    Attributes
    ----------
    how
        ``get`` or ``move``.
    failed
        Sub-operations that the PACS says have failed.
    reason
        In words, where the PACS says that it did not do all of it: how many, and its status.
    failed_uids
        SOP Instance UIDs of these, where it names them.
    """

    how: str
    failed: int = 0
    reason: str = ""
    failed_uids: tuple[str, ...] = ()


class FetchRefused(PacsRefused):
    """The PACS ended C-GET or C-MOVE with a failure; `fetched` is what it says it did."""

    def __init__(self, name: str, status: int, comment: str, fetched: Fetched) -> None:
        super().__init__(name, status, comment)
        self.fetched = fetched
        self._comment = comment

    def __str__(self) -> str:
        return self.fetched.reason + (f": {self._comment}" if self._comment else "")


class Fetcher:
    """Fetches from one PACS; safe to use from several threads.

    Parameters
    ----------
    folder
        Where fetched files are put.
    admits
        Whose associations the inner Storage SCP accepts.
    record
        Tells the audit trail what it refuses.
    """

    def __init__(
        self, config: Config, pacs: Pacs, folder: Path,
        admits: Admits = lambda calling_ae, address: None,
        record: Callable[[Event], None] = lambda event: None,
    ) -> None:  # fmt: skip
        self.pacs = pacs
        self._config = config
        self._folder = folder
        self._admits = admits
        self._record = record
        self._numbers = itertools.count()
        self._how = config.verify.retrieve
        self._inner: InnerStorage | Lodger | None = None
        self._listens = False
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Open the inner Storage SCP now, if it may be needed (ConfigError, SpoolError)."""
        self._listens = True
        if self._how != "get":
            self._storage()

    def close(self) -> None:
        """Close the inner Storage SCP."""
        with self._lock:
            if self._inner is not None:
                self._inner.close()

    def fetch(
        self, wanted: Wanted, planned: Sequence[Planned], take: Take, watch: Watch,
        opened: Opened = lambda assoc: None,
    ) -> Fetched:  # fmt: skip
        """Fetch what is wanted; `take` is given each file.

        Parameters
        ----------
        planned
            What the PACS says it has of it: its SOP classes are what C-GET may bring.
        watch
            Asked some ten times a second; may raise to call the fetch off.
        opened
            Given each association with the PACS, which another thread may then cut; may raise.

        Raises
        ------
        AssociationRejected, PacsLost
            If the PACS is away; what came before was taken.
        PacsRefused
            If it answers with a failure.
        ConfigError
            If the port of the inner Storage SCP cannot be used.
        """
        if self._how != "move":
            try:
                return self._get(wanted, planned, take, watch, opened)
            except ContextRefused:
                if self._how == "get":
                    raise
                log.info("the PACS has no C-GET", pacs=self.pacs.name)
                self._how = "move"
        return self._move(wanted, take, watch, opened)

    def _get(
        self, wanted: Wanted, planned: Sequence[Planned], take: Take, watch: Watch, opened: Opened
    ) -> Fetched:
        def store(incoming: Incoming, data_set: Iterator[memoryview]) -> int:
            path = self._folder / f"get-{next(self._numbers)}.dcm"
            write_instance(path, incoming, data_set)
            take(path, incoming)
            return 0x0000

        pacs = self.pacs
        with QueryAssociation.open(
            pacs.name, (pacs.host, pacs.port), called_ae=pacs.ae_title, calling_ae=pacs.calling_ae,
            sop_classes=[GET], storage=_storage_pairs(planned), store_handler=store,
            timeout_s=pacs.timeout_s, watch=watch,
        ) as assoc:  # fmt: skip
            opened(assoc)
            return self._request(assoc, wanted, watch)

    def _move(self, wanted: Wanted, take: Take, watch: Watch, opened: Opened) -> Fetched:
        with (
            self._storage().expect(wanted, take) as expected,
            self.pacs.open(MOVE, watch=watch) as assoc,
        ):
            opened(assoc)
            before = 0

            def alive() -> bool:
                nonlocal before
                came, before = expected.received > before, expected.received
                return watch() or came

            return self._request(assoc, wanted, alive)

    def _request(self, assoc: QueryAssociation, wanted: Wanted, watch: Watch) -> Fetched:
        """Send C-GET or C-MOVE and follow it to its end."""
        kind: Kind = "get" if assoc.supports(GET) else "move"
        sop_class = STUDY_ROOT + SUFFIX[kind]
        syntax = assoc.syntax(sop_class)
        answers = assoc.request(
            kind, sop_class, identifiers.encode(wanted.identifier(), syntax), syntax,
            move_destination=self._config.verify.fetch_ae_title, watch=watch,
        )  # fmt: skip
        response, identifier = QueryResponse(kind, 0, 0xFF00), None
        with closing(answers):
            for answer in answers:
                response, identifier = answer.response, answer.identifier
                watch()
        fetched = self._outcome(response, _failed_uids(identifier, syntax))
        if response.status not in (0x0000, _WARNING):
            raise FetchRefused(self.pacs.name, response.status, response.comment, fetched)
        return fetched

    def _outcome(self, response: QueryResponse, failed_uids: tuple[str, ...]) -> Fetched:
        """Say what a final response says of failures; a warning without numbers means some."""
        counts = response.counts or SubOperations()
        refused = response.status not in (0x0000, _WARNING)
        if not counts.failed and not refused and (response.counts or response.status == 0x0000):
            return Fetched(response.kind)
        number = counts.failed or len(failed_uids) or ("what was asked for" if refused else "some")
        reason = f"{self.pacs.name} failed to send {number} (status 0x{response.status:04X})"
        return Fetched(response.kind, counts.failed, reason, failed_uids)

    def _storage(self) -> InnerStorage | Lodger:
        """Return the inner Storage SCP, or a place at the one that another process has open."""
        with self._lock:
            if self._inner is None:
                try:
                    self._inner = InnerStorage(
                        self._config, self._folder, self._admits, self._record
                    )
                except ConfigError:
                    if self._listens or not Lodger.possible(self._config):
                        raise
                    self._inner = Lodger(self._config, self._folder)
            return self._inner


def _failed_uids(encoded: bytes | None, syntax: str) -> tuple[str, ...]:
    """Return the Failed SOP Instance UID List of a final response; () where it cannot be read."""
    if not encoded:
        return ()
    try:
        identifier = identifiers.decode(encoded, syntax)
    except identifiers.IdentifierError:
        return ()
    listed = identifiers.text_of(identifier, "FailedSOPInstanceUIDList")
    return tuple(uid for each in listed.split("\\") if (uid := each.strip(" \0")))


def _storage_pairs(planned: Sequence[Planned]) -> list[tuple[str, str]]:
    """Return the presentation contexts in which C-GET may bring what is planned.

    One transfer syntax each, so that every instance comes as it lies in the archive; the more
    classes a study has, the fewer syntaxes each of them is offered.
    """
    classes = list(dict.fromkeys(each.sop_class_uid for each in planned if each.sop_class_uid))
    classes = classes or list(_FALLBACK_CLASSES)
    preferred = [*LOSSLESS_FALLBACKS, *_CODED_LOSSLESSLY]
    syntaxes = list(dict.fromkeys([*preferred, *SYNTAXES, *_OTHER_SYNTAXES]))
    room = MAX_CONTEXTS - 2  # the retrieve class itself takes two
    each_gets = max(1, room // len(classes))
    return [(sop, syntax) for sop in classes for syntax in syntaxes[:each_gets]][:room]


_CODED_LOSSLESSLY = (JPEG_LS, JPEG_2000, RLE)
# Coded video and JPEG XL: fetched and sealed as they are, never decoded.
_OTHER_SYNTAXES = (
    "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.101", "1.2.840.10008.1.2.4.102",
    "1.2.840.10008.1.2.4.103", "1.2.840.10008.1.2.4.104", "1.2.840.10008.1.2.4.105",
    "1.2.840.10008.1.2.4.106", "1.2.840.10008.1.2.4.107", "1.2.840.10008.1.2.4.108",
    "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112",
)  # fmt: skip
