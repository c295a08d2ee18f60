"""The tables of a run: every attack over all frames, by modality, beside the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

from dicom_node.bench.attacks import Attack
from dicom_node.bench.report import Table
from dicom_node.bench.robustness import times
from dicom_node.bench.robustness.comparing import COMPARED, PeerResult
from dicom_node.bench.robustness.measure import FALSE_ACCEPTS_OF, Result
from dicom_node.bench.robustness.peers import BITS
from dicom_node.bench.robustness.subjects import Subject
from dicom_node.bench.robustness.workers import FrameResult

ALL = "all frames"
OURS = "this node"
_REASONS = 20
_HOSTILE = "hostile"
_USUAL_PX = 128

Frames = Sequence[FrameResult]


def tables(result: Result) -> list[Table]:
    """Return every table (see the titles)."""
    by_modality: dict[str, list[FrameResult]] = {}
    for frame in result.frames:
        by_modality.setdefault(frame.subject.modality, []).append(frame)
    made = [_subjects(result, by_modality), _overall(result, by_modality)]
    made.append(_by_modality(result, by_modality, "message recovered blind, % of frames", _share))
    made.append(_by_modality(result, by_modality, "bit accuracy, pose known (frames with a mark)",
                             _accuracy))  # fmt: skip
    made += [_strangers(result), _hostile(result)]
    made += times.tables([r for frame in result.frames for r in frame.readings.values()])
    if result.temporal:
        made.append(_temporal(result))
    if result.peers:
        made += [_peer_quality(result), _peers(result)]
    left_out = [*result.not_measured, *(f"{u.path}: {u.reason}" for u in result.unmarked)]
    if left_out:
        table = Table("not measured", ("what and why",))
        for reason in left_out[:_REASONS]:
            table.add(reason)
        if len(left_out) > _REASONS:
            table.add(f"and {len(left_out) - _REASONS} more")
        made.append(table)
    return made


def share(frames: Frames, attack: str) -> float | None:
    """Return the share of frames whose message is recovered blind; None where none was attacked."""
    read = [frame.readings[attack].recovered for frame in frames if attack in frame.readings]
    return mean(map(float, read)) if read else None


def accuracy(frames: Frames, attack: str) -> float | None:
    """Return the mean bit accuracy with the pose known, of frames with a mark."""
    read = [f.readings[attack].bit_accuracy for f in frames if attack in f.readings]
    right = [each for each in read if each is not None]
    return mean(right) if right else None


def _known(frames: Frames, attack: str) -> float | None:
    read = [frame.readings[attack].known for frame in frames if attack in frame.readings]
    return mean(map(float, read)) if read else None


def _change(frames: Frames, attack: str) -> float | None:
    read = [f.readings[attack].change_db for f in frames if attack in f.readings]
    finite = [each for each in read if each is not None and np.isfinite(each)]
    return mean(finite) if finite else None


def _subjects(result: Result, by_modality: dict[str, list[FrameResult]]) -> Table:
    table = Table(
        "frames, as marked by the node (PSNR and SSIM in the display window, peak 1)",
        ("modality", "frames", "files", "without robust mark", "PSNR dB mean", "worst",
         "SSIM mean", "worst"),
    )  # fmt: skip
    for modality, frames in [*by_modality.items(), (ALL, result.frames)]:
        marked = [frame.subject for frame in frames]
        levels = [s.psnr_db for s in marked if np.isfinite(s.psnr_db)] or [float("inf")]
        table.add(
            modality, str(len(marked)), str(len({s.path for s in marked})),
            str(sum(not s.message for s in marked)),
            f"{mean(levels):.2f}", f"{min(levels):.2f}",
            f"{mean(s.ssim for s in marked):.4f}", f"{min(s.ssim for s in marked):.4f}",
        )  # fmt: skip
    return table


def _carries(subject: Subject) -> bool:
    """Whether a frame carries W1 and is not so small that filters take its carrier's band."""
    return bool(subject.message) and min(subject.rows, subject.columns) >= _USUAL_PX


def _overall(result: Result, by_modality: dict[str, list[FrameResult]]) -> Table:
    table = Table(
        "every attack, all frames",
        ("family", "attack", "frames", "changes the picture, dB", "bit accuracy, pose known",
         "recovered, pose known %", "recovered blind %", "mean of modalities %",
         "blind, of 128 px and more with a mark %", "papers %", "goal %", "held"),
    )  # fmt: skip
    for attack in result.attacks:
        read = [frame for frame in result.frames if attack.name in frame.readings]
        if not read:
            continue
        blind = share(read, attack.name) or 0.0
        spread = [share(some, attack.name) for some in by_modality.values()]
        middle = mean(each for each in spread if each is not None)
        carrying = share([frame for frame in read if _carries(frame.subject)], attack.name)
        goal, held = "", ""
        if attack.target is not None:
            goal, held = f"{100 * attack.target:g}", "yes" if blind >= attack.target else "no"
        table.add(
            attack.family, attack.name, str(len(read)), _figure(_change(read, attack.name), ".1f"),
            _figure(accuracy(read, attack.name), ".3f"), _percent(_known(read, attack.name)),
            _percent(blind), _percent(middle), _percent(carrying), attack.paper, goal, held,
        )  # fmt: skip
    return table


def _by_modality(
    result: Result, by_modality: dict[str, list[FrameResult]], title: str,
    figure: Callable[[Frames, str], str],
) -> Table:  # fmt: skip
    table = Table(title, ("attack", *by_modality, ALL))
    for attack in result.attacks:
        cells = [figure(some, attack.name) for some in (*by_modality.values(), result.frames)]
        if any(cells):
            table.add(attack.name, *cells)
    return table


def _strangers(result: Result) -> Table:
    counted = result.strangers
    table = Table(
        f"marks found where there are none (goal: 0 of {FALSE_ACCEPTS_OF:,} decodes)",
        ("decodes", "number", "accepted"),
    )
    table.add("pictures without a mark", str(counted.unmarked), "")
    table.add("marked pictures, other keys", str(counted.wrong_key), "")
    table.add("searches of pictures without a mark", str(counted.searches), "")
    table.add("all of these", str(counted.decodes), str(counted.accepted))
    table.add("marked pictures, our key, another message", "", str(counted.wrong_message))
    return table


def _hostile(result: Result) -> Table:
    """Return what attackers reach who know the method."""
    table = Table("attackers who know the method", ("attack", "frames", "outcome"))
    copied = [frame.copied for frame in result.frames if frame.copied is not None]
    if copied:
        read, believed = (sum(c.read for c in copied), sum(c.believed for c in copied))
        told = f"message read in {read}, believed (its pHash fits, too) in {believed}"
        table.add("copy attack: another frame's residual on a cover", str(len(copied)), told)
    for attack in result.attacks:
        read_of = [f for f in result.frames if attack.name in f.readings and f.subject.message]
        if attack.family == _HOSTILE and read_of:
            gone = 1 - (share(read_of, attack.name) or 0.0)
            level = _figure(_change(read_of, attack.name), ".1f")
            told = f"mark removed in {gone:.1%}, at {level} dB from the marked picture"
            table.add(attack.name, str(len(read_of)), told)
    if result.explained:
        told = ", ".join(f"{each:.0%}" for each in result.explained)
        table.add("what the surrogate networks predict", "", f"{told} of the residual's variance")
    return table


def _temporal(result: Result) -> Table:
    table = Table(
        "frames of multi-frame objects dropped, inserted, swapped: what `verify` says",
        ("change", "objects", "tampered", "authentic", "other verdicts"),
    )
    for change in dict.fromkeys(each.change for each in result.temporal):
        verdicts = [each.verdict for each in result.temporal if each.change == change]
        named = [verdicts.count(verdict) for verdict in ("tampered", "authentic")]
        table.add(change, str(len(verdicts)), *map(str, named), str(len(verdicts) - sum(named)))
    return table


def compared(result: Result) -> list[FrameResult]:
    """Return the frames that the peers were run on."""
    seen = {(peer.path, peer.frame) for peer in result.peers}
    return [f for f in result.frames if (f.subject.path, f.subject.frame) in seen]


def peer_share(results: Sequence[PeerResult], attack: str) -> float | None:
    """Return the share of frames of which a peer read all bits."""
    read = [r.readings[attack].recovered for r in results if attack in r.readings]
    return mean(map(float, read)) if read else None


def peer_accuracy(results: Sequence[PeerResult], attack: str) -> float | None:
    """Return a peer's mean bit accuracy; a picture it fails on counts as chance."""
    read = [r.readings[attack].bit_accuracy for r in results if attack in r.readings]
    return mean(0.5 if each is None else each for each in read) if read else None


def by_peer(result: Result) -> dict[str, list[PeerResult]]:
    """Return the results of each peer."""
    found: dict[str, list[PeerResult]] = {}
    for each in result.peers:
        found.setdefault(each.peer, []).append(each)
    return found


def _peer_quality(result: Result) -> Table:
    ours = [frame.subject for frame in compared(result)]
    table = Table(
        f"peers on the same {len(ours)} frames: how visible",
        ("watermark", "message bits", "PSNR dB mean", "worst", "SSIM mean"),
    )
    rows: list[tuple[str, str, list[float], list[float]]] = [
        (f"{OURS}, both marks", "96 in 160", [s.psnr_db for s in ours], [s.ssim for s in ours])
    ]
    for name, results in by_peer(result).items():
        rows.append((name, f"{BITS}, no code", [r.psnr_db for r in results],
                     [r.ssim for r in results]))  # fmt: skip
    for name, bits, levels, similar in rows:
        table.add(name, bits, f"{mean(levels):.2f}", f"{min(levels):.2f}", f"{mean(similar):.4f}")
    return table


def _peers(result: Result) -> Table:
    peers, ours = by_peer(result), compared(result)
    columns = [f"{name}: {what}" for name in (OURS, *peers) for what in ("recovered %", "accuracy")]
    table = Table("peers on the same frames: recovered blind, and bit accuracy with the pose known",
                  ("attack", *columns))  # fmt: skip
    for attack in (each.name for each in result.attacks if each.name in COMPARED):
        cells = [_percent(share(ours, attack)), _figure(accuracy(ours, attack), ".3f")]
        for results in peers.values():
            cells += [_percent(peer_share(results, attack)),
                      _figure(peer_accuracy(results, attack), ".3f")]  # fmt: skip
        table.add(attack, *cells)
    return table


def _share(frames: Frames, attack: str) -> str:
    return _percent(share(frames, attack))


def _accuracy(frames: Frames, attack: str) -> str:
    return _figure(accuracy(frames, attack), ".3f")


def _percent(value: float | None) -> str:
    """Return a share as per cent; 100 only where it is all."""
    if value is None:
        return ""
    return "100" if value == 1 else f"{min(100 * value, 99.9):.1f}"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def points(result: Result) -> dict[str, list[tuple[float, Attack]]]:
    """Return the attacks of every curve, by their abscissa."""
    curves: dict[str, list[tuple[float, Attack]]] = {}
    for attack in result.attacks:
        if attack.curve is not None:
            curves.setdefault(attack.curve[0], []).append((attack.curve[1], attack))
    return {name: sorted(some, key=lambda each: each[0]) for name, some in curves.items()}
