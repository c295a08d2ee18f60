"""A picture that was found, beside the frame it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.config import Config
from dicom_node.errors import NodeError, PixelError
from dicom_node.inference.base import Float32
from dicom_node.instance.datafile import open_data_file
from dicom_node.matching import Match
from dicom_node.registry import MarkedInstance
from dicom_node.spool import Spool
from dicom_node.tracing import frame_display

Fetch = Callable[[MarkedInstance], Path | None]
"""Brings one instance from the PACS; None if that has it no more."""
HEIGHT_PX = 512
_GAP_PX = 12
_SOP_INSTANCE_UID = 0x00080018


class SideBySide:
    """Draws pictures into a folder.

    Parameters
    ----------
    beside
        Files and folders where instances may lie, beside the node's own spool.
    fetch
        Asked for a file where neither has one; None: nothing is fetched.
    """

    def __init__(
        self, config: Config, folder: Path, beside: Sequence[Path], fetch: Fetch | None = None
    ) -> None:
        self._config = config
        self._folder = folder
        self._beside = beside
        self._fetch = fetch
        self._known: dict[str, Path] | None = None

    def draw(self, path: Path, picture: Float32, match: Match) -> str:
        """Write the picture and its frame; return what was done, in words.

        Raises
        ------
        NodeError
            If it cannot be written, or the PACS cannot be asked.
        """
        file = self._file_of(match.found.instance)
        if file is None:
            return "(no file of that instance here to show beside it)"
        frame = frame_display(file, match.found.frame)
        both = np.hstack([_scaled(picture), np.full((HEIGHT_PX, _GAP_PX), 255, np.uint8),
                          _scaled(frame)])  # fmt: skip
        digest = hashlib.sha256(str(path.absolute()).encode("utf-8", "surrogateescape"))
        out = self._folder / f"{path.stem}-{digest.hexdigest()[:8]}.png"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            out.write_bytes(cv2.imencode(".png", both)[1].tobytes())
        except OSError as error:
            raise PixelError(f"{out}: {error.strerror or error}") from error
        return f"see {out}"

    def _file_of(self, instance: MarkedInstance) -> Path | None:
        if self._known is None:
            self._known = dict(self._named())
        uid = instance.sop_instance_uid
        if uid not in self._known:
            found = self._in_spool(uid) or (self._fetch(instance) if self._fetch else None)
            if found is None:
                return None
            self._known[uid] = found
        return self._known[uid]

    def _in_spool(self, sop_instance_uid: str) -> Path | None:
        if not (self._config.spool.directory / "journal.sqlite").is_file():
            return None
        with Spool(self._config.spool) as spool:
            jobs = spool.jobs(sop_instance_uid=sop_instance_uid)
        files = [file for job in reversed(jobs) for file in (job.result, job.path) if file]
        return next((file for file in files if file.is_file()), None)

    def _named(self) -> Iterator[tuple[str, Path]]:
        """Yield the SOP Instance UIDs of the files named; what is no DICOM file is passed over."""
        for path in self._beside:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if not file.is_file():
                    continue
                try:
                    with closing(open_data_file(file)) as data:
                        yield data.text(_SOP_INSTANCE_UID).strip(" \0"), file
                except (NodeError, OSError, ValueError, LookupError):
                    continue


def _scaled(picture: Float32) -> NDArray[np.uint8]:
    scale = HEIGHT_PX / picture.shape[0]
    size = max(1, round(picture.shape[1] * scale)), HEIGHT_PX
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    shown = cv2.resize(np.asarray(picture, np.float32), size, interpolation=way)
    return np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
