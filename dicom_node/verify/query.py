"""C-FIND: the PACS's matches, with what we know of each in our private block.

References
----------
DICOM PS3.4 C.4.1 (C-FIND operation, status values in Table C.4-1).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, islice

import structlog
from pydicom.dataset import Dataset

from dicom_node.audit.events import Event, Queried, Refused, VerdictGiven
from dicom_node.dimse.query_commands import CANCELLED, PENDING, SUCCESS
from dicom_node.dimse.query_scp import Call, Cancelled, PeerGone
from dicom_node.errors import ForwardError, NodeError, RegistryError
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
from dicom_node.verify.recording import REGISTRY_AWAY
from dicom_node.verify.standing import checked_standing, last_standing
from dicom_node.verify.telling import MISSING
from dicom_node.verify.verdict import ORDER, worst

log = structlog.get_logger(__name__)

OUT_OF_RESOURCES = 0xA700
HEARTBEAT_S = 10.0
"""Longest silence towards a client while its matches are checked."""
_LISTING = "being listed, none checked"
_TOLD_AT_ONCE = 100  # events of a long answer that wait for the trail


class TooManyMatches(NodeError):
    """The PACS has more matches than a query may have."""

    status = OUT_OF_RESOURCES

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most} matches: ask for less")


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
        after ``max_unchecked`` matches, or before the first of more than ``max_matches`` that were
        to be checked (there are more; none is made up to be all); ``0xA900`` for an identifier that
        fits no level of the model; ``0xFE00`` when called off; ``0xC000`` where the PACS cannot be
        asked, or we cannot check; else the PACS's own failure.

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
            (asked.checked if now else asked.streamed)()
        except Cancelled:
            status = CANCELLED
        except PeerGone:
            status = CANCELLED
            raise
        except PacsRefused as error:
            status, comment = error.query_status, str(error)
        except (identifiers.IdentifierError, TooManyMatches) as error:
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
        verify = inspector.config.verify
        self._most_checked = verify.max_matches
        self._most = max(verify.max_matches, verify.max_unchecked)
        self._matches = 0
        self._told: list[VerdictGiven] = []
        self._spoke_at = time.monotonic()
        self._at_hand: Dataset | None = None  # the match that is checked, or the first of a list
        self._progress = _LISTING

    @property
    def _asking(self) -> Inquiry:
        assert self.inquiry is not None, "parsed first"
        return self.inquiry

    def streamed(self) -> None:
        """Hand every match on as it comes, with its last verdict (TooManyMatches)."""
        with closing(self._pacs_matches()) as answers:
            self._pass_on(answers)

    def checked(self) -> None:
        """Check every match, then hand it on; too many are refused before any is fetched.

        A client that did not ask for a check has them unchecked instead.
        """
        with closing(self._pacs_matches()) as answers:
            matches: list[tuple[Dataset, int]] = []
            for match, status in islice(answers, self._most_checked + 1):
                matches.append((match, status))
                self._at_hand = matches[0][0]
            self._at_hand = None
            if len(matches) > self._most_checked:
                too_many = TooManyMatches(self._most_checked)
                if self._asking.verify_now:
                    raise too_many
                self._pass_on(chain(matches, answers), str(too_many))
                return
        for match, status in matches:
            self._send(match, self._checked(match), status)
            self._matches += 1

    def _pass_on(self, answers: Iterable[tuple[Dataset, int]], not_checked: str = "") -> None:
        for match, status in answers:
            if self._matches == self._most:
                raise TooManyMatches(self._most)
            standing = self._last(match)
            if not_checked and standing is not None:
                standing = _unchecked(standing, not_checked)
            self._send(match, standing, status)
            self._matches += 1

    def _pacs_matches(self) -> Generator[tuple[Dataset, int], None, None]:
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
        """Look after the client: its C-CANCEL, and that it hears of a match that takes long."""
        self._listen()
        silent_s = time.monotonic() - self._spoke_at
        match = self._at_hand
        if match is not None and silent_s > HEARTBEAT_S and self._asking.level != "PATIENT":
            self._send(match, Standing(progress=self._progress), PENDING)
        return False

    def _listen(self) -> None:
        if self._call.cancelled:
            raise Cancelled("called off by the client")

    def _last(self, match: Dataset) -> Standing | None:
        level = self._asking.level
        study, series, instance = self._uids(match)
        if level == "PATIENT" or not study:
            return None
        try:
            return last_standing(
                level,
                self._inspector.recorder.last_verdicts(
                    study=study, series=series if level == "SERIES" else "",
                    instance=instance if level == "IMAGE" else "", watch=self._watch,
                ),
            )  # fmt: skip
        except RegistryError:  # the log has it
            return Standing(details={"registry": "away"})

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
            if total:
                self._progress = f"{done} of {total} checked"
            self._watch()

        self._at_hand, self._progress = match, _LISTING
        try:
            check = self._inspector.check(wanted, checked_by=call.calling_ae, progress=progress)
        except (ForwardError, RegistryError) as error:
            log.warning("match not checked", calling_ae=call.calling_ae, reason=str(error))
            why = REGISTRY_AWAY if isinstance(error, RegistryError) else str(error)
            return _unchecked(self._last(match) or Standing(), why)
        finally:
            self._at_hand = None
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
        self._listen()
        ds = identifiers.answer(
            match, self._asking.keys, standing, self._inspector.config.verify.ae_title
        )
        self._call.pending(identifiers.encode(ds, self._call.transfer_syntax_uid), status=status)
        self._spoke_at = time.monotonic()
        if standing is not None and _tells(standing):
            self._tell(self._given(match, standing))

    def _tell(self, given: VerdictGiven) -> None:
        """Keep an event for the trail: the matches of one study are one, and few of them wait."""
        last = self._told[-1] if self._told else None
        if last is not None and last.study_instance_uid == given.study_instance_uid:
            told = [each.verdict for each in (last, given) if each.verdict in ORDER]
            counts = Counter(last.counts) + Counter(given.counts)
            self._told[-1] = replace(
                last, verdict=worst(told) if told else MISSING, counts=dict(counts)
            )
            return
        if len(self._told) == _TOLD_AT_ONCE:
            self._inspector.recorder.record(*self._told)
            self._told.clear()
        self._told.append(given)

    def _given(self, match: Dataset, standing: Standing) -> VerdictGiven:
        others = standing.verified - standing.tampered - standing.unmarked
        counts = {"tampered": standing.tampered, "unmarked": standing.unmarked, "other": others,
                  "missing": standing.missing}  # fmt: skip
        return VerdictGiven(
            at=datetime.now(UTC), given_to=self._call.calling_ae,
            verdict=standing.verdict or MISSING, address=self._call.peer, how="find",
            study_instance_uid=self._uids(match)[0],
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


def _tells(standing: Standing) -> bool:
    """Say whether it is a verdict: also that all is missing, unless the PACS failed to send it."""
    failure = (standing.details or {}).get("failure")
    return bool(standing.verdict or (standing.missing and not failure))


def _unchecked(standing: Standing, why: str) -> Standing:
    """Return the last verdict on a match with why there is no newer one."""
    return replace(standing, details={**(standing.details or {}), "not_checked": why})
