"""The demonstration itself: eleven steps, each of which holds or ends it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dicom_node.config import Config, WatermarkConfig, load
from dicom_node.demo import forgery, pictures
from dicom_node.demo.children import Child, StepFailed, free_ports, wait_until
from dicom_node.demo.comparing import compare, require_equal
from dicom_node.demo.network import Auditor, Peer, answers_echo, store
from dicom_node.demo.pacs import Choice, Pacs, start_pacs
from dicom_node.demo.samples import MAX_PIXELS, Sample, load_samples
from dicom_node.errors import NodeError
from dicom_node.inference import RobustEngine, open_engine
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.marking import restore
from dicom_node.spool import Spool
from dicom_node.verify.check import check_instance
from dicom_node.verify.verdict import InstanceVerdict
from dicom_node.watermark.box import Box

_START_S = 120.0
_DELIVER_S = 300.0
_LEAST_PSNR_DB = 40.0  # no frame may lose more, in its display window
_LESION = (1575, 1100)  # row, column in the hand: the shaft of the third metacarpal
_REACH_PX = 160


@dataclass(frozen=True)
class Row:
    """One line of the result table."""

    step: str
    held: bool
    seen: str
    figure: str
    seconds: float


@dataclass(frozen=True)
class Fetched:
    """One instance as it was sent and as the PACS gave it back."""

    sample: Sample
    original: Path
    marked: Path


@dataclass
class Story:
    """Tells the demonstration; every step returns what was seen, and a figure.

    Parameters
    ----------
    folder
        Empty; gets spool, keys, the PACS's store, logs and everything fetched.
    out
        Existing; gets the pictures.
    settings
        ``[watermark]`` of the node.
    """

    folder: Path
    out: Path
    choice: Choice
    settings: WatermarkConfig
    on_step: Callable[[str], None] = lambda _step: None
    rows: list[Row] = field(default_factory=list)

    def run(self) -> bool:
        """Tell it to the end, or to the first step that does not hold; say whether all held.

        Every child process has ended when this returns or raises.
        """
        steps: tuple[tuple[str, Callable[[], tuple[str, str]]], ...] = (
            ("start a PACS", self._start_pacs),
            ("start the node", self._start_node),
            ("send three studies", self._send),
            ("wait for the PACS to have them", self._wait),
            ("fetch them back", self._fetch),
            ("look at the marks", self._look),
            ("verify", self._verify),
            ("change a few pixels of one copy", self._forge_pixels),
            ("change the Patient ID of another", self._forge_patient),
            ("restore the originals", self._restore),
            ("stop the node", self._stop_node),
        )
        with self._children():
            return all(self._told(title, step) for title, step in steps)

    def _told(self, title: str, step: Callable[[], tuple[str, str]]) -> bool:
        self.on_step(title)
        started = time.monotonic()
        held = True
        try:
            seen, figure = step()
        except (NodeError, OSError) as error:
            held, seen, figure = False, str(error), ""
        self.rows.append(Row(title, held, seen, figure, round(time.monotonic() - started, 2)))
        return held

    @contextmanager
    def _children(self) -> Iterator[None]:
        self._started: list[Child] = []
        try:
            yield
        finally:
            for child in reversed(self._started):
                child.stop()

    def _start_pacs(self) -> tuple[str, str]:
        self._samples = load_samples()
        pacs_port, node_port, auditor_port = free_ports(3)
        self._node = Peer("DICOMNODE", node_port)
        self._auditor = Auditor(Peer("AUDITOR", auditor_port), self.folder / "fetched")
        self._pacs: Pacs = start_pacs(
            self.choice, self.folder / "pacs", pacs_port, self._auditor.me, self._node.ae_title,
            self._started,
        )  # fmt: skip
        return f"{self._pacs.name} answers C-ECHO", f"port {pacs_port}"

    def _start_node(self) -> tuple[str, str]:
        path = self.folder / "node.toml"
        path.write_text(self._configuration(), "utf-8")
        self._config: Config = load(path)
        command = [sys.executable, "-m", "dicom_node.cli.main", "serve", "--config", str(path)]
        node = Child("the node", command, self.folder / "node.log")
        self._started.append(node)
        self._node_child = node
        wait_until(lambda: "ready:" in node.output(), _START_S, "the node is ready", [node])
        if not answers_echo(self._node):
            raise StepFailed("the node does not answer C-ECHO")
        return "dicom-node serve answers C-ECHO", f"port {self._node.port}"

    def _configuration(self) -> str:
        """Return the node's configuration: the given ``[watermark]``, the rest our own."""
        sections: dict[str, dict[str, object]] = {
            "[node]": {
                "ae_title": self._node.ae_title, "bind": "127.0.0.1", "port": self._node.port,
            },
            "[spool]": {"directory": str(self.folder / "spool"), "min_free_mib": 64},
            "[keys]": {"directory": str(self.folder / "keys")},
            "[watermark]": self.settings.model_dump(mode="json") | {"enabled": True},
            "[[destination]]": {
                "name": "pacs", "ae_title": self._pacs.peer.ae_title,
                "host": self._pacs.peer.host, "port": self._pacs.peer.port,
            },
        }  # fmt: skip
        lines = []
        for title, values in sections.items():
            lines += [title, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        return "\n".join(lines) + "\n"

    def _send(self) -> tuple[str, str]:
        sent = sum(store(list(sample.files.values()), self._node) for sample in self._samples)
        count = sum(len(sample.files) for sample in self._samples)
        titles = ", ".join(sample.title for sample in self._samples)
        return f"{count} instances answered 0x0000: {titles}", f"{sent / 1e6:.1f} MB"

    def _wait(self) -> tuple[str, str]:
        wait_until(self._all_there, _DELIVER_S, "the PACS lists every instance", self._started)
        count = sum(len(sample.files) for sample in self._samples)
        return "marked, forwarded, and listed by C-FIND", f"{count} of {count}"

    def _all_there(self) -> bool:
        with Spool(self._config.spool) as spool:
            for job in spool.jobs():
                if job.state in ("held", "rejected"):
                    raise StepFailed(f"the node {job.state} an instance: {job.reason}")
                if job.action not in ("", "marked"):
                    raise StepFailed(f"an instance was {job.action}, not marked: {job.reason}")
        return all(
            set(sample.files)
            == self._auditor.find_instances(self._pacs.peer, sample.study_uid, sample.series_uid)
            for sample in self._samples
        )

    def _fetch(self) -> tuple[str, str]:
        self._fetched: list[Fetched] = []
        with self._auditor.listening():
            for sample in self._samples:
                files = self._auditor.move_study(self._pacs.peer, sample.study_uid)
                arrived = {_uid_of(path): path for path in files}
                if set(arrived) != set(sample.files):
                    raise StepFailed(f"C-MOVE of {sample.title} brought other instances")
                self._fetched += [
                    Fetched(sample, original, arrived[uid])
                    for uid, original in sample.files.items()
                ]
        return f"C-MOVE from {self._pacs.peer.ae_title}", f"{len(self._fetched)} instances"

    def _look(self) -> tuple[str, str]:
        worst = float("inf")
        for each in self._fetched:
            seen = compare(each.original, each.marked)
            worst = min(worst, seen.psnr_db)
            if each == self._example(each.sample.name):
                pictures.save_strip(self.out / f"{each.sample.name}.png", pictures.panels_of(seen))
            if np.isinf(seen.psnr_db):
                raise StepFailed(f"{each.original.name} came back without a mark")
        if worst < _LEAST_PSNR_DB:
            raise StepFailed(f"a frame has only {worst:.1f} dB in its display window")
        return "original against marked, worst frame", f"PSNR {worst:.1f} dB"

    def _verify(self) -> tuple[str, str]:
        self._ring = KeyRing.open(self._config.keys.directory)
        self._engine: RobustEngine = open_engine(self._config.watermark.engine)
        frames = read = 0
        for each in self._fetched:
            verdict = self._check(each.marked)
            if verdict.verdict != "authentic" or verdict.changed:
                raise StepFailed(f"{each.original.name} is {_in_words(verdict)}")
            frames += len(verdict.frames)
            read += sum(frame.robust.decoded for frame in verdict.frames)
        seen = f"every instance authentic, owner {self.settings.owner}"
        return seen, f"{frames} frames, robust mark in {read}"

    def _forge_pixels(self) -> tuple[str, str]:
        target = self._example("cr_hand")
        forged = self.folder / "forged-pixels.dcm"
        places = forgery.paint_lesion(target.marked, forged, _LESION)
        verdict = self._check(forged)
        boxes = [box for frame in verdict.frames for box in frame.tampered]
        if verdict.verdict != "tampered" or not boxes:
            raise StepFailed(f"changed pixels were not caught: {_in_words(verdict)}")
        missed = [at for at in places if not any(_inside(box, *at) for box in boxes)]
        blamed = [box for box in boxes if not any(_inside(box, *at) for at in places)]
        if missed or blamed:
            raise StepFailed(f"{len(missed)} changed pixels and {len(blamed)} boxes do not match")
        self._picture_forgery(target, forged, boxes)
        where = "; ".join(map(_where, boxes))
        return f"{verdict.verdict}, at {where}", f"{len(places)} pixels"

    def _picture_forgery(self, target: Fetched, forged: Path, boxes: list[Box]) -> None:
        before, after = pictures.picture_of(target.marked), pictures.picture_of(forged)
        whole = [("forged, as verified", pictures.outlined(after, boxes, 12))]
        found = pictures.outlined(after, boxes, 2)
        parts = (("marked", before), ("forged", after), ("forged, as verified", found))
        near = [(title, pictures.around(picture, _LESION, _REACH_PX)) for title, picture in parts]
        pictures.save_strip(self.out / "forgery.png", [*whole, *near])

    def _forge_patient(self) -> tuple[str, str]:
        forged = self.folder / "forged-patient.dcm"
        forgery.change_patient_id(self._example("mr_brain").marked, forged)
        verdict = self._check(forged)
        if verdict.changed != ("PatientID",):
            raise StepFailed(f"a changed Patient ID was not caught: {_in_words(verdict)}")
        return f"pixels {verdict.verdict}, header changed", ", ".join(verdict.changed)

    def _restore(self) -> tuple[str, str]:
        pixels = 0
        for each in self._fetched:
            out = self.folder / "restored" / each.sample.name / each.original.name
            out.parent.mkdir(parents=True, exist_ok=True)
            outcome = restore(each.marked, out, self._ring)
            if not outcome.exact:
                raise StepFailed(f"{each.original.name} is not restored: {outcome.reason}")
            pixels += require_equal(each.original, out)
        return "every pixel equals the original's", f"{pixels:,} samples, 0 differ"

    def _stop_node(self) -> tuple[str, str]:
        with Spool(self._config.spool) as spool:
            left = spool.backlog()
        code = self._node_child.stop()
        if code:
            raise StepFailed(f"the node ended with exit code {code}")
        if left:
            raise StepFailed(f"{left} instances are still in the spool")
        return "drained, nothing left in the spool", ""

    def _check(self, path: Path) -> InstanceVerdict:
        return check_instance(path, self._ring, self._engine)

    def _example(self, name: str) -> Fetched:
        """Return the middle instance of a study."""
        those = [each for each in self._fetched if each.sample.name == name]
        return those[len(those) // 2]


def _uid_of(path: Path) -> str:
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        return instance.sop_instance_uid


def _inside(box: Box, row: int, column: int) -> bool:
    return bool(0 <= row - box.row < box.rows and 0 <= column - box.column < box.columns)


def _where(box: Box) -> str:
    rows = f"rows {box.row}-{box.row + box.rows - 1}"
    return f"{rows}, columns {box.column}-{box.column + box.columns - 1}"


def _in_words(verdict: InstanceVerdict) -> str:
    changed = f", header changed: {', '.join(verdict.changed)}" if verdict.changed else ""
    reason = f" ({verdict.reason})" if verdict.reason else ""
    return f"{verdict.verdict}{changed}{reason}"
