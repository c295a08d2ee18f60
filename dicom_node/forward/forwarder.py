"""The forwarder of one destination: its queue, its associations, its retries.

A lane is a thread with one association that it uses for one delivery after another. The lanes of a
destination share its pause: while the destination is down nothing is claimed, so the queue keeps
its order and every waiting delivery is tried again when the pause ends.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import structlog

from dicom_node.config import Config, DestinationConfig
from dicom_node.dimse import (
    LOSSLESS_FALLBACKS,
    MAX_CONTEXTS,
    FileMeta,
    NeverHeard,
    Pair,
    StopEvent,
    StoreAssociation,
    StoreResponse,
    read_file_meta,
    stopped_by,
)
from dicom_node.errors import (
    AssociationLost,
    AssociationRejected,
    ConfigError,
    ContextRefused,
    ForwardError,
    LeaseLost,
    NodeError,
    PixelError,
    SpoolError,
    StoreFailed,
)
from dicom_node.forward.rules import Backoff, Verdict, verdict_of
from dicom_node.spool import Delivery, Spool

log = structlog.get_logger(__name__)

Transcode = Callable[[Path, Path, tuple[str, ...], Callable[[], None]], None]
"""``transcode(path, copy, accepted_syntaxes, still_at_it)``: write a lossless copy in one of them,
or PixelError. It calls `still_at_it`, which may raise, now and then. The forwarder removes the
copy.
"""

IDLE_RELEASE_S = 4.0
_STOP_CHECK_S = 0.25
_RENEW_EVERY_S = 30.0
_MIN_LEASE_S = 180.0
# Answers A7xx to so many different instances in a row, and the destination is at fault, not they.
_REFUSED_IN_A_ROW = 20
# One claim in so many takes the oldest delivery, however often it was refused.
_TURN = 10
# 2 ** 2 times the first delay is the longest pause of a destination that answers.
_REACHABLE_FAILURES = 3


class Pause:
    """When a destination may be tried again; shared by its lanes."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._refused: set[int] = set()

    def refused(self, job_id: int) -> float:
        """Count an instance answered out of resources; return the delay in seconds, mostly 0.

        Some destinations answer so to what they can never take. Only many different instances
        refused in a row, none taken between them, say that it is the destination's own fault.
        """
        with self._lock:
            self._refused.add(job_id)
            if len(self._refused) < _REFUSED_IN_A_ROW:
                return 0.0
            self._refused.clear()
        return self.failed(reachable=True)

    def failed(self, *, reachable: bool = False) -> float:
        """Count a failure of the destination; return the delay in seconds.

        Lanes that fail while the pause already runs found the same fault: it counts once. Where the
        destination was reachable, the fault may be the instance's: the pause stays short, so that
        one instance it never takes does not delay all others for minutes.
        """
        with self._lock:
            left = self._until - time.monotonic()
            if left > 0:
                return left
            self._failures += 1
            if reachable:
                self._failures = min(self._failures, _REACHABLE_FAILURES)
            delay = self._backoff.delay_s(self._failures)
            self._until = time.monotonic() + delay
            return delay

    def succeeded(self) -> None:
        """Forget the failures: the destination takes instances."""
        with self._lock:
            self._failures = 0
            self._until = 0.0
            self._refused.clear()

    @property
    def left_s(self) -> float:
        """Seconds until the destination may be tried."""
        return self._until - time.monotonic()


class Lane(threading.Thread):
    """One association's life after another with one destination."""

    def __init__(
        self,
        number: int,
        spool: Spool,
        destination: DestinationConfig,
        calling_ae: str,
        pause: Pause,
        end: threading.Event,
        transcode: Transcode | None,
    ) -> None:
        super().__init__(name=f"{destination.name}-{number}")
        self._spool = spool
        self._destination = destination
        self._calling_ae = calling_ae
        self._pause = pause
        self._backoff = Backoff(destination.retry_initial_s, destination.retry_max_s)
        self._end = end
        self._transcode = transcode
        self._association: StoreAssociation | None = None
        self._seen: dict[Pair, None] = {}
        self._lease_s = max(_MIN_LEASE_S, 2 * destination.timeout_s + 60)
        self._cut = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Deliver until told to stop; what ends the lane early is left in `failure`."""
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self.failure = error
        finally:
            self._release()

    def _run(self) -> None:
        name, claims = self._destination.name, 0
        idle_since = time.monotonic()
        while not self._end.is_set():
            left = self._pause.left_s
            if left > 0:
                self._end.wait(min(left, _STOP_CHECK_S))
                continue
            claims += 1
            claimed = self._spool.claim_delivery(
                name, lease_s=self._lease_s, fresh_first=claims % _TURN != 0
            )
            for delivery in claimed:
                self._deliver(delivery)
            if claimed:
                idle_since = time.monotonic()
                continue
            if time.monotonic() - idle_since > IDLE_RELEASE_S:
                self._release()
            self._spool.wait_for_delivery(name, _STOP_CHECK_S)

    def cut(self) -> None:
        """End the transfer in hand from outside; it will be sent again."""
        self._cut.set()
        if self._association is not None:
            self._association.cut()

    # One delivery

    def _deliver(self, delivery: Delivery) -> None:
        with contextlib.suppress(LeaseLost):  # dropped or taken over meanwhile: not ours to report
            try:
                with _opened(delivery.path) as (file, meta):
                    response, syntax = self._send(delivery, file, meta)
            except (AssociationRejected, AssociationLost) as error:
                reachable = isinstance(error, AssociationLost)
                self._retry(delivery, error, self._pause.failed(reachable=reachable))
            except LeaseLost:
                raise
            except SpoolError as error:
                # Our own disk or journal: neither the instance nor the destination is at fault.
                self._spool.make_room()
                self._retry(delivery, error, self._backoff.delay_s(1))
            except NodeError as error:
                self._hold(delivery, error)
            else:
                self._settle(delivery, response, syntax)

    def _send(
        self, delivery: Delivery, file: BinaryIO, meta: FileMeta
    ) -> tuple[StoreResponse, str]:
        """Send it, recoded where it has to be; return the answer and the syntax it was sent in."""
        renewed = time.monotonic()

        def keep_lease() -> None:
            nonlocal renewed
            if self._cut.is_set():
                raise AssociationLost(
                    self._destination.name, delivery.sop_instance_uid, "the node stops"
                )
            if time.monotonic() - renewed > _RENEW_EVERY_S:
                self._spool.renew_delivery(delivery, lease_s=self._lease_s)
                renewed = time.monotonic()

        try:
            return self._store(file, meta, keep_lease), meta.transfer_syntax_uid
        except ContextRefused as error:
            refused = error
        with self._recoded(delivery, meta, refused, keep_lease) as (other, other_meta):
            return self._store(other, other_meta, keep_lease), other_meta.transfer_syntax_uid

    @contextlib.contextmanager
    def _recoded(
        self,
        delivery: Delivery,
        meta: FileMeta,
        refused: ContextRefused,
        keep_lease: Callable[[], None],
    ) -> Iterator[tuple[BinaryIO, FileMeta]]:
        """Open a copy in a transfer syntax it takes (ForwardError if there is none)."""
        assert self._association is not None, "somebody refused"
        accepted = self._association.accepted_syntaxes(meta.sop_class_uid)
        if self._transcode is None or not accepted:
            raise refused
        with _folder_in(self._spool.scratch) as folder:
            copy = folder / "copy.dcm"
            try:
                self._transcode(delivery.path, copy, accepted, keep_lease)
            except PixelError as error:
                raise ForwardError(f"{refused}, and it cannot be transcoded: {error}") from error
            with _opened(copy) as (file, copied):
                # A data set may name another UID than it came with: its copy goes under the latter.
                uid = copied.sop_instance_uid
                if uid != meta.sop_instance_uid and uid != _uid_inside(delivery):
                    raise SpoolError("fault in dicom-node: the copy is another instance's")
                yield file, meta.of_copy(copied)

    def _store(
        self, file: BinaryIO, meta: FileMeta, keep_lease: Callable[[], None]
    ) -> StoreResponse:
        pair = meta.sop_class_uid, meta.transfer_syntax_uid
        try:
            return self._association_for(pair).store(file, meta, keep_lease)
        except NeverHeard as lost:
            # It ended while it lay idle, which only the next use of it could show.
            log.info("association reopened", destination=self._destination.name, reason=str(lost))
        return self._association_for(pair).store(file, meta, keep_lease)

    def _settle(self, delivery: Delivery, response: StoreResponse, syntax: str) -> None:
        verdict = verdict_of(response.status)
        if verdict is Verdict.DELIVERED:
            self._pause.succeeded()
            self._spool.delivered(delivery, response.status, transfer_syntax_uid=syntax)
            return
        failed = StoreFailed(
            self._destination.name, delivery.sop_instance_uid, response.status, response.comment
        )
        if verdict is Verdict.TRANSIENT:
            self._retry(delivery, failed, self._pause.refused(delivery.job_id), response.status)
        else:
            self._pause.succeeded()
            self._hold(delivery, failed, response.status)

    def _retry(
        self, delivery: Delivery, error: NodeError, pause_s: float, status: int | None = None
    ) -> None:
        # Its own failures count too: one that always breaks the association must wait.
        delay = max(pause_s, self._backoff.delay_s(delivery.attempts))
        log.warning(
            "delivery postponed", destination=self._destination.name, job=delivery.job_id,
            attempt=delivery.attempts, retry_in_s=round(delay, 1), reason=_for_the_log(error),
        )  # fmt: skip
        self._spool.retry_delivery(delivery, str(error), time.time() + delay, status=status)

    def _hold(self, delivery: Delivery, error: NodeError, status: int | None = None) -> None:
        log.error(
            "delivery held", destination=self._destination.name, job=delivery.job_id,
            reason=_for_the_log(error),
        )  # fmt: skip
        self._spool.hold_delivery(delivery, str(error), status=status)

    # The association

    def _association_for(self, pair: Pair) -> StoreAssociation:
        """Return the open association, or a new one when this context was not proposed yet."""
        self._seen.pop(pair, None)
        self._seen[pair] = None
        current = self._association
        if current is not None:
            if current.proposed(pair) and current.alive:
                return current
            self._release()
        wanted = [pair, *self._spool.waiting_contexts(self._destination.name)]
        wanted += reversed(self._seen)
        destination = self._destination
        self._association = StoreAssociation.open(
            destination.name,
            (destination.host, destination.port),
            called_ae=destination.ae_title,
            calling_ae=self._calling_ae,
            pairs=wanted,
            fallbacks=LOSSLESS_FALLBACKS if self._transcode else (),
            timeout_s=destination.timeout_s,
        )
        while len(self._seen) > MAX_CONTEXTS:
            del self._seen[next(iter(self._seen))]
        return self._association

    def _release(self) -> None:
        if self._association is not None:
            self._association.release()
            self._association = None


def _for_the_log(error: NodeError) -> str:
    """Return the reason without a peer's own words: some archives name the patient in them."""
    return error.without_comment if isinstance(error, StoreFailed) else str(error)


@contextlib.contextmanager
def _folder_in(scratch: Path) -> Iterator[Path]:
    """Yield a new folder, removed afterwards with all that is in it (SpoolError)."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="copy-", dir=scratch, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise SpoolError(f"{scratch}: no folder for a copy: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _uid_inside(delivery: Delivery) -> str:
    """Return the SOP Instance UID in the data set itself (ForwardError)."""
    from dicom_node.instance.datafile import open_data_file

    try:
        with contextlib.closing(open_data_file(delivery.path)) as data:
            return str(data.read_header().get("SOPInstanceUID", ""))
    except PixelError as error:
        raise ForwardError(f"{delivery.path.name}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, FileMeta]]:
    """Open an instance and read its File Meta Information (ForwardError if that fails)."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ForwardError(f"{path.name} cannot be read: {error.strerror}") from error
    with file:
        try:
            meta = read_file_meta(file)
        except (OSError, ValueError) as error:
            raise ForwardError(f"{path.name} cannot be read: {error}") from error
        yield file, meta


def run_forwarder(
    config: Config,
    destination_name: str,
    stop_event: StopEvent | None = None,
    transcode: Transcode | None = None,
) -> None:
    """Forward to one destination until `stop_event` is set, then finish what is in hand and return.

    Parameters
    ----------
    config
        ``[[destination]]`` of that name, ``[spool]``, and ``[node]`` for our AE title.
    destination_name
        Its name.
    stop_event
        None: SIGTERM or SIGINT end this process instead.
    transcode
        Used only when the destination refuses an instance's transfer syntax; without it, or when it
        finds no way, the delivery is held.

    Raises
    ------
    ConfigError
        If there is no such destination.
    SpoolError
        If the spool cannot be used.
    """
    destination = next((d for d in config.destination if d.name == destination_name), None)
    if destination is None:
        known = ", ".join(d.name for d in config.destination) or "none"
        raise ConfigError(f"no [[destination]] is named {destination_name!r}; known: {known}")
    with Spool(config.spool) as spool, stopped_by(stop_event) as stop:
        pause = Pause(Backoff(destination.retry_initial_s, destination.retry_max_s))
        end = threading.Event()
        lanes = [
            Lane(number, spool, destination, config.node.ae_title, pause, end, transcode)
            for number in range(destination.associations)
        ]
        for lane in lanes:
            lane.start()
        log.info("forwarding", destination=destination.name, associations=len(lanes))
        while not stop.is_set() and all(lane.is_alive() for lane in lanes):
            time.sleep(_STOP_CHECK_S)
        end.set()
        _join(lanes, config.node.shutdown_timeout_s)
    failure = next((lane.failure for lane in lanes if lane.failure is not None), None)
    if failure is not None:
        raise failure
    log.info("forwarder ended", destination=destination.name)


def _join(lanes: list[Lane], timeout_s: float) -> None:
    """Let every lane finish its delivery; cut the transfers that take longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    for lane in lanes:
        lane.join(max(0.0, deadline - time.monotonic()))
    for lane in lanes:
        if lane.is_alive():
            lane.cut()
            lane.join(5.0)
