"""Curves of a run as a picture: recovered share and bit accuracy over what each attack is made of.

Needs matplotlib (the ``bench`` extra); a run without it says so and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dicom_node.bench.attacks import Attack
from dicom_node.bench.robustness import tables
from dicom_node.bench.robustness.comparing import PeerResult
from dicom_node.bench.robustness.measure import Result
from dicom_node.errors import ConfigError

MISSING = "curves: matplotlib is not installed: pip install 'dicom-node[bench]'"
_COLUMNS = 3
_PANEL_IN = (4.2, 3.1)
_LOGARITHMIC = {"noise variance": 10, "scale": 2}
_LEAST_POINTS = 2

Point = tuple[float, Attack]


def draw(result: Result, out: Path) -> bool:
    """Write ``curves.png`` into a folder; False where matplotlib is missing.

    Raises
    ------
    ConfigError
        If the folder cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves = {k: v for k, v in tables.points(result).items() if len(v) >= _LEAST_POINTS}
    if not curves:
        return True
    rows = -(-len(curves) // _COLUMNS)
    figure = Figure((_PANEL_IN[0] * _COLUMNS, _PANEL_IN[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        _panel(axes, name, points, result)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / "curves.png", dpi=110)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    return True


def _panel(axes: Any, name: str, points: Sequence[Point], result: Result) -> None:
    frames = result.frames
    ours = [(x, tables.share(frames, a.name), tables.accuracy(frames, a.name)) for x, a in points]
    there = [(x, s, b) for x, s, b in ours if s is not None]
    axes.plot([x for x, _, _ in there], [s for _, s, _ in there], "o-", color="C0",
              label="recovered blind")  # fmt: skip
    bits = [(x, b) for x, _, b in there if b is not None]
    axes.plot([x for x, _ in bits], [b for _, b in bits], "s--", color="C0", alpha=0.45,
              label="bit accuracy, pose known")  # fmt: skip
    for colour, (peer, results) in enumerate(tables.by_peer(result).items(), start=1):
        _peer(axes, peer, results, points, f"C{colour}")
    if name in _LOGARITHMIC:
        axes.set_xscale("log", base=_LOGARITHMIC[name])
    axes.set_xlabel(name)
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)


def _peer(
    axes: Any, peer: str, results: Sequence[PeerResult], points: Sequence[Point], colour: str
) -> None:
    """Draw a peer's curve; with no point of it on this curve, only its name in the legend."""
    read = [(x, tables.peer_share(results, attack.name)) for x, attack in points]
    there = [(x, share) for x, share in read if share is not None]
    axes.plot([x for x, _ in there], [share for _, share in there], "x-", color=colour,
              label=f"{peer}, some frames")  # fmt: skip
