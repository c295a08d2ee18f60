"""The markers of a worker: one for each key it may have to sign with, all on one engine.

One instance is marked by one backend from its first frame to its last: sent again, it has to give
the same bytes, and two backends may choose otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from dicom_node.config import Config
from dicom_node.errors import KeyRingError
from dicom_node.inference import RobustEngine, open_engine
from dicom_node.inference.catalogue import read_card
from dicom_node.inference.remote import RemoteEngine
from dicom_node.inference.service import folder_of
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, MarkOutcome
from dicom_node.naming import Names

_log = structlog.get_logger(__name__)


class Markers:
    """Gives the marker for a key id; the networks are shared by all.

    Parameters
    ----------
    ring
        The newest of it marks what nobody marked before.
    names
        Who says under which UIDs instances are sent; None: under their own.
    index, inference
        Which worker this is, and how many inference processes there are. With none, the worker
        runs the networks itself, on what ``watermark.engine`` says.

    Raises
    ------
    EngineError, WatermarkError
        No engine, or it does not mark.
    """

    def __init__(
        self, config: Config, ring: KeyRing, names: Names | None = None, *, index: int = 0,
        inference: int = 0,
    ) -> None:  # fmt: skip
        self._settings, self._ring, self._names = config.watermark, ring, names
        self._remote: RemoteEngine | None = None
        self._own = open_engine("onnx" if inference else config.watermark.engine)
        if inference:
            turns = [(index + each) % inference for each in range(inference)]
            folders = [folder_of(config, each) for each in turns]
            self._remote = RemoteEngine(folders, self._own, read_card())
        self._made: dict[tuple[bytes, bool], Marker] = {}
        # Whoever answers, the loops over samples are compiled, and our own engine works.
        # A picture of its own, of which the journal need not know.
        Marker(self._settings, ring, self._own).warm_up()
        self.on_our_own(None)

    def __call__(self, key_id: bytes | None) -> Marker | OneBackend:
        """Return the marker that signs with `key_id` (None: the current key).

        Raises
        ------
        KeyRingError
            The ring has no such key.
        """
        if self._remote is None:
            return self.on_our_own(key_id)
        self._remote.settle()
        return OneBackend(
            self._marker(key_id, self._remote), self.on_our_own(key_id), self._remote
        )

    def on_our_own(self, key_id: bytes | None) -> Marker:
        """Return the marker that asks no other process (KeyRingError)."""
        return self._marker(key_id, self._own)

    def _marker(self, key_id: bytes | None, engine: RobustEngine) -> Marker:
        keys = self._ring.current if key_id is None else self._ring.get(key_id)
        if keys is None:
            assert key_id is not None
            raise KeyRingError(
                f"the key ring has no key {key_id.hex()}, which marked this instance before;"
                " put it back into keys.directory"
            )
        which = keys.key_id, engine is self._own
        if which not in self._made:
            # The newest of a ring signs: the ring as it was when that key was the newest.
            then = KeyRing(tuple(k for k in self._ring.all() if k.created <= keys.created))
            self._made[which] = Marker(self._settings, then, engine, names=self._names)
        return self._made[which]


@dataclass(frozen=True)
class OneBackend:
    """Marks through the inference process; anew, on our own, what it was lost over."""

    shared: Marker
    own: Marker
    engine: RemoteEngine

    def mark(
        self, source: Path, out: Path, *, marked_at: datetime, released: bool = False
    ) -> MarkOutcome:
        """Mark one instance, see `Marker.mark`."""
        losses = self.engine.losses
        outcome = self.shared.mark(source, out, marked_at=marked_at, released=released)
        if self.engine.losses == losses:
            return outcome
        _log.info("marked_anew", reason="the inference process was lost over it")
        out.unlink(missing_ok=True)
        return self.own.mark(source, out, marked_at=marked_at, released=released)
