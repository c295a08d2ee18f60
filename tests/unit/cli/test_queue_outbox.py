"""``dicom-node queue list`` says how far the registrar is behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.cli.main import main
from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool


def test_events_that_are_not_registered_yet_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[spool]\ndirectory = "{tmp_path}/spool"\n')
    command = ["queue", "list", "--config", str(config)]
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as spool:
        spool.receive(b"h", b"x", sop_class_uid="1.2", sop_instance_uid="1.2.3",
                      transfer_syntax_uid="1.2.840.10008.1.2.1")  # fmt: skip
        assert main(command) == 0
        assert "not yet registered" not in capsys.readouterr().err
        job = spool.claim()
        assert job is not None
        spool.hold(job, "odd")
        assert main(command) == 0
        assert "1 events not yet registered, the oldest of 20" in capsys.readouterr().err
        spool.forget(spool.outbox()[-1])
        assert main(command) == 0
        assert "not yet registered" not in capsys.readouterr().err
