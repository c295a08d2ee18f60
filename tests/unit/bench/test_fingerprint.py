"""The fingerprint's benchmark: edits are what they say, figures are what they count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.bench import edits, fingerprint, fingerprint_tables
from dicom_node.bench.fingerprint import Result, Trial
from dicom_node.bench.fingerprint_baseline import signature, signature_scores
from dicom_node.bench.frames import Sample
from dicom_node.errors import ConfigError


def picture(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:256, :320]
    smooth = 120 + 60 * np.sin(x / (17 + seed)) * np.cos(y / 23)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", list(edits.EDITS))
@pytest.mark.parametrize("size", edits.SIZES)
def test_an_edit_changes_one_place_of_its_size(name: str, size: int) -> None:
    before = picture()
    after = edits.EDITS[name](before, picture(5), size, np.random.default_rng(1))
    rows, columns = np.nonzero(np.abs(after.astype(int) - before) > 2)
    assert after.shape == before.shape
    assert rows.size > 0
    pixels = size * np.sqrt(before.size) / 256
    assert max(np.ptp(rows), np.ptp(columns)) <= 1.2 * pixels + 4


def test_labels_name_the_cells_that_were_changed() -> None:
    before = picture()
    after = before.copy()
    after[32:48, 40:60] ^= 64  # cell (2, 2) of 16 x 20 pixels, all of it
    assert np.argwhere(fingerprint.labels(before, after) == 1).tolist() == [[2, 2]]
    assert (fingerprint.labels(before, before) == 0).all()


def trial(scores: np.ndarray, marked: np.ndarray, edit: str = "x") -> Trial:
    found = scores > 0
    return Trial("CT", fingerprint.REQUIRED, edit, 16, scores, scores, marked, found)


def test_figures_of_a_perfect_and_of_a_blind_detector() -> None:
    marked = np.zeros((16, 16), np.int8)
    marked[3, 3:5], marked[9, 9] = 1, -1
    perfect = trial(np.where(marked == 1, 5, -5).astype(np.float32), marked)
    blind = trial(np.full((16, 16), -1, np.float32), marked)
    assert (fingerprint.area([perfect]), fingerprint.area([blind])) == (1.0, 0.5)
    assert (fingerprint.found([perfect, blind]), fingerprint.found([blind])) == (0.5, 0.0)
    assert fingerprint.overlap([perfect, blind]) == 0.5


def test_what_lies_between_counts_for_neither_side() -> None:
    marked = np.zeros((16, 16), np.int8)
    marked[3, 3], marked[3, 4] = 1, -1
    both = np.where(marked != 0, 5, -5).astype(np.float32)
    assert fingerprint.overlap([trial(both, marked)]) == 1.0
    assert fingerprint.area([trial(both, marked)]) == 1.0


def test_tables_are_made_of_what_was_measured() -> None:
    marked = np.zeros((16, 16), np.int8)
    marked[3, 3] = 1
    scores = np.where(marked == 1, 5, -5).astype(np.float32)
    result = Result(sizes=[120], signed=1, frames={"CT": 1})
    result.trials = [trial(scores, marked, edit) for edit in edits.EDITS]
    calm = np.zeros((16, 16), np.int8)
    result.trials += [
        Trial("CT", name, "", 0, -np.ones((16, 16), np.float32), scores, calm, calm > 0)
        for name in fingerprint.processes()
    ]
    text = "\n".join(table.markdown() for table in fingerprint_tables.tables(result))
    assert "| AUC of cells | 1.0000 | 1.0000 |" in text
    assert all(name in text for name in (*edits.EDITS, *fingerprint.processes(), "| CT | 1 |"))


def test_the_signature_without_a_network_finds_a_spot_and_forgives_contrast() -> None:
    shown = (picture() / 255).astype(np.float32)
    signs = signature(shown)
    assert signature_scores(signs, shown).max() == 0
    faint = signature_scores(signs, 0.3 + 0.4 * shown)
    forged = shown.copy()
    forged[96:128, 120:160] = 0.9
    assert signature_scores(signs, forged)[6:8, 6:8].max() > 3 * faint.max()


def test_frames_that_set_the_threshold_are_not_measured_on(tmp_path: Path) -> None:
    calibrating = Sample(tmp_path / "whole" / "val" / "ct.webp", "CT", "g", (0,))
    with pytest.raises(ConfigError, match="no frame to measure on"):
        fingerprint.run([calibrating], "diagnostic")
