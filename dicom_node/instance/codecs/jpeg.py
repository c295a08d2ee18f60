"""JPEG processes 1 to 14 (ISO/IEC 10918-1), through GDCM; there is no encoder.

GDCM aborts its process on some malformed frames. It therefore runs in a child process, kept for
the next frame: a bad frame costs that child, never the worker. A child can also be lost by no fault
of the frame (out of memory, a starved machine), so each frame gets a second, fresh one.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from dicom_node.errors import DecoderLost, PixelError
from dicom_node.instance.codecs.codestream import check_announced, read_jpeg
from dicom_node.instance.codecs.gdcm_process import ANSWER, REQUEST
from dicom_node.instance.model import Codes, PixelForm

# What GDCM has to be told of each frame type: the last arc of a transfer syntax UID.
_ARC_OF_FRAME_TYPE = {0xC0: 50, 0xC1: 51, 0xC2: 55, 0xC3: 57}
_SCRIPT = Path(__file__).with_name("gdcm_process.py")
_TIMEOUT_S = 120.0
_END_S = 5.0
# Dying twice of the same one of these, a decoder was brought down by the frame. Nobody sends them:
# who stops, kills or runs out of memory uses others, and SIGBUS may be the disk its code is on.
_CRASHES = frozenset({signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame, in the colour space as coded.

    Raises
    ------
    PixelError
        The frame cannot be decoded.
    DecoderLost
        The decoder was killed or starved, twice; the frame may well be decodable.
    """
    announced = read_jpeg(code)
    if announced.jpeg_ls:
        raise PixelError("the frame is a JPEG-LS code stream, not the JPEG one announced")
    check_announced(announced, form)
    arc = _ARC_OF_FRAME_TYPE.get(announced.start_of_frame)
    if arc is None:
        raise PixelError(
            f"JPEG frames of type SOF{announced.start_of_frame & 15} are not supported"
        )
    bits = announced.precision
    head = (arc, form.rows, form.columns, form.samples, bits, form.signed, len(code))
    plain = _GDCM.ask(REQUEST.pack(*head) + code)
    codes = np.frombuffer(plain, "<u2" if bits > 8 else np.uint8)
    expected = form.pixels * form.samples
    if codes.size != expected:
        raise PixelError(f"the JPEG decoder gave {codes.size} samples of {expected}")
    if bits not in (8, 16):
        codes = codes & codes.dtype.type((1 << bits) - 1)
    return codes.reshape(form.shape), bits


class _Gdcm:
    """The child process; started when first needed, and again after it died."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: bytes) -> bytes:
        """Return the answer to one request (PixelError, DecoderLost: see `decode`)."""
        with self._lock:
            try:
                plain = self._tried(request)
            except _Lost as first:
                try:
                    plain = self._tried(request)
                except _Lost as second:
                    raise _judged(first, second) from second
        if not plain:
            raise PixelError("the JPEG decoder could not decode the frame")
        return plain

    def close(self) -> None:
        """End the child, if it is this process's."""
        if self._child is not None and self._owner == os.getpid():
            self._child.kill()
            self._child.wait()
            self._child = None

    def _tried(self, request: bytes) -> bytes:
        """Ask once (_Lost)."""
        try:
            child = self._running()
        except OSError as error:
            raise _Lost(f"cannot be started: {error.strerror}") from error
        try:
            return _exchange(child, request)
        except TimeoutError as error:
            self.close()
            raise _Lost(f"gave no answer within {_TIMEOUT_S:g} s") from error
        except (OSError, EOFError) as error:
            ended = _exit_status(child)
            self.close()
            raise _Lost(_in_words(ended), -(ended or 0)) from error
        except BaseException:
            # Half an answer is left in the pipe: the next frame must not be given it.
            self.close()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        # A child inherited by fork is the parent's to talk to.
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libjpeg writes there of frames that decode well, too
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the worker's, which finishes its frame
            )
            self._owner = os.getpid()
        return self._child


class _Lost(Exception):
    """The child ended, or had to be ended, before it answered."""

    def __init__(self, how: str, signal_number: int = 0) -> None:
        super().__init__(how)
        self.signal_number = signal_number


def _judged(first: _Lost, second: _Lost) -> PixelError | DecoderLost:
    """Return whose fault it is that two children were lost over one frame."""
    if first.signal_number == second.signal_number and first.signal_number in _CRASHES:
        return PixelError(f"the JPEG decoder gave up on the frame: it {first}, twice")
    return DecoderLost(
        f"the JPEG decoder {first}, then {second}: killed or starved, not the frame's fault;"
        " see the system's log for memory"
    )


def _exit_status(child: subprocess.Popen[bytes]) -> int | None:
    """Return the exit status of a child that closed its pipes; None if it lives on."""
    try:
        return child.wait(_END_S)
    except subprocess.TimeoutExpired:
        return None


def _in_words(status: int | None) -> str:
    if status is None:
        return "closed its pipes"
    if status >= 0:
        return f"ended with exit code {status}"
    return f"died of signal {-status} ({signal.strsignal(-status)})"


def _exchange(child: subprocess.Popen[bytes], request: bytes) -> bytes:
    if child.stdin is None or child.stdout is None:
        raise EOFError
    view = memoryview(request)
    while view:
        view = view[child.stdin.write(view) :]
    deadline = time.monotonic() + _TIMEOUT_S
    out = child.stdout.fileno()
    (length,) = ANSWER.unpack(_read(out, ANSWER.size, deadline))
    return _read(out, length, deadline)


def _read(descriptor: int, length: int, deadline: float) -> bytes:
    found = bytearray()
    ready = select.poll()  # select() cannot watch descriptors over 1023
    ready.register(descriptor, select.POLLIN)
    while len(found) < length:
        wait = deadline - time.monotonic()
        if wait <= 0 or not ready.poll(wait * 1000):
            raise TimeoutError
        block = os.read(descriptor, min(length - len(found), 1 << 20))
        if not block:
            raise EOFError
        found += block
    return bytes(found)


_GDCM = _Gdcm()
atexit.register(_GDCM.close)
