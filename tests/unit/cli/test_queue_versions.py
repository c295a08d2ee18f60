"""``queue release`` of a version older than what the PACS has: said, and never wholesale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node.cli.main import main
from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """Return a configuration whose spool holds version 1, after which version 2 was delivered."""
    folder = tmp_path / "spool"
    with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
        for content in (b"first", b"second"):
            spool.receive(
                b"header", content, sop_class_uid="1.2", sop_instance_uid="1.2.3",
                transfer_syntax_uid="1.2.840.10008.1.2.1", deliver_to=["pacs"],
            )  # fmt: skip
        [first] = spool.claim_delivery("pacs")
        spool.hold_delivery(first, "cannot understand", status=0xC000)
        [second] = spool.claim_delivery("pacs")
        spool.delivered(second)
    path = tmp_path / "node.toml"
    path.write_text(
        f'[spool]\ndirectory = "{folder}"\nmin_free_mib = 0\n'
        '[[destination]]\nname = "pacs"\nae_title = "A"\nhost = "h"\nport = 104\n'
    )
    return path


def test_by_its_id_it_is_released_and_said_to_replace_the_later_one(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", "release", "1", "--config", str(conf)]) == 0
    assert "it takes the place of job 2, a later version" in capsys.readouterr().out


def test_with_all_others_it_is_kept(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "release", "--all", "--config", str(conf)]) == 3
    assert "job 1 is held, kept: job 2, a later version" in capsys.readouterr().out
    assert main(["queue", "release", "--all", "--json", "--config", str(conf)]) == 3
    assert json.loads(capsys.readouterr().out) == {
        "id": 1, "action": "release", "done": False, "state": "held", "newer_version": 2,
    }  # fmt: skip
