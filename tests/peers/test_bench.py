"""The throughput benchmark works against the real peers; its figures are nobody's promise here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dicom_node.bench.processes import tool
from dicom_node.errors import ConfigError


def _require(name: str) -> None:
    try:
        tool(name)
    except ConfigError as error:
        if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.mark.peer
@pytest.mark.slow
def test_every_scenario_delivers_all_instances_and_reports_them(
    shared: Path, tmp_path: Path
) -> None:
    for name in ("Orthanc", "storescu"):
        _require(name)
    source = shared / "dicom" / "ct_tcia_covid"
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli.main", "bench", "throughput", "--instances", "10",
         "--rounds", "1", "--source", str(source), "--out", str(tmp_path), "--json"],
        capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["instances"] == 10
    assert set(figures["rounds"]) == {"a", "b", "c"}
    [marked] = figures["rounds"]["c"]
    assert {"receive", "mark", "forward", "pacs"} <= set(marked["cpu_ms_per_instance"])
    assert marked["stage_ms"]["w2"] > 0
    assert "c. node, marking on" in (tmp_path / "throughput.md").read_text()
