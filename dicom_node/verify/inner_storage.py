"""The inner Storage SCP: where the PACS moves instances to that are to be checked.

It marks nothing and keeps nothing: what nobody here waits for is refused, so that it is no way
into the node.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from dicom_node.audit.events import Event
from dicom_node.config import Config
from dicom_node.dimse import Admits, Incoming, StorageSCP, encode_file_meta
from dicom_node.errors import ConfigError, SpoolError
from dicom_node.instance.datafile import open_data_file
from dicom_node.verify.expecting import Expected, Take
from dicom_node.verify.lodging import Claims
from dicom_node.verify.pacs import Wanted
from dicom_node.verify.refusals import Refusals

log = structlog.get_logger(__name__)

_NOT_AUTHORIZED = 0x0124
_STUDY, _SERIES = 0x0020000D, 0x0020000E


@dataclass(eq=False)
class _Arriving:
    """An instance that has begun to arrive.

    Attributes
    ----------
    awaited_by
        Who it can be for; cut when the last of them has gone. Empty: also another process.
    """

    incoming: Incoming
    awaited_by: set[Expected]


class InnerStorage:
    """Listens on ``[verify] fetch_port`` while it is open.

    Parameters
    ----------
    admits
        Whose associations are accepted.
    record
        Tells the audit trail what was refused.

    Raises
    ------
    ConfigError
        If the port is in use.
    SpoolError
        If the folder cannot be made.
    """

    def __init__(
        self, config: Config, folder: Path, admits: Admits = lambda calling_ae, address: None,
        record: Callable[[Event], None] = lambda event: None,
    ) -> None:  # fmt: skip
        self._refusals = Refusals(record, "an instance that nobody here asked for", _NOT_AUTHORIZED)
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._expected: list[Expected] = []
        self._arriving: list[_Arriving] = []
        with written(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        verify, node = config.verify, config.node
        try:
            self._server = StorageSCP(
                (verify.bind, verify.fetch_port), verify.fetch_ae_title, self._receive,
                max_pdu=node.max_pdu, silence_s=node.association_timeout_s, admits=admits,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(
                f"[verify] fetch_port = {verify.fetch_port}: cannot listen on it; stop what uses"
                " it, or choose another one and tell the PACS"
            ) from error
        self._claims = Claims(config)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._server.serve, args=(self._stop,), name="inner storage", daemon=True
        )
        self._thread.start()

    @contextlib.contextmanager
    def expect(self, wanted: Wanted, take: Take) -> Iterator[Expected]:
        """Hand what comes of `wanted` to `take`, as long as this lasts."""
        one = Expected(wanted, take)
        with self._lock:
            self._expected.append(one)
        try:
            yield one
        finally:
            with self._lock:
                self._expected.remove(one)
                nobodys = [each for each in self._arriving if each.awaited_by == {one}]
                for each in self._arriving:
                    each.awaited_by.discard(one)
            for each in nobodys:
                each.incoming.cut()  # the PACS may have stopped in the middle of it

    def close(self) -> None:
        """Stop listening; associations that are open are cut."""
        self._claims.close()
        self._stop.set()
        self._thread.join()
        self._server.drain(0.5)
        self._refusals.close()

    def _receive(self, incoming: Incoming, data_set: Iterator[memoryview]) -> int:
        if self._expected or self._claims.any:
            path = self._folder / f"in-{next(self._numbers)}.dcm"
            try:
                with self._awaited(incoming):
                    write_instance(path, incoming, data_set)
                if self._handed_on(path, incoming):
                    return 0x0000
            finally:
                path.unlink(missing_ok=True)
        log.warning("instance nobody asked for refused", calling_ae=incoming.calling_ae)
        self._refusals.add(incoming)
        return _NOT_AUTHORIZED

    @contextlib.contextmanager
    def _awaited(self, incoming: Incoming) -> Iterator[None]:
        """Note who may be waiting for an instance as long as it arrives."""
        claimed = self._claims.any
        with self._lock:
            arriving = _Arriving(incoming, set() if claimed else set(self._expected))
            self._arriving.append(arriving)
        try:
            yield
        finally:
            with self._lock:
                self._arriving.remove(arriving)

    def _handed_on(self, path: Path, incoming: Incoming) -> bool:
        """Give a file to everybody who waits for it; False if nobody does."""
        study, series = _place(path)
        takers = self._takers(study, series, incoming.sop_instance_uid)
        for number, one in enumerate(takers or ()):
            own = path.with_name(f"{path.stem}-{number}.dcm")
            with written(own):
                os.link(path, own)
            one.take(own, incoming)
            one.received += 1
        claims = self._claims.matching(study, series, incoming.sop_instance_uid)
        for claim in claims:
            self._claims.put(path, claim)
        return takers is not None or bool(claims)

    def _takers(self, study: str, series: str, instance: str) -> list[Expected] | None:
        """Return who has not had it from another association yet; None if nobody asked for it.

        What belongs to a study that is waited for, and was not asked for, is an answer, too.
        """
        with self._lock:
            asked = [o for o in self._expected if o.wanted.includes(study, series, instance)]
            asked = asked or [o for o in self._expected if o.wanted.study_instance_uid == study]
            new = [one for one in asked if (series, instance) not in one.seen]
            for one in new:
                one.seen.add((series, instance))
            return new if asked else None


def write_instance(path: Path, incoming: Incoming, data_set: Iterator[memoryview]) -> None:
    """Write an instance as it comes; not synced, since it can be fetched again (SpoolError)."""
    meta = encode_file_meta(
        incoming.sop_class_uid, incoming.sop_instance_uid, incoming.transfer_syntax_uid,
        incoming.calling_ae,
    )  # fmt: skip
    try:
        with written(path), path.open("wb") as file:
            file.write(meta)
            for fragment in data_set:
                file.write(fragment)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _place(path: Path) -> tuple[str, str]:
    """Return Study and Series Instance UID of a file, "" where they cannot be read."""
    try:
        with closing(open_data_file(path)) as data:
            return data.text(_STUDY), data.text(_SERIES)
    except Exception:  # noqa: BLE001 - pydicom raises nearly anything on malformed values
        return "", ""


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn a failing disk into a SpoolError that names the path (answered 0xA700)."""
    try:
        yield
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror or error}") from error


def scratch_folder(config: Config) -> Path:
    """Return a new folder for fetched files, and remove those of processes that have died."""
    root = config.spool.directory / "fetched"
    with written(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in root.iterdir():
            pid, _, _ = old.name.partition("-")
            if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
                shutil.rmtree(old, ignore_errors=True)
        number = next(n for n in itertools.count() if not (root / f"{os.getpid()}-{n}").exists())
        folder = root / f"{os.getpid()}-{number}"
        folder.mkdir(mode=0o700)
    return folder
