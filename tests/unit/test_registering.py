"""What the spool tells reaches the registry and the audit trail, once, whatever dies on the way."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from dicom_node import registering
from dicom_node.audit.log import AuditLog
from dicom_node.config import Config, parse
from dicom_node.errors import AuditError, RegistryError, SpoolFull
from dicom_node.facts import InstanceFacts, MarkedFrame
from dicom_node.registering import Registrar, run_registrar
from dicom_node.registry import Registry
from dicom_node.spool import Spool

ROOT = Path(__file__).parents[2]
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY = "1.2.826.0.1.5"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse(_toml(tmp_path), "test")


def _toml(folder: Path) -> str:
    return (
        f'[spool]\ndirectory = "{folder}/spool"\nmin_free_mib = 0\n'
        f'[keys]\ndirectory = "{folder}/keys"\n'
        '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "10.0.0.7"\nport = 104\n'
    )


@pytest.fixture
def spool(config: Config) -> Iterator[Spool]:
    with Spool(config.spool) as opened:
        yield opened


def mark(spool: Spool, number: int, *, deliver: bool = True, sent_in: str = "") -> None:
    """Take one instance through the spool, as receiver, worker and forwarder would."""
    spool.receive(b"h", b"pixels %d" % number, sop_class_uid=CT, sop_instance_uid=uid(number),
                  transfer_syntax_uid="1.2.840.10008.1.2.1", calling_ae="CT1")  # fmt: skip
    job = spool.claim()
    assert job is not None
    out = spool.work_path(job)
    out.write_bytes(b"marked %d" % number)
    frame = MarkedFrame(b"o" * 32, b"m" * 32, number.to_bytes(8, "big"), b"message%05d" % number)
    spool.finish(
        job, out, action="marked", deliver_to=["pacs"], key_id=b"k" * 8, study_instance_uid=STUDY,
        series_instance_uid=f"{STUDY}.1", facts=InstanceFacts("CT", number, 1, (frame,)),
    )  # fmt: skip
    for delivery in spool.claim_delivery("pacs") if deliver else ():
        spool.delivered(delivery, 0xB000, transfer_syntax_uid=sent_in)


def uid(number: int) -> str:
    return f"{STUDY}.1.{number}"


def registrar_of(
    config: Config, spool: Spool, open_registry: Callable[[], Registry] | None = None
) -> Registrar:
    trail = AuditLog.open(config.audit_directory, None)
    destinations = {each.name: each for each in config.destination}
    return Registrar(
        spool, open_registry or (lambda: Registry.open(config.registry_url)), trail, destinations
    )


def trail_of(config: Config) -> list[dict[str, Any]]:
    """Return the events of the trail that came from the outbox."""
    lines = [
        json.loads(line)
        for path in sorted(config.audit_directory.glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [line["event"] | {"ref": line["ref"]} for line in lines if "ref" in line]


def test_an_instance_is_registered_and_audited_from_marking_to_delivery(
    config: Config, spool: Spool
) -> None:
    mark(spool, 7)
    registrar = registrar_of(config, spool)
    assert (registrar.step(), registrar.step()) == (2, 0)
    registrar.close()
    [job] = spool.jobs()
    with Registry.open(config.registry_url) as registry:
        [found] = registry.instances(sop_instance_uid=uid(7))
    assert (found.modality, found.instance_number, found.action) == ("CT", 7, "marked")
    assert (found.received_digest, found.delivered_digest) == (job.digest, job.result_digest)
    assert (found.received_at, found.marked_at) == (job.received_at, job.marked_at)
    assert found.frames[0].message == b"message00007"
    [delivery] = found.deliveries
    assert (delivery.destination, delivery.status) == ("pacs", 0xB000)
    marked, forwarded = trail_of(config)
    assert (marked["kind"], marked["source_ae"], marked["key_id"]) == ("marked", "CT1", "6b" * 8)
    assert marked["digest"] == forwarded["digest"] == found.delivered_digest.hex()
    assert (forwarded["kind"], forwarded["ae_title"]) == ("forwarded", "PACS")
    assert (forwarded["address"], forwarded["status"]) == ("10.0.0.7:104", 0xB000)
    assert forwarded["ref"] == delivery.reference
    assert spool.outbox() == []


@pytest.mark.parametrize(
    ("sent_in", "recorded"),
    [("1.2.840.10008.1.2", "1.2.840.10008.1.2"), ("1.2.840.10008.1.2.1", ""), ("", "")],
)
def test_a_delivery_is_registered_with_the_syntax_it_was_recoded_to(
    config: Config, spool: Spool, sent_in: str, recorded: str
) -> None:
    mark(spool, 1, sent_in=sent_in)
    registrar = registrar_of(config, spool)
    registrar.step()
    registrar.close()
    with Registry.open(config.registry_url) as registry:
        [found] = registry.instances(sop_instance_uid=uid(1))
    assert found.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert [each.transfer_syntax_uid for each in found.deliveries] == [recorded]


def test_what_is_held_or_refused_stands_in_the_trail_and_not_in_the_registry(
    config: Config, spool: Spool
) -> None:
    for number, leave in ((1, spool.hold), (2, spool.reject)):
        spool.receive(b"h", b"%d" % number, sop_class_uid=CT, sop_instance_uid=uid(number),
                      transfer_syntax_uid="1.2.840.10008.1.2.1", calling_ae="CT1")  # fmt: skip
        job = spool.claim()
        assert job is not None
        leave(job, "cannot be decoded")
    mark(spool, 3, deliver=False)
    [delivery] = spool.claim_delivery("pacs")
    spool.hold_delivery(delivery, "PACS refused it (no order for patient 4711)", status=0xC000)
    registrar = registrar_of(config, spool)
    registrar.step()
    told = [tuple(event.get(name) for name in ("kind", "stage", "outcome", "peer_ae"))
            for event in trail_of(config)]  # fmt: skip
    assert told == [
        ("refused", "mark", "held", "CT1"), ("refused", "mark", "rejected", "CT1"),
        ("marked", None, None, None), ("refused", "forward", "held", "PACS"),
    ]  # fmt: skip
    reason = trail_of(config)[-1]["reason"]
    assert reason == "pacs refused it with status 0xC000", "not in the PACS's own words"
    with Registry.open(config.registry_url) as registry:
        assert registry.instances(sop_instance_uid=uid(1)) == ()
        assert registry.instances(sop_instance_uid=uid(3))[0].deliveries == ()


class Dying:
    """Stands between the registrar and one end, and fails there once."""

    def __init__(self, end: Any, name: str, error: Exception) -> None:
        self._end, self._name, self._error = end, name, error
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        if name == self._name and not self.failed:
            self.failed = True

            def fail(*_: object) -> None:
                raise self._error

            return fail
        return getattr(self._end, name)


@pytest.mark.parametrize("where", ["registry", "trail", "spool"])
def test_a_failure_between_two_steps_tells_everything_once_in_the_end(
    config: Config, spool: Spool, where: str
) -> None:
    mark(spool, 1)
    ends = {
        "registry": ("_registry", "add_all", RegistryError("gone")),
        "trail": ("_trail", "append_many", AuditError("disk full")),
        "spool": ("_spool", "forget", AuditError("killed here")),
    }
    attribute, method, error = ends[where]
    registrar = registrar_of(config, spool)
    registrar._registry = Registry.open(config.registry_url)
    setattr(registrar, attribute, Dying(getattr(registrar, attribute), method, error))
    with pytest.raises(type(error)):
        registrar.step()
    assert len(spool.outbox()) == 2
    assert registrar.step() == 2
    assert [event["kind"] for event in trail_of(config)] == ["marked", "forwarded"]
    with Registry.open(config.registry_url) as registry:
        [found] = registry.instances(study_instance_uid=STUDY)
        assert len(found.deliveries) == len(found.frames) == 1


def test_while_the_registry_is_away_images_flow_and_it_is_said_once(
    config: Config, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "RETRY_INITIAL_S", 0.01)
    monkeypatch.setattr(registering, "RETRY_MAX_S", 0.05)
    away, tries = threading.Event(), []

    def open_registry() -> Registry:
        tries.append(1)
        if not away.is_set():
            raise RegistryError("the registry postgresql://db/registry: connection refused")
        return Registry.open(config.registry_url)

    stop = threading.Event()
    registrar = registrar_of(config, spool, open_registry)
    with structlog.testing.capture_logs() as logs:
        running = threading.Thread(target=registrar.run, args=(stop,))
        running.start()
        try:
            for number in range(5):
                mark(spool, number)
            wait_for(lambda: len(tries) > 4)
            assert spool.outbox_depth()[0] == 10
            assert spool.tally()["delivered"] == 5
            away.set()
            wait_for(lambda: spool.outbox_depth()[0] == 0)
        finally:
            stop.set()
            running.join(10)
            registrar.close()
    said = [line["event"] for line in logs if line["event"].startswith("registrar")]
    assert said == ["registrar_waits", "registrar_goes_on"]
    with Registry.open(config.registry_url) as registry:
        assert len(registry.instances(study_instance_uid=STUDY)) == 5


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, "it did not happen"
        time.sleep(0.01)


def test_on_a_full_disk_the_room_is_left_to_images(config: Config, spool: Spool) -> None:
    mark(spool, 1)
    registrar = registrar_of(config, spool)
    assert spool._reserve.give_up()
    with pytest.raises(SpoolFull, match="waits in the outbox"):
        registrar.step()
    assert not Path(config.registry_url.removeprefix("sqlite:///")).exists()
    spool.recover()
    assert registrar.step() == 2


def test_an_idle_registrar_registers_news_within_a_second_and_costs_almost_nothing(
    config: Config, spool: Spool
) -> None:
    stop = threading.Event()
    running = threading.Thread(target=run_registrar, args=(config, stop))
    running.start()
    try:
        mark(spool, 1)
        wait_for(lambda: spool.outbox_depth()[0] == 0)
        time.sleep(0.5)
        assert running.ident is not None
        # Of its thread: others of this process may still be ending.
        clock = time.pthread_getcpuclockid(running.ident)
        before = time.clock_gettime(clock)
        time.sleep(2.0)
        assert time.clock_gettime(clock) - before < 0.1
    finally:
        stop.set()
        running.join(10)
    assert not running.is_alive()


def test_text_no_database_takes_is_registered_all_the_same(config: Config, spool: Spool) -> None:
    spool.receive(b"h", b"x", sop_class_uid=CT, sop_instance_uid="1.2\0.3",
                  transfer_syntax_uid="1.2.840.10008.1.2.1", calling_ae="CT1")  # fmt: skip
    job = spool.claim()
    assert job is not None
    spool.finish(job, None, action="untouched", deliver_to=["pacs"],
                 facts=InstanceFacts("C\udc80", 3))  # fmt: skip
    registrar_of(config, spool).step()
    with Registry.open(config.registry_url) as registry:
        [found] = registry.instances(sop_instance_uid="1.2?.3")
    assert (found.modality, found.action, found.frames) == ("C?", "untouched", ())


_CHILD = """
import signal, sys, threading
from pathlib import Path
from dicom_node import registering
from dicom_node.config import load
registering.GATHER_S = 0.0
registering.BATCH = 7
print("up", flush=True)
registering.run_registrar(load(Path(sys.argv[1])), threading.Event())
"""


@pytest.mark.fault
@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_every_row_exactly_once(
    config: Config, spool: Spool, tmp_path: Path
) -> None:
    """Rounds of killing while instances come; each row is then in both ends once."""
    random_ = random.Random(11)
    path = tmp_path / "node.toml"
    path.write_text(_toml(tmp_path))
    number = 0
    kills = 0
    while kills < 6:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        ends_at = time.monotonic() + random_.uniform(0.0, 1.0)
        while time.monotonic() < ends_at:
            mark(spool, number)
            number += 1
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        kills += 1
    registrar = registrar_of(config, spool)
    left = spool.outbox_depth()[0]
    while registrar.step():
        pass
    with Registry.open(config.registry_url) as registry:
        found = registry.instances(study_instance_uid=STUDY)
    assert sorted(each.sop_instance_uid for each in found) == sorted(map(uid, range(number)))
    assert all(len(each.frames) == len(each.deliveries) == 1 for each in found)
    references = [event["ref"] for event in trail_of(config)]
    assert len(references) == len(set(references)) == 2 * number
    assert left < 2 * number, "nothing was registered while it lived"
