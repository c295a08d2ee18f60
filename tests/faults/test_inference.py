"""A whole node with an inference process: used by every worker, killed and stopped under load.

ONNX Runtime on the CPU stands behind it (``inference = "cpu"``): what a GPU would add is in
``dicom_node/inference/gpu.py`` alone.
"""

import json
import os
import random
import signal
import stat
import time

import harness
import pytest
from harness import ct
from pydicom.uid import generate_uid

from dicom_node.inference import open_engine
from dicom_node.inference.remote import LOOK_AGAIN_MAX_S
from dicom_node.marking import restore
from dicom_node.verify.check import check_instance

pytestmark = [pytest.mark.fault, pytest.mark.peer, pytest.mark.slow]

ROUNDS = int(os.environ.get("DICOM_NODE_INFERENCE_ROUNDS", "3"))
SETTINGS = {"workers": 2, "inference": "cpu", "max_batch": 4, "max_wait_ms": 0.5}


def said(node, event):
    """Return the log lines of one event."""
    lines = node.log.read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if f'"event": "{event}"' in line]


def send(node, folder, count, seed):
    """Send so many fresh CTs; return ``{SOP Instance UID: file}``."""
    files = {}
    for index in range(count):
        uid = generate_uid(entropy_srcs=["inference", str(seed), str(index)])
        data = ct(uid, size=256, seed=seed * 1000 + index)
        files[uid] = harness.save(data, folder / f"{seed}-{index}.dcm")
    done = harness.storescu(node, *files.values(), options=("-xe", "-to", "10"))
    assert done.returncode == 0, done.stdout + done.stderr
    return files


def used_by(node, workers):
    """Return a condition: the inference process has been taken up so often."""
    return lambda: len(said(node, "inference_used")) >= workers


@pytest.mark.timeout(600)
def test_killed_and_stopped_under_load_it_costs_no_instance_and_is_used_again(
    running_node, orthanc, tmp_path
):
    random_ = random.Random(3)
    node = running_node(
        [{"port": orthanc.port, "ae_title": "ORTHANC"}], watermark=SETTINGS
    )
    socket = node.config.spool.directory / "inference" / "0" / "socket"
    harness.wait_for(socket.exists, 60, lambda: node.output[-4000:])
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    sent = send(node, tmp_path, 6, 0)
    harness.wait_for(used_by(node, 2), 60, lambda: node.output[-4000:])
    for turn in range(1, ROUNDS + 1):
        before = len(said(node, "inference_used"))
        sent |= send(node, tmp_path, 6, turn)
        time.sleep(random_.uniform(0.0, 0.3))
        victim = node.processes()["infer-0"]
        if turn % 3 == 0:  # alive, and answers nobody
            os.kill(victim, signal.SIGSTOP)
            time.sleep(1.0)
        harness.kill(victim)
        harness.wait_for(
            lambda victim=victim: node.processes().get("infer-0") not in (None, victim)
            and socket.exists(),
            60, lambda: node.output[-4000:],
        )  # fmt: skip
        sent |= send(node, tmp_path, 4, 100 + turn)
        node.settled(120)
        # Workers look for it between two instances, after each loss twice as much later.
        extra, until = 0, time.monotonic() + LOOK_AGAIN_MAX_S + 30
        while not used_by(node, before + 1)() and time.monotonic() < until:
            sent |= send(node, tmp_path, 2, 1000 * turn + extra)
            node.settled(120)
            extra += 1
            time.sleep(0.5)
        assert used_by(node, before + 1)(), node.output[-4000:]
    jobs = node.settled(120)
    assert {job.state for job in jobs} == {"delivered"}
    assert {job.action for job in jobs} == {"marked"}
    assert {job.sop_instance_uid for job in jobs} == set(sent)
    assert sum(job.crashes for job in jobs) == 0, "a worker died with it"
    assert_authentic_and_restored(node, orthanc, sent, tmp_path)
    assert len(said(node, "inference_lost")) >= 1, "nobody was asking when it was killed"
    assert node.stop() == 0
    assert not socket.exists()
    assert node.files() == []


def assert_authentic_and_restored(node, orthanc, sent, tmp_path):
    """Everything that the process chose is read and comes off without it."""
    ring, engine = node.ring(), open_engine("onnx")
    stored = harness.orthanc_instances(orthanc)
    assert set(stored) == set(sent)
    for uid, identifier in stored.items():
        path = harness.fetch(orthanc, identifier, tmp_path / "fetched.dcm")
        assert check_instance(path, ring, engine).verdict == "authentic", uid
        back = tmp_path / "back.dcm"
        assert restore(path, back, ring).exact
        assert harness.differences(sent[uid], back) == []


@pytest.mark.timeout(240)
def test_while_it_never_comes_the_node_is_ready_and_marks(running_node, pacs, tmp_path):
    node = running_node(
        [{"port": pacs().port}], start=False, watermark=SETTINGS | {"workers": 1}
    )
    folder = node.config.spool.directory / "inference"
    folder.mkdir(parents=True)
    (folder / "0").write_text("in the way")
    node.start()
    sent = send(node, tmp_path, 3, 0)
    jobs = node.settled()
    assert [(job.state, job.action) for job in jobs] == [("delivered", "marked")] * len(sent)
    ended = [line for line in said(node, "process_ended") if line["role"] == "infer-0"]
    assert "no socket can be made there" in ended[0]["reason"]
    assert said(node, "inference_used") == []
    assert node.stop() == 0


@pytest.mark.timeout(240)
def test_the_process_can_run_by_itself_and_ends_with_nobody_left(running_node, pacs, tmp_path):
    node = running_node([{"port": pacs().port}], start=False, watermark=SETTINGS)
    command = [harness.sys.executable, "-m", "dicom_node.cli.main", "serve", "--only", "infer"]
    child = harness.Child([*command, "--config", node.config_path], tmp_path / "infer.log")
    try:
        harness.wait_for(lambda: "ready: infer-0" in child.output, 60, lambda: child.output)
        socket = node.config.spool.directory / "inference" / "0" / "socket"
        assert socket.exists()
    finally:
        assert child.end(30) == 0
    assert not socket.exists()
