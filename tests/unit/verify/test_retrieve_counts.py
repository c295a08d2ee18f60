"""Sub-operations of C-MOVE and C-GET: every instance counts once, whatever the PACS sends."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from dicom_node.dimse import Incoming, MoveOriginator
from dicom_node.dimse.query_commands import QueryRequest
from dicom_node.dimse.query_scp import STUDY_ROOT, SUFFIX
from dicom_node.errors import AssociationLost, RegistryError
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify import identifiers, retrieve
from dicom_node.verify.checking import Checked
from dicom_node.verify.fetching import Fetched
from dicom_node.verify.pacs import Planned
from dicom_node.verify.retrieve_tally import Due
from dicom_node.verify.study import CheckedInstance
from dicom_node.verify.verdict import InstanceVerdict

EXPLICIT, CT = "1.2.840.10008.1.2.1", "1.2.840.10008.5.1.4.1.1.2"


def instance(uid, verdict="authentic", series="1.1", called=None):
    """Return what the PACS sends under the UID `called`, and what its header says."""
    found = CheckedInstance(InstanceVerdict("", uid, verdict), "1", series, CT, EXPLICIT)
    return called or uid, found


UNREADABLE = instance("", "unreadable", series="", called="1.1.2")


class Inspector:
    """A PACS that sends, and checks that find, what a table by study says."""

    def __init__(self, folder, planned, sent, absent=()):
        self._folder, self._planned, self._sent, self._absent = folder, planned, sent, absent
        self._found = {}
        self.events, self.remembered = [], []
        self.registry_away, self.known = False, ()
        self.config = SimpleNamespace(
            move_destination=[SimpleNamespace(ae_title="THERE", name="there", host="there")],
            watermark=SimpleNamespace(max_pixels=1 << 20), verify=SimpleNamespace(ae_title="US"),
        )  # fmt: skip
        self.name = "pacs"
        self.pacs = self.fetcher = self.pool = self.recorder = self

    def plan(self, wanted, watch):
        uids = self._planned[wanted.study_instance_uid]
        return tuple(Planned(uid, CT, "1.1") for uid in uids)

    def expected(self, wanted, planned, watch):
        if self.registry_away:
            raise RegistryError("the registry postgresql://db/registry: connection refused")
        return self.known, tuple(self._absent)

    def fetch(self, wanted, planned, take, watch, opened):
        for called, found in self._sent[wanted.study_instance_uid]:
            path = self._folder / f"{len(self._found)}.dcm"
            path.touch()
            self._found[path] = found
            take(path, Incoming(CT, called, EXPLICIT, "PACS", "US", ""))
        return Fetched("get")

    def check(self, task, watch):
        done = Future()
        done.set_result(Checked(self._found[task.path]))
        return done

    def remember(self, found, **_):
        self.remembered += found

    def record(self, *events):
        self.events += events


class Call:
    """A client that takes every answer."""

    def __init__(self, kind, *studies):
        self.request = QueryRequest(kind, 1, STUDY_ROOT + SUFFIX[kind], "THERE")
        keys = identifiers.keys_of("STUDY", {"StudyInstanceUID": "\\".join(studies)})
        self.identifier = identifiers.encode(keys, EXPLICIT)
        self.transfer_syntax_uid, self.patient_root, self.cancelled = EXPLICIT, False, False
        self.calling_ae, self.peer = "AUDITOR", "192.0.2.1"
        self.originator = MoveOriginator("AUDITOR", 1)
        self.said, self.status, self.failed = [], None, []

    def pending(self, identifier=None, *, counts=None):
        self.said.append(counts)

    def finish(self, status, *, counts, comment, identifier):
        self.status, self.comment = status, comment
        self.said.append(counts)
        if identifier is not None:
            listed = identifiers.decode(identifier, EXPLICIT).FailedSOPInstanceUIDList
            self.failed = [listed] if isinstance(listed, str) else list(listed)


class Receiver:
    """Takes every instance but those it fails on, once each."""

    name = "there"

    def __init__(self, *failures):
        self._failures = list(failures)
        self.sent = self.unreadable = 0

    def send(self, path, *, readable=True):
        self.sent += 1
        self.unreadable += not readable
        if self.sent in self._failures:
            raise AssociationLost(self.name, "1.1", "gone")
        return 0x0000

    def close(self):
        pass


@pytest.fixture
def retrieved(tmp_path, monkeypatch):
    def retrieved(planned, sent, absent=(), receiver=None, *, policy="as-is", away=False, known=()):
        receiver = receiver or Receiver()
        monkeypatch.setattr(retrieve, "MoveSender", lambda *_: receiver)
        inspector = Inspector(tmp_path, planned, sent, absent)
        inspector.registry_away, inspector.known = away, known
        call = Call("move", *planned)
        retrieve.RetrieveHandler(inspector, lambda _: policy)(call)
        call.events, call.remembered = inspector.events, inspector.remembered
        return call

    return retrieved


def numbers(counts):
    return counts.remaining, counts.completed, counts.failed, counts.warning


@pytest.mark.parametrize(
    ("odd", "counted"),
    [
        (UNREADABLE, (0, 1, 0, 1)),
        (instance("1.1.2", series="9.9"), (0, 2, 0, 0)),
        (instance("9.9.9", called="1.1.2"), (0, 2, 0, 0)),
    ],
    ids=["unreadable header", "another series than the index has", "another UID inside"],
)
def test_an_instance_that_the_pacs_knows_otherwise_counts_once(retrieved, odd, counted):
    call = retrieved({"1": ["1.1.1", "1.1.2"]}, {"1": [instance("1.1.1"), odd]})
    assert numbers(call.said[-1]) == counted
    assert call.failed == []
    assert {sum(numbers(each)) for each in call.said} == {2}


def test_who_sends_it_is_told_what_could_not_be_read(retrieved):
    receiver = Receiver()
    sent = {"1": [instance("1.1.1"), UNREADABLE, instance("1.1.3", "tampered")]}
    retrieved({"1": ["1.1.1", "1.1.2", "1.1.3"]}, sent, receiver=receiver)
    assert (receiver.sent, receiver.unreadable) == (3, 1)


def test_what_the_pacs_does_not_list_and_sends_has_not_failed(retrieved):
    sent = {"1": [instance("1.1.1"), instance("1.1.2")]}
    call = retrieved({"1": ["1.1.1"]}, sent, absent=["1.1.2", "1.1.3"])
    assert numbers(call.said[-1]) == (0, 2, 1, 0)
    assert call.failed == ["1.1.3"]
    assert {sum(numbers(each)) for each in call.said} == {3}


def test_an_extra_instance_adds_one_to_the_total(retrieved):
    call = retrieved({"1": ["1.1.1"]}, {"1": [instance("1.1.1"), instance("1.1.9")]})
    assert [sum(numbers(each)) for each in call.said] == [1, 2, 2]
    assert (call.status, numbers(call.said[-1])) == (0x0000, (0, 2, 0, 0))


def test_what_did_not_come_is_failed_in_the_audit_trail_too(retrieved):
    call = retrieved({"1": ["1.1.1", "1.1.2"]}, {"1": [instance("1.1.1")]}, absent=["1.1.3"])
    assert numbers(call.said[-1]) == (0, 1, 2, 0)
    [event] = [event for event in call.events if event.kind == "retrieved"]
    assert (event.instances, event.failed, event.status) == (1, 2, 0xB000)


@pytest.mark.parametrize(
    ("verdict", "told"), [("authentic", []), ("unmarked", []), ("tampered", ["tampered"])]
)
def test_the_trail_tells_what_was_handed_over_and_what_was_said_of_it(retrieved, verdict, told):
    call = retrieved({"1": ["1.1.1", "1.1.2"]},
                     {"1": [instance("1.1.1"), instance("1.1.2", verdict)]})  # fmt: skip
    [event] = [event for event in call.events if event.kind == "retrieved"]
    assert (event.client_ae, event.destination_ae, event.verdict) == ("AUDITOR", "THERE", verdict)
    given = [event for event in call.events if event.kind == "verdict-given"]
    assert [event.verdict for event in given] == told
    assert {event.given_to for event in given} <= {"AUDITOR"}


def delivered(uid):
    """Return the registry's record of an instance that the PACS took."""
    return MarkedInstance(
        uid, "1.1", "1", CT, EXPLICIT, "marked", bytes(32), uid.encode().ljust(32, b"."), bytes(8),
        0, 0.0, "MODALITY", "CT", 1, 1, deliveries=(DeliveryEntry("pacs", 0, 0.0),),
    )  # fmt: skip


def test_the_verdict_that_a_whole_transfer_gave_counts_what_is_missing(retrieved):
    known = [delivered("1.1.1"), delivered("1.1.2")]
    call = retrieved({"1": ["1.1.1"]}, {"1": [instance("1.1.1")]}, ["1.1.2"], known=known)
    [given] = [event for event in call.events if event.kind == "verdict-given"]
    assert (given.verdict, given.counts) == ("authentic", {"authentic": 1, "missing": 1})


def test_a_whole_study_that_is_missing_is_told_in_the_trail_as_missing(retrieved):
    call = retrieved({"1": []}, {}, ["1.1.1"], known=[delivered("1.1.1")])
    [given] = [event for event in call.events if event.kind == "verdict-given"]
    assert (given.verdict, given.counts) == ("missing", {"missing": 1})


def test_while_the_registry_is_away_what_is_handed_over_is_a_warning_that_says_so(retrieved):
    call = retrieved({"1": ["1.1.1"]}, {"1": [instance("1.1.1")]}, away=True)
    assert (call.status, numbers(call.said[-1])) == (0xB000, (0, 0, 0, 1))
    assert call.comment == "the registry is away"
    assert call.remembered == []
    assert [event.verdict for event in call.events if event.kind == "verified"] == ["authentic"]


def test_while_the_registry_is_away_no_instances_are_no_success(retrieved):
    call = retrieved({"1": []}, {}, away=True)
    assert (call.status, call.comment) == (0xB000, "the registry is away")


@pytest.mark.parametrize("policy", ["refuse-tampered", "restored"])
def test_while_the_registry_is_away_a_policy_that_needs_it_hands_nothing_over(retrieved, policy):
    receiver = Receiver()
    call = retrieved(
        {"1": ["1.1.1"]}, {"1": [instance("1.1.1")]}, receiver=receiver, policy=policy, away=True
    )
    assert (call.status, call.comment, receiver.sent) == (0xA701, "the registry is away", 0)
    assert [event.kind for event in call.events] == ["refused"]


def test_a_receiver_that_was_away_for_one_study_gets_the_next_ones(retrieved):
    planned = {study: [f"{study}.1.{n}" for n in (1, 2, 3)] for study in ("1", "2", "3")}
    sent = {study: [instance(uid) for uid in uids] for study, uids in planned.items()}
    call = retrieved(planned, sent, receiver=Receiver(2))
    assert numbers(call.said[-1]) == (0, 7, 2, 0)
    assert call.failed == ["1.1.2", "1.1.3"]
    assert {sum(numbers(each)) for each in call.said} == {9}


def test_the_same_uid_in_two_series_is_counted_on_twice():
    due = Due([Planned("1.1", CT, "a"), Planned("1.1", CT, "b")])
    assert due.take("1.1", "b")
    assert due.left() == ["1.1"]
    assert due.take("1.1", "")
    assert not due.take("1.1", "a")
    assert due.left() == []
