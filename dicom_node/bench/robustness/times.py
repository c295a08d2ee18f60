"""How long reading takes: untouched pictures, and searches for the pose."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import numpy as np

from dicom_node.bench.report import Table
from dicom_node.bench.robustness.reading import Reading

UNTOUCHED_MS = 50


def tables(readings: Sequence[Reading]) -> list[Table]:
    """Return what there is to tell: of untouched pictures, of searches."""
    made = []
    untouched = [1000 * each.untouched_s for each in readings if each.untouched_s is not None]
    if untouched:
        made.append(_untouched(untouched))
    searched = [each for each in readings if each.search_s is not None]
    if searched:
        made.append(_searches(searched))
    return made


def _untouched(spent: Sequence[float]) -> Table:
    table = Table(
        f"untouched pictures, read once each (goal: {UNTOUCHED_MS} CPU ms)",
        ("pictures", "CPU ms, median", "mean", "95 of 100 within", "worst", "within the goal"),
    )
    figures = (median(spent), mean(spent), float(np.quantile(spent, 0.95)), max(spent))
    within = mean([each <= UNTOUCHED_MS for each in spent])
    table.add(str(len(spent)), *(f"{each:.0f}" for each in figures), f"{within:.1%}")
    return table


def _searches(searched: Sequence[Reading]) -> Table:
    table = Table("searches for the pose", ("outcome", "searches", "CPU s, mean", "worst"))
    for name, recovered in (("found", True), ("given up", False)):
        spent = [each.search_s for each in searched
                 if each.recovered == recovered and each.search_s is not None]  # fmt: skip
        told = (f"{mean(spent):.2f}", f"{max(spent):.2f}") if spent else ("", "")
        table.add(name, str(len(spent)), *told)
    return table
