"""What the robustness bench tells: shares and goals, times, peers, curves, figures for machines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from bench_subjects import subject

from dicom_node.bench import report
from dicom_node.bench.attacks import Attack, choose
from dicom_node.bench.robustness import measure, plots, tables, times
from dicom_node.bench.robustness.comparing import PeerReading, PeerResult
from dicom_node.bench.robustness.reading import Reading, Strangers
from dicom_node.bench.robustness.workers import Copied, FrameResult


def _result(
    *, recovered: list[bool], attacks: tuple[Attack, ...], small: int = 0
) -> measure.Result:
    """Frames of two modalities, the first ones `small`, the last one without a mark."""
    result = measure.Result(attacks)
    for number, each in enumerate(recovered):
        last = number == len(recovered) - 1
        measured = subject(
            "MR" if last else "CT", (64, 80) if number < small else (128, 160),
            message="" if last else "00" * 12, frame=number,
        )  # fmt: skip
        readings = {
            a.name: Reading(a.name, None if last else 0.9, each, "upright" if each else "", 30.0)
            for a in attacks
        }
        counted = Strangers(unmarked=10, wrong_key=20, searches=1)
        result.frames.append(FrameResult(measured, readings, counted, Copied(True, False)))
    return result


def _row(made: list[report.Table], title: str, first: str, column: int = 0) -> list[str]:
    [table] = [t for t in made if title in t.title]
    [row] = [r for r in table.rows if r[column] == first]
    return list(row)


def test_a_goal_is_held_by_the_share_of_all_frames_unmarked_ones_included() -> None:
    attacks = choose(["JPEG 70", "JPEG 10"])
    made = tables.tables(_result(recovered=[True, True, False], attacks=attacks))
    row = _row(made, "every attack", "JPEG 70", column=1)
    figures = ["3", "30.0", "0.900", "66.7", "66.7", "50.0", "100"]
    assert row[2:] == [*figures, "91-93; 95.8-98.1", "98", "no"]
    assert _row(made, "every attack", "JPEG 10", column=1)[-2:] == ["40", "yes"]
    assert _row(made, "recovered blind", "JPEG 70") == ["JPEG 70", "100", "0.0", "66.7"]


def test_small_frames_and_unmarked_ones_are_left_out_of_one_column_only() -> None:
    attacks = choose(["JPEG 70"])
    recovered = [False, True, True, False, False]
    made = tables.tables(_result(recovered=recovered, attacks=attacks, small=1))
    row = _row(made, "every attack", "JPEG 70", column=1)
    assert (row[6], row[8]) == ("40.0", "66.7")


def test_a_hundred_per_cent_means_every_frame() -> None:
    attacks = choose(["JPEG 70"])
    made = tables.tables(_result(recovered=[True] * 3000 + [False], attacks=attacks))
    assert _row(made, "every attack", "JPEG 70", column=1)[6] == "99.9"


def test_every_decode_without_our_mark_is_counted() -> None:
    made = tables.tables(_result(recovered=[True, False], attacks=choose(["JPEG 70"])))
    assert _row(made, "where there are none", "all of these")[1:] == ["62", "0"]
    assert _row(made, "know the method", "copy attack: another frame's residual on a cover")[2] == (
        "message read in 2, believed (its pHash fits, too) in 0"
    )


def test_peers_stand_beside_ours_on_the_same_frames_only() -> None:
    attacks = choose(["JPEG 70"])
    result = _result(recovered=[True, False, False], attacks=attacks)
    readings = {"JPEG 70": PeerReading(0.75, False)}
    result.peers = [PeerResult("RivaGAN", "a.dcm", "CT", 0, 40.0, 0.98, readings)]
    made = tables.tables(result)
    assert _row(made, "peers on the same frames: rec", "JPEG 70")[1:] == ["100", "0.900", "0.0",
                                                                         "0.750"]  # fmt: skip
    assert _row(made, "how visible", "RivaGAN")[1:3] == ["32, no code", "40.00"]


def test_curves_are_drawn_and_figures_can_be_read_by_machines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="CURVES NOT DRAWN: no matplotlib")
    result = _result(recovered=[True, False], attacks=choose(["compression", "noise"]))
    assert plots.draw(result, tmp_path)
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] > 1000
    read = json.loads(json.dumps(measure.to_json(result)))
    assert read["without_our_mark"]["decodes"] == 62
    assert read["frames"][0]["readings"][0]["found"] == "upright"


def test_times_are_told_of_untouched_pictures_and_of_searches_by_their_outcome() -> None:
    read = Reading("plain 8-bit export", 0.9, True, "upright", None)
    readings = [replace(read, untouched_s=seconds) for seconds in (0.01, 0.02, 0.03, 0.08)]
    readings += [replace(read, found="search", search_s=seconds) for seconds in (0.5, 1.5)]
    readings.append(replace(read, found="", search_s=3.0))
    made = times.tables(readings)
    assert _row(made, "untouched pictures", "4") == ["4", "25", "35", "72", "80", "75.0%"]
    assert _row(made, "searches", "found") == ["found", "2", "1.00", "1.50"]
    assert _row(made, "searches", "given up") == ["given up", "1", "3.00", "3.00"]
    assert times.tables([read]) == []
