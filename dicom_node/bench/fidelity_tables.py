"""The tables of `fidelity`: by modality, over all frames, and as the mean of the modalities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean

import numpy as np

from dicom_node.bench.attacks import ATTACKS
from dicom_node.bench.fidelity import FrameResult, Result
from dicom_node.bench.report import Table

ALL = "all frames"
MEAN = "mean of modalities"
_SHOWN_THRESHOLDS = (1, 4, 16, 64)
_VISIBLE_DB = 40.0
_REASONS = 12

Frames = Sequence[FrameResult]


def tables(result: Result) -> list[Table]:
    """Return every table (see the titles)."""
    by_modality: dict[str, list[FrameResult]] = {}
    for frame in result.frames:
        by_modality.setdefault(frame.modality, []).append(frame)
    made = [_goals(result, by_modality), _test_set(by_modality), _quality(by_modality)]
    made += [_files(result, by_modality), _recovered(by_modality), _accuracy(by_modality)]
    made += [_capacity(by_modality)]
    left_out = [*(("not marked", *each) for each in result.unmarked),
                *(("not exact", *each) for each in result.inexact)]  # fmt: skip
    if left_out:
        made.append(_reasons(left_out))
    return made


def _goals(result: Result, by_modality: dict[str, list[FrameResult]]) -> Table:
    """Return the goals of the project beside what was measured."""
    table = Table("goals", ("", "goal", "all frames", "mean of modalities", "held"))
    frames = result.frames

    def row(
        name: str, goal: str, figure: Callable[[Frames], float], least: float, text: str
    ) -> None:
        overall = figure(frames)
        middle = _mean(_finite(figure(some) for some in by_modality.values()))
        table.add(name, goal, text.format(overall), text.format(middle), _held(overall >= least))

    row("mean PSNR in the window, dB", "44", _psnr, 44.0, "{:.2f}")
    worst = min(_finite(frame.quality.psnr_db for frame in frames), default=float("inf"))
    table.add("worst frame, dB", "41", f"{worst:.2f}", "", _held(worst >= 41))
    robust = [frame for frame in frames if frame.message]
    with_w1 = f"{_psnr(robust):.2f}"
    table.add("mean PSNR of frames with a robust mark, dB", "", with_w1, "", "")
    row("mean SSIM", "0.99", _ssim, 0.99, "{:.4f}")
    alike = min((frame.quality.ssim for frame in frames), default=1.0)
    table.add("worst frame, SSIM", "0.97", f"{alike:.4f}", "", _held(alike >= 0.97))
    measured = [f.quality.largest_share for f in frames if f.quality.largest_hu is not None]
    if measured:
        most = max(measured)
        table.add("largest change of a CT object, of the window", "2%", f"{most:.1%}", "",
                  _held(most <= 0.02))  # fmt: skip
    slices = by_modality.get("CT")
    if slices:
        before, after = (sum(f.jpegls_bytes[i] for f in slices) for i in (0, 1))
        grown = after / before - 1
        table.add("JPEG-LS growth of CT", "8%", f"{grown:.1%}", "", _held(grown <= 0.08))
    for attack in ATTACKS:
        least = attack.target or 0.0
        row(f"message after {attack.name}", f"{least:.0%}", _share_of(attack.name), least, "{:.1%}")
    exact = sum(result.exact.values())
    objects = exact + len(result.inexact)
    restored = f"{exact} of {objects} objects"
    table.add("restored exactly", "all", restored, "", _held(exact == objects))
    wrong = sum(frame.false_accepts for frame in frames)
    table.add(
        "marks found where there are none", "0", f"{wrong} of {result.strangers} decodes", "",
        _held(wrong == 0),
    )  # fmt: skip
    return table


def _held(is_held: bool) -> str:
    return "yes" if is_held else "no"


def _test_set(by_modality: dict[str, list[FrameResult]]) -> Table:
    table = Table(
        "frames measured", ("modality", "frames", "files", "bits stored", "rows x columns")
    )
    for modality, frames in _rows(by_modality):
        bits = sorted({frame.bits for frame in frames})
        sizes = sorted({(f.rows * f.columns, f.rows, f.columns) for f in frames})
        smallest, largest = sizes[0], sizes[-1]
        extent = f"{smallest[1]} x {smallest[2]}"
        if smallest != largest:
            extent += f" to {largest[1]} x {largest[2]}"
        files = len({frame.path for frame in frames})
        table.add(modality, str(len(frames)), str(files), ", ".join(map(str, bits)), extent)
    return table


def _quality(by_modality: dict[str, list[FrameResult]]) -> Table:
    table = Table(
        "marked against cover (PSNR and SSIM in the display window, peak 1)",
        ("modality", "PSNR dB mean", "worst", "SSIM mean", "worst", "PSNR dB stored range",
         "largest change, stored", "HU", "of window", "pHash bits changed, mean", "most"),
    )  # fmt: skip
    for modality, frames in _rows(by_modality):
        figures = [frame.quality for frame in frames]
        hounsfield = [q.largest_hu for q in figures if q.largest_hu is not None]
        distances = [q.phash_distance for q in figures]
        table.add(
            modality, f"{_psnr(frames):.2f}",
            f"{min(_finite(q.psnr_db for q in figures), default=float('inf')):.2f}",
            f"{_ssim(frames):.4f}", f"{min(q.ssim for q in figures):.4f}",
            f"{_mean(_finite(q.stored_psnr_db for q in figures)):.1f}",
            str(max(q.largest_change for q in figures)),
            f"{max(hounsfield):.0f}" if hounsfield else "",
            f"{max(q.largest_share for q in figures):.1%}",
            f"{mean(distances):.2f}", str(max(distances)),
        )  # fmt: skip
    return table


def _files(result: Result, by_modality: dict[str, list[FrameResult]]) -> Table:
    table = Table(
        "restoration, size, and where the integrity record stands",
        ("modality", "objects restored exactly", "JPEG-LS growth", "JPEG 2000 growth",
         "all in the pixels", "record in the header", "a digest alone",
         "frames without robust mark"),
    )  # fmt: skip
    for modality, frames in _rows(by_modality):
        profiles = Counter(frame.profile for frame in frames)
        second = [frame.jpeg2000_bytes for frame in frames if frame.jpeg2000_bytes]
        exact = sum(result.exact.values()) if modality == ALL else result.exact.get(modality, 0)
        table.add(
            modality, str(exact), _growth([frame.jpegls_bytes for frame in frames]),
            _growth(second), str(profiles["tiled"]), str(profiles["header"]),
            str(profiles["compact"] + profiles["noted"]),
            str(sum(not frame.message for frame in frames)),
        )  # fmt: skip
    return table


def _recovered(by_modality: dict[str, list[FrameResult]]) -> Table:
    """Shares count every frame, also those the node put no robust mark in."""
    names = [attack.name for attack in ATTACKS]
    table = Table("share of frames whose message is recovered, %", ("modality", *names))
    shares: dict[str, list[float]] = {name: [] for name in names}
    for modality, frames in _rows(by_modality):
        row = [_share_of(name)(frames) for name in names]
        table.add(modality, *(f"{100 * share:.0f}" for share in row))
        if modality != ALL:
            for name, share in zip(names, row, strict=True):
                shares[name].append(share)
    table.add(MEAN, *(f"{100 * mean(shares[name]):.1f}" for name in names))
    return table


def _accuracy(by_modality: dict[str, list[FrameResult]]) -> Table:
    names = [attack.name for attack in ATTACKS]
    table = Table(
        "mean bit accuracy of the 160 code bits (frames with a robust mark)", ("modality", *names)
    )
    for modality, frames in _rows(by_modality):
        cells = []
        for name in names:
            right = [frame.readings[name].bit_accuracy for frame in frames]
            counted = [each for each in right if each is not None]
            cells.append(f"{mean(counted):.3f}" if counted else "")
        table.add(modality, *cells)
    return table


def _capacity(by_modality: dict[str, list[FrameResult]]) -> Table:
    heads = [f"threshold {threshold}" for threshold in _SHOWN_THRESHOLDS]
    table = Table(
        "capacity of the reversible embedding: bit/pixel at PSNR dB in the display window, means",
        ("modality", *heads, f"most bit/pixel at {_VISIBLE_DB:.0f} dB or more"),
    )
    for modality, frames in _rows(by_modality):
        cells = []
        for threshold in _SHOWN_THRESHOLDS:
            points = [p for frame in frames for p in frame.capacity if p.threshold == threshold]
            # A mean over the frames that got so far would be one over the easy ones.
            if len(points) < len(frames):
                cells.append("")
                continue
            bits = mean(p.bits_per_px for p in points)
            cells.append(f"{bits:.2f} at {_mean(_finite(p.psnr_db for p in points)):.1f}")
        most = [
            max((p.bits_per_px for p in frame.capacity if p.psnr_db >= _VISIBLE_DB), default=0.0)
            for frame in frames
        ]
        table.add(modality, *cells, f"{mean(most):.2f}")
    return table


def _reasons(rows: Iterable[tuple[str, str, str]]) -> Table:
    table = Table("files without figures", ("", "file", "reason"))
    for number, (what, path, reason) in enumerate(rows):
        if number == _REASONS:
            table.add("...", "", "")
            break
        table.add(what, path.rpartition("/")[2], reason)
    return table


def _rows(by_modality: dict[str, list[FrameResult]]) -> Iterable[tuple[str, Frames]]:
    """Yield every modality, most frames first, then all of them together."""
    yield from sorted(by_modality.items(), key=lambda item: (-len(item[1]), item[0]))
    yield ALL, [frame for frames in by_modality.values() for frame in frames]


def _psnr(frames: Frames) -> float:
    return _mean(_finite(frame.quality.psnr_db for frame in frames))


def _ssim(frames: Frames) -> float:
    return mean(frame.quality.ssim for frame in frames)


def _share_of(attack: str) -> Callable[[Frames], float]:
    return lambda frames: mean(float(frame.readings[attack].recovered) for frame in frames)


def _growth(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    before, after = (sum(column) for column in zip(*sizes, strict=True))
    return f"{after / before - 1:+.1%}"


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else float("inf")
