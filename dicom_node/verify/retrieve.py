"""C-MOVE and C-GET: fetched from the PACS, re-checked, and sent on as the client's policy says.

References
----------
DICOM PS3.4 C.4.2 (C-MOVE), C.4.3 (C-GET), status values in Tables C.4-2 and C.4-3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydicom.dataset import Dataset

from dicom_node.audit.events import Event, Refused, Restored, Retrieved
from dicom_node.config import MoveDestinationConfig, Policy
from dicom_node.dimse.query_commands import CANCELLED, SUCCESS, SubOperations
from dicom_node.dimse.query_scp import Call, Cancelled, PeerGone
from dicom_node.errors import (
    AssociationLost,
    AssociationRejected,
    ContextRefused,
    ForwardError,
    NodeError,
    RegistryError,
)
from dicom_node.registry.records import MarkedInstance
from dicom_node.verify import identifiers
from dicom_node.verify.checked_fetch import Arrival, CheckedFetch
from dicom_node.verify.fetching import Fetched
from dicom_node.verify.identifiers import IdentifierError, Inquiry
from dicom_node.verify.inspector import Inspector, found_of, missing_entries
from dicom_node.verify.pacs import Planned, Wanted
from dicom_node.verify.query import HEARTBEAT_S
from dicom_node.verify.recording import REGISTRY_AWAY
from dicom_node.verify.retrieve_tally import CANNOT_PERFORM, WITH_FAILURES, Due, Tally, in_words
from dicom_node.verify.senders import ClientSender, MoveSender, Sender
from dicom_node.verify.study import CheckedInstance, StudyCheck, study_check
from dicom_node.verify.telling import verdict_given, verified

log = structlog.get_logger(__name__)

UNKNOWN_DESTINATION = 0xA801
CANNOT_COUNT = 0xA701


class RetrieveHandler:
    """Answers C-MOVE and C-GET requests, each in its association's thread.

    Parameters
    ----------
    policy_of
        Says what a calling AE is given.
    """

    def __init__(self, inspector: Inspector, policy_of: Callable[[str], Policy]) -> None:
        self._inspector = inspector
        self._policy_of = policy_of

    def __call__(self, call: Call) -> None:
        """Fetch, re-check, and send on what the client asked for.

        A changed header makes nothing suspect: an archive may correct a name. It is named in the
        log, the audit trail and the verdict's details, and counted in the error comment.

        Answers
        -------
        ``0xFF00`` after each sub-operation; then ``0x0000`` if every instance was sent and none is
        suspect; ``0xB000`` if some failed or are suspect (tampered, foreign, unreadable, stripped
        of our marks, older than last delivered), or nobody can say so while the registry is away;
        ``0xA702`` if none could be sent; ``0xA701`` if the PACS cannot say what it has, or the
        registry what it should have and the policy is not ``as-is``; ``0xA801`` for a destination
        that is not configured; ``0xA900`` for an identifier that fits no level; ``0xFE00`` when
        called off.

        References
        ----------
        DICOM PS3.4 C.4.2.1.5, C.4.3.1.4.
        """
        retrieval = _Retrieval(call, self._inspector, self._policy_of(call.calling_ae))
        try:
            status, comment = _outcome_of(retrieval)
            retrieval.finish(status, comment)
        finally:
            retrieval.close()


def _outcome_of(retrieval: _Retrieval) -> tuple[int, str]:
    """Do the work; return the final status and what is said beside it (PeerGone)."""
    try:
        status = retrieval.run()
    except PeerGone:
        raise
    except Cancelled:
        return CANCELLED, ""
    except _UnknownDestination as error:
        return UNKNOWN_DESTINATION, str(error)
    except IdentifierError as error:
        return error.status, str(error)
    except ForwardError as error:
        return CANNOT_COUNT, str(error)
    except RegistryError:  # the log has it
        return CANNOT_COUNT, REGISTRY_AWAY
    except NodeError as error:
        log.error("retrieve failed", reason=str(error))  # noqa: TRY400 - the reason says it
        return CANNOT_PERFORM, str(error)
    return status, "" if status == SUCCESS else "; ".join(retrieval.tally.notes)


class _UnknownDestination(IdentifierError):
    """A move destination that is not configured."""


class _Retrieval:
    """One request on its way."""

    def __init__(self, call: Call, inspector: Inspector, policy: Policy) -> None:
        self.tally = Tally()
        self._call = call
        self._inspector = inspector
        self._policy = policy
        self._sender: Sender | None = None
        self._destination: MoveDestinationConfig | None = None
        self._receiver_gone = ""
        self._planned = False  # before that nobody knows how many sub-operations there will be
        self._spoke_at = time.monotonic()
        self._events: list[Event] = []

    def run(self) -> int:
        """Do all of it; return the final status."""
        call = self._call
        inquiry = identifiers.parse(
            call.identifier, call.transfer_syntax_uid, patient_root=call.patient_root,
            retrieve=True,
        )  # fmt: skip
        if call.request.kind == "move":
            self._destination = self._destination_of(call.request.move_destination)
        work = [(wanted, self._plan(wanted)) for wanted in self._wanted(inquiry)]
        expected = self._expected(work)
        self.tally.remaining = sum(len(planned) for _, planned in work)
        self.tally.remaining += sum(len(uids) for _, uids in expected)
        self._planned = True
        self._sender = self._open_sender([p.sop_class_uid for _, plan in work for p in plan])
        for (wanted, planned), (entries, uids) in zip(work, expected, strict=True):
            self._study(wanted, planned, entries, uids)
        return self.tally.status

    def _expected(
        self, work: Sequence[tuple[Wanted, tuple[Planned, ...]]]
    ) -> list[tuple[tuple[MarkedInstance, ...], tuple[str, ...]]]:
        """Return what is registered of each, and what of it the PACS does not list.

        While the registry is away nobody can be refused what is stripped or superseded: only a
        client that gets everything as it is gets it then, with a warning (RegistryError).
        """
        try:
            return [
                self._inspector.expected(wanted, planned, self._quiet) for wanted, planned in work
            ]
        except RegistryError:
            if self._policy != "as-is":
                raise
            self.tally.unsure = True
            self.tally.notes.append(REGISTRY_AWAY)
            return [((), ()) for _ in work]

    def _destination_of(self, ae_title: str) -> MoveDestinationConfig:
        for each in self._inspector.config.move_destination:
            if each.ae_title == ae_title:
                return each
        raise _UnknownDestination("no [[move_destination]] has this AE title")

    def _open_sender(self, classes: Sequence[str]) -> Sender:
        config = self._inspector.config
        most = config.watermark.max_pixels
        if self._destination is None:
            return ClientSender(self._call, most)
        known = list(dict.fromkeys(each for each in classes if each))
        return MoveSender(self._destination, config.verify.ae_title, known, most, self._watch,
                          self._call.originator)  # fmt: skip

    def _wanted(self, inquiry: Inquiry) -> list[Wanted]:
        if inquiry.level == "STUDY" and "PatientID" not in inquiry.keys:
            return [Wanted(study) for study in inquiry.studies]
        if inquiry.level in ("SERIES", "IMAGE"):
            return [Wanted(inquiry.studies[0], inquiry.series, inquiry.instances)]
        # The PACS says which studies are this patient's.
        keys = identifiers.keys_of("STUDY", {}, ("StudyInstanceUID",))
        keys["PatientID"] = inquiry.keys["PatientID"]
        if inquiry.studies:
            keys.StudyInstanceUID = list(inquiry.studies)
        if "SpecificCharacterSet" in inquiry.keys:
            keys.SpecificCharacterSet = inquiry.keys.SpecificCharacterSet
        found = self._inspector.pacs.studies_by(keys, self._quiet)
        return [Wanted(identifiers.text_of(match, "StudyInstanceUID")) for match in found]

    def _plan(self, wanted: Wanted) -> tuple[Planned, ...]:
        return self._inspector.pacs.plan(wanted, self._quiet)

    def _quiet(self) -> bool:
        self._watch()
        return False

    def _watch(self) -> None:
        """Look after the client: its C-CANCEL, and that it hears of us now and then."""
        if self._call.cancelled:
            raise Cancelled("called off by the client")
        if time.monotonic() - self._spoke_at > HEARTBEAT_S:
            self._say()

    def _say(self) -> None:
        self._call.pending(counts=self.tally.counts() if self._planned else None)
        self._spoke_at = time.monotonic()

    # One study

    def _study(
        self, wanted: Wanted, planned: Sequence[Planned], entries: Sequence[MarkedInstance],
        absent: Sequence[str],
    ) -> None:  # fmt: skip
        """Fetch, check and send on; what did not come has failed."""
        before = self.tally.counts()
        found: list[CheckedInstance] = []
        due = Due(planned, absent)
        self._receiver_gone = ""  # it may be back for this study
        error, complete = "", not planned
        shortfall: Fetched | None = None
        try:
            if planned:
                with CheckedFetch(
                    self._inspector.fetcher, self._inspector.pool, wanted, planned,
                    restore=self._policy == "restored",
                ) as arrivals:  # fmt: skip
                    self._relay(arrivals, found, due, entries)
                shortfall = arrivals.shortfall
                error = str(arrivals.error or (shortfall.reason if shortfall else ""))
                complete = arrivals.fetched is not None and not self._receiver_gone
            for uid in due.left():
                self.tally.count("failed", uid)
        finally:
            self._note(wanted, planned, entries, found, before, error, complete=complete,
                       shortfall=shortfall)  # fmt: skip

    def _relay(
        self, arrivals: CheckedFetch, found: list[CheckedInstance], due: Due,
        entries: Sequence[MarkedInstance],
    ) -> None:  # fmt: skip
        known: dict[str, list[MarkedInstance]] = {}
        for entry in entries:
            known.setdefault(entry.sop_instance_uid, []).append(entry)
        for arrival in arrivals:
            self._watch()
            if arrival is None:
                continue
            one = found_of(arrival)
            found.append(one)
            uid = arrival.incoming.sop_instance_uid or one.sop_instance_uid
            if not due.take(uid, one.series_instance_uid):
                self.tally.remaining += 1  # extra: nobody counted on it
            alone = study_check(one.study_instance_uid, [one], known.get(one.sop_instance_uid, []))
            suspect = one.suspect or bool(alone.stripped or alone.superseded)
            outcome = self._send_on(arrival, one, suspect=suspect)
            self.tally.count(outcome, uid)
            self._say()
            if self._receiver_gone:
                return

    def _send_on(self, arrival: Arrival, one: CheckedInstance, *, suspect: bool) -> str:
        """Send one instance as the policy says; return how that counts."""
        if suspect and self._policy == "refuse-tampered":
            return "failed"
        path: Path | None = arrival.path
        if self._policy == "restored":
            path = self._restored(arrival, one)
        if path is None or not self._deliver(path, one):
            return "failed"
        return "warning" if suspect or self.tally.unsure else "completed"

    def _restored(self, arrival: Arrival, one: CheckedInstance) -> Path | None:
        """Return the original; None where there is one and it cannot be had exactly."""
        carries = any(frame.integrity != "absent" for frame in one.verdict.frames)
        as_received = arrival.original is None and not carries
        if as_received and one.verdict.verdict in ("authentic", "unmarked"):
            return arrival.path  # neither its pixels nor its references were changed
        checked = arrival.checked
        self._events.append(
            Restored(
                at=datetime.now(UTC), sop_instance_uid=one.sop_instance_uid,
                study_instance_uid=one.study_instance_uid, sop_class_uid=one.sop_class_uid,
                by=self._call.calling_ae, how="retrieve", destination=self._receiver,
                key_id=one.verdict.signed_by.hex(), exact=bool(checked.exact),
                reason=checked.reason,
            )
        )  # fmt: skip
        return arrival.original

    def _deliver(self, path: Path, one: CheckedInstance) -> bool:
        assert self._sender is not None, "opened before anything is fetched"
        try:
            status = self._sender.send(path, readable=one.verdict.verdict != "unreadable")
        except (AssociationRejected, AssociationLost) as error:
            self._receiver_gone = str(error)
            self.tally.notes.append(f"{self._sender.name} is away")
        except (ContextRefused, ForwardError, ValueError, OSError) as error:
            log.warning("sub-operation failed", receiver=self._receiver,
                        sop_instance_uid=one.sop_instance_uid, reason=str(error))  # fmt: skip
        else:
            if status == SUCCESS or status >> 12 == 0xB:
                return True
            log.warning("sub-operation refused", receiver=self._receiver,
                        sop_instance_uid=one.sop_instance_uid,
                        status=f"0x{status:04X}")  # fmt: skip
        return False

    @property
    def _receiver(self) -> str:
        destination = self._destination
        return self._call.calling_ae if destination is None else destination.ae_title

    def _note(
        self, wanted: Wanted, planned: Sequence[Planned], entries: Sequence[MarkedInstance],
        found: Sequence[CheckedInstance], before: SubOperations, error: str, *, complete: bool,
        shortfall: Fetched | None,
    ) -> None:  # fmt: skip
        """Remember the verdicts, and tell the audit trail and the client how it was."""
        recorder, call = self._inspector.recorder, self._call
        check = study_check(
            wanted.study_instance_uid, found, entries, destination=self._inspector.pacs.name,
            listed=[each.sop_instance_uid for each in planned],
            failure=shortfall.reason if shortfall else "",
            failed=shortfall.failed_uids if shortfall else (),
        )  # fmt: skip
        self.tally.notes += in_words(check, error)
        if headers := check.headers.to_log():  # a success has no comment to say it in
            log.warning("headers not as signed", calling_ae=call.calling_ae,
                        study_instance_uid=check.study_instance_uid, **headers)  # fmt: skip
        missing = len(check.absent) if complete else 0
        events = [*self._events, *self._told(check, before, missing)]
        self._events.clear()
        try:
            self._remember(check, missing=missing_entries(check) if complete else ())
        finally:
            recorder.record(*events)

    def _remember(self, check: StudyCheck, missing: Sequence[MarkedInstance]) -> None:
        recorder, ae_title = self._inspector.recorder, self._call.calling_ae
        if self.tally.unsure:
            # The registry may be back: a verdict without what it knows is none to keep there.
            now = datetime.now(UTC)
            recorder.record(*(verified(each, ae_title, now) for each in check.instances))
            return
        recorder.remember(
            check.instances, checked_by=ae_title, missing=missing, entries=check.entries,
            watch=self._quiet,
        )

    def _told(self, check: StudyCheck, before: SubOperations, missing: int) -> list[Event]:
        call, tally = self._call, self.tally
        destination = self._destination
        address = call.peer if destination is None else destination.host
        now = datetime.now(UTC)
        classes = tuple(dict.fromkeys(each.sop_class_uid for each in check.instances))
        given: list[Event] = [
            Retrieved(
                at=now, client_ae=call.calling_ae, client_address=call.peer,
                destination_ae=self._receiver, destination_address=address,
                how="move" if call.request.kind == "move" else "get",
                study_instance_uid=check.study_instance_uid, sop_class_uids=classes,
                instances=tally.completed - before.completed, failed=tally.failed - before.failed,
                warnings=tally.warning - before.warning, policy=self._policy, status=tally.status,
                verdict=check.verdict,
            )
        ]  # fmt: skip
        if (check.instances or missing) and tally.status != SUCCESS:
            given.append(
                verdict_given(check, call.calling_ae, "retrieve", address=call.peer,
                              missing=missing)
            )  # fmt: skip
        return given

    # The end

    def finish(self, status: int, comment: str) -> None:
        """Answer for the last time."""
        call, tally = self._call, self.tally
        if status not in (SUCCESS, CANCELLED, WITH_FAILURES):
            self._inspector.recorder.record(
                Refused(at=datetime.now(UTC), stage="retrieve", reason=comment,
                        peer_ae=call.calling_ae, peer_address=call.peer, status=status)
            )  # fmt: skip
        identifier = None
        if tally.failed_uids:
            ds = Dataset()
            ds.FailedSOPInstanceUIDList = tally.failed_uids
            identifier = identifiers.encode(ds, call.transfer_syntax_uid)
        call.finish(status, counts=tally.counts(), comment=comment, identifier=identifier)

    def close(self) -> None:
        """Release the move destination."""
        if self._sender is not None:
            with suppress(PeerGone):
                self._sender.close()
