"""A run of re-checks: what it keeps, what it goes on with, and how fast it goes."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from types import SimpleNamespace

import pytest
import structlog

from dicom_node.errors import AssociationRejected, ConfigError
from dicom_node.verify import audit_run
from dicom_node.verify.audit_run import RunError, RunFile
from dicom_node.verify.checked_fetch import Pace
from dicom_node.verify.nightly import Nightly, next_time
from dicom_node.verify.study import CheckedInstance, StudyCheck
from dicom_node.verify.verdict import InstanceVerdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def check_of(study, verdict="authentic", missing=(), changed=(), seal="valid"):
    said = InstanceVerdict("", f"{study}.1", verdict, changed=changed, header_seal=seal)
    found = CheckedInstance(said, study)
    return StudyCheck(study, NOW, (found,), missing=missing)


class Inspector:
    """Checks by a table instead of a PACS; a study that is not in it cannot be asked about."""

    def __init__(self, **checks):
        self.checks = checks
        self.asked = []
        self.instances = 1
        self.config = SimpleNamespace(
            verify=SimpleNamespace(
                instances_per_s=100.0, store_reports=False, nightly_sample=100
            )
        )
        self.pacs = SimpleNamespace(name="pacs")
        self.recorder = self

    def check(self, wanted, *, pace=None, **_):
        self.asked.append(wanted.study_instance_uid)
        for _ in range(self.instances if pace else 0):
            pace.wait(threading.Event())
        if wanted.study_instance_uid not in self.checks:
            raise AssociationRejected("pacs", "no connection")
        return self.checks[wanted.study_instance_uid]

    def studies(self, **_):
        return tuple(self.checks)

    def entries(self, wanted):
        return (None,) * 10

    def record(self, *events):
        pass


def test_changed_headers_have_a_count_of_their_own_and_are_kept(tmp_path):
    path = tmp_path / "run.jsonl"
    inspector = Inspector(
        a=check_of("a", changed=("PatientName",)), b=check_of("b", seal="absent"), c=check_of("c")
    )
    file = RunFile(path)
    file.begin(["a", "b", "c"])
    first = audit_run.run(inspector, file, checked_by="test")
    again = audit_run.run(inspector, RunFile(path), checked_by="test")
    for summary in (first, again):
        said = summary.to_json()["summary"]
        assert (said["headers_changed"], said["headers_unsealed"]) == (1, 1)
        assert (said["unsound"], said["counts"]) == ([], {"authentic": 3})


def test_a_run_that_an_earlier_release_began_goes_on(tmp_path):
    path = tmp_path / "run.jsonl"
    line = {"study": "a", "sound": True, "counts": {"authentic": 2}, "missing": 0, "extra": 0,
            "transcoded": 0}  # fmt: skip
    plan = {"format": "dicom-node audit run 1", "studies": ["a"]}
    path.write_text(f"{json.dumps(plan)}\n{json.dumps(line)}\n")
    summary = audit_run.run(Inspector(), RunFile(path), checked_by="test")
    assert (summary.studies, summary.headers_changed) == (1, 0)


def test_what_the_pacs_failed_to_send_is_not_finished_and_left_for_the_next_run(tmp_path):
    failure = "pacs failed to send 1 (status 0xB000)"
    sound, bad = check_of("a", missing=("a.2",)), check_of("b", "tampered", missing=("b.2",))
    inspector = Inspector(
        a=replace(sound, unsent=("a.2",), failure=failure),
        b=replace(bad, unsent=("b.2",), failure=failure),
    )
    file = RunFile(tmp_path / "run.jsonl")
    file.begin(["a", "b"])
    summary = audit_run.run(inspector, file, checked_by="test")
    assert (summary.failed, summary.unsound) == ({"a": failure}, ["b"])
    assert (summary.missing, summary.unsent) == (1, 1)
    assert RunFile(tmp_path / "run.jsonl").left == ("a",)


def test_the_nightly_log_names_changed_headers_of_sound_studies_too(tmp_path):
    inspector = Inspector(
        a=check_of("a", changed=("Laterality",)), c=check_of("c"),
        b=check_of("b", "tampered", changed=("PatientID",)),
    )  # fmt: skip
    inspector.config.spool = SimpleNamespace(directory=tmp_path)
    with structlog.testing.capture_logs() as logs:
        Nightly(inspector, threading.Event()).check_sample()
    told = {line["study_instance_uid"]: line for line in logs if "study_instance_uid" in line}
    assert {(uid, line["event"], line["attributes"]) for uid, line in told.items()} == {
        ("a", "headers not as signed", "Laterality"), ("b", "study not sound", "PatientID"),
    }  # fmt: skip
    [done] = [line for line in logs if line["event"] == "nightly sample checked"]
    assert done["headers_changed"] == 2


def test_a_finished_study_is_not_checked_again(tmp_path):
    path = tmp_path / "run.jsonl"
    inspector = Inspector(a=check_of("a"), b=check_of("b", "tampered"))
    file = RunFile(path)
    file.begin(["a", "x", "b"])
    summary = audit_run.run(inspector, file, checked_by="test")
    assert (summary.studies, summary.unsound) == (2, ["b"])
    assert list(summary.failed) == ["x"]
    again = RunFile(path)
    assert again.left == ("x",)
    inspector.checks["x"] = check_of("x", missing=("x.2",))
    summary = audit_run.run(inspector, again, checked_by="test")
    assert inspector.asked == ["a", "x", "b", "x"]
    assert (summary.studies, summary.missing, summary.unsound) == (3, 1, ["b", "x"])
    assert RunFile(path).left == ()


def test_half_a_line_is_a_study_that_is_checked_again(tmp_path):
    path = tmp_path / "run.jsonl"
    file = RunFile(path)
    file.begin(["a", "b"])
    file.done(check_of("a"))
    whole = path.read_text()
    for cut in range(len(whole.splitlines(keepends=True)[0]) + 1, len(whole)):
        path.write_text(whole[:cut])
        again = RunFile(path)
        assert again.left == ("a", "b")
        again.done(check_of("a"))
        assert RunFile(path).left == ("b",)


def test_a_plan_of_no_study_is_not_kept_and_the_next_run_looks_again(tmp_path):
    path = tmp_path / "run.jsonl"
    file = RunFile(path)
    file.begin([])
    assert (file.begun, RunFile(path).begun) == (False, False)
    again = RunFile(path)
    again.begin(["a", "b"])
    again.done(check_of("a"))
    assert RunFile(path).left == ("b",)


def test_a_run_goes_on_in_a_file_that_an_empty_plan_begins(tmp_path):
    path = tmp_path / "run.jsonl"
    header = json.dumps({"format": "dicom-node audit run 1", "studies": []}) + "\n"
    path.write_text(header)
    file = RunFile(path)
    assert not file.begun
    file.begin(["a", "b"])
    file.done(check_of("a"))
    assert path.read_text().startswith(header)
    assert RunFile(path).left == ("b",)


@pytest.mark.parametrize("text", ['{"format": "other"}\n', "no json\n", "[1]\n", "\xff\n"])
def test_another_file_is_refused_and_not_written_over(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text, "latin-1")
    with pytest.raises(RunError, match="not the file of an audit run"):
        RunFile(path)
    assert path.read_text("latin-1") == text


def test_a_sample_has_about_so_many_instances_and_is_drawn_by_chance():
    inspector = Inspector(**{f"s{n}": check_of(f"s{n}") for n in range(50)})
    drawn = audit_run.sample(inspector, 45, chance=random.Random(1))
    other = audit_run.sample(inspector, 45, chance=random.Random(2))
    assert (len(drawn), len(set(drawn))) == (5, 5)
    assert drawn != other


def test_a_drawing_stays_within_the_studies_it_is_drawn_from():
    inspector = Inspector()
    drawn = audit_run.draw(inspector, ["a", "b", "c"], 15, chance=random.Random(1))
    assert len(drawn) == 2
    assert set(drawn) < {"a", "b", "c"}
    assert audit_run.draw(inspector, [], 15) == ()


@pytest.mark.parametrize("day", [date.min, date(1969, 12, 31), date(9999, 12, 31)])
def test_days_far_away_are_days_like_others(day):
    inspector, asked = Inspector(), []
    inspector.pacs.studies_by = lambda keys: iter(())
    inspector.studies = lambda since, until, modality: asked.append((since, until)) or ()
    audit_run.by_date(inspector, day, day)
    [(since, until)] = asked
    assert 86_399 < until - since <= 86_400


def test_there_is_no_sample_of_nothing():
    with pytest.raises(ConfigError, match="registry"):
        audit_run.sample(Inspector(), 10)


def test_the_pace_is_kept_after_a_first_second_at_once():
    pace, stop = Pace(50.0), threading.Event()
    started = time.monotonic()
    for _ in range(100):
        pace.wait(stop)
    assert 0.9 < time.monotonic() - started < 3.0


def test_a_run_keeps_one_pace_over_all_its_studies():
    inspector = Inspector(**{f"s{n}": check_of(f"s{n}") for n in range(4)})
    inspector.config.verify.instances_per_s = 20.0
    inspector.instances = 10
    file = RunFile(None)
    file.begin(list(inspector.checks))
    started = time.monotonic()
    audit_run.run(inspector, file, checked_by="test")
    # 40 instances: 20 at once, then 20 a second.
    assert 0.9 < time.monotonic() - started < 3.0


def test_the_pace_lets_go_when_it_is_stopped():
    pace, stop = Pace(0.1), threading.Event()
    stop.set()
    started = time.monotonic()
    for _ in range(5):
        pace.wait(stop)
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    ("now", "then"),
    [((1, 59), (1, 2, 0)), ((2, 0), (2, 2, 0)), ((2, 1), (2, 2, 0)), ((23, 0), (2, 2, 0))],
)
def test_the_night_begins_at_the_hour_named(now, then):
    day, hour, minute = then
    at = next_time("02:00", datetime(2026, 1, 1, *now, tzinfo=UTC))
    assert at == datetime(2026, 1, day, hour, minute, tzinfo=UTC)
