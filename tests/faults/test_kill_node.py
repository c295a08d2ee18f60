"""kill -9 of each process of a real node at random moments, under load from a real modality."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROOT = Path(__file__).parents[2]
ROUNDS = 20
PER_ROUND = 8
ENVIRONMENT = {
    **os.environ,
    "TCP_NODELAY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}

pytestmark = [pytest.mark.fault, pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(600)]


def wait_for(condition: Callable[[], Any], timeout_s: float, message: Callable[[], str]) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed: apt-get install dcmtk"
        if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Node:
    """``dicom-node serve`` in a folder; can be killed and started again."""

    def __init__(self, folder: Path, pacs_port: int) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "node.toml"
        self.config.write_text(
            f'[node]\nport = {self.port}\nbind = "127.0.0.1"\n'
            f'[spool]\ndirectory = "{folder}/spool"\nmin_free_mib = 16\n'
            f'[keys]\ndirectory = "{folder}/keys"\n'
            '[watermark]\nworkers = 2\nengine = "onnx"\n'
            '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\n'
            f"port = {pacs_port}\ntimeout_s = 10\nretry_initial_s = 0.2\nretry_max_s = 1.0\n"
        )
        self.starts = 0

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "dicom_node.cli.main", *words, "--config", str(self.config)]

    def start(self) -> None:
        self.starts += 1
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command("serve"), stdout=out, stderr=log, env=ENVIRONMENT
            )
        wait_for(
            lambda: b"ready:" in self.out.read_bytes() or self.process.poll() is not None,
            90,
            self.log.read_text,
        )
        assert self.process.poll() is None, self.log.read_text()

    @property
    def out(self) -> Path:
        return self.folder / f"out-{self.starts}"

    @property
    def log(self) -> Path:
        return self.folder / f"log-{self.starts}"

    def processes(self) -> dict[str, int]:
        """The living processes by their role."""
        found = {"serve": self.process.pid}
        for line in self.log.read_text().splitlines():
            if '"process_started"' in line:
                event = json.loads(line)
                found[event["role"]] = event["pid"]
        return {role: pid for role, pid in found.items() if Path(f"/proc/{pid}").exists()}

    def run(self, *words: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            self.command(*words, "--json"), env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """DCMTK's storescp: its port, its folder, its log."""
    port, folder, log = free_port(), tmp_path / "pacs", tmp_path / "pacs.log"
    folder.mkdir()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [tool("storescp"), "-v", "--fork", "-od", str(folder), str(port)],
            stdout=stream,
            stderr=stream,
            env=ENVIRONMENT,
        )
    yield port, folder, log
    process.kill()
    process.wait()


@pytest.fixture
def node(tmp_path: Path, pacs: tuple[int, Path, Path]) -> Iterator[Node]:
    (tmp_path / "node").mkdir()
    made = Node(tmp_path / "node", pacs[0])
    made.start()
    yield made
    made.process.terminate()
    assert made.process.wait(60) == 0, made.log.read_text()


def make_instances(folder: Path, count: int) -> list[Path]:
    """CT of 128 x 128 with some structure, each its own instance."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[0:128, 0:128]
    study, series = generate_uid(), generate_uid()
    paths = []
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number:04d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.Modality, ds.PatientID, ds.PatientName = "CT", "4711", "Kill^Nine"
        ds.Rows = ds.Columns = 128
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
        ds.WindowCenter, ds.WindowWidth = 40, 400
        body = 1000 + 150 * np.sin(rows / 9 + number) * np.cos(columns / 13)
        ds.PixelData = (body + rng.normal(0, 8, body.shape)).clip(0, 4095).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def send(port: int, paths: list[Path]) -> set[Path]:
    """Send with storescu; return what it was answered success for."""
    options = ["-v", "-to", "5", "-ta", "5", "-td", "10", "-aec", "DICOMNODE"]
    done = subprocess.run(
        [tool("storescu"), *options, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    answered: set[Path] = set()
    sending: Path | None = None
    for line in (done.stdout + done.stderr).splitlines():
        if found := re.search(r"Sending file: (.*\.dcm)", line):
            sending = Path(found[1])
        elif "Received Store Response (Success)" in line and sending is not None:
            answered.add(sending)
    return answered


def test_every_instance_answered_with_success_reaches_the_pacs_marked_and_intact(
    tmp_path: Path, node: Node, pacs: tuple[int, Path, Path]
) -> None:
    _, stored, log = pacs
    paths = make_instances(tmp_path / "modality", ROUNDS * PER_ROUND)
    chance = random.Random(7)
    answered: set[Path] = set()
    killed: Counter[str] = Counter()
    for number in range(ROUNDS):
        batch = paths[number * PER_ROUND : (number + 1) * PER_ROUND]
        answered |= send(node.port, batch[: PER_ROUND // 2])
        roles = sorted(set(node.processes()) - ({"serve"} if number % 7 else set()))
        victim = chance.choice(roles) if number % 7 else "serve"
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(node.processes()[victim], signal.SIGKILL)
        killed[victim.partition("-")[0]] += 1
        if victim == "serve":
            node.process.wait()
            node.start()
        # As a modality does: what was not answered is sent again, until it is.
        limit = time.monotonic() + 60
        while missing := sorted(set(batch) - answered):
            assert time.monotonic() < limit, node.log.read_text()
            answered |= send(node.port, missing)
    assert set(killed) >= {"serve", "receive", "mark", "forward"}, killed

    def waiting() -> list[dict[str, Any]]:
        return [j for j in node.run("queue", "list") if j["state"] not in ("delivered", "dropped")]

    wait_for(lambda: not waiting(), 120, lambda: json.dumps(waiting(), indent=1))
    sent = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in paths}
    files = {path.name.partition(".")[2]: path for path in stored.iterdir()}
    assert set(files) == set(sent)
    # Once, but for the one whose answer the killed forwarder could not note any more.
    receptions = Counter(re.findall(r"storing DICOM file: \S+/CT\.([\d.]+)", log.read_text()))
    repeated = {uid: times for uid, times in receptions.items() if times > 1}
    assert len(repeated) <= killed["forward"] + killed["serve"] + killed["receive"], repeated
    node.run("restore", "--out", str(tmp_path / "restored"), str(stored))
    for uid, path in sent.items():
        again = pydicom.dcmread(tmp_path / "restored" / files[uid].name)
        assert again.PixelData == pydicom.dcmread(path).PixelData
        assert pydicom.dcmread(files[uid]).PixelData != again.PixelData
