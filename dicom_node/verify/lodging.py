"""How another process of this node fetches while the service holds the inner Storage SCP's port.

A PACS moves to one AE title at one port. Who wants something and does not hold the port lays a
claim beside the spool; the service puts what comes of it into the claim's folder and answers the
PACS when few files wait there.

::

    fetch-claims/served            process id of who holds the port
    fetch-claims/<pid>-<n>/claim   what is wanted, JSON
    fetch-claims/<pid>-<n>/*.dcm   what came of it
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from dicom_node.config import Config
from dicom_node.dimse import Incoming, read_file_meta
from dicom_node.errors import SpoolError
from dicom_node.verify.expecting import Expected, Take
from dicom_node.verify.pacs import Wanted

_STEP_S = 0.05
_WAITING = 32
_PATIENCE_S = 20.0


class Claims:
    """The claims of other processes, as the holder of the port sees them (SpoolError)."""

    def __init__(self, config: Config) -> None:
        self._root = claims_folder(config)
        self._numbers = itertools.count()
        with _translated(self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._root / "served", str(os.getpid()))

    def close(self) -> None:
        """Say that nobody serves claims any more."""
        (self._root / "served").unlink(missing_ok=True)

    @property
    def any(self) -> bool:
        """Whether there is a claim at all."""
        return next(self._root.glob("*-*"), None) is not None

    def matching(self, study: str, series: str, instance: str) -> list[Path]:
        """Return the folders of living processes that want an instance."""
        found = []
        for folder in self._root.glob("*-*"):
            if not _alive(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
            elif _wanted_in(folder, study).includes(study, series, instance):
                found.append(folder)
        return found

    def put(self, path: Path, folder: Path) -> None:
        """Link a file into a claim's folder, and wait while too many files wait there."""
        with _translated(folder):
            os.link(path, folder / f"{next(self._numbers)}.dcm")
        deadline = time.monotonic() + _PATIENCE_S
        while folder.exists() and sum(1 for _ in folder.glob("*.dcm")) > _WAITING:
            if time.monotonic() > deadline:
                raise SpoolError(f"{folder.name} does not take what it has claimed")
            time.sleep(_STEP_S)


class Lodger:
    """Receives through the process that holds the port; used as `InnerStorage` is.

    Raises
    ------
    SpoolError
        If a file cannot be read or written.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._root = claims_folder(config)
        self._folder = folder
        self._numbers = itertools.count()

    @staticmethod
    def possible(config: Config) -> bool:
        """Whether a process of this node serves claims."""
        try:
            return _alive((claims_folder(config) / "served").read_text())
        except OSError:
            return False

    @contextlib.contextmanager
    def expect(self, wanted: Wanted, take: Take) -> Iterator[Expected]:
        """Hand what comes of `wanted` to `take`, as long as this lasts."""
        one = Expected(wanted, take)
        claim = self._root / f"{os.getpid()}-{next(self._numbers)}"
        over = threading.Event()
        failure: list[BaseException] = []

        def follow() -> None:
            try:
                while not over.wait(_STEP_S):
                    self._collect(claim, one)
            except BaseException as error:  # noqa: BLE001 - raised again below
                failure.append(error)

        with _translated(claim):
            claim.mkdir(mode=0o700)
            _write(claim / "claim", json.dumps(asdict(wanted)))
        thread = threading.Thread(target=follow, name="fetch claim", daemon=True)
        thread.start()
        try:
            yield one
            over.set()
            thread.join()
            if failure:
                raise failure[0]
            # What the PACS has had an answer for is there by now.
            self._collect(claim, one)
        finally:
            over.set()
            thread.join()
            shutil.rmtree(claim, ignore_errors=True)

    def _collect(self, claim: Path, one: Expected) -> None:
        for path in sorted(claim.glob("*.dcm"), key=lambda each: int(each.stem)):
            own = self._folder / f"{claim.name}-{path.name}"
            with _translated(path):
                path.replace(own)
                with own.open("rb") as file:
                    meta = read_file_meta(file)
            incoming = Incoming(
                meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, "", "", ""
            )
            one.take(own, incoming)
            one.received += 1

    def close(self) -> None:
        """Nothing is held."""


def claims_folder(config: Config) -> Path:
    """Return where claims lie."""
    return config.spool.directory / "fetch-claims"


def _wanted_in(folder: Path, study: str) -> Wanted:
    """Return what a claim wants; nothing where it is not written yet, or is gone."""
    try:
        claim = json.loads((folder / "claim").read_text())
        return Wanted(
            claim["study_instance_uid"], tuple(claim["series_instance_uids"]),
            tuple(claim["sop_instance_uids"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError):
        return Wanted(f"not {study}")


def _alive(name: str) -> bool:
    pid = name.partition("-")[0]
    return pid.isdigit() and Path(f"/proc/{pid}").exists()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise SpoolError(f"{path}: {error}") from error
