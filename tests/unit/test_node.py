from __future__ import annotations

import re
from pathlib import Path

import pytest
import structlog

from dicom_node.config import Config, parse
from dicom_node.errors import ConfigError, SpoolFull
from dicom_node.keys import KeyRing
from dicom_node.node import (
    ROLES,
    _reclaim,
    mark_workers,
    readiness_line,
    roles_of,
    serve,
    transcoder,
)

SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def config() -> Config:
    text = "[node]\nreceivers = 2\n[watermark]\nworkers = 3\n"
    for name in ("pacs", "archive"):
        text += f'[[destination]]\nname = "{name}"\nae_title = "A"\nhost = "h"\nport = 104\n'
    return parse(text, "test")


def names(config: Config, only: str | None = None) -> list[str]:
    return [role.name for role in roles_of(config, only)]


def test_every_kind_of_process_runs_as_often_as_configured(config: Config) -> None:
    assert names(config) == [
        "receive-0", "receive-1", "mark-0", "mark-1", "mark-2", "forward-pacs", "forward-archive",
        "register",
    ]  # fmt: skip


def test_only_selects_one_kind_or_one_destination(config: Config) -> None:
    assert names(config, "receive") == ["receive-0", "receive-1"]
    assert names(config, "forward") == ["forward-pacs", "forward-archive"]
    assert names(config, "forward:archive") == ["forward-archive"]
    assert names(config, "verify") == ["verify"]


def test_auditors_are_served_only_where_the_file_says_so(config: Config) -> None:
    assert "verify" not in names(config)
    assert names(parse("[verify]\nport = 4711\n", "test"))[-1] == "verify"


def test_images_flow_without_registry_and_verification(config: Config) -> None:
    inessential = {role.name for role in roles_of(config) if not role.essential}
    assert inessential == {"register"}
    assert not roles_of(config, "verify")[0].essential


@pytest.mark.parametrize("only", ["paint", "mark:pacs", "forward:moon", ""])
def test_what_only_does_not_know_is_refused(config: Config, only: str) -> None:
    with pytest.raises(ConfigError, match="--only"):
        roles_of(config, only)


def test_forwarding_to_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no \[\[destination\]\]"):
        roles_of(Config(), "forward")


def test_with_marking_off_one_worker_looks_after_what_was_left() -> None:
    assert mark_workers(parse("[watermark]\nenabled = false\nworkers = 8\n", "test")) == 1


def test_the_ready_line_says_what_runs(config: Config) -> None:
    line = readiness_line(config, roles_of(config))
    assert line.startswith("ready: DICOMNODE on 0.0.0.0:11112, receive-0,")
    assert line.endswith("forward-archive, register")
    assert readiness_line(config, roles_of(config, "mark")) == "ready: mark-0, mark-1, mark-2"


def test_keys_of_another_owner_than_configured_are_refused_with_both_ways_out(
    tmp_path: Path,
) -> None:
    keys, spool = tmp_path / "keys", tmp_path / "spool"
    ring = KeyRing.open(keys, owner="NORTH-CLINIC", create=True)
    text = f'[keys]\ndirectory = "{keys}"\n[spool]\ndirectory = "{spool}"\n[watermark]\n'
    config = parse(text + 'owner = "SOUTH-CLINIC"\n', "test")
    with pytest.raises(ConfigError, match=r"watermark\.owner = 'SOUTH-CLINIC'") as caught:
        serve(config, announce=print)
    said = str(caught.value)
    assert ring.current.key_id.hex() in said
    assert "set watermark.owner = 'NORTH-CLINIC'" in said
    assert "`dicom-node keys rotate`" in said
    assert not spool.exists(), "nothing was started"
    with pytest.raises(ConfigError):
        serve(config, only="mark", announce=print)


def test_claims_that_cannot_be_freed_now_do_not_end_the_node() -> None:
    class Full:
        def reclaim(self) -> None:
            raise SpoolFull("no space left for the journal")

    with structlog.testing.capture_logs() as events:
        _reclaim(Full())  # type: ignore[arg-type]
    assert [event["reason"] for event in events] == ["no space left for the journal"]


def test_every_role_has_a_systemd_unit_and_the_target_wants_it() -> None:
    wanted = re.findall(r"dicom-node-(\w+)\.service", (SYSTEMD / "dicom-node.target").read_text())
    assert sorted(wanted) == sorted(ROLES)
    for role in ROLES:
        unit = (SYSTEMD / f"dicom-node-{role}.service").read_text()
        assert f"--only {role}\n" in unit
        assert "Type=notify" in unit
        # What needs no keys cannot reach them; what marks has no network; the rest reads them only.
        keys = "ReadOnlyPaths" if role in ("register", "verify") else "InaccessiblePaths"
        shut = "PrivateNetwork=yes" if role == "mark" else f"{keys}=-/var/lib/dicom-node/keys"
        assert shut in unit


def test_no_copy_is_made_for_a_destination_that_takes_nothing_we_can_write(
    config: Config, tmp_path: Path
) -> None:
    spool = config.spool.model_copy(update={"directory": tmp_path})
    transcode = transcoder(config.model_copy(update={"spool": spool}), "pacs")
    assert transcode(tmp_path / "x.dcm", ("1.2.840.10008.1.2.4.50",)) is None
    (tmp_path / "x.dcm").write_bytes(b"junk" * 99)
    assert transcode(tmp_path / "x.dcm", ("1.2.840.10008.1.2.1",)) is None
    assert list((tmp_path / "transcoded").rglob("*.dcm")) == []
