"""kill -9 of every process of a node under load: what was answered 0x0000 reaches the PACS, once.

``DICOM_NODE_KILL_ROUNDS`` makes it longer (default 20), ``DICOM_NODE_KILL_SEED`` another one.
"""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import types

import harness
import pydicom
import pytest
import verifying
from auditors import DETAILS, MISSING, VERDICT, VERIFIED, find
from harness import ct
from pydicom.uid import generate_uid

from dicom_node.config import load
from dicom_node.inference import open_engine
from dicom_node.node import roles_of
from dicom_node.verify.check import check_instance

pytestmark = [pytest.mark.fault, pytest.mark.peer, pytest.mark.slow]

ROUNDS = int(os.environ.get("DICOM_NODE_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("DICOM_NODE_KILL_SEED", "7"))
BACKLOG = 12
PROCESSES = (
    "receive-0", "infer-0", "mark-0", "mark-1", "forward-pacs", "register", "verify"
)  # fmt: skip
VICTIMS = (*PROCESSES, "supervisor", "all")
STUDY = "1.2.3.1"


class Modality(threading.Thread):
    """Real storescu processes, one after another; remembers what was answered with success."""

    def __init__(self, node, folder):
        super().__init__()
        self.node, self.folder = node, folder
        self.over = threading.Event()
        self.acknowledged = set()
        self.sent = 0
        self.failure = None

    def run(self):
        try:
            with self.node.spool() as spool:
                for number in itertools.count():
                    # Enough to keep every process busy, not more than can be marked in the end.
                    while spool.backlog() > BACKLOG and not self.over.is_set():
                        time.sleep(0.05)
                    if self.over.is_set():
                        return
                    self._send(number)
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            self.failure = error

    def progress(self, count):
        """Return a condition: so many more were acknowledged (or there is an error to report)."""
        goal = len(self.acknowledged) + count
        return lambda: len(self.acknowledged) >= goal or not self.is_alive()

    def _send(self, number):
        batch = self.folder / f"{number:04}"
        batch.mkdir()
        uids = {}
        for index in range(4):
            uid = generate_uid(entropy_srcs=[str(SEED), str(number), str(index)])
            path = harness.save(ct(uid, seed=number * 4 + index), batch / f"{index}.dcm")
            uids[str(path)] = uid
        self.sent += len(uids)
        done = harness.storescu(self.node, *uids, options=("-v", "-xe", "-nh", "-to", "5"))
        current = None
        for line in (done.stdout + done.stderr).splitlines():
            if found := re.search(r"Sending file: (.*)", line):
                current = uids[found[1].strip()]
            elif "Received Store Response (Success)" in line:
                self.acknowledged.add(current)
        if done.returncode:
            time.sleep(0.2)


class Auditor(threading.Thread):
    """Asks the verification service for the study again and again, as long as it is there."""

    def __init__(self, node):
        super().__init__()
        self.node = node
        self.over = threading.Event()
        self.answered = 0

    def run(self):
        while not self.over.wait(0.5):
            done = harness.run_tool(
                "findscu", "-S", "-to", 5, "-aec", "DICOMVERIFY",
                "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}",
                "127.0.0.1", self.node.config.verify.port,
            )  # fmt: skip
            self.answered += done.returncode == 0


def victims(random_):
    """Yield process names, every one in turn, in random order."""
    while True:
        yield from random_.sample(VICTIMS, len(VICTIMS))


def strike(node, victim):
    """Kill one process of the node, or all; start the node again where nothing is left of it."""
    if victim in PROCESSES:
        # One that was killed a moment ago is given time to come back.
        harness.kill(harness.wait_for(lambda: node.processes().get(victim), 60, victim))
        return
    orphans = list(node.processes().values())
    if victim == "all":
        node.kill_all()
    else:
        harness.kill(node.child.process.pid)
        node.child.process.wait()
        # Without their supervisor the others drain and end by themselves.
        harness.wait_for(lambda: not any(map(harness.alive, orphans)), 30, lambda: node.output)
    node.start(timeout_s=120)


@pytest.fixture
def archive(tmp_path):
    """An Orthanc that an auditor can query through the node."""
    one = verifying.QueryOrthanc(tmp_path)
    yield one
    one.child.end()


@pytest.mark.timeout(900 + 30 * ROUNDS)
def test_kill_9_at_random_moments_loses_nothing_and_delivers_everything_once(
    running_node, archive, tmp_path
):
    random_ = random.Random(SEED)
    node = running_node(
        [{"port": archive.port, "ae_title": "ORTHANC"}], start=False,
        watermark={"workers": 2, "inference": "cpu"},
    )  # fmt: skip
    with node.config_path.open("a") as text:
        text.write(f'[verify]\nbind = "127.0.0.1"\nworkers = 1\nport = {archive.verify_port}\n'
                   f"fetch_port = {archive.fetch_port}\n")  # fmt: skip
    node.config = load(node.config_path)
    node.start()
    assert {role.name for role in roles_of(node.config)} == set(PROCESSES)
    modality, auditor = Modality(node, tmp_path / "sent"), Auditor(node)
    modality.folder.mkdir()
    modality.start()
    auditor.start()
    killed = dict.fromkeys(VICTIMS, 0)
    try:
        for victim in itertools.islice(victims(random_), ROUNDS):
            # Only once it works again: a node that is starting has nothing to lose.
            harness.wait_for(modality.progress(2), 60, lambda: node.output[-4000:])
            if not modality.is_alive():
                break
            time.sleep(random_.uniform(0.0, 0.8))
            strike(node, victim)
            killed[victim] += 1
    finally:
        for thread in (modality, auditor):
            thread.over.set()
            thread.join()
    if modality.failure:
        raise modality.failure
    assert sum(killed.values()) == ROUNDS
    assert all(killed.values()) or len(VICTIMS) > ROUNDS, killed
    assert len(modality.acknowledged) >= 2 * ROUNDS, "too little load to mean anything"
    assert auditor.answered, "the verification service was never in use"
    jobs = release_until_delivered(node)
    assert {job.sop_instance_uid for job in jobs} >= modality.acknowledged
    assert_once(node, archive, modality.acknowledged, tmp_path)
    assert_vouched_for(node, {job.sop_instance_uid for job in jobs})
    print(f"{ROUNDS} kills {killed}, {len(modality.acknowledged)} of {modality.sent}"
          f" instances acknowledged, {auditor.answered} queries answered")  # fmt: skip
    assert node.stop() == 0
    assert_spool_is_clean(node)


def release_until_delivered(node):
    """An instance whose worker was killed three times waits for an administrator: be one."""
    for _ in range(5):
        jobs = node.settled(240)
        held = [job for job in jobs if job.state == "held"]
        for job in held:
            assert "ended its worker" in job.reason, job
            assert node.cli("queue", "release", job.id).returncode == 0
        if not held:
            assert {job.state for job in jobs} == {"delivered"}
            return jobs
    raise AssertionError([job for job in jobs if job.state == "held"])


def assert_once(node, orthanc, acknowledged, tmp_path):
    """One instance per UID, authentic, and never marked in two versions."""
    stored = harness.orthanc_instances(orthanc)
    assert acknowledged <= set(stored)
    assert orthanc.count() == len(stored)
    ring, engine = node.ring(), open_engine("onnx")
    digests = {}
    for job in node.jobs():
        digests.setdefault(job.sop_instance_uid, set()).add(job.result_digest)
    for uid, identifier in stored.items():
        assert len(digests[uid]) == 1, f"{uid} was marked in two versions"
        path = harness.fetch(orthanc, identifier, tmp_path / "fetched.dcm")
        verdict = check_instance(path, ring, engine)
        assert (verdict.verdict, verdict.changed) == ("authentic", ()), (uid, verdict)
        assert str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) == uid


def assert_vouched_for(node, uids):
    """The registrar has told of every instance, and the service finds each, authentic."""
    with node.spool() as spool:
        harness.wait_for(lambda: not spool.outbox(1), 60, lambda: node.output[-4000:])
    service = types.SimpleNamespace(port=node.config.verify.port)
    asked = verifying.verify_now(verifying.keys(StudyInstanceUID=STUDY))
    # What comes before the last match is how far the check is.
    [*_, match], last = find(service, asked)
    said = verifying.block_of(match)
    assert last.Status == 0x0000
    assert (said[VERDICT], said[VERIFIED], said[MISSING]) == ("authentic", len(uids), 0)
    assert json.loads(said[DETAILS])["extra"] == []


def assert_spool_is_clean(node):
    with node.spool() as spool:
        spool.recover()
    assert node.files() == []


def test_a_second_supervisor_does_not_disturb_the_first(running_node, pacs, tmp_path):
    node = running_node([{"port": pacs().port}])
    second = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli.main", "serve", "--config", node.config_path],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": harness.PACKAGES},
    )  # fmt: skip
    assert second.returncode != 0
    assert str(node.port) in second.stderr + second.stdout
    path = harness.save(ct(), tmp_path / "one.dcm")
    assert harness.storescu(node, path).returncode == 0
    assert [job.state for job in node.settled()] == ["delivered"]
