"""The throughput benchmark works against the real peers; its figures are nobody's promise here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peer_tools import PACKAGES

from dicom_node.bench.processes import tool
from dicom_node.errors import ConfigError


def _require(name: str) -> None:
    try:
        tool(name)
    except ConfigError as error:
        if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def _bench(out: Path, *arguments: object) -> dict[str, Any]:
    """Run the command from a folder that has nothing in it; return its figures."""
    for name in ("Orthanc", "storescu"):
        _require(name)
    (out / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli.main", "bench", "throughput", "--rounds", "1",
         "--out", str(out), "--json", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=170, cwd=out / "work",
        env={**os.environ, "PYTHONPATH": PACKAGES},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.mark.peer
@pytest.mark.slow
def test_every_scenario_delivers_all_instances_and_reports_them(
    shared: Path, tmp_path: Path
) -> None:
    source = shared / "dicom" / "ct_tcia_covid"
    figures = _bench(tmp_path, "--instances", 10, "--source", source)
    assert figures["instances"] == 10
    assert set(figures["rounds"]) == {"a", "b", "c"}
    [marked] = figures["rounds"]["c"]
    assert {"receive", "mark", "forward", "pacs"} <= set(marked["cpu_ms_per_instance"])
    assert marked["stage_ms"]["w2"] > 0
    assert "c. node, marking on" in (tmp_path / "throughput.md").read_text()


@pytest.mark.peer
@pytest.mark.slow
def test_without_a_source_made_up_slices_are_sent_and_called_so(tmp_path: Path) -> None:
    figures = _bench(tmp_path, "--instances", 4, "--scenarios", "c")
    assert (figures["instances"], figures["slices"], figures["made_up"]) == (4, 1, True)
    title = "4 made-up CT 512 x 512, 16 bit (a phantom"
    assert title in (tmp_path / "throughput.md").read_text()
