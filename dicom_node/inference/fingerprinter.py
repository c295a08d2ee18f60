"""The networks of the content fingerprint f: one makes it, one finds what was changed since.

Both run in ONNX Runtime on one CPU thread, on every machine: marking needs 1 ms of the smaller
one, less than a copy to a device and back costs.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32
from dicom_node.inference.catalogue import file_as_on_card, folder
from dicom_node.inference.sessions import open_session

if TYPE_CHECKING:
    import onnxruntime as ort

CODER, COMPARATOR = "f1.onnx", "f1_check.onnx"


@dataclass(frozen=True)
class FingerprintCard:
    """``[fingerprint]`` of ``card.toml``.

    Attributes
    ----------
    model
        Which networks: 1..255, the first byte of every fingerprint.
    side, cells, bits
        Side of the frame they see, side of the grid of cells, bits of a cell.
    alarm
        Score from which one cell shows that a frame was changed: of frames that were processed
        and not changed, about one in a hundred has such a cell.
    near
        Score from which a cell beside such a cell counts as changed, too.
    """

    folder: Path
    model: int
    side: int
    cells: int
    bits: int
    alarm: float
    near: float
    files: dict[str, str]

    def path(self, file: str) -> Path:
        """Return the path of `file` after checking that it is what the card says (EngineError)."""
        return file_as_on_card(self.folder, file, self.files)


def read_fingerprint_card(where: Path | None = None) -> FingerprintCard:
    """Read ``[fingerprint]`` of ``card.toml`` (EngineError when it is missing or incomplete)."""
    where = where or folder()
    try:
        table: dict[str, Any] = tomllib.loads((where / "card.toml").read_text("utf-8"))
        told = table["fingerprint"]
        return FingerprintCard(
            where, told["model"], told["side"], told["cells"], told["bits"], told["alarm"],
            told["near"], dict(told["files"]),
        )  # fmt: skip
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise EngineError(f"{where / 'card.toml'}: no fingerprint: {error}: reinstall") from error


class Fingerprinter:
    """The networks of f. The comparator is loaded when it is first asked: marking needs none.

    Raises
    ------
    EngineError
        A file is not what the card says, or of another shape.
    """

    def __init__(self, card: FingerprintCard) -> None:
        self.card = card
        frame, code = [1, card.side, card.side], [card.bits, card.cells, card.cells]
        self._coder = _session(card, CODER, [frame], code)
        self._comparator: ort.InferenceSession | None = None

    def code(self, seen: Float32) -> NDArray[np.bool_]:
        """Return the code of a frame, ``(bits, cells, cells)``.

        Parameters
        ----------
        seen
            Display values 0..1, ``(side, side)``.
        """
        logits: Float32 = self._coder.run(None, {"frame": _batched(seen)})[0][0]
        return logits > 0

    def changed(self, seen: Float32, code: NDArray[np.bool_]) -> Float32:
        """Return how much each cell looks changed since `code` was made, ``(cells, cells)``.

        A log-likelihood: above 0 rather changed, below 0 rather not.
        """
        if self._comparator is None:
            card = self.card
            frame, cells = [1, card.side, card.side], [card.cells, card.cells]
            self._comparator = _session(card, COMPARATOR, [frame, [card.bits, *cells]], cells)
        signs = np.where(code, np.float32(1), np.float32(-1))[None]
        asked = {"frame": _batched(seen), "code": signs}
        scores: Float32 = self._comparator.run(None, asked)[0][0]
        return scores


@lru_cache(maxsize=2)
def open_fingerprinter(where: Path | None = None) -> Fingerprinter:
    """Return the networks of f, loaded once a process (EngineError, see `Fingerprinter`)."""
    return Fingerprinter(read_fingerprint_card(where))


def _batched(seen: Float32) -> Float32:
    return np.ascontiguousarray(seen, np.float32)[None, None]


def _session(
    card: FingerprintCard, file: str, takes: list[list[int]], gives: list[int]
) -> ort.InferenceSession:
    """Open a network; its shapes are told without the batch."""
    path = card.path(file)
    session = open_session(path)
    inputs = [each.shape[1:] for each in session.get_inputs()]
    output = session.get_outputs()[0].shape[1:]
    if inputs != takes or output != gives:
        raise EngineError(f"{path}: takes {inputs} and gives {output}: reinstall")
    return session
