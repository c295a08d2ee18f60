"""Too little disk, a full disk, too much backlog: refused for now, nothing acknowledged is lost."""

import contextlib
import os
import shutil
import subprocess
import time

import harness
import pytest
from harness import ct
from peer_tools import missing
from pydicom.uid import generate_uid

from dicom_node.inference import open_engine
from dicom_node.verify.check import check_instance

pytestmark = [pytest.mark.fault, pytest.mark.peer]
_MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB of its own, really full when it is full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        missing("a file system of its own needs root: the full-disk test did not run")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        missing(f"no tmpfs can be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def scp(tmp_path):
    one = harness.StoreSCP(tmp_path)
    yield one
    one.child.kill()


def saved(path, uid=None, *, size=64, seed=0):
    return harness.save(ct(uid, size=size, seed=seed), path)


def acknowledged(result, uids):
    """Return the UIDs storescu was answered success for, told by its log."""
    found, current = [], None
    for line in (result.stdout + result.stderr).splitlines():
        if "Sending file:" in line:
            current = uids[line.partition("Sending file:")[2].strip()]
        elif "Received Store Response (Success)" in line:
            found.append(current)
    return found


def test_below_min_free_associations_are_rejected_as_transient_until_there_is_room(
    running_node, pacs, small_disk, tmp_path
):
    node = running_node(
        [{"port": pacs().port}], spool={"directory": str(small_disk / "spool"), "min_free_mib": 8}
    )
    path = saved(tmp_path / "one.dcm")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 6 * _MIB))

    def rejected():
        result = harness.storescu(node, path, options=("-xe", "-d"))
        said = result.stdout + result.stderr
        return result.returncode and "Rejected Transient" in said

    harness.wait_for(rejected, message="it went on accepting")
    assert "spool.min_free_mib = 8" in node.output
    assert node.jobs() == []
    ballast.unlink()
    harness.wait_for(lambda: harness.storescu(node, path).returncode == 0)
    assert [job.state for job in node.settled()] == ["delivered"]


def test_an_association_open_while_the_disk_fills_is_answered_a700(
    running_node, pacs, small_disk, tmp_path
):
    node = running_node(
        [{"port": pacs().port}], spool={"directory": str(small_disk / "spool"), "min_free_mib": 2}
    )
    with harness.association(node) as send:
        assert send(ct()) == 0x0000
        node.settled()
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - _MIB))
        harness.wait_for(lambda: send(ct()) == 0xA700, message="the disk was filled")
        before = len(node.jobs())
        assert send(ct()) == 0xA700
        assert len(node.jobs()) == before
        ballast.unlink()
        harness.wait_for(lambda: send(ct()) == 0x0000)
    assert {job.state for job in node.settled()} == {"delivered"}


@pytest.mark.timeout(400)
def test_a_really_full_disk_loses_nothing_acknowledged(running_node, scp, small_disk, tmp_path):
    # The PACS is down: what comes stays, until the disk is full to the last block.
    scp.child.kill()
    node = running_node(
        [{"port": scp.port, "ae_title": "STORESCP"}],
        spool={"directory": str(small_disk / "spool"), "min_free_mib": 0},
    )
    folder = tmp_path / "sent"
    folder.mkdir()
    uids = {}
    for number in range(100):
        uid = generate_uid()
        uids[str(saved(folder / f"{number}.dcm", uid, size=360, seed=number))] = uid
    results = []
    for start in range(0, len(uids), 20):
        batch = list(uids)[start : start + 20]
        results.append(harness.storescu(node, *batch, options=("-v", "-xe", "-nh")))
    taken = {uid for result in results for uid in acknowledged(result, uids)}
    assert 0 < len(taken) < len(uids), "the disk did not fill"
    # To the last block: a mark worker found none, and gave up the reserve.
    harness.wait_for(lambda: "reserve_given_up" in node.output)
    assert not reserve(small_disk).exists()
    refused = harness.storescu(node, list(uids)[-1], options=("-xe", "-d"))
    assert "Rejected Transient" in refused.stdout + refused.stderr
    assert node.child.process.poll() is None, node.output[-3000:]
    scp.restart()
    started = time.monotonic()
    jobs = delivered_all(node)
    print(f"{len(taken)} instances drained in {time.monotonic() - started:.1f} s")
    assert {job.sop_instance_uid for job in jobs if job.state == "delivered"} >= taken
    stored = scp.stored()
    assert taken <= set(stored)
    ring, engine = node.ring(), open_engine("onnx")
    for uid in sorted(taken)[::10]:
        assert check_instance(stored[uid][0], ring, engine).verdict == "authentic"
    path = saved(tmp_path / "after.dcm")
    harness.wait_for(lambda: harness.storescu(node, path).returncode == 0)
    assert reserve(small_disk).stat().st_size == 8 * _MIB


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_disk_filled_by_somebody_else_only_delays(
    running_node, scp, small_disk, tmp_path, seconds
):
    """With `seconds` the reserve is eaten too, as soon as it is given up."""
    scp.child.kill()
    node = running_node(
        [{"port": scp.port, "ae_title": "STORESCP"}],
        spool={"directory": str(small_disk / "spool"), "min_free_mib": 0},
    )
    uids = {str(saved(tmp_path / f"{k}.dcm", seed=k)): str(k) for k in range(12)}
    result = harness.storescu(node, *uids, options=("-v", "-xe", "-nh"))
    assert len(acknowledged(result, uids)) == 12
    harness.wait_for(lambda: node.tally() == {"marked": 12})
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        fill(file)
        scp.restart()
        harness.wait_for(lambda: "reserve_given_up" in node.output)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            fill(file)
            assert node.child.process.poll() is None
            time.sleep(0.01)
    if not seconds:
        assert {job.state for job in node.settled()} == {"delivered"}
        assert not reserve(small_disk).exists()
        refused = harness.storescu(node, next(iter(uids)), options=("-xe", "-d"))
        assert "Rejected Transient" in refused.stdout + refused.stderr
    ballast.unlink()
    assert {job.state for job in node.settled()} == {"delivered"}
    assert len(scp.stored()) == 12
    path = saved(tmp_path / "after.dcm")
    harness.wait_for(lambda: harness.storescu(node, path).returncode == 0)
    assert reserve(small_disk).exists()


def fill(file):
    """Write until the disk has no block left."""
    with contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(1 << 12))


def reserve(disk):
    return disk / "spool" / "journal.reserve"


def delivered_all(node):
    """Wait until everything is delivered; a full disk may only delay, never hold or lose."""
    jobs = node.settled(240)
    assert {job.state for job in jobs} == {"delivered"}, [job.reason for job in jobs if job.reason]
    return jobs


def test_above_max_backlog_new_instances_are_refused_until_the_pacs_takes_some(
    running_node, pacs, tmp_path
):
    down = pacs(mode=None)
    node = running_node([{"port": down.port}], spool={"max_backlog": 3})
    paths = {str(saved(tmp_path / f"{k}.dcm", seed=k)): str(k) for k in range(6)}
    result = harness.storescu(node, *paths, options=("-v", "-xe", "-nh"))
    assert len(acknowledged(result, paths)) == 3
    assert "Refused: OutOfResources" in result.stdout + result.stderr
    again = harness.storescu(node, list(paths)[5], options=("-xe", "-d"))
    assert "Rejected Transient" in again.stdout + again.stderr
    down.start("ok")
    with contextlib.suppress(AssertionError):
        node.settled(30)
    assert {job.state for job in node.settled(60)} == {"delivered"}
    assert harness.storescu(node, list(paths)[5]).returncode == 0
