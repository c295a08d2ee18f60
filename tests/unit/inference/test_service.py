"""The inference process: batches across workers, refuses strangers, and lives through nonsense."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace

import inference_processes
import numpy as np
import pytest
from cpu_lanes import Device, engine_on, real_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_processes import Altered, connected, serving
from structlog.testing import capture_logs

from dicom_node.config import parse
from dicom_node.errors import EngineError
from dicom_node.inference import opening, service, wire
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.remote import RemoteEngine
from dicom_node.inference.resilient import ResilientEngine

FRAMES = real_frames()
CARD = read_card()
WHO = wire.identity_of(CARD)


@pytest.fixture(scope="module")
def own() -> OnnxEngine:
    return OnnxEngine(CARD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # Longer than the 107 bytes that a socket's path may have.
    return tmp_path / ("long" * 20) / "inference" / "0"


def worker(folder: Path, own: OnnxEngine) -> RemoteEngine:
    """Return the engine of a worker that has taken the process up."""
    engine = RemoteEngine([folder], own, CARD)
    engine.settle()
    assert engine.name != "onnx"
    return engine


def greet(connection: socket.socket, who: wire.Identity = WHO) -> wire.Welcome:
    wire.send_hello(connection, who)
    return wire.receive_welcome(connection)


def test_workers_that_ask_together_are_answered_in_one_batch_and_each_rightly(
    folder: Path, own: OnnxEngine
) -> None:
    inner = Altered(lambda rows: rows)
    with serving(folder, inner, most=6) as one, ThreadPoolExecutor(6) as pool:
        workers = [worker(folder, own) for _ in range(6)]
        one.service._batches._wait_s = 5.0
        inner.batches.clear()
        started = monotonic()
        asked = [pool.submit(each.decode, FRAMES[at][None]) for at, each in enumerate(workers)]
        answers = [each.result() for each in asked]
        assert monotonic() - started < 4, "a full batch waited"
        for engine in workers:
            engine.close()
    assert inner.batches == [("decode", 6)]
    np.testing.assert_array_equal(np.concatenate(answers), own.decode(FRAMES[:6]))


def test_when_every_worker_waits_nobody_else_is_waited_for(folder: Path, own: OnnxEngine) -> None:
    inner = Altered(lambda rows: rows)
    with serving(folder, inner, most=64, wait_ms=60_000) as one, ThreadPoolExecutor(2) as pool:
        first = worker(folder, own)
        second = pool.submit(worker, folder, own)  # its probes wait for the first, which is idle
        inner.batches.clear()
        for network in wire.NETWORKS:
            while not one.service._batches._waiting:
                sleep(0.01)
            getattr(first, network)(FRAMES[:1])
        second.result(timeout=30).close()
        first.close()
    assert inner.batches == [(network, 8) for network in wire.NETWORKS]


def test_what_a_worker_is_answered_does_not_hang_on_who_else_asks(own: OnnxEngine) -> None:
    """What makes a repeated instance give the same bytes with ONNX Runtime behind the socket."""
    rng = np.random.default_rng(1)
    for size in (2, 5, 16, 31):
        at = rng.integers(0, len(FRAMES), size)
        for network in wire.NETWORKS:
            together = getattr(own, network)(FRAMES[at])
            alone = np.concatenate([getattr(own, network)(FRAMES[i][None]) for i in at])
            np.testing.assert_array_equal(together, alone)


def test_on_a_device_every_batch_is_run_in_the_same_size(folder: Path, own: OnnxEngine) -> None:
    inner = Altered(lambda rows: rows)
    with serving(folder, inner, most=8, steady=True):
        engine = worker(folder, own)
        for count in (1, 3, 7, 8):
            at = np.arange(count) % len(FRAMES)
            np.testing.assert_array_equal(engine.decode(FRAMES[at]), own.decode(FRAMES[at]))
        engine.close()
    assert {count for _, count in inner.batches} == {8}


def test_more_frames_than_a_batch_are_asked_in_pieces(folder: Path, own: OnnxEngine) -> None:
    with serving(folder, Altered(lambda rows: rows), most=3):
        engine = worker(folder, own)
        np.testing.assert_array_equal(engine.strengths(FRAMES), own.strengths(FRAMES))
        np.testing.assert_array_equal(engine.whiten(FRAMES), own.whiten(FRAMES))
        engine.close()


def test_only_our_user_may_use_the_socket_and_it_is_gone_afterwards(folder: Path) -> None:
    before = os.umask(0)
    try:
        with serving(folder, Altered()):
            path = folder / wire.SOCKET
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert os.umask(0) == 0, "the mask of the process was left changed"
    finally:
        os.umask(before)
    assert list(folder.iterdir()) == []


def test_another_users_process_is_not_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(folder, Altered()), connected(folder) as connection:
        assert wire.is_same_user(connection)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with (
        capture_logs() as said, serving(folder, Altered()), connected(folder) as connection,
        pytest.raises(wire.WireError),
    ):  # fmt: skip
        greet(connection)
    assert [line["reason"] for line in said if line["event"] == "worker_dropped"] == [
        "another user's process"
    ]


OTHERS = {
    "protocol": WHO._replace(protocol=wire.PROTOCOL + 1),
    "version": WHO._replace(version=b"9.9.9".ljust(32, b"\0")),
    "model": WHO._replace(model=bytes(32)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_version_or_model_is_refused_at_the_handshake_and_says_why(
    folder: Path, other: wire.Identity
) -> None:
    with capture_logs() as said, serving(folder, Altered()), connected(folder) as connection:
        welcome = greet(connection, other)
        assert not welcome.accepted
        [name] = [each for each in OTHERS if each in welcome.reason]
        assert "instead of" in welcome.reason
        assert connection.recv(1) == b"", "it hangs up"
    assert name in next(line["reason"] for line in said if line["event"] == "worker_refused")


def test_the_model_is_told_by_its_checksums_and_its_shape() -> None:
    changed = [
        CARD.__class__(**{**vars(CARD), "files": {**CARD.files, name: "0" * 64}})
        for name in ("d1.onnx", "strength.onnx", "patterns.npy")
    ]
    changed += [CARD.__class__(**{**vars(CARD), "grid": 8})]
    others = {wire.identity_of(card).model for card in changed}
    assert len(others) == len(changed)
    assert WHO.model not in others
    reader = CARD.__class__(**{**vars(CARD), "files": {**CARD.files, "r2.onnx": "0" * 64}})
    assert wire.identity_of(reader).model == WHO.model, "no process runs the reader"


def question(network: int, count: int, number: int = 1) -> bytes:
    return struct.pack("<BHI", network, count, number)


PIXELS = FRAMES[:1].tobytes()
HELLO = struct.pack("<16sH32s32s", b"dicom-node infer", *WHO)
NONSENSE = {
    "nothing": b"",
    "half a hello": HELLO[:40],
    "another protocol": b"GET / HTTP/1.1\r\nHost: node\r\n" + bytes(80),
    "no such network": HELLO + question(3, 1) + PIXELS,
    "no frames": HELLO + question(0, 0),
    "too many frames": HELLO + question(0, 9) + PIXELS * 9,
    "far too many": HELLO + question(0, 65535) + PIXELS,
    "half a question": HELLO + question(0, 1)[:3],
    "half a frame": HELLO + question(0, 1) + PIXELS[:-1],
    "no numbers": HELLO + question(2, 1) + np.full_like(FRAMES[:1], np.nan).tobytes(),
}


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_costs_its_speaker_the_connection_and_nobody_else_anything(
    folder: Path, own: OnnxEngine, said: bytes
) -> None:
    with serving(folder, Altered(lambda rows: rows)) as one:
        engine = worker(folder, own)
        with connected(folder) as connection:
            answered = b""
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # unread, some of it
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(4096):
                    answered += piece
        assert len(answered) <= wire._WELCOME.size, "nonsense was answered"
        np.testing.assert_array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        engine.close()
    assert one.ended is None


@settings(max_examples=60)
@given(said=st.binary(max_size=200), known=st.booleans())
def test_whatever_is_said_the_next_worker_is_answered(
    fuzzed: tuple[Path, OnnxEngine], said: bytes, known: bool
) -> None:
    folder, own = fuzzed
    with connected(folder) as connection:
        connection.sendall((HELLO if known else b"") + said)
    engine = worker(folder, own)
    np.testing.assert_array_equal(engine.strengths(FRAMES[:1]), own.strengths(FRAMES[:1]))
    engine.close()


@pytest.fixture(scope="module")
def fuzzed(
    tmp_path_factory: pytest.TempPathFactory, own: OnnxEngine
) -> Iterator[tuple[Path, OnnxEngine]]:
    folder = tmp_path_factory.mktemp("fuzzed") / "0"
    with serving(folder, Altered(lambda rows: rows)):
        yield folder, own


def dribble(connection: socket.socket) -> None:
    """Send byte by byte, each in time, for ten seconds."""
    for _ in range(200):
        connection.sendall(b"\0")
        sleep(0.05)


def test_who_begins_a_message_and_does_not_end_it_is_cut_off(
    folder: Path, own: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "RECEIVED_AT_ONCE_S", 0.3)
    with serving(folder, Altered(lambda rows: rows)), connected(folder) as connection:
        connection.sendall(HELLO)
        wire.receive_welcome(connection)
        sleep(0.6)  # between two questions any time may pass
        connection.sendall(question(0, 1))
        started = monotonic()
        with pytest.raises(OSError, match=r"reset|pipe|Broken"):
            dribble(connection)
        assert monotonic() - started < 5


def test_a_second_process_in_the_same_folder_is_refused_and_harms_nothing(
    folder: Path, own: OnnxEngine
) -> None:
    with serving(folder, Altered(lambda rows: rows)):
        with serving(folder, Altered()) as second:
            second.thread.join(30)
        assert "another inference process answers there" in str(second.ended)
        engine = worker(folder, own)
        engine.close()


def test_what_a_killed_process_left_is_no_hindrance(folder: Path, own: OnnxEngine) -> None:
    folder.mkdir(parents=True)
    (folder / wire.SOCKET).write_bytes(b"")
    with serving(folder, Altered(lambda rows: rows)):
        worker(folder, own).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with serving(tmp_path / "file" / "0", Altered()) as one:
        one.thread.join(30)
    assert isinstance(one.ended, EngineError)
    assert "no socket can be made there" in str(one.ended)


def test_the_question_in_hand_is_answered_before_the_end(folder: Path, own: OnnxEngine) -> None:
    gate = threading.Event()
    inner = Altered(lambda rows: rows, lambda: gate.wait(30) and None)
    gate.set()
    with serving(folder, inner) as one, ThreadPoolExecutor(2) as pool:
        engine = worker(folder, own)
        gate.clear()
        asked = pool.submit(engine.decode, FRAMES)
        while not one.service._batches.busy_s:
            sleep(0.01)
        ending = pool.submit(one.end)
        sleep(0.3)
        gate.set()
        answer = asked.result(timeout=30)
        # As long as workers ask they are answered: they drain, too.
        np.testing.assert_array_equal(engine.strengths(FRAMES), own.strengths(FRAMES))
        assert engine.losses == 0
        engine.close()
        assert ending.result(timeout=30) is None
    np.testing.assert_array_equal(answer, own.decode(FRAMES))


def test_workers_that_never_stop_asking_do_not_hold_up_the_end(
    folder: Path, own: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DRAIN_S", 0.3)
    with serving(folder, Altered(lambda rows: rows)) as one:
        engine = worker(folder, own)
        assert one.end() is None
        with capture_logs() as said:
            np.testing.assert_array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        assert [line["event"] for line in said] == ["inference_lost"]


def test_a_lost_device_ends_the_process_and_says_so(folder: Path, own: OnnxEngine) -> None:
    alive = [True]

    def fault(frames: int) -> None:
        if not alive[0]:
            raise DeviceLost("CUDA error 719")

    inner = ResilientEngine(engine_on(Device(own, fault), most=64), None)
    with capture_logs() as said, serving(folder, inner) as one:
        engine = worker(folder, own)
        assert engine.name == "tensorrt fp16"
        alive[0] = False
        np.testing.assert_array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        one.thread.join(30)
    assert isinstance(one.ended, EngineError)
    assert "CUDA error 719" in str(one.ended)
    assert [line["event"] for line in said].count("inference_lost") == 1


def test_too_large_a_batch_is_halved_and_every_worker_is_answered(
    folder: Path, own: OnnxEngine
) -> None:
    def fault(frames: int) -> None:
        if frames > 2:
            raise OutOfDeviceMemory(f"no room for {frames}")

    inner = ResilientEngine(engine_on(Device(own, fault), most=64), None)
    with capture_logs() as said, serving(folder, inner, most=8, steady=True) as one:
        engine = worker(folder, own)
        np.testing.assert_allclose(engine.decode(FRAMES), own.decode(FRAMES), atol=1e-4)
        engine.close()
    assert one.ended is None
    assert [line["frames"] for line in said if line["event"] == "batch_halved"] == [4, 2]


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [("hangs", os.EX_SOFTWARE, "inference_hangs"), ("breaks", 1, "unplugged")],
)
def test_a_device_that_never_answers_costs_one_process(
    folder: Path, own: OnnxEngine, kind: str, code: int, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("dicom_node.inference.remote.ANSWER_S", 2.0)
    process = subprocess.Popen(
        [sys.executable, inference_processes.__file__, folder, kind],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        engine = RemoteEngine([folder], own, CARD)
        engine.settle()
        while engine.losses == 0 and engine.name != "onnx":
            np.testing.assert_array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, said
    assert words in said


def test_warming_up_runs_every_size_of_batch_and_every_network() -> None:
    inner = Altered()
    service.InferenceService(inner, most=12, wait_ms=0, who=WHO).warm_up()
    sizes = (1, 2, 4, 8, 12)
    assert sorted(inner.batches) == sorted((n, size) for n in wire.NETWORKS for size in sizes)


def test_without_a_gpu_there_is_no_inference_process_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(card: object) -> None:
        raise EngineError("CUDA finds no GPU")

    monkeypatch.setattr(opening, "_accelerated", lambda choice: [("tensorrt fp16", missing)])
    config = parse(f'[spool]\ndirectory = "{tmp_path}"\n', "test")
    with pytest.raises(EngineError, match=r"tensorrt fp16: CUDA finds no GPU; .*inference"):
        service.run_inference(config, 0, threading.Event())
    assert list(tmp_path.iterdir()) == []


def test_what_passes_its_check_is_served_in_one_size_without_a_spare(
    tmp_path: Path, own: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(own)
    opener = lambda card: engine_on(device, most=64)  # noqa: E731
    monkeypatch.setattr(opening, "_accelerated", lambda choice: [("tensorrt fp16", opener)])
    config = parse(f'[spool]\ndirectory = "{tmp_path}"\n[watermark]\nmax_batch = 5\n', "test")
    stop, ready = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(service.run_inference, config, 0, stop, ready.set)
        assert ready.wait(60), done
        assert [count for _, _, count in device.events].count(5) >= 6, "nothing was warmed up"
        device.events.clear()
        engine = worker(service.folder_of(config, 0), own)
        assert engine.name == "tensorrt fp16"
        assert {frames for _, _, frames in device.events} == {5}
        engine.close()
        stop.set()
        done.result(timeout=30)


def test_descriptors_that_ran_out_do_not_end_the_process() -> None:
    def accept() -> None:
        raise OSError(24, "Too many open files")

    with capture_logs() as said:
        assert service._next_connection(SimpleNamespace(accept=accept)) is None  # type: ignore[arg-type]
    assert [line["event"] for line in said] == ["worker_not_accepted"]
