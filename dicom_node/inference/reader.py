"""R2, the second look: twice D1's resolution, for pictures in which D1 reads nothing.

Only reading asks it, never marking: no mark depends on it, and it may change without one changing.
It runs in ONNX Runtime on one CPU thread on every machine: some milliseconds for a picture that was
found wanting already.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32
from dicom_node.inference.catalogue import load_patterns, patterns_id, read_card
from dicom_node.inference.sessions import open_session

# By how often the carrier is folded: of frames up to 96 pixels twice.
FILES = {1: "r2.onnx", 2: "r2_small.onnx"}


class WeakReader:
    """R2 of one model; its output goes to the carrier patterns as D1's does.

    Parameters
    ----------
    path
        Of one of `FILES`, checked against its card.
    side
        Of what it gives, D1's or half of it; R2 takes pictures of twice that.

    Attributes
    ----------
    side
        Of the pictures it takes.

    Raises
    ------
    EngineError
        ONNX Runtime cannot load it, or it is of another shape.
    """

    def __init__(self, path: Path, side: int) -> None:
        self.side = 2 * side
        self._session = open_session(path)
        taken = self._session.get_inputs()[0].shape[-2:]
        given = self._session.get_outputs()[0].shape[-1]
        if taken != [self.side, self.side] or given != side * side:
            raise EngineError(f"{path}: takes {taken} and gives {given} samples: reinstall")

    def whiten(self, pictures: Float32) -> Float32:
        """Return what the patterns, folded or not, are looked for in, ``(batch, samples)``.

        Parameters
        ----------
        pictures
            Display values 0..1, ``(batch, 1, side, side)``.
        """
        whitened: Float32 = self._session.run(None, {"picture": pictures})[0]
        return whitened


@lru_cache(maxsize=4)
def open_reader(
    model_id: bytes, where: Path | None = None, *, folds: int = 1
) -> WeakReader | None:
    """Return R2 of the model with these patterns, loaded once a process; None where it has none.

    Parameters
    ----------
    folds
        2: for carriers that are folded.

    Raises
    ------
    EngineError
        The card or the file is damaged.
    """
    card = read_card(where)
    file = FILES[folds]
    if file not in card.files or patterns_id(load_patterns(card)) != model_id:
        return None
    return WeakReader(card.path(file), card.side // folds)
