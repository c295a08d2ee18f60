"""Checks in processes of their own: what one of them meets is no other's trouble."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import verifying

from dicom_node.errors import EngineError
from dicom_node.instance.block import read_block
from dicom_node.verify.checking import Checker, Setup, Task
from dicom_node.verify.checking_pool import CheckingPool


@pytest.fixture(scope="module")
def marks(tmp_path_factory):
    return verifying.Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="module")
def pool(marks):
    with CheckingPool(Setup(marks.keys, "onnx"), workers=2) as one:
        yield one


def test_a_marked_file_is_authentic_and_told_where_it_belongs(pool, marks):
    [(_, marked)] = marks.study(1, 1, size=128)
    checked = pool.check(Task(marked)).result(60)
    found = checked.found
    assert found.verdict.verdict == "authentic"
    assert (found.study_instance_uid, found.series_instance_uid) == ("1.2.3.1", "1.2.3.1.1")
    assert (found.modality, found.instance_number, found.path) == ("CT", 1, marked)
    assert checked.exact is None


def test_pixels_that_hold_nothing_under_our_header_are_tampered_unless_loss_is_declared(
    pool, marks, tmp_path
):
    [(_, marked)] = marks.study(4, 1, size=128)
    ds = pydicom.dcmread(marked)
    assert read_block(ds).frames[0], "the frame's record is in the header"
    noise = np.random.default_rng(4).integers(0, 2000, ds.pixel_array.shape)
    ds.PixelData = noise.astype(ds.pixel_array.dtype).tobytes()
    ds.save_as(tmp_path / "noise.dcm")
    [frame] = pool.check(Task(tmp_path / "noise.dcm")).result(60).found.verdict.frames
    assert (frame.verdict, frame.integrity) == ("tampered", "absent")
    assert frame.tampered == ((0, 0, 128, 128),)
    ds.LossyImageCompression = "01"
    ds.save_as(tmp_path / "declared.dcm")
    [frame] = pool.check(Task(tmp_path / "declared.dcm")).result(60).found.verdict.frames
    assert frame.verdict == "unmarked"


def test_an_original_is_written_only_if_it_is_exact(pool, marks, tmp_path):
    [(original, marked)] = marks.study(1, 1, size=256)
    out = tmp_path / "original.dcm"
    assert pool.check(Task(marked, out)).result(60).exact
    assert out.exists()
    changed = verifying.tampered(marked, tmp_path / "changed.dcm")
    checked = pool.check(Task(changed, tmp_path / "none.dcm")).result(60)
    assert checked.found.verdict.verdict == "tampered"
    assert checked.exact is False
    assert not (tmp_path / "none.dcm").exists()
    assert original.exists()


@pytest.mark.parametrize(
    ("registered", "said"),
    [(False, "no registry was asked"), (True, "the registry has no fingerprint of it")],
)
def test_a_recoded_copy_is_looked_up_where_there_is_a_registry(marks, tmp_path, registered, said):
    [(_, marked)] = marks.study(6, 1, size=256)
    ds = pydicom.dcmread(marked)
    noise = np.random.default_rng(1).integers(-4, 5, (256, 256))
    ds.PixelData = (ds.pixel_array + noise).clip(0, 4095).astype("<u2").tobytes()
    ds.save_as(tmp_path / "recoded.dcm")
    url = f"sqlite:///{tmp_path / 'registry.sqlite'}" if registered else ""
    checker = Checker(Setup(marks.keys, "onnx", registry=url))
    verdict = checker.check(Task(tmp_path / "recoded.dcm")).found.verdict
    assert verdict.verdict == "content-preserved"
    assert said in verdict.frames[0].reason


@pytest.mark.parametrize("content", [b"", b"no image at all" * 100])
def test_what_is_no_image_is_unreadable_and_not_an_error(pool, tmp_path, content):
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    found = pool.check(Task(path)).result(60).found
    assert found.verdict.verdict in ("unreadable", "unmarked")
    assert (
        pool.check(Task(tmp_path / "absent.dcm")).result(60).found.verdict.verdict == "unreadable"
    )


@pytest.mark.fault
def test_a_worker_that_is_killed_costs_its_own_check_only(pool, marks):
    files = [marked for _, marked in marks.study(1, 6, size=128)]
    waiting = [pool.check(Task(path)) for path in files]
    os.kill(_workers()[0], signal.SIGKILL)
    verdicts = [one.result(60).found.verdict.verdict for one in waiting]
    assert verdicts.count("authentic") >= 5
    assert set(verdicts) <= {"authentic", "unreadable"}
    assert pool.check(Task(files[0])).result(60).found.verdict.verdict == "authentic"


def test_closing_ends_the_processes_and_fails_what_was_not_done(marks):
    before = set(_workers())
    pool = CheckingPool(Setup(marks.keys, "onnx"), workers=1)
    assert set(_workers()) - before
    pool.close()
    assert set(_workers()) == before
    with pytest.raises(EngineError, match="shutting down"):
        pool.check(Task(Path("any")))


def test_keys_that_cannot_be_opened_are_known_at_once(tmp_path):
    with pytest.raises(EngineError, match="key"):
        CheckingPool(Setup(tmp_path / "nowhere", "onnx"), workers=1)


def test_a_worker_ends_with_the_process_that_started_it(marks, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        "from dicom_node.verify.checking import Setup\n"
        "from dicom_node.verify.checking_pool import CheckingPool\n"
        f"pool = CheckingPool(Setup(Path({str(marks.keys)!r}), 'onnx'), workers=1)\n"
        "print(next(iter(pool._alive))._process.pid, flush=True)\nos._exit(1)\n"
    )
    done = subprocess.run(
        [verifying.harness.sys.executable, script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": verifying.harness.PACKAGES}, timeout=60,
    )  # fmt: skip
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while verifying.harness.alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _workers():
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if (
                int(parent) == os.getpid()
                and b"checking_worker" in (process / "cmdline").read_bytes()
            ):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
