"""The JPEG decoder's child process: what kills it from outside is never blamed on the frame."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.encaps import encapsulate

from dicom_node.config import WatermarkConfig
from dicom_node.errors import DecoderLost, PixelError
from dicom_node.inference import open_engine
from dicom_node.instance.codecs import jpeg
from dicom_node.instance.model import PixelForm
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker

FORM = PixelForm(64, 80, 1, 8, 8, False, "MONOCHROME2", 0)
PICTURE = np.add.outer(np.arange(64) * 2, np.arange(80)).astype(np.uint8)
CODE = cv2.imencode(".jpg", PICTURE)[1].tobytes()
WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def gdcm(monkeypatch: pytest.MonkeyPatch) -> Iterator[jpeg._Gdcm]:
    """Give every test a child of its own, and leave none behind."""
    own = jpeg._Gdcm()
    monkeypatch.setattr(jpeg, "_GDCM", own)
    yield own
    own.close()


@pytest.fixture
def standing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a program in the decoder's place; it notes each of its starts."""

    def put(program: str) -> Path:
        script, starts = tmp_path / "child.py", tmp_path / "starts"
        note = f"open({str(starts)!r}, 'a').write('x')"
        script.write_text(f"import os, signal, sys, time\n{note}\n{program}\n")
        monkeypatch.setattr(jpeg, "_SCRIPT", script)
        return starts

    return put


def decoded() -> np.ndarray:
    return jpeg.decode(CODE, FORM)[0]


def pid_of(gdcm: jpeg._Gdcm) -> int:
    assert gdcm._child is not None
    return gdcm._child.pid


def test_a_child_killed_in_mid_frame_is_replaced_and_the_frame_decoded(gdcm: jpeg._Gdcm) -> None:
    whole = decoded()
    pid = pid_of(gdcm)
    os.kill(pid, signal.SIGSTOP)  # it has the frame in hand for as long as we like
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    assert np.array_equal(decoded(), whole)
    killer.join()
    assert time.monotonic() - began >= 0.15
    assert pid_of(gdcm) != pid


def test_a_stop_of_the_node_does_not_reach_the_child(gdcm: jpeg._Gdcm) -> None:
    whole = decoded()
    pid = pid_of(gdcm)
    assert os.getsid(pid) != os.getsid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert np.array_equal(decoded(), whole)
    assert pid_of(gdcm) == pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGBUS])
def test_two_children_killed_from_outside_say_nothing_of_the_frame(
    number: signal.Signals, standing_in: Callable[[str], Path]
) -> None:
    starts = standing_in(f"sys.stdin.buffer.read(9); os.kill(os.getpid(), {int(number)})")
    with pytest.raises(DecoderLost, match=rf"died of signal {int(number)} .*, then died of signal"):
        decoded()
    assert starts.read_text() == "xx"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_frame_that_crashes_two_children_alike_cannot_be_decoded(
    number: signal.Signals, standing_in: Callable[[str], Path]
) -> None:
    starts = standing_in(f"sys.stdin.buffer.read(9); os.kill(os.getpid(), {int(number)})")
    with pytest.raises(PixelError, match=rf"gave up on the frame: it died of signal {int(number)}"):
        decoded()
    assert starts.read_text() == "xx"


def test_two_different_ends_say_nothing_of_the_frame(
    standing_in: Callable[[str], Path], tmp_path: Path
) -> None:
    first = f"os.path.getsize({str(tmp_path / 'starts')!r}) == 1"
    standing_in(
        "sys.stdin.buffer.read(9)\n"
        f"os.kill(os.getpid(), signal.SIGSEGV if {first} else signal.SIGABRT)"
    )
    with pytest.raises(DecoderLost, match=r"died of signal 11 .*, then died of signal 6"):
        decoded()


def test_a_child_that_fails_to_start_says_nothing_of_the_frame(
    standing_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    standing_in("raise ImportError('no gdcm')")
    with pytest.raises(DecoderLost, match="ended with exit code 1, then ended with exit code 1"):
        decoded()
    monkeypatch.setattr(jpeg.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(DecoderLost, match="cannot be started: No such file"):
        decoded()


def test_two_timeouts_say_nothing_of_the_frame(
    standing_in: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, gdcm: jpeg._Gdcm
) -> None:
    monkeypatch.setattr(jpeg, "_TIMEOUT_S", 0.3)
    starts = standing_in("sys.stdin.buffer.read(9); time.sleep(60)")
    with pytest.raises(DecoderLost, match=r"gave no answer within 0\.3 s, then gave no answer"):
        decoded()
    assert starts.read_text() in ("x", "xx"), "a starved child may not even have begun"
    assert gdcm._child is None


def test_what_is_left_of_an_interrupted_answer_is_not_given_to_the_next_frame(
    gdcm: jpeg._Gdcm, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = jpeg._read

    def interrupted(descriptor: int, length: int, deadline: float) -> bytes:
        honest(descriptor, length, deadline)
        raise MemoryError

    whole = decoded()
    monkeypatch.setattr(jpeg, "_read", interrupted)
    with pytest.raises(MemoryError):
        decoded()
    monkeypatch.setattr(jpeg, "_read", honest)
    assert np.array_equal(decoded(), whole)


@pytest.mark.parametrize("policy", ["forward-sealed", "reject", "forward-untouched"])
def test_an_image_whose_decoder_was_killed_is_neither_sealed_nor_rejected(
    policy: str, standing_in: Callable[[str], Path], make: Callable[..., Path], ring: KeyRing,
    tmp_path: Path,
) -> None:  # fmt: skip
    source = make(
        PICTURE, pixel_data=encapsulate([CODE]), syntax="1.2.840.10008.1.2.4.50",
        extra={"LossyImageCompression": "01"},
    )  # fmt: skip
    marker = Marker(WatermarkConfig(on_unmarkable=policy), ring, open_engine("onnx"))
    out = tmp_path / "out.dcm"
    assert marker.mark(source, out, marked_at=WHEN).action == "marked"
    out.unlink()
    jpeg._GDCM.close()
    standing_in("sys.stdin.buffer.read(9); os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(DecoderLost, match="frame 1 of 1: the JPEG decoder died of signal 9"):
        marker.mark(source, out, marked_at=WHEN)
    assert not out.exists()
