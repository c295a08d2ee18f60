"""A header that is not what was signed is told wherever a verdict is, and changes none."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dicom_node.registry.records import VerdictEntry
from dicom_node.verify import standing
from dicom_node.verify.retrieve_tally import in_words
from dicom_node.verify.study import CheckedInstance, study_check
from dicom_node.verify.verdict import InstanceVerdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def found(uid, *changed, verdict="authentic", seal="valid"):
    said = InstanceVerdict("", uid, verdict, changed=changed, header_seal=seal)
    return CheckedInstance(said, "1.2", "1.2.1")


def entry(each):
    """Return what the registry keeps of a check."""
    details = json.dumps(each.to_json(), separators=(",", ":"))
    return VerdictEntry(each.sop_instance_uid, "1.2.1", "1.2", each.verdict.verdict,
                        NOW.timestamp(), "audit", details)  # fmt: skip


STUDY = [
    found("1"), found("2", "Laterality", "PatientName"), found("3", "PatientName"),
    found("4", seal="absent"), found("5", seal="invalid"),
    found("6", verdict="unmarked", seal="absent"), found("7", "PatientID", verdict="tampered"),
]  # fmt: skip
SAID = {
    "changed": 3, "unsealed": 2,
    "attributes": {"Laterality": 1, "PatientID": 1, "PatientName": 2},
    "instances": [
        {"sop_instance_uid": "2", "changed": ["Laterality", "PatientName"], "header_seal": "valid"},
        {"sop_instance_uid": "3", "changed": ["PatientName"], "header_seal": "valid"},
        {"sop_instance_uid": "4", "changed": [], "header_seal": "absent"},
        {"sop_instance_uid": "5", "changed": [], "header_seal": "invalid"},
        {"sop_instance_uid": "7", "changed": ["PatientID"], "header_seal": "valid"},
    ],
}  # fmt: skip


def test_every_header_that_is_not_as_signed_is_counted_and_named():
    check = study_check("1.2", STUDY)
    assert check.headers.to_json() == check.to_json()["headers"] == SAID
    assert not study_check("1.2", [found("1")]).headers


def test_a_changed_header_leaves_a_study_sound():
    check = study_check("1.2", [found("1", "PatientName"), found("2", seal="absent")])
    assert check.verdict == "authentic"
    assert check.sound
    assert check.headers


@pytest.mark.parametrize("level", ["STUDY", "SERIES"])
def test_c_find_names_them_of_a_check_made_now_and_of_the_last_one(level):
    now = standing.checked_standing(level, study_check("1.2", STUDY))
    last = standing.last_standing(level, [entry(each) for each in STUDY])
    for said in (now, last):
        assert (said.headers_changed, said.headers_unsealed) == (3, 2)
        assert said.details["headers"] == SAID
        # What is no finding about pixels stays out of these.
        assert [e["sop_instance_uid"] for e in said.details["findings"]] == ["7", "6"]


def test_verdicts_of_a_release_without_header_seals_are_read():
    old = replace(entry(found("1")), details='{"header":{"changed":["PatientID"]},"frames":[]}')
    bare = replace(old, sop_instance_uid="2", details="{}")
    said = standing.last_standing("STUDY", [old, bare])
    assert (said.headers_changed, said.headers_unsealed) == (1, 0)
    assert said.details["headers"]["attributes"] == {"PatientID": 1}


def test_a_single_change_is_named_first_among_those_of_a_whole_series():
    many = [found(str(n), *(f"Attribute{k:02}" for k in range(12))) for n in range(30)]
    check = study_check("1.2", [*many, found("99", "Laterality")])
    assert check.headers.named.startswith("Laterality, Attribute00, ")
    assert check.headers.named.endswith(" and 3 more")
    assert check.headers.to_log()["headers_changed"] == 31
    assert len(check.headers.to_json()["instances"]) == 20
    assert check.headers.to_json()["attributes"]["Laterality"] == 1


def test_an_error_comment_counts_them_beside_what_made_the_warning():
    assert in_words(study_check("1.2", STUDY), "") == [
        "1 tampered", "3 header changed", "2 header unsealed",
    ]  # fmt: skip
