"""Appending: every entry is durable, in one chain, whoever writes and whatever breaks."""

import json
import multiprocessing
import os
import signal
import threading
import time
from hashlib import sha3_256
from pathlib import Path

import pytest

from dicom_node.audit import segments
from dicom_node.audit.checking import check_log
from dicom_node.audit.log import AuditLog
from dicom_node.audit.reading import Place, end_of, entries
from dicom_node.errors import AuditError
from dicom_node.keys import KeyRing


def kinds(trail):
    return [entry.kind for entry, _ in entries(trail.folder)]


def test_a_line_is_what_the_format_says(trail):
    trail.fill(2)
    first, second, third, _ = (json.loads(line) for line in trail.lines())
    assert first["prev"] == "0" * 64
    assert first["event"] == {"kind": "segment", "format": "dicom-node audit log 1",
                              "log": first["event"]["log"], "number": 1}  # fmt: skip
    assert (second["seq"], second["prev"], third["prev"]) == (2, first["hash"], second["hash"])
    body = trail.lines()[1].rpartition(b',"hash":')[0]
    assert second["hash"] == sha3_256(body).hexdigest()
    assert second["event"]["sop_instance_uid"] == "1.2.0"


def test_checkpoints_come_every_so_many_entries_and_at_the_end(trail):
    trail.fill(7, checkpoint_every=3)
    assert [k for k, kind in enumerate(kinds(trail), 1) if kind == "checkpoint"] == [4, 8, 11]
    kept = (trail.folder / "checkpoints.jsonl").read_bytes().splitlines()
    assert kept == [trail.lines()[k - 1] for k in (4, 8, 11)]
    assert trail.check().unsigned == 0


def test_closing_twice_signs_once(trail):
    trail.fill(1)
    trail.open().close()
    assert kinds(trail) == ["segment", "verified", "checkpoint"]


def test_segments_are_filled_one_after_the_other(trail):
    trail.fill(200, segment_bytes=8000)
    numbers = segments.segment_numbers(trail.folder)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 4
    assert all(trail.segment(n).stat().st_size < 9500 for n in numbers)
    found = trail.check()
    assert (found.broken, found.segments) == (None, len(numbers))
    uids = [entry.event["sop_instance_uid"] for entry, _ in entries(trail.folder)
            if entry.kind == "verified"]  # fmt: skip
    assert uids == [f"1.2.{k}" for k in range(200)]


def test_a_reference_told_again_is_left_out_by_any_writer(trail):
    one, other = trail.open(), trail.open()
    rows = [(trail.event(k), f"outbox:{k}") for k in range(20)]
    assert one.append_many(rows[:12]) == 12
    assert other.append_many(rows[5:]) == 8
    assert one.append(rows[19][0], "outbox:19") is False
    assert trail.open().append_many(rows) == 0
    assert kinds(trail).count("verified") == 20


def test_a_reference_is_recognised_across_a_new_segment(trail):
    rows = [(trail.event(k), f"outbox:{k}") for k in range(40)]
    trail.open(segment_bytes=8000).append_many(rows)
    assert len(segments.segment_numbers(trail.folder)) == 2
    assert trail.open(segment_bytes=8000).append_many(rows) == 0


def test_without_keys_entries_are_chained_and_signed_later(trail):
    AuditLog.open(trail.folder, None).append(trail.event(1))
    assert trail.check().broken.kind == "unsigned"
    trail.open().append(trail.event(2))
    trail.open().close()
    assert trail.check().to_json() | {"log": ""} == {
        "log": "", "whole": True, "entries": 4, "segments": 1, "checkpoints": 1,
        "signed_up_to": 4, "unsigned": 0, "unknown_keys": [], "recovered": [], "broken": None,
    }  # fmt: skip


def test_folder_and_files_are_for_the_owner_only(trail):
    trail.fill(1)
    assert trail.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in trail.folder.iterdir()} == {0o600}


# -- several writers -------------------------------------------------------------------------


def test_processes_that_write_at_once_make_one_chain(trail, tmp_path):
    ring = KeyRing.open(tmp_path / "keys", owner="TESTS", create=True)
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write, args=(trail.folder, tmp_path / "keys", name, 40))
        for name in ("a", "b", "c")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = check_log(trail.folder, ring)
    assert found.broken is None
    seen = [entry.reference for entry, _ in entries(trail.folder) if entry.reference]
    assert len(seen) == len(set(seen)) == 3 * 40 * 3
    for name in "abc":
        mine = [reference for reference in seen if reference.startswith(name)]
        assert mine == [f"{name}:{k}:{n}" for k in range(40) for n in range(3)]


def _write(folder, keys, name, count, ready=None):
    from datetime import UTC, datetime

    from dicom_node.audit.events import Verified

    log = AuditLog.open(folder, KeyRing.open(keys), checkpoint_every=20, segment_bytes=20000)
    at = datetime(2026, 11, 22, tzinfo=UTC)
    for k in range(count):
        rows = [(Verified(at=at, sop_instance_uid=f"1.{k}.{n}", verdict="x"), f"{name}:{k}:{n}")
                for n in range(3)]  # fmt: skip
        log.append_many(rows)
        if ready is not None:
            # What has been promised: the row is durable.
            os.write(ready, b"%d\n" % k)
    log.close()


def test_threads_that_share_a_log_make_one_chain(trail):
    log = trail.open(checkpoint_every=7)
    threads = [
        threading.Thread(target=lambda: [log.append(trail.event(k)) for k in range(25)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert trail.check().broken is None
    assert kinds(trail).count("verified") == 100


@pytest.mark.fault
def test_what_was_promised_is_there_after_kill_9(trail, tmp_path):
    ring = KeyRing.open(tmp_path / "keys", owner="TESTS", create=True)
    context = multiprocessing.get_context("fork")
    promised = -1
    for turn in range(6):
        reader, writer = os.pipe()
        child = context.Process(
            target=_write, args=(trail.folder, tmp_path / "keys", f"t{turn}", 10**6, writer)
        )
        child.start()
        os.close(writer)
        time.sleep(0.15 + 0.05 * turn)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with os.fdopen(reader, "rb") as stream:
            promised = int((stream.read().splitlines() or [b"-1"])[-1])
        seen = {entry.reference for entry, _ in entries(trail.folder)}
        assert {f"t{turn}:{k}:{n}" for k in range(promised + 1) for n in range(3)} <= seen
    assert promised > 0
    trail.ring = ring
    trail.open().append(trail.event(0))
    trail.open().close()
    assert trail.check().broken is None


# -- what breaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 40, 200])
@pytest.mark.parametrize("junk", [b"", b"\0" * 300, b"\0" * 30 + b"\n" + b"\0" * 7])
def test_an_unfinished_line_is_set_aside_and_said_so(trail, left, junk):
    trail.fill(3)
    whole = trail.segment().read_bytes()
    torn = trail.lines()[2][:left] + junk
    trail.segment().write_bytes(whole + torn)
    assert trail.check().broken.kind in ("torn", "changed")
    trail.open().append(trail.event(9))
    trail.open().close()
    assert kinds(trail)[-3:] == ["recovered", "verified", "checkpoint"]
    assert (trail.folder / "torn-6.bin").read_bytes() == torn
    found = trail.check()
    assert (found.broken, found.recovered) == (None, [6])
    [said] = [entry.event for entry, _ in entries(trail.folder) if entry.kind == "recovered"]
    assert (said["size"], said["digest"]) == (len(torn), sha3_256(torn).hexdigest())


def test_a_living_writer_sets_aside_what_another_left_unfinished(trail):
    log = trail.open()
    log.append(trail.event(1))
    with trail.segment().open("ab") as stream:
        stream.write(b'{"seq":3,"ti')
    log.append(trail.event(2))
    log.close()
    assert kinds(trail) == ["segment", "verified", "recovered", "verified", "checkpoint"]
    assert trail.check().broken is None


def test_a_batch_torn_in_the_middle_is_completed_not_repeated(trail):
    rows = [(trail.event(k), f"outbox:{k}") for k in range(10)]
    trail.open().append_many(rows)
    lines = trail.segment().read_bytes().splitlines(keepends=True)
    trail.segment().write_bytes(b"".join(lines[:6]) + lines[6][:50])
    assert trail.open().append_many(rows) == 5
    trail.open().close()
    assert trail.check().broken is None
    assert kinds(trail).count("verified") == 10


@pytest.mark.parametrize("left", [0, 30])
def test_a_crash_while_a_segment_began_is_mended(trail, left):
    trail.fill(30, segment_bytes=8000)
    last = segments.segment_numbers(trail.folder)[-1]
    header = trail.lines(last)[0]
    trail.segment(last + 1).write_bytes(header[:left])
    trail.open(segment_bytes=8000).append(trail.event(99))
    trail.open(segment_bytes=8000).close()
    found = trail.check()
    assert (found.broken, found.segments) == (None, last + 1)
    assert len(found.recovered) == (1 if left else 0)


def test_a_checkpoint_that_a_crash_kept_from_the_list_is_added(trail):
    trail.fill(7, checkpoint_every=3)
    kept = trail.folder / "checkpoints.jsonl"
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    trail.open().append(trail.event(8))
    trail.open().close()
    assert kept.read_bytes().splitlines(keepends=True)[: len(lines)] == lines
    assert trail.check().broken is None


def test_a_full_disk_is_an_error_and_leaves_no_half_line(trail, monkeypatch):
    log = trail.open()
    log.append(trail.event(1))
    before = trail.segment().read_bytes()
    write, calls = os.write, []

    def fails(handle, data):
        calls.append(len(data))
        if len(calls) == 1:
            return write(handle, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments.os, "write", fails)
    with pytest.raises(AuditError, match="No space left"):
        log.append(trail.event(2), "outbox:2")
    monkeypatch.undo()
    assert trail.segment().read_bytes() == before
    assert log.append(trail.event(2), "outbox:2")
    log.close()
    assert trail.check().broken is None
    assert kinds(trail) == ["segment", "verified", "verified", "checkpoint"]


def test_all_checkpoints_that_a_crash_kept_from_the_list_are_added(trail):
    trail.fill(10, checkpoint_every=3)
    kept = trail.folder / "checkpoints.jsonl"
    whole = kept.read_bytes()
    kept.write_bytes(whole.splitlines(keepends=True)[0])
    trail.open().close()
    assert kept.read_bytes() == whole


def test_a_forged_checkpoint_does_not_stop_the_recording(trail):
    trail.fill(3)
    line = trail.lines()[-1].replace(b'"every":1000', b'"every":"no"')
    body = line.rpartition(b',"hash":')[0]
    forged = body + b',"hash":"' + sha3_256(body).hexdigest().encode() + b'"}'
    trail.write([*trail.lines()[:-1], forged])
    assert trail.open().append(trail.event(4))
    assert trail.check().broken.entry == 5


def test_a_trail_of_a_newer_format_is_not_written_to(trail):
    trail.fill(1)
    line = trail.segment().read_bytes().replace(b"audit log 1", b"audit log 2", 1)
    trail.segment().write_bytes(line)
    with pytest.raises(AuditError, match="audit log 2"):
        trail.open().append(trail.event(2))


def test_reading_goes_on_from_a_place(trail):
    trail.fill(40, segment_bytes=8000)
    everything = list(entries(trail.folder))
    for entry, place in everything:
        following = next(iter(entries(trail.folder, place)), None)
        assert following is None or following[0].seq == entry.seq + 1
    last = everything[-1]
    assert end_of(trail.folder) == last[1]
    assert list(entries(trail.folder, Place(last[1].segment, last[1].offset, last[0].seq))) == []


def test_folders_that_cannot_be_made_are_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="file"):
        AuditLog.open(Path(tmp_path / "file" / "audit"), None)


@pytest.mark.parametrize("reference", ['a "quoted" one', "back\\slash", "späße", "\0\n", "x" * 500])
def test_any_reference_is_recognised(trail, reference):
    assert trail.open().append(trail.event(1), reference)
    assert trail.open().append(trail.event(1), reference) is False
    trail.open().close()
    assert trail.check().broken is None
    assert [entry.reference for entry, _ in entries(trail.folder)] == ["", reference, ""]
