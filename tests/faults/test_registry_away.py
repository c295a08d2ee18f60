"""The verification service and `audit` while the registry is away, hangs, or knows nothing."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import socket
import time

import pytest
import verifying
from pynetdicom.sop_class import CTImageStorage
from verifying import (
    STUDY_FIND,
    STUDY_GET,
    FakePacs,
    Marks,
    Service,
    block_of,
    client,
    keys,
    verify_now,
)

from dicom_node.cli.main import main
from dicom_node.config import parse
from dicom_node.registry import access
from dicom_node.registry.records import VerdictEntry
from dicom_node.verify import query

pytestmark = [pytest.mark.fault, pytest.mark.slow]
VERDICT, VERIFIED, MISSING, DETAILS, PROGRESS = 0x10, 0x13, 0x16, 0x17, 0x21
STUDY = "1.2.3.1"
AWAY = "the registry is away"


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def study(marks):
    return [marked for _, marked in marks.study(1, 3, size=128)]


@pytest.fixture
def pacs(study):
    """A PACS that has lost the last of three slices."""
    one = FakePacs(study[:2])
    yield one
    one.stop()


class Node:
    """The configuration of a node; its registry is where `url` says ("": its own SQLite)."""

    def __init__(self, folder, marks, pacs, url=""):
        text = verifying.config_text(
            folder, marks.keys, pacs.port,
            clients=[("TRUSTED", "restored"), ("STRICT", "refuse-tampered")],
        )  # fmt: skip
        self.path = folder / "node.toml"
        self.at(url, text)

    def at(self, url, text=None):
        """Say where the registry is."""
        text = (text or self.path.read_text()).split("[registry]")[0]
        self.path.write_text(text + (f'[registry]\nurl = "{url}"\n' if url else ""))
        self.service = Service(parse(self.path.read_text(), "test"))

    def audit(self, *arguments):
        out, said = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = main(["audit", "--config", str(self.path), *map(str, arguments)])
        return code, out.getvalue(), said.getvalue()

    def audit_json(self, *arguments):
        code, out, _ = self.audit("--json", *arguments)
        *studies, summary = map(json.loads, out.splitlines())
        return code, studies, summary["summary"]


@pytest.fixture
def node(tmp_path, marks, pacs, study):
    one = Node(tmp_path, marks, pacs)
    one.service.register(*map(verifying.entry_of, study))
    return one


@pytest.fixture
def away():
    return f"postgresql://me:secret@127.0.0.1:{verifying.refusing_port()}/registry"


@pytest.fixture
def hanging():
    """Return the URL of a registry that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/registry"


@contextlib.contextmanager
def serving(node):
    node.service.start()
    try:
        yield node.service
    finally:
        node.service.end()


def find(service, identifier):
    with client(service, STUDY_FIND) as assoc:
        answers = list(assoc.send_c_find(identifier, STUDY_FIND))
    return [match for _, match in answers[:-1]], answers[-1][0]


def get(service, ae_title="AUDITOR", study=STUDY):
    with client(service, STUDY_GET, storage=[CTImageStorage], on_store=lambda event: 0x0000,
                ae_title=ae_title) as assoc:  # fmt: skip
        *_, (status, _) = assoc.send_c_get(keys(StudyInstanceUID=study), STUDY_GET)
    return status


# audit


def test_an_audit_without_the_registry_calls_no_study_sound(node, away, tmp_path):
    resume = tmp_path / "run.jsonl"
    node.at(away)
    code, studies, summary = node.audit_json("--study", STUDY, "--resume", resume)
    assert (code, studies, summary["studies"]) == (3, [], 0)
    assert "secret" not in json.dumps(summary)
    assert list(summary["failed"]) == [STUDY]
    assert node.service.audit_events("verdict-given") == []
    node.at("")
    code, [study], summary = node.audit_json("--resume", resume)
    assert (code, study["missing"], summary["failed"]) == (1, [f"{STUDY}.1.3"], {})


def test_a_registry_that_knows_nothing_of_a_study_of_ours_is_told(tmp_path, marks, pacs):
    node = Node(tmp_path, marks, pacs)
    code, [study], _ = node.audit_json("--study", STUDY)
    assert (code, study["registry"], study["counts"]) == (0, "unknown study", {"authentic": 2})
    assert "registry: unknown study" in node.audit("--study", STUDY)[1]


def test_a_registry_that_knows_a_study_is_no_news(node):
    _, [study], _ = node.audit_json("--study", STUDY)
    assert study["registry"] == "known"
    assert "registry" not in node.audit("--study", STUDY)[1]


def test_a_study_of_which_nothing_came_has_no_verdict(node, pacs):
    pacs.files.clear()
    code, [study], _ = node.audit_json("--study", STUDY)
    assert (code, study["verdict"], study["counts"], len(study["missing"])) == (1, "", {}, 3)
    [given] = node.service.audit_events("verdict-given")
    assert (given["verdict"], given["counts"]) == ("missing", {"missing": 3})


def test_no_verdict_is_told_on_a_study_that_nobody_knows(node):
    code, [study], summary = node.audit_json("--study", "1.2.3.9")
    assert (code, study["verdict"], study["registry"]) == (3, "", "unknown study")
    assert "does not have it" in summary["failed"]["1.2.3.9"]
    assert node.service.audit_events("verdict-given") == []


def test_a_query_that_tells_that_all_is_missing_is_in_the_trail(node):
    with node.service.registry() as registry:
        registry.add_verdicts(
            VerdictEntry(f"{STUDY}.1.{n}", f"{STUDY}.1", STUDY, "missing", 1.0, "AUDITOR")
            for n in (1, 2, 3)
        )
    with serving(node) as service:
        [match], _ = find(service, keys(StudyInstanceUID=STUDY))
        [given] = service.audit_events("verdict-given")
    assert (block_of(match)[VERDICT], block_of(match)[MISSING]) == ("", 3)
    assert (given["verdict"], given["counts"]) == ("missing", {"missing": 3})


# The service


def test_a_query_says_that_nobody_knows_the_last_verdict(node, away):
    node.at(away)
    with serving(node) as service:
        [match], last = find(service, keys(StudyInstanceUID=STUDY))
    said = block_of(match)
    assert (last.Status, said[VERDICT], json.loads(said[DETAILS])) == (
        0x0000, "", {"registry": "away"},
    )  # fmt: skip


def test_no_verdict_is_given_now_without_the_registry(node, away):
    node.at(away)
    with serving(node) as service:
        [match], last = find(service, verify_now(keys(StudyInstanceUID=STUDY)))
        assert service.audit_events("verdict-given") == []
    said = block_of(match)
    assert (last.Status, said[VERDICT], said[VERIFIED]) == (0x0000, "", 0)
    assert json.loads(said[DETAILS]) == {"registry": "away", "not_checked": AWAY}


def test_a_retrieve_without_the_registry_is_a_warning_or_refused(node, away):
    node.at(away)
    with serving(node) as service:
        as_is, strict, trusted = (get(service, ae) for ae in ("AUDITOR", "STRICT", "TRUSTED"))
    assert (as_is.Status, as_is.ErrorComment) == (0xB000, AWAY)
    assert (as_is.NumberOfWarningSuboperations, as_is.NumberOfFailedSuboperations) == (2, 0)
    for status in (strict, trusted):
        assert (status.Status, status.ErrorComment) == (0xA701, AWAY)
        assert not status.NumberOfCompletedSuboperations
        assert not status.NumberOfWarningSuboperations


def test_a_query_is_cancelled_within_a_second_while_the_registry_hangs(
    node, pacs, hanging, monkeypatch
):
    monkeypatch.setattr(access, "AWAY_S", 0.0)  # every match asks, and hangs
    pacs.matches = 6
    node.at(f"{hanging}?connect_timeout=3")
    with serving(node) as service, client(service, STUDY_FIND) as assoc:
        answers = assoc.send_c_find(keys(StudyInstanceUID=""), STUDY_FIND, msg_id=7)
        time.sleep(0.5)
        assoc.send_c_cancel(7, None, STUDY_FIND)
        began = time.monotonic()
        *_, (last, _) = answers
        assert last.Status == 0xFE00
        assert time.monotonic() - began < 1


def test_a_registry_that_hangs_does_not_hold_up_every_match(node, pacs, hanging):
    pacs.matches = 20
    node.at(f"{hanging}?connect_timeout=2")
    with serving(node) as service:
        began = time.monotonic()
        matches, last = find(service, keys(StudyInstanceUID=""))
        assert time.monotonic() - began < 5
    assert (len(matches), last.Status) == (20, 0x0000)


# Heart-beats


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(query, "HEARTBEAT_S", 0.3)


def longest_silence(service, identifier):
    """Return the longest wait for an answer after the first, and what the answers say."""
    came, said = [], []
    with client(service, STUDY_FIND) as assoc:
        for _, match in assoc.send_c_find(identifier, STUDY_FIND):
            came.append(time.monotonic())
            if match is not None:
                said.append(block_of(match).get(PROGRESS, ""))
    return max(b - a for a, b in itertools.pairwise(came)), said


def test_a_client_hears_of_a_match_while_its_study_is_listed(node, pacs, impatient):
    pacs.delay_s = 1.5
    with serving(node) as service:
        silent_s, said = longest_silence(service, verify_now(keys(StudyInstanceUID=STUDY)))
    assert "being listed, none checked" in said
    assert silent_s < 1.2
    assert said[-1] == ""


def test_a_client_hears_of_the_first_match_while_others_are_collected(node, pacs, impatient):
    pacs.matches, pacs.delay_s = 3, 1.5
    with serving(node) as service:
        silent_s, said = longest_silence(service, verify_now(keys(StudyInstanceUID="")))
    assert silent_s < 1.2
    assert said[0] == "being listed, none checked"
    assert said.count("") == 3


# Identifiers


def test_a_lone_asterisk_in_a_unique_key_asks_for_all(node):
    with serving(node) as service:
        matches, last = find(service, keys(StudyInstanceUID="*"))
        assert get(service, study="*").Status == 0xA900
    assert (last.Status, [match.StudyInstanceUID for match in matches]) == (0x0000, [STUDY])
