"""``dicom-node serve`` as an administrator meets it: start, ready, drain, mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from peer_tools import PACKAGES, free_port
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "demo" / "mr_brain").glob("*.dcm"))

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def folder(tmp_path: Path, ports: tuple[int, int]) -> Path:
    node, pacs = ports
    (tmp_path / "node.toml").write_text(
        f'[node]\nport = {node}\nbind = "127.0.0.1"\n[spool]\nmin_free_mib = 16\n'
        '[watermark]\nworkers = 1\nengine = "onnx"\n'
        '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\n'
        f"port = {pacs}\nretry_initial_s = 0.2\nretry_max_s = 0.5\n"
    )
    return tmp_path


Serve = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command("serve", *words),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=(folder / f"log-{len(started)}").open("w"),
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": PACKAGES,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "dicom_node.cli.main", *words, "--config", "node.toml"]


def ready_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def queue(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        command("queue", "list", "--json"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def wait_for(condition: Callable[[], Any], timeout_s: float, message: Callable[[], str]) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.1)


def test_ready_is_said_once_the_port_accepts_and_keys_exist(
    serve: Serve, folder: Path, ports: tuple[int, int], dcmtk: Any
) -> None:
    process = serve()
    line = ready_line(process)
    assert line.startswith(f"ready: DICOMNODE on 127.0.0.1:{ports[0]}")
    assert dcmtk("echoscu", "-aec", "DICOMNODE", "127.0.0.1", ports[0]).returncode == 0
    keys = folder / "var/keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert len(list(keys.glob("*.json"))) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert dcmtk("echoscu", "-aec", "DICOMNODE", "127.0.0.1", ports[0]).returncode != 0


def test_what_was_received_before_a_shutdown_arrives_after_the_next_start(
    serve: Serve, folder: Path, ports: tuple[int, int], dcmtk: Any
) -> None:
    """Also what the PACS refuses as it is: storescp takes no compressed pixel data by default."""
    coded = pydicom.dcmread(SAMPLES[0])
    coded.compress(JPEGLSLossless, generate_instance_uid=False)
    coded.save_as(folder / "coded.dcm")
    sent_files = [folder / "coded.dcm", *SAMPLES[1:]]
    process = serve()
    ready_line(process)
    for option, paths in (("-xt", sent_files[:1]), ("-xe", sent_files[1:])):
        sent = dcmtk("storescu", option, "-aec", "DICOMNODE", "127.0.0.1", ports[0], *paths)
        assert sent.returncode == 0, sent.stderr
    process.terminate()
    assert process.wait(60) == 0
    assert len(queue(folder)) == len(SAMPLES)
    stored = folder / "stored"
    stored.mkdir()
    storescp = shutil.which("storescp")
    assert storescp is not None
    pacs = subprocess.Popen(
        [storescp, "-od", str(stored), str(ports[1])], env=os.environ | {"TCP_NODELAY": "1"}
    )
    try:
        ready_line(serve())
        wait_for(
            lambda: {job["state"] for job in queue(folder)} == {"delivered"},
            90,
            lambda: json.dumps(queue(folder), indent=1),
        )
    finally:
        pacs.kill()
        pacs.wait()
    originals = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, SAMPLES)}
    arrived = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, stored.iterdir())}
    assert set(arrived) == set(originals)
    for uid, ds in arrived.items():
        assert ds.PixelData != originals[uid].PixelData
    assert arrived[coded.SOPInstanceUID].file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    verified = subprocess.run(command("verify", str(stored)), cwd=folder, env=environment())
    assert verified.returncode == 0
    assert [path for path in (folder / "var/spool/received").rglob("*") if path.is_file()] == []


def test_one_kind_of_process_can_run_by_itself(serve: Serve, folder: Path, dcmtk: Any) -> None:
    assert ready_line(serve("--only", "forward:pacs")) == "ready: forward-pacs"
    assert ready_line(serve("--only", "mark")) == "ready: mark-0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "paint"], "receive, infer, mark, forward, register, verify, or forward:NAME"),
        (["--only", "forward:moon"], "no [[destination]] has this name; known: pacs"),
    ],
)
def test_an_unknown_role_is_wrong_usage(
    serve: Serve, folder: Path, words: list[str], said: str
) -> None:
    assert serve(*words).wait(30) == 2
    assert said in (folder / "log-0").read_text()


def test_a_port_in_use_ends_the_node_and_is_named(
    serve: Serve, folder: Path, ports: tuple[int, int]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert serve("--only", "receive").wait(60) in (2, 3)
    assert str(ports[0]) in (folder / "log-0").read_text()


def test_a_log_names_no_patient(
    serve: Serve, folder: Path, ports: tuple[int, int], dcmtk: Any
) -> None:
    process = serve()
    ready_line(process)
    assert dcmtk("storescu", "-aec", "DICOMNODE", "127.0.0.1", ports[0], *SAMPLES).returncode == 0
    wait_for(
        lambda: all(job["state"] == "marked" for job in queue(folder)),
        60,
        lambda: (folder / "log-0").read_text(),
    )
    process.terminate()
    assert process.wait(60) == 0
    log = (folder / "log-0").read_text()
    assert '"marked"' in log
    ds = pydicom.dcmread(SAMPLES[0])
    for keyword in ("PatientName", "PatientID", "SOPInstanceUID", "StudyInstanceUID"):
        assert not ds.get(keyword) or str(ds[keyword].value) not in log, keyword
