"""A PACS that has instances and fails to send them is told apart from one that lost them."""

from __future__ import annotations

import json

import pytest
import verifying
from auditors import DETAILS, MISSING, find, get
from verifying import FakePacs, Marks, Service, block_of, keys, verify_now

from dicom_node.cli.main import main
from dicom_node.config import parse

pytestmark = [pytest.mark.peer, pytest.mark.slow]
FAILED = "pacs failed to send 1 (status 0xB000)"


@pytest.fixture
def pacs(tmp_path):
    """An archive that has slices 1 and 2 of three that were delivered, and cannot send 2."""
    marks = Marks(tmp_path)
    study = [marked for _, marked in marks.study(1, 3, size=128)]
    one = FakePacs(study[:2])
    one.marks, one.study = marks, study
    one.unsendable = ("1.2.3.1.1.2",)
    yield one
    one.stop()


@pytest.fixture
def config(tmp_path, pacs):
    path = tmp_path / "node.toml"
    path.write_text(verifying.config_text(tmp_path, pacs.marks.keys, pacs.port))
    return path


def audit(config, capsys, *arguments):
    capsys.readouterr()
    code = main(["audit", "--config", str(config), "--json", "--study", "1.2.3.1", *arguments])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return code, lines[:-1], lines[-1]["summary"]


def test_audit_names_it_apart_from_what_is_not_there(config, pacs, capsys):
    service = Service(parse(config.read_text(), "test"))
    service.register(*map(verifying.entry_of, pacs.study))
    code, [said], summary = audit(config, capsys)
    assert (code, said["sound"]) == (1, False)
    assert said["missing"] == ["1.2.3.1.1.2", "1.2.3.1.1.3"]
    assert (said["unsent"], said["failure"]) == (["1.2.3.1.1.2"], FAILED)
    assert (summary["missing"], summary["unsent"]) == (2, 1)
    with service.registry() as registry:
        kept = {v.sop_instance_uid: v.verdict
                for v in registry.verdicts(study_instance_uid="1.2.3.1")}  # fmt: skip
    assert kept == {"1.2.3.1.1.1": "authentic", "1.2.3.1.1.3": "missing"}


def test_a_study_of_which_nothing_else_is_wrong_could_not_be_checked(config, pacs, capsys):
    service = Service(parse(config.read_text(), "test"))
    service.register(*map(verifying.entry_of, pacs.study[:2]))
    code, _, summary = audit(config, capsys)
    assert (code, summary["failed"], summary["unsound"]) == (3, {"1.2.3.1": FAILED}, [])
    pacs.unsendable, pacs.fails_with = (), (0xA702, 1)
    code, _, summary = audit(config, capsys)
    assert (code, summary["failed"]["1.2.3.1"]) == (3, "pacs failed to send 1 (status 0xA702)")


def test_c_find_and_c_get_say_so(config, pacs):
    service = Service(parse(config.read_text(), "test")).start()
    try:
        service.register(*map(verifying.entry_of, pacs.study))
        # On a slow machine the match comes before with how far the check is.
        [*_, match], _ = find(service, verify_now(keys(StudyInstanceUID="1.2.3.1")))
        said = block_of(match)
        details = json.loads(said[DETAILS])
        assert (said[MISSING], details["unsent"]) == (2, ["1.2.3.1.1.2"])
        assert details["failure"] == FAILED
        _, status, _ = get(service, keys(StudyInstanceUID="1.2.3.1"))
        assert (status.Status, status.NumberOfFailedSuboperations) == (0xB000, 2)
        assert status.ErrorComment == f"1 missing; {FAILED}"
        with service.registry() as registry:
            kept = {v.sop_instance_uid: v.verdict
                    for v in registry.verdicts(study_instance_uid="1.2.3.1")}  # fmt: skip
        assert kept == {"1.2.3.1.1.1": "authentic", "1.2.3.1.1.3": "missing"}
    finally:
        service.end()
