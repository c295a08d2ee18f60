"""Where a retrieve sends its sub-operations: to a move destination, or back to the client."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from dicom_node.config import MoveDestinationConfig
from dicom_node.dimse import (
    LOSSLESS_FALLBACKS,
    FileMeta,
    MoveOriginator,
    Pair,
    StoreAssociation,
    read_file_meta,
)
from dicom_node.dimse.query_scp import Call, Cancelled
from dicom_node.errors import (
    AssociationLost,
    AssociationRejected,
    ContextRefused,
    ForwardError,
    PixelError,
    SpoolError,
)
from dicom_node.instance.syntaxes import SYNTAXES
from dicom_node.transcoding import Transcoder

_TIMEOUT_S = 60.0
_STEP_S = 0.1
_RELEASE_S = 2.0


class Sender(Protocol):
    """Sends instances one by one."""

    name: str

    def send(self, path: Path, *, readable: bool = True) -> int:
        """Send a file and return the C-STORE status.

        Parameters
        ----------
        readable
            Frames that a check could not read are sent as they are or not at all: they are not
            decoded once more.

        Raises
        ------
        ContextRefused
            If it is not taken in any transfer syntax that we can give it.
        AssociationRejected, AssociationLost
            If the receiver is away.
        PeerGone
            If the client is.
        """

    def close(self) -> None:
        """Release what is open."""


class ClientSender:
    """Sends back over the client's own association, for C-GET."""

    def __init__(self, call: Call, max_pixels: int) -> None:
        self.name = call.calling_ae
        self._call = call
        self._transcode = Transcoder(max_pixels)

    def send(self, path: Path, *, readable: bool = True) -> int:
        """Send in the association's thread, which is the caller's."""

        def store(file: BinaryIO, meta: FileMeta) -> int:
            return self._call.store(file, meta, timeout_s=_TIMEOUT_S).status

        return _in_an_accepted_syntax(
            path, store, self._call.accepted_syntaxes, self._transcode, self._go_on,
            readable=readable,
        )  # fmt: skip

    def _go_on(self) -> None:
        if self._call.cancelled:
            raise Cancelled("called off by the client")

    def close(self) -> None:
        """Leave the association to the client."""
        self._transcode.close()


class MoveSender:
    """Sends over an association of its own, for C-MOVE.

    A thread sends, so that a client's C-CANCEL is heard while a destination takes its time.

    Parameters
    ----------
    classes
        SOP classes that are going to be sent.
    originator
        Whose C-MOVE it is; every sub-operation names it (PS3.4 C.4.2.3).
    watch
        Asked some ten times a second while a sub-operation goes on; may raise.
    """

    def __init__(
        self, destination: MoveDestinationConfig, calling_ae: str, classes: Sequence[str],
        max_pixels: int, watch: Callable[[], object], originator: MoveOriginator,
    ) -> None:  # fmt: skip
        self.name = destination.name
        self._destination = destination
        self._calling_ae = calling_ae
        self._classes = classes
        self._transcode = Transcoder(max_pixels)
        self._watch = watch
        self._originator = originator
        self._given_up = threading.Event()
        self._association: StoreAssociation | None = None
        self._seen: dict[Pair, None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"move to {destination.name}")

    def send(self, path: Path, *, readable: bool = True) -> int:
        """Send; opens the association where there is none, or none for this kind of instance."""
        sending = self._thread.submit(self._send, path, readable)
        try:
            while not wait([sending], _STEP_S).done:
                self._watch()
        except BaseException:
            self._given_up.set()
            if self._association is not None:
                self._association.cut()
            raise
        return sending.result()

    def _send(self, path: Path, readable: bool) -> int:
        return _in_an_accepted_syntax(
            path, self._store, self._accepted, self._transcode, self._go_on, readable=readable
        )

    def _accepted(self, sop_class_uid: str) -> tuple[str, ...]:
        association = self._association
        return () if association is None else association.accepted_syntaxes(sop_class_uid)

    def _store(self, file: BinaryIO, meta: FileMeta) -> int:
        pair = meta.sop_class_uid, meta.transfer_syntax_uid
        try:
            association = self._open(pair)
            return association.store(file, meta, originator=self._originator).status
        except AssociationLost:
            self._drop()
            raise

    def _open(self, pair: Pair) -> StoreAssociation:
        self._seen[pair] = None
        if self._association is not None:
            if self._association.proposed(pair) and self._association.alive:
                return self._association
            self._drop()
        destination = self._destination
        expected = [(each, pair[1]) for each in self._classes]
        self._association = StoreAssociation.open(
            destination.name, (destination.host, destination.port),
            called_ae=destination.ae_title, calling_ae=self._calling_ae,
            pairs=[*reversed(self._seen), *expected], fallbacks=LOSSLESS_FALLBACKS,
            timeout_s=_TIMEOUT_S, watch=self._go_on,
        )  # fmt: skip
        return self._association

    def _go_on(self) -> None:
        """Stop waiting for the destination when nobody waits for us any more."""
        if self._given_up.is_set():
            raise AssociationRejected(self.name, "called off")

    def _drop(self) -> None:
        association, self._association = self._association, None
        if association is not None:
            with suppress(AssociationRejected):  # called off while it was waited for
                association.release(_RELEASE_S)

    def close(self) -> None:
        """Release the association and end the thread."""
        self._thread.submit(self._drop)
        self._thread.shutdown(wait=True)
        self._transcode.close()


def _in_an_accepted_syntax(
    path: Path,
    store: Callable[[BinaryIO, FileMeta], int],
    accepted: Callable[[str], tuple[str, ...]],
    transcode: Transcoder,
    go_on: Callable[[], object] = lambda: None,
    *,
    readable: bool = True,
) -> int:
    """Store a file as it is, else uncompressed where that says the same."""
    with path.open("rb") as file:
        meta = read_file_meta(file)
        try:
            return store(file, meta)
        except ContextRefused as error:
            refused = error
    syntaxes, syntax = accepted(meta.sop_class_uid), SYNTAXES.get(meta.transfer_syntax_uid)
    if not syntaxes or not (readable or (syntax and not syntax.encapsulated)):
        raise refused
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True) as folder:
        plain = Path(folder) / "plain.dcm"
        try:
            transcode(path, plain, syntaxes, go_on)
        except PixelError as error:
            raise ForwardError(f"{refused}, and it cannot be transcoded: {error}") from error
        except SpoolError as error:
            raise ForwardError(f"{refused}, and is {error}") from error
        with plain.open("rb") as file:
            return store(file, meta.of_copy(read_file_meta(file)))
