"""Every kind of tampering on five real objects: caught, localised, named.

The cases are in tests/tools/tampering.py; tampering_table.py beside it prints them as the table of
docs/BENCHMARKS.md.
"""

import pytest
from tampering import KINDS, judged
from tampering_subjects import LATER, OBJECTS, WHEN

CASES = [
    (which, name) for which in OBJECTS for name, kind in KINDS.items()
    if which == "multi-frame" or not kind.loops
]  # fmt: skip
SURE = [case for case in CASES if not KINDS[case[1]].unsure]
UNSURE = [case for case in CASES if KINDS[case[1]].unsure]

# One object's cases belong to one worker: it marks them once.
pytestmark = pytest.mark.xdist_group("tampering")


@pytest.fixture(params=OBJECTS)
def subject(request, subject_named):
    return subject_named(request.param)


def done(subject, name, tmp_path):
    kind = KINDS[name]
    made = kind.make(subject, tmp_path / "tampered.dcm")
    verdict = subject.bench.verdict(made.path)
    return judged(kind, made, verdict, subject.bench.entries[subject.marked]), verdict


def test_the_untouched_object_is_authentic(subject):
    verdict = subject.bench.verdict(subject.marked)
    assert (verdict.verdict, verdict.changed) == ("authentic", ())
    assert subject.bench.verdict(subject.source).verdict == "unmarked"


@pytest.mark.parametrize(("which", "name"), SURE)
def test_it_is_caught_and_named_and_the_boxes_hold_every_changed_pixel(
    which, name, subject_named, tmp_path
):
    outcome, verdict = done(subject_named(which), name, tmp_path)
    assert outcome.caught, verdict
    assert outcome.named, (outcome.changed, outcome.words)
    assert outcome.contains is not False, verdict


@pytest.mark.parametrize(("which", "name"), UNSURE)
def test_a_change_before_a_lossy_copy_is_never_called_authentic(
    which, name, subject_named, tmp_path
):
    _, verdict = done(subject_named(which), name, tmp_path)
    assert verdict.verdict != "authentic"
    assert all(frame.integrity == "absent" for frame in verdict.frames)


def test_what_lost_its_marks_is_caught_by_the_registry_and_by_nothing_else(subject, tmp_path):
    kind = KINDS["unmarked copy"]
    made = kind.make(subject, tmp_path / "tampered.dcm")
    verdict = subject.bench.verdict(made.path)
    assert verdict.verdict == "unmarked"
    assert not judged(kind, made, verdict).caught
    outcome = judged(kind, made, verdict, subject.bench.entries[subject.marked])
    assert (outcome.caught, outcome.stripped) == (True, True)


@pytest.mark.parametrize("name", ["CT", "CR", "multi-frame"])
def test_a_small_change_is_found_in_a_small_part_of_the_frame(name, subject_named, tmp_path):
    outcome, _ = done(subject_named(name), "one pixel", tmp_path)
    assert outcome.share < 0.08


def test_only_the_frame_that_was_changed_is_tampered(subject_named, tmp_path):
    _, verdict = done(subject_named("multi-frame"), "lesion", tmp_path)
    assert [frame.frame for frame in verdict.frames if frame.verdict == "tampered"] == [1]


def test_an_older_version_is_authentic_by_itself_and_told_by_its_time(subject, tmp_path):
    _, verdict = done(subject, "older", tmp_path)
    assert verdict.marked_at == WHEN.timestamp()
    assert (tmp_path / "tampered.dcm").read_bytes() == subject.marked.read_bytes()
    newer = subject.bench.verdict(tmp_path / "newer.dcm")
    assert (newer.verdict, newer.marked_at) == ("authentic", LATER.timestamp())
    assert newer.sop_instance_uid == verdict.sop_instance_uid


def test_without_the_secret_keys_no_change_is_called_authentic(subject, tmp_path):
    from dicom_node.keys import KeyRing
    from dicom_node.verify.check import check_instance

    public = KeyRing.from_public_pem(subject.bench.ring.export_public())
    assert check_instance(subject.marked, public, subject.bench.engine).verdict == "authentic"
    for name in ("one pixel", "inpainted", "copied", "exchanged"):
        made = KINDS[name].make(subject, tmp_path / "tampered.dcm")
        verdict = check_instance(made.path, public, subject.bench.engine)
        assert verdict.verdict != "authentic", name
