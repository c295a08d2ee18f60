"""The inference process: one GPU, one engine, the questions of all mark workers in batches.

Images pass without it: a worker that gets no answer, or none that makes sense, asks the CPU. So it
may be killed at any instruction, starts when it can, and ends when its device is lost; the
supervisor starts it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from time import monotonic

import numpy as np
import structlog

from dicom_node.config import Config
from dicom_node.errors import EngineError
from dicom_node.inference import wire
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.batching import BatchingEngine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.opening import open_accelerated
from dicom_node.inference.resilient import ResilientEngine
from dicom_node.inference.wire import Question, Welcome, WireError
from dicom_node.supervisor import StopEvent

_log = structlog.get_logger(__name__)

MOST_WORKERS = 512
DRAIN_S = 5.0  # how long workers that still ask are answered after the end was asked for
HANG_S = 30.0  # a driver that never returns can only be stopped with its process
_TICK_S = 0.1


def folder_of(config: Config, index: int) -> Path:
    """Return the folder in the spool where an inference process has its socket."""
    return config.spool.directory / "inference" / str(index)


def run_inference(
    config: Config, index: int, stop: StopEvent, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Be inference process `index` until `stop`.

    `on_ready` is called once workers are answered: the backend has passed its check and has run
    every size of batch.

    Raises
    ------
    EngineError
        No backend of this machine passes, or its device was lost.
    """
    settings = config.watermark
    card = read_card()
    if settings.inference == "cpu":
        from dicom_node.inference.onnx import OnnxEngine

        engine: RobustEngine = OnnxEngine(card)
    else:
        found = open_accelerated(settings.engine, card)
        engine = ResilientEngine(found, None)
    # On a device the size of a batch chooses the kernels; ONNX Runtime on the CPU takes every
    # frame by itself (a test holds that), and filling up would cost it dearly.
    steady = settings.inference != "cpu"
    service = InferenceService(engine, most=settings.max_batch, wait_ms=settings.max_wait_ms,
                               who=wire.identity_of(card), steady=steady)  # fmt: skip
    service.warm_up()
    service.serve(folder_of(config, index), stop, on_ready)


class InferenceService:
    """Answers mark workers over a Unix socket.

    Parameters
    ----------
    engine
        Raises EngineError when its device is lost, and is then not asked again.
    most, wait_ms, steady
        Of a batch, see `BatchingEngine`.
    who
        What a worker has to be as well.
    """

    def __init__(
        self, engine: RobustEngine, *, most: int, wait_ms: float, who: wire.Identity,
        steady: bool = False,
    ) -> None:  # fmt: skip
        self._engine, self._most, self._who = engine, most, who
        self._batches = BatchingEngine(
            engine, most=most, wait_ms=wait_ms, askers=lambda: len(self._connections),
            steady=steady,
        )  # fmt: skip
        self._connections: set[socket.socket] = set()
        self._lock = Lock()
        self._broken: Exception | None = None

    def warm_up(self) -> None:
        """Run every network in every size, so that no worker waits for what is done once."""
        frame = np.full((1, 1, self._engine.side, self._engine.side), 0.5, np.float32)
        sizes = {1 << power for power in range(self._most.bit_length())} | {self._most}
        for size in sorted(sizes):
            for network in wire.NETWORKS:
                getattr(self._batches, network)(np.repeat(frame, size, axis=0))

    def serve(self, folder: Path, stop: StopEvent, on_ready: Callable[[], None]) -> None:
        """Answer until `stop`, then as long as workers ask, for `DRAIN_S` at most.

        Raises
        ------
        EngineError
            The device was lost; or another process answers in `folder`.
        """
        threads: list[Thread] = []
        try:
            with _listening(folder) as listener:
                on_ready()
                _log.info("inference_ready", engine=self._engine.name, most=self._most)
                while not stop.is_set() and self._broken is None:
                    self._end_if_it_hangs()
                    threads = [thread for thread in threads if thread.is_alive()]
                    connection = _next_connection(listener)
                    if connection is not None:
                        threads.append(self._begin(connection))
            drained = monotonic() + DRAIN_S
            while self._connections and self._broken is None and monotonic() < drained:
                threads[0].join(_TICK_S)
                threads = [thread for thread in threads if thread.is_alive()]
        finally:
            self._hang_up()
            for thread in threads:  # what is in hand is answered before the batches end
                thread.join()
            self._batches.close()
        if self._broken is not None:
            raise EngineError(f"{self._engine.name}: {self._broken}") from self._broken

    def _end_if_it_hangs(self) -> None:
        if (busy_s := self._batches.busy_s) > HANG_S:
            _log.error("inference_hangs", engine=self._engine.name, after_s=round(busy_s))
            os._exit(os.EX_SOFTWARE)

    def _begin(self, connection: socket.socket) -> Thread:
        with self._lock:
            self._connections.add(connection)
        thread = Thread(target=self._converse, args=(connection,), name="worker", daemon=True)
        thread.start()
        return thread

    def _hang_up(self) -> None:
        """Let no worker ask anything more; who waits for an answer still gets it."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it hung up first
                    connection.shutdown(socket.SHUT_RD)

    def _converse(self, connection: socket.socket) -> None:
        """Answer one worker until it ends; whatever it says harms nobody else."""
        try:
            if self._admits(connection):
                side = self._engine.side
                while question := wire.receive_question(connection, side, self._most):
                    self._answer(connection, question)
        except WireError as error:
            # A killed worker looks like this, too.
            _log.info("worker_dropped", reason=str(error))
        finally:
            with self._lock:
                self._connections.discard(connection)
                connection.close()

    def _admits(self, connection: socket.socket) -> bool:
        if not wire.is_same_user(connection):
            raise WireError("another user's process")
        theirs = wire.receive_hello(connection)
        reason = self._who.differs(theirs)
        if not reason and len(self._connections) > MOST_WORKERS:
            reason = f"{MOST_WORKERS} workers are answered already"
        wire.send_welcome(
            connection, Welcome(self._who, not reason, self._most, self._engine.name, reason)
        )
        if reason:
            _log.warning("worker_refused", reason=reason)
        return not reason

    def _answer(self, connection: socket.socket, question: Question) -> None:
        try:
            rows = self._rows(question)
        except EngineError as error:
            self._broken = self._broken or error
            rows = None
        except Exception as error:  # noqa: BLE001  # a fault of a library: start anew
            _log.exception("inference_failed")
            self._broken = self._broken or error
            rows = None
        wire.send_answer(connection, question, rows)

    def _rows(self, question: Question) -> Float32:
        rows: Float32 = getattr(self._batches, question.network)(question.frames)
        wanted = (len(question.frames), *wire.row_shape(self._engine, question.network))
        if rows.shape != wanted:
            raise EngineError(f"{question.network} gave {rows.shape}, not {wanted}")
        return rows


def _next_connection(listener: socket.socket) -> socket.socket | None:
    """Wait a moment for a worker."""
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None
    except OSError as error:
        # Out of descriptors, or it hung up at once: the next may find better luck.
        _log.warning("worker_not_accepted", reason=str(error))
        return None


@contextmanager
def _listening(folder: Path) -> Iterator[socket.socket]:
    """Listen on a socket in `folder` that only our user may use; it is gone afterwards.

    Raises
    ------
    EngineError
        It cannot be made, or another living process listens there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError(f"{folder}: no socket can be made there: {error.strerror}") from error
    try:
        try:
            # The kernel lets go of it with the process, however that ends.
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / wire.SOCKET).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except BlockingIOError as error:
            raise EngineError(f"{folder}: another inference process answers there") from error
        except OSError as error:
            raise EngineError(f"{folder}: no socket: {error.strerror}") from error
        with listener:
            _bind(listener, opened, folder)
            yield listener
            (folder / wire.SOCKET).unlink(missing_ok=True)
    finally:
        os.close(opened)


def _bind(listener: socket.socket, opened: int, folder: Path) -> None:
    mask = os.umask(0o177)  # 0600 from its first moment
    try:
        wire.at_folder(opened, listener.bind)
        listener.listen(64)
        listener.settimeout(_TICK_S)
    except OSError as error:
        raise EngineError(f"{folder}: no socket: {error.strerror}") from error
    finally:
        os.umask(mask)


