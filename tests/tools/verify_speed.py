"""How fast the verification service is, on this machine, against a real Orthanc.

    python tests/tools/verify_speed.py [files|find|study|memory ...]

``files``   CT instances a second that two workers verify from local files (512 x 512, real tissue)
``find``    milliseconds a C-FIND response takes longer through us than from the PACS itself
``study``   seconds from the C-GET of a study of 500 slices to the last of its verdicts
``memory``  resident memory of service and workers while 20,000 instances are fetched and checked;
            exit 1 where it grows (``--leak-kib`` keeps so much of each on purpose, to see it do so)

CPU seconds are the processes' own (`/proc`), wall seconds are those of a machine that may be busy:
both are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import verifying
from pynetdicom import AE
from verifying import STUDY_FIND, Marks, QueryOrthanc, Service, client, keys

from dicom_node.config import parse
from dicom_node.verify.checking import Setup, Task
from dicom_node.verify.checking_pool import CheckingPool
from dicom_node.verify.inspector import Inspector
from dicom_node.verify.pacs import Wanted

_TICK = os.sysconf("SC_CLK_TCK")
_WORKERS = 2


def cpu_s(pids):
    """Return CPU seconds of some processes so far."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICK
    return total


def rss_mib(pids):
    """Return resident memory of some processes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(pool):
    """Return our process id and those of a pool's workers."""
    return [os.getpid(), *(worker._process.pid for worker in list(pool._alive))]


def warm(pool, path):
    for one in [pool.check(Task(path)) for _ in range(4 * pool.workers)]:
        one.result(300)


def measure_files(folder, marks):
    files = [marked for _, marked in marks.study(1, 8, size=512)]
    with CheckingPool(Setup(marks.keys, "onnx"), _WORKERS) as pool:
        warm(pool, files[0])
        count, best = 120, (0.0, 0.0)
        for _ in range(3):
            pids, wall = family(pool), time.monotonic()
            cpu = cpu_s(pids)
            waiting = [pool.check(Task(files[n % len(files)])) for n in range(count)]
            assert all(one.result(300).found.verdict.verdict == "authentic" for one in waiting)
            wall, cpu = time.monotonic() - wall, cpu_s(pids) - cpu
            best = max(best, (count / wall, 1000 * cpu / count))
    per_s, cpu_ms = best
    yield "files verified, two workers", f"{per_s:.0f} CT/s", f"{cpu_ms:.1f} CPU-ms each"


def measure_find(folder, marks):
    pacs = QueryOrthanc(folder)
    text = verifying.config_text(folder, marks.keys, pacs.port, port=pacs.verify_port,
                                 fetch_port=pacs.fetch_port, max_matches=100000)  # fmt: skip
    service = Service(parse(text, "speed")).start()
    try:
        slices = [marked for _, marked in marks.study(2, 60, size=64)]
        pacs.store(*slices)
        with service.registry() as registry:
            registry.add_all(map(verifying.entry_of, slices))
        asked = keys("IMAGE", StudyInstanceUID="1.2.3.2", SeriesInstanceUID="1.2.3.2.1",
                     SOPInstanceUID="", InstanceNumber="")  # fmt: skip
        now = verifying.verify_now(keys(StudyInstanceUID="1.2.3.2"))
        with client(service, STUDY_FIND) as assoc:
            list(assoc.send_c_find(now, STUDY_FIND))
        best = {"pacs": 1e9, "service": 1e9}
        for _ in range(5):
            for name, port, title in (("pacs", pacs.port, "ORTHANC"),
                                      ("service", service.port, "DICOMVERIFY")):  # fmt: skip
                ae = AE("AUDITOR")
                ae.add_requested_context(STUDY_FIND)
                assoc = ae.associate("127.0.0.1", port, ae_title=title)
                started = time.monotonic()
                answers = list(assoc.send_c_find(asked, STUDY_FIND))
                best[name] = min(best[name], time.monotonic() - started)
                assoc.release()
                assert len(answers) == len(slices) + 1
        theirs, ours = (1000 * best[name] / len(slices) for name in ("pacs", "service"))
        yield ("C-FIND, 60 instances with their verdicts",
               f"{ours - theirs:.1f} ms more a response",
               f"{theirs:.1f} ms from the PACS, {ours:.1f} ms from us")  # fmt: skip
    finally:
        service.end()
        pacs.child.end()


def _inspector(folder, marks, pacs):
    text = verifying.config_text(folder, marks.keys, pacs.port, port=pacs.verify_port,
                                 fetch_port=pacs.fetch_port, workers=_WORKERS)  # fmt: skip
    return Inspector(parse(text, "speed"), listen=False)


def _marked_many(folder, marks, count, size):
    """Return `count` marked slices, marked by all cores."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(2) as workers:
        jobs = [(marks.folder, 3, first, min(first + 25, count), size)
                for first in range(0, count, 25)]  # fmt: skip
        return [Path(path) for made in workers.starmap(_mark_some, jobs) for path in made]


def _mark_some(folder, number, first, last, size):
    marks = Marks(folder)
    return [str(marks.slice(number, n, size=size)[1]) for n in range(first + 1, last + 1)]


def measure_study(folder, marks, slices=500, size=512):
    pacs = QueryOrthanc(folder)
    try:
        files = _marked_many(folder, marks, slices, size)
        for start in range(0, len(files), 100):
            pacs.store(*files[start : start + 100])
        with _inspector(folder, marks, pacs) as inspector:
            warm(inspector.pool, files[0])
            pids, wall = family(inspector.pool), time.monotonic()
            orthanc = pacs.child.process.pid
            cpu, theirs = cpu_s(pids), cpu_s([orthanc])
            check = inspector.check(Wanted("1.2.3.3"), checked_by="speed")
            wall, cpu = time.monotonic() - wall, cpu_s(pids) - cpu
            theirs = cpu_s([orthanc]) - theirs
        assert check.counts == {"authentic": len(files)}, check.counts
        yield (f"{len(files)} slices of {size} x {size} fetched and verified", f"{wall:.1f} s",
               f"{cpu:.1f} CPU-s ours, {theirs:.1f} CPU-s Orthanc's")  # fmt: skip
    finally:
        pacs.child.end()


def growth_mib(seen):
    """Return how much more memory the last tenth of some readings takes than the second."""
    tenth = max(1, len(seen) // 10)
    return max(seen[-tenth:]) - max(seen[tenth : 2 * tenth])


def is_flat(seen, instances):
    """Say whether memory stayed flat: less than 2 KiB an instance, beside 16 MiB for caches."""
    return growth_mib(seen) < 16 + 2 * instances / 1024


def measure_memory(folder, marks, instances=20_000, slices=250, leak_kib=0):
    pacs = QueryOrthanc(folder)
    try:
        pacs.store(*(marked for _, marked in marks.study(4, slices, size=64)))
        seen, kept = [], []
        with _inspector(folder, marks, pacs) as inspector:
            for done in range(0, instances, slices):
                check = inspector.check(Wanted("1.2.3.4"), checked_by="speed")
                assert len(check.instances) == slices
                kept += [os.urandom(1024 * leak_kib) for _ in check.instances if leak_kib]
                seen.append(rss_mib(family(inspector.pool)))
                print(f"  {done + slices:6} instances  {seen[-1]:.0f} MiB", file=sys.stderr)
        yield (f"memory over {instances} instances",
               f"{growth_mib(seen):+.0f} MiB from 2nd to last tenth",
               f"{max(seen):.0f} MiB at most, service and {_WORKERS} workers")  # fmt: skip
        if not is_flat(seen, instances):
            raise SystemExit("memory is not flat")
    finally:
        pacs.child.end()


MEASURES = {"files": measure_files, "find": measure_find, "study": measure_study,
            "memory": measure_memory}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", choices=[*MEASURES], default=list(MEASURES))
    parser.add_argument("--instances", type=int, default=20_000, help="of memory")
    parser.add_argument("--leak-kib", type=int, default=0, help="kept of each instance of memory")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = Path(tempfile.mkdtemp(prefix="verify-speed-"))
    try:
        marks = Marks(root)
        print("| what | figure | in detail |\n|---|---|---|")
        for name in arguments.which:
            folder = root / name
            folder.mkdir()
            more = {"instances": arguments.instances, "leak_kib": arguments.leak_kib}
            more = more if name == "memory" else {}
            for row in MEASURES[name](folder, marks, **more):
                print("| " + " | ".join(row) + " |", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
