"""JPEG processes 1 to 14 (ISO/IEC 10918-1), through GDCM; there is no encoder.

GDCM aborts its process on some malformed frames. It therefore runs in a child process, kept for
the next frame: a bad frame costs that child, never the worker.
"""

from __future__ import annotations

import atexit
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from dicom_node.errors import PixelError
from dicom_node.instance.codecs.codestream import check_announced, read_jpeg
from dicom_node.instance.codecs.gdcm_process import ANSWER, REQUEST
from dicom_node.instance.model import Codes, PixelForm

# What GDCM has to be told of each frame type: the last arc of a transfer syntax UID.
_ARC_OF_FRAME_TYPE = {0xC0: 50, 0xC1: 51, 0xC2: 55, 0xC3: 57}
_TIMEOUT_S = 120.0


def decode(code: bytes, form: PixelForm) -> tuple[Codes, int]:
    """Return the sample containers of one frame, in the colour space as coded (PixelError)."""
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
        """Return the answer to one request (PixelError where the child cannot or dies)."""
        with self._lock:
            child = self._running()
            try:
                plain = _exchange(child, request)
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                raise PixelError("the JPEG decoder gave up on the frame") from error
        if not plain:
            raise PixelError("the JPEG decoder could not decode the frame")
        return plain

    def close(self) -> None:
        """End the child, if it is this process's."""
        if self._child is not None and self._owner == os.getpid():
            self._child.kill()
            self._child.wait()
            self._child = None

    def _running(self) -> subprocess.Popen[bytes]:
        # A child inherited by fork is the parent's to talk to.
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            script = Path(__file__).with_name("gdcm_process.py")
            self._child = subprocess.Popen(
                [sys.executable, "-I", str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libjpeg writes there of frames that decode well, too
                bufsize=0,
            )
            self._owner = os.getpid()
        return self._child


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
