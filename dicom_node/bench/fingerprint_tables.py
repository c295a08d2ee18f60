"""The fingerprint's figures as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dicom_node.bench.edits import EDITS, SIZES
from dicom_node.bench.fingerprint import (
    REQUIRED,
    Result,
    Trial,
    area,
    baseline_found,
    false_alarms,
    found,
    overlap,
    processes,
)
from dicom_node.bench.report import Table

_SHOWN = ("AUC of cells", "found", "IoU of cells")


def tables(result: Result) -> list[Table]:
    """Return all tables."""
    return [_summary(result), _modalities(result), _edits(result), _processes(result)]


def _summary(result: Result) -> Table:
    edited, frames = result.some(edited=True, process=REQUIRED), sum(result.frames.values())
    table = Table(
        f"Fingerprint, {frames} frames, edits then {REQUIRED}",
        ("", "f", "signs of 8 DCT coefficients a cell"),
    )
    table.add("AUC of cells", f"{area(edited):.4f}", f"{area(edited, baseline=True):.4f}")
    table.add("edits found at 1 % false alarms a frame (f: at the card's threshold)",
              _percent(found(edited)), _percent(baseline_found(result, edited)))  # fmt: skip
    table.add("IoU of cells", f"{overlap(edited):.2f}", "")
    alarms = _percent(false_alarms(result.some(edited=False)))
    table.add("frames with a false alarm, all processing", alarms, "1.0 %, its threshold set here")
    table.add("bytes, mean and most", f"{np.mean(result.sizes):.0f}, {max(result.sizes)}", "256")
    table.add("signed in the pixels or the header block", f"{result.signed} of {frames}", "")
    table.add("edits that show nowhere, left out", str(result.unseen), "")
    return table


def _modalities(result: Result) -> Table:
    table = Table(
        f"By modality: edits, then {REQUIRED}",
        ("modality", "frames", *_SHOWN, "AUC without a network", "false alarms, all processing"),
    )
    for modality in (*sorted(result.frames), ""):
        edited = result.some(edited=True, modality=modality, process=REQUIRED)
        frames = result.frames[modality] if modality else sum(result.frames.values())
        plain = result.some(edited=False, modality=modality)
        table.add(
            modality or "all", str(frames), *_figures(edited),
            f"{area(edited, baseline=True):.4f}" if edited else "-", _percent(false_alarms(plain)),
        )  # fmt: skip
    return table


def _edits(result: Result) -> Table:
    table = Table("By edit, its size at 256 x 256, and what came after", ("edit", "then", *_SHOWN))
    for edit in EDITS:
        for size in SIZES:
            some = result.some(edited=True, process=REQUIRED, edit=edit, size=size)
            table.add(f"{edit}, {size} px", REQUIRED, *_figures(some))
    for name in dict.fromkeys(t.process for t in result.some(edited=True)):
        table.add("all", name, *_figures(result.some(edited=True, process=name)))
    return table


def _processes(result: Result) -> Table:
    table = Table(
        "False alarms: frames that were processed and not edited",
        ("processing", "frames with a false alarm", "cells", "highest score, 99th percentile"),
    )
    for name in processes():
        some = result.some(edited=False, process=name)
        highest = np.quantile([float(t.scores.max()) for t in some], 0.99)
        cells = float(np.mean([t.found.mean() for t in some]))
        table.add(name, _percent(false_alarms(some)), f"{100 * cells:.2f} %", f"{highest:.2f}")
    return table


def _figures(trials: Sequence[Trial]) -> tuple[str, str, str]:
    if not trials:
        return "-", "-", "-"
    return f"{area(trials):.4f}", _percent(found(trials)), f"{overlap(trials):.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
