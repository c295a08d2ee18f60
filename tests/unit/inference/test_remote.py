"""A worker whose inference process is gone, slow, another, or wrong: the CPU answers, said once."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import sleep

import inference_processes
import numpy as np
import pytest
from cpu_lanes import real_frames
from inference_processes import Altered, half, liar, serving
from structlog.testing import capture_logs

from dicom_node.inference import remote, wire
from dicom_node.inference.base import Float32
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.remote import RemoteEngine
from dicom_node.inference.wire import Welcome

FRAMES = real_frames()
CARD = read_card()
WHO = wire.identity_of(CARD)
WORDS = np.sign(np.random.default_rng(3).normal(size=(7, 160))).astype(np.float32)
RMS = np.full((7, 1), 0.007, np.float32)


@pytest.fixture(scope="module")
def own() -> OnnxEngine:
    return OnnxEngine(CARD)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)


def answers_as_own(engine: RemoteEngine, own: OnnxEngine) -> bool:
    """Whether everything the watermark asks is answered, and by the worker's own engine."""
    amplitudes, grids = engine.encode(FRAMES, WORDS, RMS)
    expected, cells = own.encode(FRAMES, WORDS, RMS)
    return bool(
        np.array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        and np.array_equal(engine.whiten(FRAMES), own.whiten(FRAMES))
        and np.array_equal(amplitudes, expected)
        and np.array_equal(grids, cells)
    )


def test_it_is_the_same_protocol_and_answers_what_the_process_says(
    tmp_path: Path, own: OnnxEngine
) -> None:
    with serving(tmp_path / "0", Altered(half)), capture_logs() as said:
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        assert engine.name == "onnx"
        engine.settle()
        assert engine.name == "altered"
        np.testing.assert_array_equal(engine.decode(FRAMES), half(own.decode(FRAMES)))
        np.testing.assert_array_equal(engine.whiten(FRAMES), half(own.whiten(FRAMES)))
        np.testing.assert_array_equal(engine.strengths(FRAMES), own.strengths(FRAMES))
        assert (engine.model_id, engine.side, engine.code_bits) == (own.model_id, 128, 160)
        assert engine.patterns is own.patterns
        engine.close()
    assert [line["event"] for line in said if line["event"] != "inference_ready"] == [
        "inference_used"
    ]


def test_until_it_is_there_the_cpu_answers_without_a_word_and_then_it_is_used(
    tmp_path: Path, own: OnnxEngine
) -> None:
    engine = RemoteEngine([tmp_path / "0"], own, CARD)
    with capture_logs() as said:
        for _ in range(3):
            engine.settle()
            assert answers_as_own(engine, own)
            sleep(0.03)
    assert said == []
    with serving(tmp_path / "0", Altered(half)):
        engine.settle()
        assert engine.name == "altered"
        engine.close()


def test_one_that_is_killed_is_missed_once_and_used_again_when_it_is_back(
    tmp_path: Path, own: OnnxEngine
) -> None:
    command = [sys.executable, inference_processes.__file__, str(tmp_path / "0"), "sound"]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        return process

    engine = RemoteEngine([tmp_path / "0"], own, CARD)
    process = start()
    try:
        engine.settle()
        assert engine.name == "altered"
        process.kill()
        process.wait()
        with capture_logs() as said:
            for _ in range(3):
                assert answers_as_own(engine, own)
                sleep(0.03)
                engine.settle()
        assert [line["event"] for line in said] == ["inference_lost"]
        assert said[0]["instead"] == "onnx"
        process = start()
        with capture_logs() as said:
            engine.settle()
            assert engine.name == "altered"
            np.testing.assert_array_equal(engine.decode(FRAMES), own.decode(FRAMES))
        assert [line["event"] for line in said] == ["inference_used"]
        assert engine.losses == 1
        engine.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("good", range(4))
def test_a_mark_begun_with_it_is_chosen_to_the_end_without_it(
    tmp_path: Path, own: OnnxEngine, good: int
) -> None:
    left = [3 + good]  # the three it is probed with

    def fault() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("a fault of a library")

    with capture_logs() as said, serving(tmp_path / "0", Altered(lambda rows: rows, fault)):
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        engine.settle()
        assert engine.name == "altered"
        assert answers_as_own(engine, own)
        assert engine.name == "onnx"
    events = [line["event"] for line in said]
    assert (events.count("inference_lost"), events.count("inference_failed")) == (1, 1)


def slow(rows: Float32) -> Float32:
    sleep(3)
    return rows


@pytest.mark.parametrize(
    "spoilt",
    [
        slow,
        lambda rows: np.full_like(rows, np.nan),
        lambda rows: np.full_like(rows, 7.5),
        lambda rows: np.zeros_like(rows),
        lambda rows: np.roll(rows, 1, axis=0),
        lambda rows: rows * np.float32(1.1),
        lambda rows: rows[:, :100],
        lambda rows: rows[:1],
        lambda rows: np.concatenate([rows, rows]),
    ],
    ids=["slow", "no numbers", "other numbers", "zeros", "a neighbour's", "a tenth too large",
         "too short", "too few", "too many"],
)  # fmt: skip
def test_one_that_is_slow_or_wrong_is_not_used_and_that_is_said_once(
    tmp_path: Path, own: OnnxEngine, spoilt: Callable[[Float32], Float32]
) -> None:
    with capture_logs() as said, serving(tmp_path / "0", Altered(spoilt)):
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        engine.settle()
        assert engine.name == "onnx"
        assert answers_as_own(engine, own)
    assert [line["event"] for line in said].count("inference_not_used") == 1


@pytest.mark.parametrize("every", [4, 9])
def test_one_that_goes_wrong_later_is_found_out(
    tmp_path: Path, own: OnnxEngine, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "COMPARED_EVERY", every)
    inner = Altered(lambda rows: rows)
    with capture_logs() as said, serving(tmp_path / "0", inner):
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        engine.settle()
        inner.rounding = lambda rows: rows * np.float32(1.5)
        for _ in range(every):
            engine.decode(FRAMES)
        assert engine.name == "onnx"
    [lost] = [line for line in said if line["event"] == "inference_lost"]
    assert "out of tolerance" in lost["reason"]


@pytest.mark.parametrize("off", [0.25, 8.0, -8.0])
def test_strengths_that_no_network_gives_are_found_out_at_once(
    tmp_path: Path, own: OnnxEngine, off: float
) -> None:
    inner = Altered(lambda rows: rows)
    with capture_logs() as said, serving(tmp_path / "0", inner):
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        engine.settle()
        inner.rounding = lambda rows: rows + np.float32(off)
        np.testing.assert_array_equal(engine.strengths(FRAMES), own.strengths(FRAMES))
        assert engine.name == "onnx"
    [lost] = [line for line in said if line["event"] == "inference_lost"]
    assert "no whole numbers from 0 to 7" in lost["reason"]


def welcome(**other: object) -> Welcome:
    return Welcome(WHO, True, 8, "impostor", "")._replace(**other)  # type: ignore[arg-type]


def answers(head: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        wire.receive_hello(connection)
        wire.send_welcome(connection, welcome())
        wire.receive_question(connection, 128, 8)
        connection.sendall(head)

    return talk


def greets(other: Welcome) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        wire.receive_hello(connection)
        wire.send_welcome(connection, other)
        connection.recv(1)

    return talk


def mail_server(connection: socket.socket) -> None:
    connection.sendall(b"220 ready\r\n" * 60)
    connection.recv(1 << 16)  # else it may be gone before it is greeted


LIARS: dict[str, Callable[[socket.socket], None]] = {
    "hangs up": lambda connection: None,
    "says nothing": lambda connection: sleep(1.5),
    "another protocol": mail_server,
    "another version": greets(welcome(who=WHO._replace(version=b"9.9".ljust(32, b"\0")))),
    "another model": greets(welcome(who=WHO._replace(model=bytes(32)))),
    "refuses": greets(welcome(accepted=False, reason="too many")),
    "batches of none": greets(welcome(most=0)),
    "batches of all": greets(welcome(most=65535)),
    "another's answer": answers(wire._ANSWER.pack(True, 0, 7, 99) + bytes(7 * 4 * 16384)),
    "another network": answers(wire._ANSWER.pack(True, 1, 7, 1) + bytes(7 * 4 * 256)),
    "too many": answers(wire._ANSWER.pack(True, 0, 8, 1) + bytes(8 * 4 * 16384)),
    "half an answer": answers(wire._ANSWER.pack(True, 0, 7, 1) + bytes(1000)),
    "failed": answers(wire._ANSWER.pack(False, 0, 7, 1)),
}


REASONS = {
    "another protocol": "no welcome of ours",
    "another version": "version 9.9 instead of",
    "another model": "model 0000000000000000 instead of",
    "refuses": "too many",
    "batches of none": "no welcome of ours",
    "batches of all": "no welcome of ours",
    "another's answer": "asked was",
    "another network": "asked was",
    "too many": "asked was",
    "half an answer": "broke off",
    "failed": "could not answer",
}


@pytest.mark.parametrize("talk", LIARS.values(), ids=LIARS)
def test_whatever_listens_there_instead_costs_a_worker_nothing(
    tmp_path: Path, own: OnnxEngine, talk: Callable[[socket.socket], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(wire, "RECEIVED_AT_ONCE_S", 0.5)
    with liar(tmp_path / "0", talk), capture_logs() as said:
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        for _ in range(2):
            engine.settle()
            assert engine.name == "onnx"
            assert answers_as_own(engine, own)
            sleep(0.05)
    assert [line["event"] for line in said] == ["inference_not_used"]
    [words] = [each for name, each in REASONS.items() if talk is LIARS[name]] or [""]
    assert words in said[0]["reason"]


def test_one_that_does_not_do_is_asked_less_and_less_often(
    tmp_path: Path, own: OnnxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(remote, "LOOK_AGAIN_S", 1.0)
    monkeypatch.setattr(remote, "monotonic", lambda: clock[0])
    with liar(tmp_path / "0", lambda connection: None):
        engine = RemoteEngine([tmp_path / "0"], own, CARD)
        at: list[float] = []
        for _ in range(600):
            engine.settle()
            sleep(0.001)
            if engine._due > clock[0] and (not at or at[-1] != engine._due):
                at.append(engine._due)
            clock[0] += 0.5
    gaps = np.diff(at)
    assert list(gaps[:5]) == [2, 4, 8, 16, 32]
    assert set(gaps[5:]) == {60}


def test_where_one_of_several_is_gone_another_is_used(tmp_path: Path, own: OnnxEngine) -> None:
    with serving(tmp_path / "1", Altered(half)):
        engine = RemoteEngine([tmp_path / "0", tmp_path / "1"], own, CARD)
        engine.settle()
        assert engine.name == "altered"
        engine.close()


def test_an_instance_that_began_on_the_cpu_stays_there(tmp_path: Path, own: OnnxEngine) -> None:
    engine = RemoteEngine([tmp_path / "0"], own, CARD)
    engine.settle()
    with serving(tmp_path / "0", Altered(half)):
        sleep(0.05)
        assert answers_as_own(engine, own)
        assert engine.name == "onnx"
