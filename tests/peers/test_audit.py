"""``dicom-node audit`` against a real Orthanc, as an administrator runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta

import harness
import pydicom
import pytest
import verifying
from verifying import Marks, QueryOrthanc, Service

from dicom_node.cli.main import main
from dicom_node.config import parse
from dicom_node.errors import RegistryError
from dicom_node.registry.registry import Registry
from dicom_node.verify.checked_fetch import Pace

pytestmark = [pytest.mark.peer, pytest.mark.slow]


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    one = QueryOrthanc(tmp_path_factory.mktemp("pacs"))
    yield one
    one.child.end()


class Audit:
    """The command with a configuration of its own."""

    def __init__(self, folder, marks, pacs, **verify):
        self.folder = folder
        text = verifying.config_text(
            folder, marks.keys, pacs.port, port=pacs.verify_port, fetch_port=pacs.fetch_port,
            **{"instances_per_s": 1000.0, **verify},
        )  # fmt: skip
        self.path = folder / "node.toml"
        self.path.write_text(text)
        self.config = parse(text, "test")
        self.service = Service(self.config)

    def run(self, *arguments):
        """Run it in this process; return exit code, JSON lines of studies, summary, stderr."""
        argv = ["audit", "--config", str(self.path), "--json", *map(str, arguments)]
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = main(argv)
        return code, *_parsed(out.getvalue()), said.getvalue()

    def run_alone(self, *arguments):
        """Run it in a process of its own, beside the service."""
        done = subprocess.run(
            [sys.executable, "-m", "dicom_node.cli.main", "audit", "--config", self.path, "--json",
             *map(str, arguments)],
            capture_output=True, text=True, timeout=90, check=False,
            env={**os.environ, "PYTHONPATH": harness.PACKAGES},
        )  # fmt: skip
        return done.returncode, *_parsed(done.stdout), done.stderr


def _parsed(text):
    lines = [json.loads(line) for line in text.splitlines()]
    summary = lines.pop()["summary"] if lines else {}
    return lines, summary


@pytest.fixture
def audit(tmp_path, marks, pacs):
    pacs.empty()
    one = Audit(tmp_path, marks, pacs)
    one.register = one.service.register
    return one


def put(audit, pacs, marks, number, slices=3, *, leave_out=()):
    """Store a study, all of it registered as delivered."""
    study = [marked for _, marked in marks.study(number, slices)]
    audit.register(*map(verifying.entry_of, study))
    pacs.store(*(path for index, path in enumerate(study, 1) if index not in leave_out))
    return study


def test_a_sound_study_is_exit_code_0(audit, pacs, marks):
    put(audit, pacs, marks, 1)
    code, [study], summary, _ = audit.run("--study", "1.2.3.1")
    assert code == 0
    assert study["sound"]
    assert study["counts"] == {"authentic": 3}
    assert summary["instances"] == 3


def test_a_missing_slice_is_named(audit, pacs, marks):
    put(audit, pacs, marks, 2, leave_out=[2])
    code, [study], summary, _ = audit.run("--study", "1.2.3.2")
    assert code == 1
    assert study["missing"] == ["1.2.3.2.1.2"]
    assert summary["missing"] == 1
    [given] = audit.service.audit_events("verdict-given")
    assert (given["how"], given["counts"]) == ("command", {"authentic": 2, "missing": 1})
    with audit.service.registry() as registry:
        entries = registry.verdicts(sop_instance_uid="1.2.3.2.1.2")
    assert [entry.verdict for entry in entries] == ["missing"]


def test_a_study_deleted_in_the_pacs_is_missing_as_a_whole(audit, marks):
    audit.register(*(verifying.entry_of(marked) for _, marked in marks.study(2, 3)))
    code, [study], _, _ = audit.run("--study", "1.2.3.2")
    assert code == 1
    assert len(study["missing"]) == 3


def test_extra_tampered_and_transcoded_instances_are_named(audit, pacs, marks, tmp_path):
    study = [marked for _, marked in marks.study(3, 4)]
    audit.register(*map(verifying.entry_of, study[:3]))
    recoded = pydicom.dcmread(study[1])
    recoded.compress(pydicom.uid.JPEGLSLossless, generate_instance_uid=False)
    recoded.save_as(tmp_path / "recoded.dcm")
    changed = verifying.tampered(study[2], tmp_path / "changed.dcm")
    pacs.store(study[0], changed, study[3])
    pacs.upload(tmp_path / "recoded.dcm")
    code, [said], _, _ = audit.run("--study", "1.2.3.3")
    assert code == 1
    assert said["counts"] == {"authentic": 3, "tampered": 1}
    assert said["extra"] == ["1.2.3.3.1.4"]
    assert [each["sop_instance_uid"] for each in said["transcoded"]] == ["1.2.3.3.1.2"]
    [bad] = [each for each in said["instances"] if each["verdict"] == "tampered"]
    assert bad["sop_instance_uid"] == "1.2.3.3.1.3"


def test_a_changed_header_is_named_and_counted_and_its_study_stays_sound(
    audit, pacs, marks, tmp_path, capsys
):
    study = [marked for _, marked in marks.study(5, 2)]
    audit.register(*map(verifying.entry_of, study))
    changed = verifying.retold(study[1], tmp_path / "c.dcm", PatientID="P78", PixelSpacing=[9, 9])
    pacs.store(study[0], changed)
    code, [said], summary, errors = audit.run("--study", "1.2.3.5")
    assert (code, said["sound"], said["counts"]) == (0, True, {"authentic": 2})
    assert said["headers"]["attributes"] == {"PatientID": 1, "PixelSpacing": 1}
    assert (summary["headers_changed"], summary["headers_unsealed"]) == (1, 0)
    assert main(["audit", "--config", str(audit.path), "--study", "1.2.3.5"]) == 0
    out, errors = capsys.readouterr()
    assert "headers changed: 1 (PatientID, PixelSpacing)" in out
    assert "1 headers changed, 0 not sealed" in errors
    events = audit.service.audit_events("verified")
    assert [e["changed"] for e in events if "changed" in e] == [["PatientID", "PixelSpacing"]] * 2


def test_studies_are_found_by_date_and_modality(audit, pacs, marks):
    put(audit, pacs, marks, 4)
    code, studies, _, _ = audit.run("--since", "2026-01-01", "--until", "2026-01-31",
                                    "--modality", "CT")  # fmt: skip
    assert (code, [s["study_instance_uid"] for s in studies]) == (0, ["1.2.3.4"])
    assert audit.run("--since", "2026-02-01")[:2] == (0, [])
    assert audit.run("--since", "2026-01-01", "--modality", "MR")[1] == []


def test_a_study_deleted_as_a_whole_is_missed_by_an_audit_of_its_days(audit, pacs, marks):
    put(audit, pacs, marks, 4)
    gone = [verifying.entry_of(marked) for _, marked in marks.study(5, 3)]
    elsewhere = [verifying.entry_of(marked, "other") for _, marked in marks.study(6, 1)]
    audit.register(*gone, *elsewhere)
    days = ("--since", "2026-01-01", "--until", "2026-01-01")
    for which in (days, (*days, "--modality", "CT"), ("--since", "2025-12-31")):
        code, studies, summary, _ = audit.run(*which)
        assert (code, summary["missing"], summary["failed"]) == (1, 3, {})
        found = {study["study_instance_uid"]: study for study in studies}
        assert set(found) == {"1.2.3.4", "1.2.3.5"}
        assert found["1.2.3.4"]["sound"]
        assert found["1.2.3.5"]["missing"] == [f"1.2.3.5.1.{n}" for n in (1, 2, 3)]
    for which in (("--since", "2026-01-02"), ("--until", "2025-12-31"),
                  (*days, "--modality", "MR")):  # fmt: skip
        assert audit.run(*which)[:2] == (0, [])


def test_a_study_sent_long_after_its_study_date_is_missed_on_the_days_it_was_marked(audit, marks):
    late = datetime(2026, 3, 1, 12).astimezone().timestamp()  # its Study Date is January 1
    entries = [verifying.entry_of(marked) for _, marked in marks.study(5, 2)]
    audit.register(*(replace(entry, marked_at=int(late)) for entry in entries))
    for which in (("--since", "2026-01-01"), ("--since", "2026-03-01", "--until", "2026-03-01")):
        code, [study], summary, _ = audit.run(*which)
        assert (code, study["study_instance_uid"], summary["missing"]) == (1, "1.2.3.5", 2)
    # Nobody has its Study Date any more: this is the limit that help and docs tell of.
    assert audit.run("--since", "2026-01-01", "--until", "2026-01-31")[:2] == (0, [])


def test_no_audit_of_days_begins_while_the_registry_is_away(audit, pacs, marks, monkeypatch):
    put(audit, pacs, marks, 4)

    def away(*_, **__):
        raise RegistryError("the registry is away")

    monkeypatch.setattr(Registry, "studies", away)
    code, studies, _, said = audit.run("--since", "2026-01-01")
    assert (code, studies) == (3, [])
    assert "the registry is away" in said


def test_a_modality_alone_selects_its_studies(audit, pacs, marks):
    put(audit, pacs, marks, 4)
    audit.register(*(verifying.entry_of(marked) for _, marked in marks.study(5, 3)))
    code, studies, _, _ = audit.run("--modality", "CT")
    assert (code, {s["study_instance_uid"] for s in studies}) == (1, {"1.2.3.4", "1.2.3.5"})
    assert audit.run("--modality", "MR")[:2] == (0, [])


def test_a_sample_of_a_range_of_days_is_drawn_from_these_days(audit, pacs, marks):
    for number in (1, 4, 5):
        put(audit, pacs, marks, number)
    code, studies, summary, _ = audit.run("--since", "2026-01-01", "--sample", "4")
    assert (code, len(studies), summary["instances"]) == (0, 2, 6)
    assert audit.run("--since", "2026-01-02", "--sample", "4")[:2] == (0, [])


def test_every_instance_of_an_audit_waits_for_its_turn(tmp_path, marks, pacs, monkeypatch):
    pacs.empty()
    audit = Audit(tmp_path, marks, pacs, instances_per_s=25.0)
    audit.register = audit.service.register
    for number in (1, 4):
        put(audit, pacs, marks, number)
    paces, wait = [], Pace.wait
    monkeypatch.setattr(Pace, "wait", lambda pace, stop: paces.append(pace) or wait(pace, stop))
    assert audit.run("--since", "2026-01-01")[0] == 0
    assert len(paces) == 6
    [pace] = set(paces)
    assert pace._per_s == 25.0


def test_a_resumed_run_has_to_know_its_studies(audit, tmp_path):
    plan = tmp_path / "run.jsonl"
    assert audit.run("--since", "2026-02-01", "--resume", plan)[:2] == (0, [])
    assert audit.run("--resume", plan)[0] == 2
    plan.touch()
    assert audit.run("--resume", plan)[0] == 2


def test_a_sample_is_drawn_from_what_was_marked(audit, pacs, marks):
    for number in (1, 4):
        put(audit, pacs, marks, number)
    code, studies, summary, _ = audit.run("--sample", "2")
    assert (code, len(studies)) == (0, 1)
    assert summary["instances"] == 3


def test_a_run_goes_on_where_it_was_stopped(audit, pacs, marks, tmp_path):
    for number in (1, 4):
        put(audit, pacs, marks, number)
    plan = tmp_path / "run.jsonl"
    code, first, _, _ = audit.run("--since", "2026-01-01", "--resume", plan)
    assert (code, len(first)) == (0, 2)
    lines = plan.read_text().splitlines(keepends=True)
    plan.write_text("".join(lines[:2]) + lines[2][:10])  # killed while it wrote the second study
    code, again, summary, said = audit.run("--resume", plan)
    assert (code, len(again)) == (0, 1)
    assert "1 of 2 studies were finished before" in said
    assert (summary["studies"], summary["instances"]) == (2, 6)
    assert audit.run("--resume", plan)[1] == []


def test_a_pacs_that_is_away_is_exit_code_3_and_left_for_the_next_run(tmp_path, marks, pacs, audit):
    away = Audit(tmp_path, marks, type("Away", (), {
        "port": verifying.refusing_port(), "verify_port": pacs.verify_port,
        "fetch_port": pacs.fetch_port}))  # fmt: skip
    plan = tmp_path / "run.jsonl"
    code, studies, summary, _ = away.run("--study", "1.2.3.1", "--resume", plan)
    assert (code, studies) == (3, [])
    assert "no connection" in summary["failed"]["1.2.3.1"]
    pacs.store(*(marked for _, marked in marks.study(1, 3)))
    back = Audit(tmp_path, marks, pacs)
    assert back.run("--resume", plan)[0] == 0


def test_a_study_nobody_knows_could_not_be_checked(audit):
    code, _, summary, _ = audit.run("--study", "9.9.9")
    assert code == 3
    assert summary["failed"] == {"9.9.9": "pacs does not have it"}


def test_reports_are_written_and_no_fetched_file_is_left(audit, pacs, marks, tmp_path):
    put(audit, pacs, marks, 1)
    code, _, _, said = audit.run("--study", "1.2.3.1", "--report", tmp_path / "reports")
    assert code == 0, said
    written = {path.suffix for path in (tmp_path / "reports").rglob("*") if path.is_file()}
    assert {".html", ".pdf", ".json"} <= written
    given, used = audit.service.audit_events("verdict-given", "key-used")
    assert (given["how"], given["verdict"]) == ("report", "authentic")
    assert given["given_to"] == used["by"] != ""
    assert (used["use"], used["key_id"]) == ("sign", marks.ring.current.key_id.hex())
    assert audit.service.scratch() == []


def test_the_nightly_sample_is_checked_at_its_hour(tmp_path, pacs, marks, monkeypatch):
    pacs.empty()
    audit = Audit(tmp_path, marks, pacs, nightly_sample=2, store_reports=True)
    audit.register = audit.service.register
    put(audit, pacs, marks, 1, leave_out=[3])
    hours = iter([datetime.now().astimezone() + timedelta(seconds=0.5)])
    monkeypatch.setattr(
        "dicom_node.verify.nightly.next_time", lambda _, now: next(hours, now + timedelta(days=1))
    )
    audit.service.start()
    try:
        with audit.service.registry() as registry:
            verdicts = harness.wait_for(
                lambda: len(v := registry.verdicts(study_instance_uid="1.2.3.1")) == 3 and v, 60
            )
    finally:
        audit.service.end()
    assert {entry.checked_by for entry in verdicts} == {"nightly"}
    assert sorted(entry.verdict for entry in verdicts) == ["authentic", "authentic", "missing"]
    [used] = audit.service.audit_events("key-used")
    assert used["use"] == "sign", "of the report that was stored"


def test_a_report_is_stored_into_the_pacs_and_is_no_stranger_there(tmp_path, pacs, marks):
    pacs.empty()
    audit = Audit(tmp_path, marks, pacs, store_reports=True)
    audit.register = audit.service.register
    put(audit, pacs, marks, 1)
    assert audit.run("--study", "1.2.3.1")[0] == 0
    [report] = [
        each for each in pacs.get("/series?expand") if each["MainDicomTags"]["Modality"] == "SR"
    ]
    assert len(report["Instances"]) == 1
    [used] = audit.service.audit_events("key-used")
    assert used["use"] == "sign"
    code, [again], _, _ = audit.run("--study", "1.2.3.1")
    assert (code, again["extra"], again["counts"]) == (0, [], {"authentic": 4})


@pytest.mark.parametrize(
    "arguments",
    [(), ("--study", "1.2", "--sample", "3"), ("--study", "not-a-uid"), ("--since", "yesterday"),
     ("--sample", "0"), ("--study", "1.2", "--modality", "CT"),
     ("--study", "1.2", "--until", "2026-01-01")],
)  # fmt: skip
def test_a_wrong_use_is_exit_code_2(audit, arguments):
    try:
        code = audit.run(*arguments)[0]
    except SystemExit as ended:  # argparse ends by itself
        code = ended.code
    assert code == 2


def test_it_fetches_by_c_move_while_the_service_holds_the_port(tmp_path, marks):
    pacs = QueryOrthanc(tmp_path, get=False)
    (tmp_path / "audit").mkdir()
    audit = Audit(tmp_path / "audit", marks, pacs, retrieve="move")
    audit.service.start()
    try:
        study = [marked for _, marked in marks.study(1, 3)]
        audit.service.register(*map(verifying.entry_of, study))
        pacs.store(*study)
        code, [said], _, errors = audit.run_alone("--study", "1.2.3.1")
        assert code == 0, errors
        assert said["counts"] == {"authentic": 3}
        claims = audit.config.spool.directory / "fetch-claims"
        assert [path.name for path in claims.iterdir()] == ["served"]
    finally:
        audit.service.end()
        pacs.child.end()
