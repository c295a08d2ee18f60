"""Transcoding in a child: whoever sends it must go on when an image brings its decoder down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from dicom_node.child import ChildEnded, Workplace
from dicom_node.errors import DecoderLost, EngineError, PixelError, SpoolError
from dicom_node.logging import describe

_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Task:
    """One copy to write."""

    source: Path
    out: Path
    accepted: tuple[str, ...]
    max_pixels: int


class Transcoder:
    """Writes copies in other transfer syntaxes, one after another; several threads may ask.

    Its process is begun when the first copy is asked for.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._workplace = Workplace(__name__, lambda: None, _LONGEST_S)

    def __call__(
        self, source: Path, out: Path, accepted: tuple[str, ...],
        watch: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Write `source` to `out` in one of the `accepted` syntaxes, all it says unchanged.

        Parameters
        ----------
        out
            In a folder for nothing else: what a process leaves that ends half-way lies beside it.
        watch
            Called some times a second meanwhile; may raise.

        Raises
        ------
        PixelError
            It cannot be done: no such syntax is accepted, the copy would say something else, or the
            image ended the process that decoded it.
        SpoolError
            It was not done by a fault of ours, or of the machine.
        """
        task = Task(source, out, accepted, self._max_pixels)
        try:
            error = self._workplace.do(task, watch)
        except ChildEnded as ended:
            if ended.killed:
                raise SpoolError(f"not transcoded: that {ended}") from ended
            raise PixelError(f"that {ended}") from ended
        except EngineError as failed:
            raise SpoolError(f"not transcoded: {failed}") from failed
        if isinstance(error, PixelError):
            raise error
        if error is not None:
            raise SpoolError(f"not transcoded: {describe(error)}") from error

    def close(self) -> None:
        """End the process, whatever it does."""
        self._workplace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def begin(_setup: None) -> Callable[[Task], Exception | None]:
    """Return what writes a copy, and says why it did not (in the child)."""
    from dicom_node.instance.transcode import transcode

    def work(task: Task) -> Exception | None:
        try:
            transcode(task.source, task.out, task.accepted, max_pixels=task.max_pixels)
        except (PixelError, DecoderLost, OSError, MemoryError) as error:
            return error
        return None

    return work
