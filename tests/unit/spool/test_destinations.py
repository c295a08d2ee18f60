"""Destinations that were renamed or removed: nothing that waits for them is silent, or lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from dicom_node.cli.main import main
from dicom_node.config import SpoolConfig, load
from dicom_node.errors import SpoolError
from dicom_node.node import _hold_unknown
from dicom_node.spool import Spool
from dicom_node.spool import delivery_queue as queue


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as opened:
        yield opened


def send(spool: Spool, *destinations: str, uid: str = "1.2.3") -> int:
    return spool.receive(
        b"header", uid.encode(), sop_class_uid="1.2", sop_instance_uid=uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1", deliver_to=destinations,
    ).job_id  # fmt: skip


def conf(tmp_path: Path, *names: str) -> Path:
    text = f'[spool]\ndirectory = "{tmp_path}/spool"\nmin_free_mib = 0\n'
    for name in names:
        text += f'[[destination]]\nname = "{name}"\nae_title = "A"\nhost = "h"\nport = 104\n'
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def states(spool: Spool, job_id: int) -> dict[str, str]:
    return {each.destination: each.state for each in spool.deliveries(job_id)}


def test_what_waits_for_a_removed_destination_is_held_with_the_way_out(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_HOLD_AT_ONCE", 2)
    jobs = [send(spool, "old", uid=str(number)) for number in range(5)]
    both = send(spool, "old", "pacs", uid="both")
    assert spool.hold_unknown(["pacs"]) == {"old": 6}
    for job_id in jobs:
        job = spool.job(job_id)
        assert job is not None
        assert job.state == "held"
        assert "no [[destination]] is named 'old'" in job.reason
        assert "`dicom-node queue release`" in job.reason
    assert states(spool, both) == {"old": "held", "pacs": "waiting"}
    told = [(row.kind, row.destination) for row in spool.outbox()]
    assert told == [("held", "old")] * 6, "the audit trail hears of each"


def test_what_is_being_sent_is_left_to_its_forwarder(spool: Spool) -> None:
    job_id = send(spool, "old")
    [delivery] = spool.claim_delivery("old")
    assert spool.hold_unknown(["pacs"]) == {"old": 1}
    assert states(spool, job_id) == {"old": "sending"}
    spool.delivered(delivery)


def test_release_sends_it_to_the_destinations_there_are_but_to_none_twice(spool: Spool) -> None:
    job_id = send(spool, "old", "pacs")
    spool.delivered(spool.claim_delivery("pacs")[0])
    spool.hold_unknown(["pacs", "new"])
    assert spool.release(job_id, destinations=["pacs", "new"])
    assert states(spool, job_id) == {"pacs": "delivered", "new": "waiting"}
    spool.delivered(spool.claim_delivery("new")[0])
    assert spool.tally()["delivered"] == 1


def test_release_of_what_all_others_have_ends_the_job(spool: Spool) -> None:
    job_id = send(spool, "old", "pacs")
    spool.delivered(spool.claim_delivery("pacs")[0])
    spool.hold_unknown(["pacs"])
    assert spool.release(job_id, destinations=["pacs"])
    assert spool.tally()["delivered"] == 1


def test_a_name_that_comes_back_is_released_to_itself(spool: Spool) -> None:
    job_id = send(spool, "old")
    spool.hold_unknown(["new"])
    assert spool.release(job_id, destinations=["new", "old"])
    assert states(spool, job_id) == {"old": "waiting"}


def test_names_that_change_to_and_fro_lose_nothing(spool: Spool) -> None:
    job_id = send(spool, "old")
    for name in ("new", "old", "new"):
        spool.hold_unknown([name])
        assert spool.release(job_id, destinations=[name])
        assert states(spool, job_id) == {name: "waiting"}
    spool.delivered(spool.claim_delivery("new")[0])


def test_without_any_destination_it_stays_for_the_old_one(spool: Spool) -> None:
    job_id = send(spool, "old")
    spool.hold_unknown([])
    assert not spool.release(job_id, destinations=[])
    assert states(spool, job_id) == {"old": "held"}


def test_the_queue_shows_and_releases_it(
    spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = send(spool, "old")
    path = str(conf(tmp_path, "new"))
    _hold_unknown(load(Path(path)), spool)
    assert main(["queue", "list", "--config", path]) == 0
    assert "no [[destination]] is named 'old'" in capsys.readouterr().out
    assert main(["queue", "release", "--destination", "old", "--json", "--config", path]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"id": job_id, "action": "release", "done": True, "state": "marked"}
    assert states(spool, job_id) == {"new": "waiting"}


def test_serve_says_at_every_start_how_much_waits_for_whom(spool: Spool, tmp_path: Path) -> None:
    send(spool, "old")
    config = load(conf(tmp_path, "pacs"))
    for _ in range(2):
        with structlog.testing.capture_logs() as events:
            _hold_unknown(config, spool)
        [event] = events
        assert (event["log_level"], event["destination"], event["deliveries"]) == (
            "error", "old", 1,
        )  # fmt: skip
    with structlog.testing.capture_logs() as events:
        _hold_unknown(load(conf(tmp_path, "pacs", "old")), spool)
    assert events == []


def test_a_journal_that_takes_no_note_of_it_now_does_not_keep_the_node_from_starting(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_names: list[str]) -> dict[str, int]:
        raise SpoolError("no space left for the journal")

    monkeypatch.setattr(spool, "hold_unknown", full)
    with structlog.testing.capture_logs() as events:
        _hold_unknown(load(conf(tmp_path)), spool)
    assert [event["reason"] for event in events] == ["no space left for the journal"]


def test_config_check_says_what_waits_and_changes_nothing(
    spool: Spool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = send(spool, "old", "pacs")
    assert main(["config", "check", "--config", str(conf(tmp_path, "pacs"))]) == 0
    said = capsys.readouterr().out
    assert "note: instances not yet delivered to 'old': 1; no [[destination]] is named" in said
    assert "'pacs'" not in said
    assert states(spool, job_id) == {"old": "waiting", "pacs": "waiting"}
    assert main(["config", "check", "--config", str(conf(tmp_path, "pacs", "old"))]) == 0
    assert "note:" not in capsys.readouterr().out


def test_config_check_of_a_new_node_makes_no_spool_and_a_bad_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(conf(tmp_path, "pacs"))
    assert main(["config", "check", "--config", path]) == 0
    assert not (tmp_path / "spool").exists()
    assert "note:" not in capsys.readouterr().out
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "journal.sqlite").write_bytes(b"no journal" * 99)
    assert main(["config", "check", "--config", path]) == 0
    assert "journal.sqlite: cannot be read" in capsys.readouterr().out
