"""One spool folder under test: what is received into it, marked and looked at."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dicom_node.spool import Receipt, Spool

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
META = b"\x02\x00\x02\x00UI\x04\x001.2\x00"
HEADER = b"\0" * 128 + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(META).to_bytes(4, "little") + META


def send(spool: Spool, data: bytes = b"pixels", uid: str = "1.2.3", **more: Any) -> Receipt:
    return spool.receive(
        HEADER, data, sop_class_uid=CT, sop_instance_uid=uid, transfer_syntax_uid=EXPLICIT, **more
    )


def mark(spool: Spool, *destinations: str, data: bytes = b"marked pixels") -> int:
    job = spool.claim()
    assert job is not None
    out = spool.work_path(job)
    out.write_bytes(HEADER + data)
    spool.finish(job, out, action="marked", deliver_to=destinations or ("pacs",), key_id=b"k" * 8)
    return job.id


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def files(spool: Spool, kind: str) -> list[Path]:
    return [path for path in (spool.settings.directory / kind).rglob("*") if path.is_file()]
