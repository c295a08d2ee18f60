"""Where the time of marking goes: one CT, marked many times in this process."""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

from dicom_node.bench.load import ct_slices, phantom
from dicom_node.bench.report import Table
from dicom_node.config import WatermarkConfig
from dicom_node.errors import NodeError
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker

REPEATS = 30
_SHOWN = 30
_PACKAGE = "dicom_node"


@dataclass(frozen=True)
class Profile:
    """CPU-ms of marking one instance: by stage, in all, and the dearest functions.

    `functions` are (where, calls, own ms, ms with what they call) for each instance, under the
    profiler, which makes small functions look dearer than they are.
    """

    path: Path
    stage_ms: dict[str, float]
    total_ms: float
    functions: list[tuple[str, float, float, float]]
    made_up: bool = False


def profile(
    sources: Sequence[Path], settings: WatermarkConfig, *, repeats: int = REPEATS
) -> Profile:
    """Mark the first CT slice of `sources` `repeats` times after a warm-up; without, a made-up one.

    Raises
    ------
    ConfigError
        If there is no CT slice of 512 x 512.
    NodeError
        If it cannot be marked.
    """
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as name:
        folder = Path(name)
        path = ct_slices(sources)[0] if sources else phantom(folder / "phantom.dcm")
        ring = KeyRing.open(folder / "keys", owner=settings.owner, create=True)
        marker = Marker(settings, ring, open_engine(settings.engine))
        stages, times = [], []

        def once() -> dict[str, float]:
            outcome = marker.mark(path, folder / "out.dcm", marked_at=datetime.now(UTC))
            if outcome.action != "marked":
                raise NodeError(f"{path}: {outcome.action}: {outcome.reason}")
            return outcome.stage_s

        for number in range(repeats + 2):
            began = time.process_time()
            stage_s = once()
            if number >= 2:  # the first ones load and cache
                times.append(time.process_time() - began)
                stages.append(stage_s)
        watcher = cProfile.Profile(time.process_time)  # wall time would count other processes
        watcher.enable()
        for _ in range(repeats):
            once()
        watcher.disable()
    stage_ms = {key: 1000 * mean(each.get(key, 0.0) for each in stages) for key in stages[0]}
    total_ms, functions = 1000 * mean(times), _functions(watcher, repeats)
    return Profile(path, stage_ms, total_ms, functions, made_up=not sources)


def _functions(watcher: cProfile.Profile, repeats: int) -> list[tuple[str, float, float, float]]:
    rows = []
    for (file, line, function), figures in pstats.Stats(watcher).stats.items():  # type: ignore[attr-defined]
        calls, own, whole = figures[1], figures[2], figures[3]
        where = function
        if _PACKAGE in file:
            where = f"{file[file.rindex(_PACKAGE) :]}:{line} {function}"
        rows.append((where, calls / repeats, 1000 * own / repeats, 1000 * whole / repeats))
    return sorted(rows, key=lambda row: -row[2])[:_SHOWN]


def tables(found: Profile) -> list[Table]:
    """Return the stages, and the dearest functions."""
    what = "made-up CT" if found.made_up else "CT"
    stages = Table(f"CPU-ms to mark one {what} 512 x 512, by stage", ("stage", "CPU-ms"))
    for name, spent in found.stage_ms.items():
        stages.add(name, f"{spent:.1f}")
    other = found.total_ms - sum(found.stage_ms.values())
    stages.add("other (files, header)", f"{other:.1f}")
    stages.add("all", f"{found.total_ms:.1f}")
    functions = Table(
        "dearest functions, per instance, under the profiler",
        ("function", "calls", "own ms", "with callees ms"),
    )
    for where, calls, own, whole in found.functions:
        functions.add(where, f"{calls:.1f}", f"{own:.2f}", f"{whole:.2f}")
    return [stages, functions]
