"""What the registry costs: ``python tests/tools/registry_bench.py`` (PYTHONPATH=.:tests/tools).

Prints the search among generated hashes, the registrar's rows a second on SQLite and on a private
PostgreSQL (both synced to disk), and what telling the outbox costs a mark worker.
"""

import argparse
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np
from postgresql import Cluster

from dicom_node.audit.log import AuditLog
from dicom_node.config import SpoolConfig
from dicom_node.facts import InstanceFacts, MarkedFrame
from dicom_node.registering import Registrar
from dicom_node.registry import Registry
from dicom_node.registry.hash_file import HashFile
from dicom_node.registry.hash_index import HashIndex
from dicom_node.spool import Spool
from dicom_node.spool.outbox import tell

ROUNDS = 9


def clocks(step):
    """Return the best of several times: CPU and wall, in ms."""
    times = []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return tuple(1000 * min(each) for each in zip(*times, strict=True))


def resident_mib():
    """Return the memory of this process that is its own, and that of mapped files."""
    status = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("Rss")}
    return int(sizes["RssAnon"]) >> 10, int(sizes["RssFile"]) >> 10


def search(count, folder):
    random = np.random.default_rng(1)
    hashes = random.integers(0, 1 << 63, count).astype(np.uint64)
    ids = np.arange(1, count + 1)

    def fetch(after, most):
        return ids[after : after + most].copy(), hashes[after : after + most].copy()

    file = HashFile(folder / "registry.hashes", "00" * 16, lambda i: int(hashes[i - 1]))
    HashIndex(fetch, file).refresh()
    before = resident_mib()
    index = HashIndex(fetch, file)
    index.refresh()
    for queries in (1, 8, 16):
        asked = [int(each) for each in random.integers(0, 1 << 63, queries)]
        cpu, wall = clocks(lambda asked=asked: index.nearest(asked, within=14, limit=24))
        print(f"search of {count:,} frames for {queries} hashes: {cpu:.0f} ms CPU, {wall:.0f} ms")
    own, mapped = (now - then for now, then in zip(resident_mib(), before, strict=True))
    size = (folder / "registry.hashes").stat().st_size / (1 << 20)
    print(f"memory for it: {own} MiB own, {mapped} MiB mapped from a file of {size:.0f} MiB")


def fill(spool, count):
    """Put `count` markings with their deliveries into the outbox."""
    job = {
        "name": "bench", "state": "marked", "size": 1, "digest": secrets.token_bytes(32),
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2", "sop_instance_uid": "1.2", "now": 1.0,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1", "calling_ae": "CT1", "called_ae": "NODE",
        "marked_at": 1, "key_id": bytes(8), "repeat_of": None, "conflicts_with": None,
        "action": "marked", "result_digest": secrets.token_bytes(32),
    }  # fmt: skip
    with spool._journal.transaction(durable=False) as journal:
        for number in range(count):
            uid = f"1.2.826.0.1.3680043.8.498.{number // 100}.{number}"
            job_id = journal.insert(
                "add_job", job | {"name": f"bench-{number}", "sop_instance_uid": uid}
            )
            tell(journal, "marked", job_id, 1.0, facts=facts(number))
            tell(journal, "delivered", job_id, 2.0, destination="pacs", status=0)


def facts(number):
    frame = MarkedFrame(*map(secrets.token_bytes, (32, 32, 8, 12, 500)))
    return InstanceFacts("CT", number, 1, (frame,))


def registrar(name, url, folder, count):
    settings = SpoolConfig(directory=folder / name, min_free_mib=0)
    with Spool(settings) as spool:
        spool.recover()
        fill(spool, count)
        trail = AuditLog.open(folder / name / "audit", None)
        registrar = Registrar(
            spool, lambda: Registry.open(url, cache=settings.directory), trail, {}
        )
        wall, cpu, rows = time.perf_counter(), time.process_time(), 0
        while done := registrar.step():
            rows += done
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        registrar.close()
        print(f"registrar on {name}: {rows:,} rows, {rows / cpu:,.0f} a CPU second,"
              f" {rows / wall:,.0f} a second")  # fmt: skip


def telling(folder):
    with Spool(SpoolConfig(directory=folder / "telling", min_free_mib=0)) as spool:
        fill(spool, 1)
        one = facts(1)
        with spool._journal.transaction(durable=False) as journal:
            cpu, _ = clocks(lambda: [tell(journal, "marked", 1, 1.0, facts=one) for _ in range(50)])
        print(f"telling of one marked instance: {cpu / 50:.3f} ms CPU of its mark worker")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=4000, help="instances told of")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="registry-bench-") as name:
        folder = Path(name)
        search(arguments.frames, folder)
        telling(folder)
        registrar("SQLite", f"sqlite:///{folder}/registry.sqlite", folder, arguments.rows)
        cluster = Cluster(durable=True)
        try:
            registrar("PostgreSQL", cluster.new_database(), folder, arguments.rows)
        finally:
            cluster.close()


if __name__ == "__main__":
    main()
