"""How fast the node is: the same instances through Orthanc, the node, and the marking node.

Each scenario ends in an Orthanc of its own with an empty store, and is timed from the start of
`storescu` to the moment that Orthanc has counted the last instance:

a. `storescu` to an Orthanc that routes by a Lua script (``SendToModality``)
b. `storescu` to the node with marking off
c. `storescu` to the node with marking on
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median

from dicom_node.bench.load import SIDE_PX, ct_slices, make_instances, phantom
from dicom_node.bench.processes import (
    Node,
    Orthanc,
    Usage,
    node,
    orthanc,
    reaped_cpu_s,
    storescu,
)
from dicom_node.bench.report import Table
from dicom_node.errors import NodeError, PixelError
from dicom_node.instance.block import read_block
from dicom_node.instance.datafile import open_data_file

SCENARIOS = {
    "a": "Orthanc, auto-routing (Lua)",
    "b": "node, marking off",
    "c": "node, marking on",
}
TARGET_PER_S = 30.0
TARGET_SHARE = 0.3
TARGET_MIB = 700
_POLL_S = 0.05
_SAMPLE_S = 0.5
_TIMEOUT_S = 30.0
_TIMEOUT_PER_INSTANCE_S = 1.0
_CHECKED = 3


@dataclass(frozen=True)
class Round:
    """One run of one scenario.

    Attributes
    ----------
    elapsed_s
        From the first byte sent to the last instance stored.
    usage
        CPU seconds during that time and peak memory, by process.
    stage_s
        Mean CPU seconds of an instance in each stage of marking; empty where nothing is marked.
    """

    elapsed_s: float
    usage: dict[str, Usage]
    stage_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a whole benchmark found.

    Attributes
    ----------
    slices
        How many different ones the instances were made from.
    made_up
        Whether that is the phantom: no real slice was named.
    """

    instances: int
    slices: int
    rounds: dict[str, list[Round]]
    made_up: bool = False

    def per_s(self, scenario: str) -> list[float]:
        """Return the instances per second of every round."""
        return [self.instances / each.elapsed_s for each in self.rounds[scenario]]


def run(
    sources: Sequence[Path],
    *,
    instances: int,
    rounds: int,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    report: Callable[[str], None] = lambda _line: None,
) -> Result:
    """Run every scenario `rounds` times, turn by turn, so that all of them see the same machine.

    Parameters
    ----------
    sources
        Files and folders with CT slices; none: a made-up one is sent, and the tables say so.

    Raises
    ------
    ConfigError
        If `sources` hold no suitable CT slice, or Orthanc or storescu is not installed.
    NodeError
        If a process fails, or instances do not arrive.
    """
    slices = ct_slices(sources) if sources else []
    found: dict[str, list[Round]] = {scenario: [] for scenario in scenarios}
    with tempfile.TemporaryDirectory(prefix="dicom-node-bench-") as name:
        folder = Path(name)
        sent = slices or [phantom(folder / "phantom.dcm")]
        make_instances(sent, instances, folder / "instances")
        for number in range(rounds):
            for scenario in scenarios:
                with tempfile.TemporaryDirectory(dir=folder) as place:
                    one = _round(scenario, folder / "instances", Path(place), instances)
                found[scenario].append(one)
                rate = instances / one.elapsed_s
                report(f"round {number + 1} {scenario} {SCENARIOS[scenario]}: {rate:.1f}/s")
    return Result(instances, len(sent), found, made_up=not slices)


def _round(scenario: str, sent: Path, place: Path, count: int) -> Round:
    with orthanc("pacs", place / "pacs") as pacs:
        if scenario == "a":
            route_to = ("PACS", pacs.dicom_port)
            with orthanc("router", place / "router", route_to) as router:
                return _measure(sent, count, router.dicom_port, "ROUTER", pacs, router.child.sample)
        with node(place / "node", pacs, marking=scenario == "c") as running:
            one = _measure(sent, count, running.dicom_port, "DICOMNODE", pacs, running.sample)
            if scenario == "b":
                return one
            _expect_marked(pacs)
            return Round(one.elapsed_s, one.usage, _stages(running))


def _measure(
    sent: Path, count: int, port: int, called_ae: str, pacs: Orthanc,
    sample: Callable[[], dict[str, Usage]],
) -> Round:  # fmt: skip
    before, reaped = {**sample(), **pacs.child.sample()}, reaped_cpu_s()
    sender, began = storescu(port, called_ae, sent)
    deadline = time.monotonic() + _TIMEOUT_S + count * _TIMEOUT_PER_INSTANCE_S
    sampled = 0.0
    try:
        while (stored := pacs.count()) < count:
            if sender.poll() not in (None, 0):
                raise NodeError(f"storescu ended with code {sender.returncode}")
            if time.monotonic() > deadline:
                raise NodeError(f"{stored} of {count} instances arrived in time")
            if time.monotonic() - sampled > _SAMPLE_S:
                sample()
                sampled = time.monotonic()
            time.sleep(_POLL_S)
        elapsed = time.perf_counter() - began
        after = {**sample(), **pacs.child.sample()}
        sender.wait()
    finally:
        if sender.poll() is None:
            sender.kill()
            sender.wait()
    usage = {name: _since(used, before.get(name)) for name, used in after.items()}
    usage["storescu"] = Usage(reaped_cpu_s() - reaped, 0.0)
    return Round(elapsed, usage)


def _since(used: Usage, before: Usage | None) -> Usage:
    return Usage(used.cpu_s - (before.cpu_s if before else 0.0), used.peak_mib)


def _expect_marked(pacs: Orthanc) -> None:
    """Refuse to report a rate for instances that arrived without marks (NodeError)."""
    for data in pacs.files(_CHECKED):
        with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
            file.write(data)
            file.flush()
            opened = open_data_file(Path(file.name))
            try:
                block = read_block(opened.read_header())
            except PixelError as error:
                raise NodeError(f"what arrived cannot be read: {error}") from error
            finally:
                opened.close()
        if block is None or not block.undo:
            raise NodeError("an instance arrived without marks; see the node's log")


def _stages(running: Node) -> dict[str, float]:
    """Return the mean CPU seconds of every stage, from the node's own log."""
    collected: dict[str, list[float]] = {}
    for event in running.events():
        stages = event.get("stage_s")
        if event.get("event") == "marked" and isinstance(stages, dict):
            for name, seconds in stages.items():
                collected.setdefault(str(name), []).append(float(seconds))
    return {name: mean(values) for name, values in collected.items()}


def tables(result: Result) -> list[Table]:
    """Return rates against their targets, and CPU time and memory by process and by stage."""
    return [_rates(result), _processes(result), *_stage_table(result)]


def _rates(result: Result) -> Table:
    table = Table(
        f"{_sent(result)}, median of {max(len(r) for r in result.rounds.values())} rounds",
        ("", "instances/s", "slowest, fastest", "of a", "target", "held"),
    )
    base = median(result.per_s("a")) if "a" in result.rounds else None
    for scenario in result.rounds:
        rates = result.per_s(scenario)
        middle = median(rates)
        share = middle / base if base else None
        targets, held = _target(scenario, middle, share)
        table.add(
            f"{scenario}. {SCENARIOS[scenario]}", f"{middle:.1f}",
            f"{min(rates):.1f}, {max(rates):.1f}",
            "" if share is None else f"{share:.2f}", targets, held,
        )  # fmt: skip
    return table


def _sent(result: Result) -> str:
    """Say what was sent, so that no table is taken for one over something else."""
    kind = f"CT {SIDE_PX} x {SIDE_PX}, 16 bit"
    if result.made_up:
        return f"{result.instances} made-up {kind} (a phantom; --source names real slices)"
    return f"{result.instances} {kind}, of {result.slices} slices"


def _target(scenario: str, rate: float, share: float | None) -> tuple[str, str]:
    if scenario == "a":
        return "", ""
    if scenario == "b":
        return "at least 1.0 of a", "" if share is None else _yes(share >= 1.0)
    held = rate >= TARGET_PER_S and (share is None or share >= TARGET_SHARE)
    return f"at least {TARGET_PER_S:.0f}/s and {TARGET_SHARE} of a", _yes(held)


def _yes(held: bool) -> str:
    return "yes" if held else "no"


def _processes(result: Result) -> Table:
    table = Table(
        f"CPU-ms per instance and peak memory by process (target: none over {TARGET_MIB} MiB)",
        ("scenario", "process", "CPU-ms per instance", "peak MiB"),
    )
    for scenario, rounds in result.rounds.items():
        for name in sorted({name for each in rounds for name in each.usage}):
            seen = [each.usage[name] for each in rounds if name in each.usage]
            cost = median(used.cpu_s for used in seen) * 1000 / result.instances
            peak = max(used.peak_mib for used in seen)
            table.add(scenario, name, f"{cost:.1f}", f"{peak:.0f}" if peak else "")
    return table


def _stage_table(result: Result) -> Iterator[Table]:
    marked = [each.stage_s for each in result.rounds.get("c", []) if each.stage_s]
    if not marked:
        return
    table = Table("CPU-ms per instance by stage of marking (c)", ("stage", "CPU-ms"))
    totals = {name: median(each.get(name, 0.0) for each in marked) for name in marked[0]}
    for name, seconds in totals.items():
        table.add(name, f"{seconds * 1000:.1f}")
    table.add("all", f"{sum(totals.values()) * 1000:.1f}")
    yield table


def to_json(result: Result) -> dict[str, object]:
    """Return everything measured, for machines."""
    return {
        "instances": result.instances,
        "slices": result.slices,
        "made_up": result.made_up,
        "rounds": {
            scenario: [
                {
                    "elapsed_s": each.elapsed_s,
                    "instances_per_s": result.instances / each.elapsed_s,
                    "cpu_ms_per_instance": {
                        name: used.cpu_s * 1000 / result.instances
                        for name, used in each.usage.items()
                    },
                    "peak_mib": {name: used.peak_mib for name, used in each.usage.items()},
                    "stage_ms": {k: v * 1000 for k, v in each.stage_s.items()},
                }
                for each in rounds
            ]
            for scenario, rounds in result.rounds.items()
        },
    }

