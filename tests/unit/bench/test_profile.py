"""The profile names the stages of marking and the functions of ours that cost most."""

from __future__ import annotations

from pathlib import Path

from dicom_node.bench import profile
from dicom_node.config import WatermarkConfig


def test_a_profile_of_one_ct_has_every_stage_and_our_own_functions(shared: Path) -> None:
    source = shared / "dicom" / "ct_series"
    found = profile.profile([source], WatermarkConfig(), repeats=1)
    assert {"decode", "w1", "w2", "encode", "readback"} <= set(found.stage_ms)
    assert 0 < sum(found.stage_ms.values()) <= 1.05 * found.total_ms
    assert any(where.startswith("dicom_node/watermark/") for where, *_ in found.functions)
    stages, functions = profile.tables(found)
    assert [row[0] for row in stages.rows][-1] == "all"
    assert len(functions.rows) == len(found.functions)
