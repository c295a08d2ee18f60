"""Audit messages: valid by the standard's schema, and what they say of every event."""

import base64
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree as Xml

import audit_schema
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.audit import events
from dicom_node.audit.message_xml import Node
from dicom_node.audit.messages import MOST_INSTANCES, messages_of

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
NODE = Node("DICOMNODE", "node.example", "TEST-HOSPITAL")
CT = "1.2.840.10008.5.1.4.1.1.2"


def marked(number=1, study="1.2.9", **more):
    return events.Marked(at=AT, sop_instance_uid=f"1.2.{number}", sop_class_uid=CT,
                         study_instance_uid=study, source_ae="CT1", **more)  # fmt: skip


EVERY = {
    "start": events.Activity(at=AT, action="start"),
    "marked": marked(source_address="10.0.0.1"),
    "untouched": marked(action="untouched"),
    "forwarded": events.Forwarded(at=AT, sop_instance_uid="1.2.1", study_instance_uid="1.2.9",
                                  destination="pacs", ae_title="ORTHANC", address="pacs.example"),
    **{f"refused {stage}": events.Refused(at=AT, stage=stage, outcome="held", reason="too dark",
                                          sop_instance_uid="1.2.1", study_instance_uid="1.2.9",
                                          peer_ae="X", status=0xA700)
       for stage in ("associate", "receive", "mark", "forward", "query", "retrieve")},
    "queried": events.Queried(at=AT, client_ae="AUDITOR", client_address="::1", level="STUDY",
                              keys=("00080052", "00100010", "0020000D"),
                              study_instance_uid="1.2.9", matches=4),
    "retrieved": events.Retrieved(at=AT, client_ae="AUDITOR", destination_ae="WS", instances=3,
                                  failed=2, study_instance_uid="1.2.9", sop_class_uids=(CT,),
                                  status=0xB000, policy="refuse-tampered"),
    "authentic": events.Verified(at=AT, sop_instance_uid="1.2.1", verdict="authentic",
                                 study_instance_uid="1.2.9", checked_by="AUDITOR"),
    "tampered": events.Verified(at=AT, sop_instance_uid="1.2.1", verdict="tampered",
                                study_instance_uid="1.2.9", checked_by="audit"),
    "header changed": events.Verified(at=AT, sop_instance_uid="1.2.1", verdict="authentic",
                                      study_instance_uid="1.2.9", checked_by="AUDITOR",
                                      changed=("Laterality", "PatientName")),
    "header unsealed": events.Verified(at=AT, sop_instance_uid="1.2.1", verdict="authentic",
                                       study_instance_uid="1.2.9", checked_by="AUDITOR",
                                       header_seal="absent"),
    "verdict given": events.VerdictGiven(at=AT, given_to="AUDITOR", verdict="tampered",
                                         study_instance_uid="1.2.9", counts={"tampered": 1}),
    "verdict of a whole study": events.VerdictGiven(
        at=AT, given_to="AUDITOR", verdict="authentic", study_instance_uid="1.2.9", how="retrieve",
        counts={"authentic": 3, "unmarked": 1}),
    **{f"nightly {what}": events.VerdictGiven(
        at=AT, given_to="nightly", verdict="authentic", study_instance_uid="1.2.9", how="nightly",
        counts={"authentic": 3, what: 2}) for what in ("missing", "superseded")},
    "restored": events.Restored(at=AT, sop_instance_uid="1.2.1", study_instance_uid="1.2.9",
                                by="root@node", destination="file:/out", exact=True),
    "restored to": events.Restored(at=AT, sop_instance_uid="1.2.1", by="WS", how="retrieve"),
    "key made": events.KeyUsed(at=AT, use="init", key_id="ab" * 8, by="root@node"),
    "key used": events.KeyUsed(at=AT, use="restore", key_id="ab" * 8, by="root@node"),
    "recovered": events.Recovered(at=AT, size=12, digest="ab" * 32, kept_as="torn-4.bin"),
}  # fmt: skip


def told(*some):
    """Return the parsed messages about some events, after the schema has been held against them."""
    messages = messages_of(some, NODE)
    for message in messages:
        assert audit_schema.problems(message.xml) == [], message.xml.decode()
    return [Xml.fromstring(message.xml) for message in messages]


def summary(root):
    event = root.find("EventIdentification")
    types = [each.get("csd-code") for each in event.findall("EventTypeCode")]
    return (event.find("EventID").get("csd-code"), event.get("EventActionCode"),
            event.get("EventOutcomeIndicator"), *types)  # fmt: skip


def parties(root):
    return {
        (role.get("csd-code") if (role := each.find("RoleIDCode")) is not None else None):
        each.get("AlternativeUserID", each.get("UserID")) for each in
        root.findall("ActiveParticipant")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("start", [("110100", "E", "0", "110120")]),
        ("marked", [("110104", "C", "0"), ("110103", "U", "0")]),
        ("untouched", [("110104", "C", "0")]),
        ("forwarded", [("110104", "R", "0")]),
        ("refused associate", [("110113", "E", "4", "110126")]),
        ("refused receive", [("110104", "C", "4")]),
        ("refused mark", [("110103", "U", "4")]),
        ("refused forward", [("110104", "R", "4")]),
        ("refused query", [("110112", "E", "4")]),
        ("refused retrieve", [("110104", "R", "4")]),
        ("queried", [("110112", "E", "0")]),
        ("retrieved", [("110104", "R", "0"), ("110104", "R", "8")]),
        ("authentic", [("110103", "R", "0")]),
        ("tampered", [("110103", "R", "0"), ("110113", "E", "8", "integrity")]),
        ("header changed", [("110103", "R", "0"), ("110113", "E", "4", "header")]),
        ("header unsealed", [("110103", "R", "0"), ("110113", "E", "4", "header")]),
        ("verdict given", [("110103", "R", "0"), ("110113", "E", "8", "integrity")]),
        ("verdict of a whole study", [("110103", "R", "0")]),
        ("nightly missing", [("110103", "R", "0"), ("110113", "E", "8", "integrity")]),
        ("nightly superseded", [("110103", "R", "0"), ("110113", "E", "8", "integrity")]),
        ("restored", [("110106", "R", "0")]),
        ("restored to", [("110103", "R", "8")]),
        ("key made", [("110113", "E", "0", "110129")]),
        ("key used", [("110113", "E", "0", "110132")]),
        ("recovered", [("110113", "E", "4", "110133")]),
    ],
)
def test_every_event_becomes_these_messages(name, said):
    assert [summary(root) for root in told(EVERY[name])] == said


def said_in(*some):
    return [root.findtext("EventIdentification/EventOutcomeDescription") for root in told(*some)]


def test_a_verdict_that_was_given_is_told_with_its_counts_and_its_study():
    assert said_in(EVERY["verdict of a whole study"]) == [
        "verdict authentic: 3 authentic, 1 unmarked"
    ]
    assert said_in(EVERY["nightly missing"]) == 2 * ["verdict authentic: 3 authentic, 2 missing"]
    gone = replace(EVERY["nightly missing"], verdict="unmarked", counts={"missing": 4})
    assert said_in(gone) == 2 * ["verdict unmarked: 4 missing"]
    for root in told(gone):
        named = root.find("ParticipantObjectIdentification").get("ParticipantObjectID")
        assert named == "1.2.9"


@pytest.mark.parametrize("what", ["tampered", "foreign", "unreadable", "missing", "superseded"])
def test_anything_suspect_or_gone_in_a_study_is_an_alert(what):
    one = replace(EVERY["verdict of a whole study"], counts={"authentic": 2, what: 1})
    assert [summary(root)[0] for root in told(one)] == ["110103", "110113"]
    none = replace(one, counts={"authentic": 2, what: 0})
    assert [summary(root)[0] for root in told(none)] == ["110103"]


@pytest.mark.parametrize(
    "event",
    [replace(EVERY["verdict given"], how="command", given_to="root@node"),
     replace(EVERY["verdict given"], how="report", given_to="root@node"),
     EVERY["nightly missing"],
     *(replace(EVERY["authentic"], checked_by=by) for by in ("cli", "audit", "nightly"))],
)  # fmt: skip
def test_only_an_application_is_named_by_an_ae_title(event):
    name = event.given_to if isinstance(event, events.VerdictGiven) else event.checked_by
    root = told(event)[0]
    [asked] = [each for each in root.findall("ActiveParticipant")
               if each.get("UserIsRequestor") == "true"]  # fmt: skip
    assert (asked.get("UserID"), asked.get("AlternativeUserID")) == (name, None)


@pytest.mark.parametrize("name", ["verdict given", "verdict of a whole study", "authentic"])
def test_a_client_of_the_network_is_named_by_its_ae_title(name):
    assert "AETITLES=AUDITOR" in parties(told(EVERY[name])[0]).values()


def test_a_changed_header_is_named_beside_any_verdict():
    changed = replace(EVERY["tampered"], changed=("PatientID",), reason="frame 1 was changed")
    said = [
        [root.findtext("EventIdentification/EventOutcomeDescription") for root in told(event)]
        for event in (EVERY["header changed"], EVERY["header unsealed"], changed)
    ]
    assert said == [
        ["header changed: Laterality, PatientName",
         "verdict authentic; header changed: Laterality, PatientName"],
        ["header seal absent", "verdict authentic; header seal absent"],
        ["header changed: PatientID",
         "verdict tampered: frame 1 was changed; header changed: PatientID"],
    ]  # fmt: skip


def test_instances_whose_headers_differ_share_no_message():
    one = EVERY["header changed"]
    other = replace(one, sop_instance_uid="1.2.2", changed=("PatientID",))
    same = replace(one, sop_instance_uid="1.2.3")
    assert len(told(one, same)) == 2
    assert len(told(one, other)) == 4


def test_an_unmarked_instance_without_a_seal_is_no_alert_about_its_header():
    one = replace(EVERY["header unsealed"], verdict="content-preserved")
    assert [summary(root) for root in told(one)] == [("110103", "R", "0")]


def test_every_kind_of_event_is_among_the_examples():
    assert {type(event) for event in EVERY.values()} == set(events.KINDS.values())


@pytest.mark.parametrize("name", EVERY)
def test_a_message_names_one_requestor_at_most_and_its_source(name):
    for root in told(EVERY[name]):
        asked = [each.get("UserIsRequestor") for each in root.findall("ActiveParticipant")]
        assert asked.count("true") <= 1
        source = root.find("AuditSourceIdentification")
        assert source.get("AuditSourceID") == "DICOMNODE@node.example"
        assert root.find("EventIdentification").get("EventDateTime").startswith("2026-11-22T03:00")


def test_source_and_destination_are_who_sent_and_who_got():
    received, _ = told(EVERY["marked"])
    assert parties(received) == {"110153": "AETITLES=CT1", "110152": "AETITLES=DICOMNODE"}
    [sent] = told(EVERY["forwarded"])
    assert parties(sent) == {"110153": "AETITLES=DICOMNODE", "110152": "AETITLES=ORTHANC"}
    given, _ = told(EVERY["retrieved"])
    assert parties(given) == {"110153": "AETITLES=DICOMNODE", "110152": "AETITLES=WS",
                              None: "AETITLES=AUDITOR"}  # fmt: skip


@pytest.mark.parametrize(
    ("address", "point"),
    [("10.0.0.1", ("10.0.0.1", "2")), ("10.0.0.1:104", ("10.0.0.1", "2")), ("::1", ("::1", "2")),
     ("[fe80::7]:104", ("fe80::7", "2")), ("pacs.example:104", ("pacs.example", "1"))],
)  # fmt: skip
def test_a_peer_is_found_by_its_address_without_its_port(address, point):
    [root] = told(events.Forwarded(at=AT, sop_instance_uid="1.2", ae_title="X", address=address))
    peer = root.findall("ActiveParticipant")[1]
    assert (peer.get("NetworkAccessPointID"), peer.get("NetworkAccessPointTypeCode")) == point


def test_a_study_sent_together_is_one_message_that_lists_its_instances():
    some = [marked(k) for k in range(5)] + [marked(k, "1.2.8") for k in range(2)]
    first, _, second, _ = told(*some)
    listed = [each.get("UID") for each in first.iter("Instance")]
    assert listed == [f"1.2.{k}" for k in range(5)]
    assert first.find(".//SOPClass").get("NumberOfInstances") == "5"
    assert [each.get("ParticipantObjectID") for each in second.iter(
        "ParticipantObjectIdentification")] == ["1.2.8"]  # fmt: skip


def test_messages_fit_a_datagram_whatever_a_peer_writes():
    long = "9" * 60000
    some = [
        events.Marked(at=AT, sop_instance_uid=f"1.2.{k}.{long}", sop_class_uid=f"{k}{long}",
                      study_instance_uid="1.2", source_ae=long) for k in range(200)
    ]  # fmt: skip
    messages = messages_of(some, NODE)
    assert len(messages) == 2 * -(-200 // MOST_INSTANCES)
    assert max(len(message.xml) for message in messages) < 65000


def test_a_query_tells_its_keys_but_no_value_of_a_patient():
    [root] = told(EVERY["queried"])
    raw = base64.b64decode(root.find(".//ParticipantObjectQuery").text)
    asked = pydicom.filereader.read_dataset(
        pydicom.filebase.DicomBytesIO(raw), is_implicit_VR=True, is_little_endian=True
    )
    assert asked.StudyInstanceUID == "1.2.9"
    assert (asked.PatientName, asked.QueryRetrieveLevel) == ("", "")


def test_failures_say_why():
    [root] = told(EVERY["refused mark"])
    assert root.find(".//EventOutcomeDescription").text == "too dark"


@given(text=st.text(max_size=40))
def test_what_a_peer_calls_itself_cannot_break_the_xml(text):
    [root] = told(events.VerdictGiven(at=AT, given_to=text, verdict=text, address=text.strip(),
                                      study_instance_uid="1.2"))  # fmt: skip
    assert root.tag == "AuditMessage"


def test_the_schema_refuses_what_is_wrong():
    good = messages_of([EVERY["marked"]], NODE)[0].xml.decode()
    for old, new in (('EventActionCode="C"', 'EventActionCode="X"'), ("<RoleIDCode", "<Role"),
                     (' UserIsRequestor="true"', ""), ("<ParticipantObjectName>study", "<Name>x"),
                     ('originalText="DICOM Instances Transferred"', 'Text="x"'),
                     ("T03:00:00.000000Z", "")):  # fmt: skip
        bad = good.replace(old, new)
        assert bad != good
        bad = bad.replace("<Role ", "<RoleIDCodes ").replace("</ParticipantObjectName>",
                          "</Name>" if "<Name>" in bad else "</ParticipantObjectName>")  # fmt: skip
        assert audit_schema.problems(bad.encode()) != [], old
