"""Print how fast the audit trail is written and checked, and the memory a check takes.

python tests/tools/audit_speed.py [ENTRIES] [BATCH]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.audit.checking import check_log
from dicom_node.audit.events import Marked
from dicom_node.audit.log import AuditLog
from dicom_node.keys import KeyRing, KeySet

RING = KeyRing((KeySet.from_master(bytes(range(32)), "SPEED", datetime(2026, 1, 1, tzinfo=UTC)),))
UID = "1.2.826.0.1.3680043.8.498.45787841905188114249815723184254"


def event(number):
    return Marked(
        at=datetime.now(UTC), sop_instance_uid=f"{UID[:40]}.{number}", study_instance_uid=UID,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2", series_instance_uid=UID + "1", frames=1,
        key_id="eaf24268b7b60ad7", digest="ab" * 32, source_ae="CT1",
    )  # fmt: skip


def write(folder, count, batch):
    log = AuditLog.open(folder, RING)
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, count, batch):
        log.append_many([(event(k), f"spool:{k}") for k in range(start, start + batch)])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    log.close()
    size = sum(each.stat().st_size for each in folder.iterdir())
    print(f"append_many, {batch} at once: {count / wall:,.0f} entries/s, {count / cpu:,.0f} per "
          f"CPU-second; {size / count:.0f} bytes an entry", flush=True)  # fmt: skip
    few = min(count, 200)
    wall = time.perf_counter()
    for k in range(few):
        log.append(event(k))
    wall = time.perf_counter() - wall
    print(f"append, one by one: {1000 * wall / few:.2f} ms each, durable")


def check(folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, wall = time.process_time(), time.perf_counter()
    found = check_log(folder, RING)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"verify: {found.entries:,} entries in {found.segments} segments, "
          f"{found.checkpoints:,} signatures: {cpu:.1f} CPU-s, {wall:.1f} s, {more / 1024:.1f} MiB "
          f"more than before; broken: {found.broken}")  # fmt: skip


def main():
    if sys.argv[1:2] == ["--check"]:
        check(Path(sys.argv[2]))
        return
    count, batch = map(int, (sys.argv[1:] + ["100000", "1000"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), count, batch)
        # In a process of its own: the memory of writing is not counted.
        subprocess.run([sys.executable, __file__, "--check", name], check=True)


if __name__ == "__main__":
    main()
