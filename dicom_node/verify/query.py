"""C-FIND: the PACS's matches, with what we know of each in our private block.

References
----------
DICOM PS3.4 C.4.1 (C-FIND operation, status values in Table C.4-1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import structlog
from pydicom.dataset import Dataset

from dicom_node.audit.events import Event, Queried, Refused, VerdictGiven
from dicom_node.dimse.query_commands import CANCELLED, PENDING, SUCCESS
from dicom_node.dimse.query_scp import Call, Cancelled, PeerGone
from dicom_node.errors import ForwardError, NodeError
from dicom_node.verify import identifiers
from dicom_node.verify.identifiers import Inquiry, Level, Standing
from dicom_node.verify.inspector import Inspector
from dicom_node.verify.pacs import (
    FIND_PATIENT_ROOT,
    FIND_STUDY_ROOT,
    UNABLE,
    PacsRefused,
    Wanted,
)
from dicom_node.verify.standing import checked_standing, last_standing

log = structlog.get_logger(__name__)

OUT_OF_RESOURCES = 0xA700
HEARTBEAT_S = 10.0
"""Longest silence towards a client while its matches are checked."""


class FindHandler:
    """Answers C-FIND requests, each in its association's thread."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._settings = inspector.config.verify

    def __call__(self, call: Call) -> None:
        """Pass the query to the PACS and return its matches with our block added.

        Answers
        -------
        ``0xFF00``/``0xFF01`` with each match, as the PACS qualifies it; then ``0x0000``; ``0xA700``
        after ``max_matches`` matches (there are more; none is made up to be all); ``0xA900`` for an
        identifier that fits no level of the model; ``0xFE00`` when called off; ``0xC000`` where the
        PACS cannot be asked, or we cannot check; else the PACS's own failure.

        References
        ----------
        DICOM PS3.4 C.4.1.1.4.
        """
        asked = _Asked(call, self._inspector)
        status, comment = SUCCESS, ""
        try:
            asked.inquiry = identifiers.parse(
                call.identifier, call.transfer_syntax_uid, patient_root=call.patient_root,
                retrieve=False,
            )  # fmt: skip
            now = asked.inquiry.verify_now or self._settings.on_find == "verify"
            status = (asked.checked if now else asked.streamed)()
            if status == OUT_OF_RESOURCES:
                comment = f"more than {self._settings.max_matches} matches: ask for less"
        except Cancelled:
            status = CANCELLED
        except PeerGone:
            status = CANCELLED
            raise
        except PacsRefused as error:
            status, comment = error.query_status, str(error)
        except identifiers.IdentifierError as error:
            status, comment = error.status, str(error)
        except NodeError as error:
            log.warning("query failed", calling_ae=call.calling_ae, reason=str(error))
            status, comment = UNABLE, str(error)
        finally:
            asked.record(status, comment)
        call.finish(status, comment=comment)


class _Asked:
    """One query on its way."""

    def __init__(self, call: Call, inspector: Inspector) -> None:
        self.inquiry: Inquiry | None = None
        self._call = call
        self._inspector = inspector
        self._most = inspector.config.verify.max_matches
        self._matches = 0
        self._told: list[Event] = []
        self._spoke_at = time.monotonic()

    @property
    def _asking(self) -> Inquiry:
        assert self.inquiry is not None, "parsed first"
        return self.inquiry

    def streamed(self) -> int:
        """Hand every match on as it comes, with its last verdict; return the final status."""
        for match, status in self._pacs_matches():
            if self._matches == self._most:
                return OUT_OF_RESOURCES
            self._send(match, self._last(match), status)
            self._matches += 1
        return SUCCESS

    def checked(self) -> int:
        """Check every match, then hand it on; return the final status."""
        matches: list[tuple[Dataset, int]] = []
        for match, status in self._pacs_matches():
            if len(matches) == self._most:
                return OUT_OF_RESOURCES
            matches.append((match, status))
        for match, status in matches:
            self._send(match, self._checked(match), status)
            self._matches += 1
        return SUCCESS

    def _pacs_matches(self) -> Iterator[tuple[Dataset, int]]:
        """Ask the PACS what the client asked us; its own failure is raised."""
        call, inquiry, pacs = self._call, self._asking, self._inspector.pacs
        sop_class = FIND_PATIENT_ROOT if call.patient_root else FIND_STUDY_ROOT
        keys = identifiers.with_keys(inquiry.keys, inquiry.level)
        with pacs.open(sop_class, watch=self._watch) as assoc:
            syntax = assoc.syntax(sop_class, call.transfer_syntax_uid)
            answers = assoc.request(
                "find", sop_class, identifiers.encode(keys, syntax), syntax, watch=self._watch
            )
            with closing(answers):
                for answer in answers:
                    self._watch()
                    response = answer.response
                    if response.pending:
                        if answer.identifier is not None:
                            yield pacs.match(answer.identifier, syntax), response.status
                    elif response.status != SUCCESS:
                        raise PacsRefused(pacs.name, response.status, response.comment)

    def _watch(self) -> bool:
        if self._call.cancelled:
            raise Cancelled("called off by the client")
        return False

    def _last(self, match: Dataset) -> Standing | None:
        level = self._asking.level
        recorder = self._inspector.recorder
        uids = self._uids(match)
        if level == "PATIENT" or not uids[0]:
            return None
        study, series, instance = uids
        if level == "IMAGE":
            return last_standing(level, recorder.last_verdicts(study=study, instance=instance))
        if level == "SERIES":
            return last_standing(level, recorder.last_verdicts(study=study, series=series))
        return last_standing(level, recorder.last_verdicts(study=study))

    def _checked(self, match: Dataset) -> Standing | None:
        """Fetch and check one match; meanwhile the client hears of it every few seconds."""
        level, call = self._asking.level, self._call
        study, series, instance = self._uids(match)
        if level == "PATIENT" or not study:
            return None
        wanted = Wanted(
            study,
            (series,) if level in ("SERIES", "IMAGE") and series else (),
            (instance,) if level == "IMAGE" and instance else (),
        )

        def progress(done: int, total: int) -> None:
            self._watch()
            if total and time.monotonic() - self._spoke_at > HEARTBEAT_S:
                self._send(match, Standing(progress=f"{done} of {total} checked"), PENDING)

        try:
            check = self._inspector.check(wanted, checked_by=call.calling_ae, progress=progress)
        except ForwardError as error:
            log.warning("match not checked", calling_ae=call.calling_ae, reason=str(error))
            last = self._last(match) or Standing()
            return replace(last, details={**(last.details or {}), "not_checked": str(error)})
        return checked_standing(level, check)

    def _uids(self, match: Dataset) -> tuple[str, str, str]:
        study, series, instance = (
            identifiers.text_of(match, identifiers.UNIQUE[level])
            for level in identifiers.LEVELS[1:]
        )
        # A PACS need not repeat what it was asked with.
        inquiry = self._asking
        return (
            study or (inquiry.studies[0] if len(inquiry.studies) == 1 else ""),
            series or (inquiry.series[0] if len(inquiry.series) == 1 else ""),
            instance,
        )

    def _send(self, match: Dataset, standing: Standing | None, status: int) -> None:
        self._watch()
        ds = identifiers.answer(
            match, self._asking.keys, standing, self._inspector.config.verify.ae_title
        )
        self._call.pending(identifiers.encode(ds, self._call.transfer_syntax_uid), status=status)
        self._spoke_at = time.monotonic()
        if standing is not None and standing.verdict:
            self._told.append(self._given(match, standing))

    def _given(self, match: Dataset, standing: Standing) -> VerdictGiven:
        others = standing.verified - standing.tampered - standing.unmarked
        counts = {"tampered": standing.tampered, "unmarked": standing.unmarked, "other": others,
                  "missing": standing.missing}  # fmt: skip
        return VerdictGiven(
            at=datetime.now(UTC), given_to=self._call.calling_ae, verdict=standing.verdict,
            address=self._call.peer, how="find", study_instance_uid=self._uids(match)[0],
            counts={kind: number for kind, number in counts.items() if number},
        )  # fmt: skip

    def record(self, status: int, comment: str) -> None:
        """Tell the audit trail who asked for what, and what was told."""
        call, inquiry = self._call, self.inquiry
        level: Level | str = inquiry.level if inquiry else ""
        studies = inquiry.studies if inquiry else ()
        asked: Event = Queried(
            at=datetime.now(UTC), client_ae=call.calling_ae, client_address=call.peer, level=level,
            model="patient" if call.patient_root else "study", keys=inquiry.tags if inquiry else (),
            study_instance_uid=studies[0] if len(studies) == 1 else "", matches=self._matches,
            status=status,
        )  # fmt: skip
        refused: list[Event] = []
        if status not in (SUCCESS, CANCELLED):
            refused.append(Refused(at=datetime.now(UTC), stage="query", reason=comment,
                                   peer_ae=call.calling_ae, peer_address=call.peer,
                                   status=status))  # fmt: skip
        self._inspector.recorder.record(asked, *self._told, *refused)
