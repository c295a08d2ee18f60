"""A trail of a dozen entries and the key that signs it."""

from datetime import UTC, datetime

import pytest

from dicom_node.audit.checking import check_log
from dicom_node.audit.events import Verified
from dicom_node.audit.log import AuditLog
from dicom_node.keys import KeyRing, KeySet

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


class Trail:
    """A folder with a trail; `lines` reads it, `write` puts back what somebody made of it."""

    def __init__(self, folder):
        self.folder = folder
        self.ring = KeyRing((KeySet.from_master(bytes(32), "TESTS", AT),))

    def open(self, **settings):
        return AuditLog.open(self.folder, self.ring, **settings)

    def fill(self, count, **settings):
        log = self.open(**settings)
        log.append_many([(self.event(k), "") for k in range(count)])
        log.close()
        return self

    @staticmethod
    def event(number):
        return Verified(at=AT, sop_instance_uid=f"1.2.{number}", verdict="authentic")

    def segment(self, number=1):
        return self.folder / f"{number:08d}.jsonl"

    def lines(self, number=1):
        return self.segment(number).read_bytes().splitlines()

    def write(self, lines, number=1):
        self.segment(number).write_bytes(b"".join(line + b"\n" for line in lines))

    def check(self, **more):
        return check_log(self.folder, self.ring, **more)


@pytest.fixture
def trail(tmp_path):
    return Trail(tmp_path / "audit")
