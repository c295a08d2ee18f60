"""What a study check says of what came, and of what did not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify.report_facts import facts_of
from dicom_node.verify.retrieve_tally import in_words
from dicom_node.verify.study import CheckedInstance, study_check
from dicom_node.verify.verdict import InstanceVerdict

EXPLICIT, JPEG_LS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.80"


def found(uid, verdict="authentic", syntax=EXPLICIT, number=None, series="1.2.1"):
    return CheckedInstance(
        InstanceVerdict("", uid, verdict), "1.2", series, "1.1", syntax, "CT", number
    )


def entry(uid, *destinations, syntax=EXPLICIT, marked_at=0, action="marked"):
    deliveries = tuple(DeliveryEntry(name, 0, 0.0) for name in destinations)
    return MarkedInstance(
        uid, "1.2.1", "1.2", "1.1", syntax, action, b"", b"", b"", marked_at, 0.0, "M",
        deliveries=deliveries,
    )  # fmt: skip


def test_a_study_is_as_good_as_its_worst_instance():
    check = study_check("1.2", [found("1"), found("2", "tampered"), found("3", "unmarked")])
    assert check.verdict == "tampered"
    assert check.counts == {"authentic": 1, "tampered": 1, "unmarked": 1}
    assert not check.sound


def test_instances_are_in_the_order_of_the_series():
    check = study_check("1.2", [found("c", number=10), found("a", number=9), found("b", number=2)])
    assert [each.sop_instance_uid for each in check.instances] == ["b", "a", "c"]


def test_what_was_delivered_and_did_not_come_is_missing():
    entries = [entry("1", "pacs"), entry("2", "pacs"), entry("3", "other"), entry("4")]
    check = study_check("1.2", [found("1")], entries, destination="pacs")
    assert check.missing == ("2",)
    assert check.verdict == "authentic"
    assert not check.sound


def test_what_the_pacs_lists_and_does_not_send_is_missing_too():
    check = study_check("1.2", [found("1")], listed=["1", "9"])
    assert check.missing == ("9",)


FAILED = "pacs failed to send 1 (status 0xB000)"


def test_what_the_pacs_names_as_failed_is_told_apart_from_what_it_does_not_have():
    check = study_check("1.2", [found("1")], [entry("2", "pacs")], listed=["1", "3", "4"],
                        failure=FAILED, failed=["3"])  # fmt: skip
    assert check.missing == ("2", "3", "4")
    assert (check.unsent, check.absent) == (("3",), ("2", "4"))
    assert (check.sound, check.unfinished) == (False, False)
    said = check.to_json()
    assert (said["missing"], said["unsent"], said["failure"]) == (["2", "3", "4"], ["3"], FAILED)


def test_a_pacs_that_names_none_may_have_failed_at_any_that_it_lists():
    check = study_check("1.2", [found("1")], [entry("2", "pacs")], listed=["1", "3"],
                        failure=FAILED)  # fmt: skip
    assert (check.unsent, check.absent) == (("3",), ("2",))
    silent = study_check("1.2", [found("1")], [entry("2", "pacs")], listed=["1", "3"])
    assert (silent.unsent, silent.absent) == ((), ("2", "3"))


def test_a_study_is_unfinished_where_nothing_is_wrong_but_what_was_not_sent():
    whole = study_check("1.2", [found("1")], listed=["1", "3"], failure=FAILED)
    assert whole.unfinished
    assert not whole.sound
    changed = study_check("1.2", [found("1", "tampered")], listed=["1", "3"], failure=FAILED)
    assert not changed.unfinished


def test_a_report_and_an_error_comment_say_what_the_pacs_failed_to_send():
    known = [entry("1", "pacs"), entry("2", "pacs")]
    check = study_check("1.2", [found("1")], known, listed=["1", "3"], failure=FAILED)
    assert in_words(check, FAILED) == ["1 missing", FAILED]
    facts = facts_of(check, None)
    assert f"1 instance that the archive has did not come: {FAILED}." in facts.sentences
    assert "1 instance that this node delivered did not come back." in facts.sentences
    assert facts.missing == ("Instance 2", "3, which the archive failed to send")


def test_what_the_registry_does_not_know_is_extra_where_it_knows_the_study():
    assert study_check("1.2", [found("1"), found("2")], [entry("1", "pacs")]).extra == ("2",)
    assert study_check("1.2", [found("1"), found("2")]).extra == ()


def test_another_transfer_syntax_than_delivered_is_transcoded():
    check = study_check("1.2", [found("1", syntax=JPEG_LS), found("2")],
                        [entry("1", "pacs"), entry("2", "pacs")])  # fmt: skip
    assert check.transcoded == ("1",)
    assert check.sound


def test_what_we_recoded_for_the_pacs_ourselves_is_not_transcoded():
    sent = DeliveryEntry("pacs", 0, 0.0, "s:1", JPEG_LS), DeliveryEntry("other", 0, 0.0, "s:2")
    entries = [replace(entry("1"), deliveries=sent)]
    as_sent = study_check("1.2", [found("1", syntax=JPEG_LS)], entries, destination="pacs")
    assert as_sent.transcoded == ()
    # As it was marked, and yet not as this PACS was given it.
    as_marked = study_check("1.2", [found("1")], entries, destination="pacs")
    assert as_marked.transcoded == ("1",)
    assert study_check("1.2", [found("1")], entries, destination="other").transcoded == ()


def test_unmarked_is_stripped_only_where_we_had_marked_it():
    check = study_check("1.2", [found("1", "unmarked"), found("2", "unmarked")], [entry("1", "p")])
    assert check.stripped == ("1",)


def test_an_older_version_than_the_last_delivered_is_superseded():
    older = replace(found("1"), verdict=InstanceVerdict("", "1", "authentic", marked_at=100))
    newer = replace(found("1"), verdict=InstanceVerdict("", "1", "authentic", marked_at=200))
    versions = [entry("1", "pacs", marked_at=100), entry("1", "pacs", marked_at=200)]
    assert study_check("1.2", [older], versions).superseded == ("1",)
    assert not study_check("1.2", [older], versions).sound
    assert study_check("1.2", [newer], versions).superseded == ()
    passed_on = entry("1", "pacs", marked_at=300, action="untouched")
    assert study_check("1.2", [newer], [*versions, passed_on]).sound
    undelivered = entry("1", marked_at=300)
    assert study_check("1.2", [newer], [*versions, undelivered]).sound


def test_the_json_says_all_of_it_and_names_no_file_that_is_gone():
    check = study_check("1.2", [found("1", syntax=JPEG_LS)], [entry("1", "p"), entry("2", "p")],
                        checked_at=datetime(2026, 1, 2, tzinfo=UTC))  # fmt: skip
    said = check.to_json()
    assert said["checked_at"] == "2026-01-02T00:00:00Z"
    assert said["missing"] == ["2"]
    assert said["transcoded"][0]["sop_instance_uid"] == "1"
    assert "path" not in said["instances"][0]
