"""Inference services in threads and in processes of their own, and workers' ends of the wire.

As a program, ``python inference_processes.py FOLDER KIND``, it is one in a process of its own, with
ONNX Runtime on the CPU behind it, until SIGTERM; KIND ``sound``, ``hangs`` or ``breaks``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.inference import service as service_module
from dicom_node.inference import wire
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.lanes import DeviceLost
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.service import InferenceService


def half(values: Float32) -> Float32:
    """Round as a backend in half precision does: within tolerance, and other marks come of it."""
    return values.astype(np.float16).astype(np.float32)


class Altered(OnnxEngine):
    """Rounds what it answers, notes what it is asked, and fails when it is told to."""

    name = "altered"

    def __init__(
        self, rounding: Callable[[Float32], Float32] = half,
        fault: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(read_card())
        self.rounding, self.fault = rounding, fault
        self.batches: list[tuple[str, int]] = []

    def whiten(self, frames: Float32) -> Float32:
        return self._answer("whiten", super().whiten(frames))

    def strengths(self, frames: Float32) -> Float32:
        return self._answer("strengths", super().strengths(frames))

    def decode(self, frames: Float32) -> Float32:
        return self._answer("decode", self.soft_bits(super().whiten(frames)))

    def _answer(self, network: str, rows: Float32) -> Float32:
        self.fault()
        self.batches.append((network, len(rows)))
        return self.rounding(rows)


class Serving:
    """One inference service in a thread of this process."""

    def __init__(self, folder: Path, engine: RobustEngine, **more: Any) -> None:
        settings: dict[str, Any] = {"most": 8, "wait_ms": 1.0, "who": wire.identity_of(read_card())}
        self.service = InferenceService(engine, **(settings | more))
        self.stop, self.ready = threading.Event(), threading.Event()
        self.ended: BaseException | None = None
        self.folder = folder
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.service.serve(self.folder, self.stop, self.ready.set)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.ended = error
            self.ready.set()

    def end(self) -> BaseException | None:
        """Drain; return what it ended with."""
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.ended


@contextmanager
def serving(folder: Path, engine: RobustEngine, **more: Any) -> Iterator[Serving]:
    """Let a service answer in `folder` meanwhile."""
    one = Serving(folder, engine, **more)
    one.thread.start()
    assert one.ready.wait(30)
    try:
        yield one
    finally:
        one.end()


@contextmanager
def connected(folder: Path) -> Iterator[socket.socket]:
    """A bare connection to the service in `folder`."""
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        wire.at_folder(opened, connection.connect)
        os.close(opened)
        yield connection


@contextmanager
def liar(folder: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """Let something else listen where an inference process should; `talk` is its one answer."""
    folder.mkdir(parents=True)
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        wire.at_folder(opened, listener.bind)
        listener.listen()
        listener.settimeout(0.05)

        def run() -> None:
            while not over.is_set():
                try:
                    connection = listener.accept()[0]
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(10)
                    try:
                        talk(connection)
                    except (wire.WireError, OSError):
                        continue  # the worker hung up, as it should

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            os.close(opened)


def main(folder: str, kind: str) -> None:
    """Be an inference process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    good = 1 << 62

    def fault() -> None:
        nonlocal good
        good -= 1
        if good >= 0 or kind == "sound":
            return
        if kind == "hangs":
            time.sleep(3600)
        raise DeviceLost("unplugged")

    service_module.HANG_S = 0.5
    service = InferenceService(Altered(lambda rows: rows, fault), most=8, wait_ms=1.0,
                               who=wire.identity_of(read_card()))  # fmt: skip
    service.warm_up()
    good = 4  # three that a worker probes it with, and one more
    service.serve(Path(folder), stop, lambda: print("ready", flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
