"""One instance, one backend: a lost inference process costs its instance another pass, no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import structlog
from inference_processes import Altered, serving

from dicom_node.config import Config, parse
from dicom_node.errors import KeyRingError
from dicom_node.inference import remote
from dicom_node.inference.base import Float32
from dicom_node.inference.service import folder_of
from dicom_node.keys import KeyRing
from dicom_node.markers import Markers
from dicom_node.pipeline import MarkWorker
from dicom_node.spool import Job, Spool

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "demo" / "mr_brain" / "brain_012.dcm"
WHEN = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOOK_AGAIN_S", 0.0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    folders = f'[spool]\ndirectory = "{tmp_path}/spool"\nmin_free_mib = 0\n'
    return parse(f'{folders}[keys]\ndirectory = "{tmp_path}/keys"\n', "test")


@pytest.fixture
def ring(config: Config) -> KeyRing:
    return KeyRing.open(config.keys.directory, owner="GENERAL-HOSPITAL", create=True)


@pytest.fixture
def spool(config: Config) -> Iterator[Spool]:
    with Spool(config.spool) as opened:
        yield opened


def rounded(values: Float32) -> Float32:
    """Round within the tolerance of the check, and so that other marks come of it."""
    if values.shape[1:] == (16, 16):
        return values
    off = 0.017 * np.sqrt(np.mean(values**2, axis=1, keepdims=True))
    return (values + off * (-1.0) ** np.arange(values.shape[1])).astype(np.float32)


def marked(markers: Callable[[bytes | None], object], out: Path) -> bytes:
    outcome = markers(None).mark(SOURCE, out, marked_at=WHEN)  # type: ignore[attr-defined]
    assert outcome.action == "marked", outcome.reason
    return out.read_bytes()


def receive(spool: Spool) -> None:
    blob = SOURCE.read_bytes()
    spool.receive(
        blob[:132], blob[132:], sop_class_uid="1.2.840.10008.5.1.4.1.1.4", sop_instance_uid="1.2.3",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )  # fmt: skip


def test_every_instance_uses_the_process_that_is_there_when_it_begins(
    config: Config, ring: KeyRing, tmp_path: Path
) -> None:
    markers = Markers(config, ring, inference=1)
    alone = marked(Markers(config, ring), tmp_path / "alone.dcm")
    assert marked(markers, tmp_path / "before.dcm") == alone
    with serving(folder_of(config, 0), Altered(rounded)):
        shared = marked(markers, tmp_path / "shared.dcm")
        assert shared != alone, "the process chose nothing of its own"
        assert marked(markers, tmp_path / "again.dcm") == shared
        assert marked(markers.on_our_own, tmp_path / "own.dcm") == alone
    assert marked(markers, tmp_path / "after.dcm") == alone


@pytest.mark.parametrize("good", range(4))
def test_an_instance_the_process_is_lost_over_is_marked_by_one_backend_altogether(
    config: Config, ring: KeyRing, tmp_path: Path, good: int
) -> None:
    left = [1 << 30]

    def fault() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("a fault of a library")

    markers = Markers(config, ring, inference=1)
    with serving(folder_of(config, 0), Altered(rounded, fault)):
        marked(markers, tmp_path / "shared.dcm")
        left[0] = good
        with structlog.testing.capture_logs() as said:
            lost = marked(markers, tmp_path / "lost.dcm")
    assert lost == marked(Markers(config, ring), tmp_path / "alone.dcm")
    events = [line["event"] for line in said]
    assert (events.count("inference_lost"), events.count("marked_anew")) == (1, 1)
    assert not list(tmp_path.glob("*.part"))


def test_a_key_that_is_gone_is_named(config: Config, ring: KeyRing) -> None:
    markers = Markers(config, ring, inference=1)
    with pytest.raises(KeyRingError, match="put it back"):
        markers(b"gone....")


def test_each_worker_begins_with_another_gpu(config: Config, ring: KeyRing) -> None:
    folders = [
        [folder.name for folder in Markers(config, ring, index=at, inference=3)._remote._folders]  # type: ignore[union-attr]
        for at in range(4)
    ]
    assert folders == [["0", "1", "2"], ["1", "2", "0"], ["2", "0", "1"], ["0", "1", "2"]]


def step(spool: Spool, ring: KeyRing, markers: Markers) -> Job:
    receive(spool)
    worker = MarkWorker(
        spool, markers, current_key_id=ring.current.key_id, destinations=["pacs"],
        otherwise=markers.on_our_own,
    )  # fmt: skip
    assert worker.step()
    [delivery] = spool.claim_delivery("pacs") or [None]  # type: ignore[list-item]
    if delivery is not None:
        spool.delivered(delivery)
    return spool.jobs()[-1]


def test_a_repeat_of_what_the_cpu_marked_is_the_same_bytes_beside_an_inference_process(
    config: Config, ring: KeyRing, spool: Spool
) -> None:
    markers = Markers(config, ring, inference=1)
    first = step(spool, ring, markers)
    with serving(folder_of(config, 0), Altered(rounded)):
        again = step(spool, ring, markers)
    assert again.repeat_of == first.id
    assert (again.state, again.result_digest) == ("delivered", first.result_digest)


def test_a_repeat_of_what_the_process_marked_is_the_same_bytes_while_it_is_there(
    config: Config, ring: KeyRing, spool: Spool
) -> None:
    markers = Markers(config, ring, inference=1)
    with serving(folder_of(config, 0), Altered(rounded)):
        first, again = (step(spool, ring, markers) for _ in range(2))
    assert (again.state, again.result_digest) == ("delivered", first.result_digest)
    later = step(spool, ring, markers)
    assert later.state == "held", "never a second version without anybody asking for it"


def test_with_onnx_runtime_behind_it_a_repeat_is_the_same_bytes_with_and_without_it(
    config: Config, ring: KeyRing, spool: Spool
) -> None:
    markers = Markers(config, ring, inference=1)
    with serving(folder_of(config, 0), Altered(lambda rows: rows)):
        first = step(spool, ring, markers)
    again = step(spool, ring, markers)
    assert (again.state, again.result_digest) == ("delivered", first.result_digest)
