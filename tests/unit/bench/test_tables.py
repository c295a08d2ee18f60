"""Tables say what was measured: every frame counts, and unmarked ones count as not recovered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node.bench import fidelity, fidelity_tables, report, throughput
from dicom_node.bench.attacks import ATTACKS
from dicom_node.bench.fidelity import FrameResult, Reading
from dicom_node.bench.measures import CapacityPoint, Quality
from dicom_node.bench.processes import Usage


def _frame(modality: str, *, recovered: bool, message: str = "00" * 12) -> FrameResult:
    quality = Quality(44.0, 0.99, 70.0, 5, 5.0 if modality == "CT" else None, 0.02, 1)
    reading = Reading(recovered, 0.98 if message else None)
    return FrameResult(
        path=f"{modality}.dcm", modality=modality, frame=1, rows=64, columns=80, bits=12, samples=1,
        quality=quality, jpegls_bytes=(100, 110), jpeg2000_bytes=None, profile="tiled",
        message=message, readings={attack.name: reading for attack in ATTACKS}, false_accepts=0,
        capacity=[CapacityPoint(1, 0.3, 50.0), CapacityPoint(2, 0.5, 39.0)],
    )  # fmt: skip


@pytest.fixture
def result() -> fidelity.Result:
    frames = [_frame("CT", recovered=True), _frame("CT", recovered=True),
              _frame("MR", recovered=True), _frame("MR", recovered=False, message="")]  # fmt: skip
    return fidelity.Result(frames, exact={"CT": 2, "MR": 1}, inexact=[("b.dcm", "why")],
                           strangers=8)  # fmt: skip


def _row(tables: list[report.Table], title: str, first: str) -> list[str]:
    [table] = [t for t in tables if title in t.title]
    [row] = [r for r in table.rows if r[0] == first]
    return list(row)


def test_a_frame_without_a_robust_mark_counts_as_not_recovered(result: fidelity.Result) -> None:
    tables = fidelity_tables.tables(result)
    assert _row(tables, "recovered", "MR")[1] == "50"
    assert _row(tables, "recovered", "all frames")[1] == "75"


def test_one_object_that_does_not_restore_fails_the_goal(result: fidelity.Result) -> None:
    row = _row(fidelity_tables.tables(result), "goals", "restored exactly")
    assert row[2:] == ["3 of 4 objects", "", "no"]


def test_capacity_counts_only_what_stays_above_40_db(result: fidelity.Result) -> None:
    assert _row(fidelity_tables.tables(result), "capacity", "CT")[-1] == "0.30"


def test_results_are_written_as_markdown_and_json(result: fidelity.Result, tmp_path: Path) -> None:
    tables = fidelity_tables.tables(result)
    report.write(tmp_path, "fidelity", tables, fidelity.to_json(result))
    assert "| CT | 2 |" in (tmp_path / "fidelity.md").read_text()
    assert len(json.loads((tmp_path / "fidelity.json").read_text())["frames"]) == 4


def test_a_rate_is_judged_by_its_median_against_its_target() -> None:
    usage = {"pacs": Usage(1.0, 50.0)}
    rounds = {
        "a": [throughput.Round(1.0, usage)],
        "c": [throughput.Round(s, usage, {"w1": 0.01}) for s in (2.0, 4.0, 3.0)],
    }
    tables = throughput.tables(throughput.Result(100, 3, rounds))
    row = _row(tables, "median", "c. node, marking on")
    assert row[1:4] == ["33.3", "25.0, 50.0", "0.33"]
    assert row[-1] == "yes"
    assert _row(tables, "by stage", "all")[1] == "10.0"


@pytest.mark.parametrize(
    ("made_up", "sent"),
    [
        (False, "100 CT 512 x 512, 16 bit, of 3 slices"),
        (True, "100 made-up CT 512 x 512, 16 bit (a phantom; --source names real slices)"),
    ],
)
def test_a_rate_says_over_what_it_was_measured(made_up: bool, sent: str) -> None:
    rounds = {"b": [throughput.Round(1.0, {})] * 5}
    result = throughput.Result(100, 3, rounds, made_up=made_up)
    assert throughput.tables(result)[0].title == f"{sent}, median of 5 rounds"
    assert throughput.to_json(result)["made_up"] is made_up
