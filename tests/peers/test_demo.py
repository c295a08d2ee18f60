"""``dicom-node demo`` as a newcomer runs it: against both PACSs, and with a step sabotaged."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from peer_tools import PACKAGES

# A demonstration takes half a minute on two idle cores and several when the machine is busy.
pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(600)]

DEMO = ("-m", "dicom_node.cli.main", "demo")
FORGERY_LEFT_OUT = """
import shutil, sys
from dicom_node.cli.main import main
from dicom_node.demo import forgery

def pretend(source, out, centre):
    shutil.copy(source, out)
    return [centre]

forgery.paint_lesion = pretend
sys.exit(main(["demo", *sys.argv[1:]]))
"""


def need(missing: bool, reason: str) -> None:
    if missing and os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
        pytest.fail(reason)
    if missing:
        pytest.skip(reason)


@pytest.fixture(params=["orthanc", "qrscp"])
def pacs(request: pytest.FixtureRequest) -> str:
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if request.param == "orthanc":
        need(found is None, "Orthanc is not installed: apt-get install orthanc")
    else:
        need(importlib.util.find_spec("sqlalchemy") is None, "pip install sqlalchemy")
    return str(request.param)


def left_behind(folder: Path) -> list[str]:
    """Return the command lines of processes that name `folder`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Return the folder that the demonstration works in, and see that no process stays there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield folder
    assert left_behind(folder) == []


def start(temporary: Path, out: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command, "--json", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=temporary,
        env={**os.environ, "PYTHONPATH": PACKAGES, "TMPDIR": str(temporary)},
        # A test worker ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def told(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    out, err = process.communicate(timeout=550)
    assert out, err
    result: dict[str, Any] = json.loads(out)
    return result, err


def test_every_step_holds_against_a_real_pacs(pacs: str, temporary: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    process = start(temporary, out, *DEMO, "--pacs", pacs)
    result, err = told(process)
    assert process.returncode == 0, (result, err)
    assert result["held"]
    assert len(result["steps"]) == 11
    assert all(step["held"] for step in result["steps"])
    forged = next(step for step in result["steps"] if "pixels of one copy" in step["step"])
    assert forged["seen"].startswith("tampered, at rows ")
    patient = next(step for step in result["steps"] if "Patient ID" in step["step"])
    assert patient["figure"] == "PatientID"
    pictures = {path.name for path in out.glob("*.png") if cv2.imread(str(path)) is not None}
    assert pictures == {"cr_hand.png", "forgery.png", "mr_brain.png", "us_doppler.png"}
    assert list(temporary.glob("dicom-node-demo-*")) == []


def test_a_copy_nobody_touched_fails_the_demo(temporary: Path, tmp_path: Path) -> None:
    process = start(temporary, tmp_path / "pictures", "-c", FORGERY_LEFT_OUT)
    result, err = told(process)
    assert process.returncode == 1
    assert not result["held"]
    last = result["steps"][-1]
    assert last["step"] == "change a few pixels of one copy"
    assert not last["held"]
    assert "authentic" in last["seen"]
    [folder] = temporary.glob("dicom-node-demo-*")
    assert str(folder) in err
    assert (folder / "node.log").stat().st_size > 0


@pytest.mark.parametrize(("number", "after_s"), [(signal.SIGINT, 0.4), (signal.SIGTERM, 0.0)])
def test_ending_it_halfway_ends_every_child(
    number: signal.Signals, after_s: float, temporary: Path, tmp_path: Path
) -> None:
    process = start(temporary, tmp_path / "pictures", *DEMO)
    try:
        deadline = time.monotonic() + 120
        while not any("ready:" in log.read_text() for log in temporary.glob("*/node.log")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert left_behind(temporary)
        time.sleep(after_s)
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
