"""Fetch instances from the PACS: C-GET where it has that, else C-MOVE to our inner Storage SCP.

What comes is handed on file by file while the rest is still on its way; the taker may wait, and
then the PACS waits, too.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

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
        In words, where the PACS did not do all of it.
    """

    how: str
    failed: int = 0
    reason: str = ""


class Fetcher:
    """Fetches from one PACS; safe to use from several threads.

    Parameters
    ----------
    folder
        Where fetched files are put.
    admits
        Whose associations the inner Storage SCP accepts.
    """

    def __init__(
        self, config: Config, pacs: Pacs, folder: Path,
        admits: Admits = lambda calling_ae, address: None,
    ) -> None:  # fmt: skip
        self.pacs = pacs
        self._config = config
        self._folder = folder
        self._admits = admits
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
        self, wanted: Wanted, planned: Sequence[Planned], take: Take, watch: Watch
    ) -> Fetched:
        """Fetch what is wanted; `take` is given each file.

        Parameters
        ----------
        planned
            What the PACS says it has of it: its SOP classes are what C-GET may bring.
        watch
            Asked some ten times a second; may raise to call the fetch off.

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
                return self._get(wanted, planned, take, watch)
            except ContextRefused:
                if self._how == "get":
                    raise
                log.info("the PACS has no C-GET", pacs=self.pacs.name)
                self._how = "move"
        return self._move(wanted, take, watch)

    def _get(self, wanted: Wanted, planned: Sequence[Planned], take: Take, watch: Watch) -> Fetched:
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
            return self._request(assoc, wanted, watch)

    def _move(self, wanted: Wanted, take: Take, watch: Watch) -> Fetched:
        with (
            self._storage().expect(wanted, take) as expected,
            self.pacs.open(MOVE, watch=watch) as assoc,
        ):
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
        response = QueryResponse(kind, 0, 0xFF00)
        with closing(answers):
            for answer in answers:
                response = answer.response
                watch()
        counts = response.counts or SubOperations()
        if response.status not in (0x0000, _WARNING):
            raise PacsRefused(self.pacs.name, response.status, response.comment)
        reason = f"{self.pacs.name} failed to send {counts.failed}" if counts.failed else ""
        return Fetched(kind, counts.failed, reason)

    def _storage(self) -> InnerStorage | Lodger:
        """Return the inner Storage SCP, or a place at the one that another process has open."""
        with self._lock:
            if self._inner is None:
                try:
                    self._inner = InnerStorage(self._config, self._folder, self._admits)
                except ConfigError:
                    if self._listens or not Lodger.possible(self._config):
                        raise
                    self._inner = Lodger(self._config, self._folder)
            return self._inner


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
