"""Find the networks and the carrier patterns, and check them against their card."""

from __future__ import annotations

import hashlib
import math
import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Int8, Loop

FORMER = "patterns"  # folder of the carrier patterns of former models


@dataclass(frozen=True)
class Card:
    """A machine-read model card (``card.toml``): what the files are and what they must hash to.

    Attributes
    ----------
    files, former
        File name -> SHA-256, hex: of the model in use, and of the carrier patterns of models before
        it, which take off the marks made with them. A former file is ``patterns/<id>.npy``.
    """

    folder: Path
    name: str
    version: str
    side: int
    code_bits: int
    grid: int
    loop: Loop
    files: dict[str, str]
    former: dict[str, str] = field(default_factory=dict)

    def path(self, file: str) -> Path:
        """Return the path of `file` after checking that it is what the card says (EngineError)."""
        return file_as_on_card(self.folder, file, {**self.former, **self.files})


def file_as_on_card(folder: Path, file: str, files: dict[str, str]) -> Path:
    """Return the path of `file` after checking it against its SHA-256 in `files` (EngineError)."""
    wanted = files.get(file)
    if wanted is None:
        raise EngineError(f"{folder / 'card.toml'}: names no file {file}")
    path = folder / file
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}; reinstall") from error
    if digest != wanted:
        raise EngineError(
            f"{path}: SHA-256 {digest[:16]}... is not the card's {wanted[:16]}...; "
            "the file was altered or damaged: reinstall"
        )
    return path


def folder() -> Path:
    """Return the folder of the networks: packaged with the wheel, or beside the source tree."""
    packaged = Path(str(resources.files("dicom_node"))) / "engines_data"
    beside = Path(__file__).resolve().parents[2] / "engines"
    for candidate in (packaged, beside):
        if (candidate / "card.toml").is_file():
            return candidate
    raise EngineError(f"no networks found in {packaged} nor {beside}: reinstall the package")


def read_card(where: Path | None = None) -> Card:
    """Read ``card.toml`` (EngineError when it is missing or incomplete)."""
    where = where or folder()
    try:
        table: dict[str, Any] = tomllib.loads((where / "card.toml").read_text("utf-8"))
        model = table["model"]
        loop = Loop(tuple(model["step"]), tuple(model["softness"]))
        return Card(where, model["name"], model["version"], model["side"], model["code_bits"],
                    model["grid"], loop, dict(table["files"]),
                    dict(table.get("former", {})))  # fmt: skip
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise EngineError(f"{where / 'card.toml'}: unreadable or incomplete: {error}") from error


def load_patterns(card: Card) -> Int8:
    """Return the carrier patterns, -127..127, ``(code_bits, side * side)``."""
    patterns = np.load(card.path("patterns.npy"), allow_pickle=False)
    if patterns.shape != (card.code_bits, card.side**2) or patterns.dtype != np.int8:
        raise EngineError(
            f"patterns.npy: {patterns.dtype} {patterns.shape}, expected int8 "
            f"({card.code_bits}, {card.side**2})"
        )
    whole: Int8 = np.ascontiguousarray(patterns)
    return whole


def patterns_id(patterns: Int8) -> bytes:
    """Return the first four bytes of the SHA-256 of the patterns, by which records name them."""
    return hashlib.sha256(patterns.tobytes()).digest()[:4]


@lru_cache(maxsize=8)
def patterns_for(model_id: bytes, where: Path | None = None) -> Int8:
    """Return the carrier patterns a record names, of this model or of one before it.

    Parameters
    ----------
    model_id
        As in the record: `patterns_id` of the patterns the mark was made with.

    Returns
    -------
    numpy.ndarray
        -127..127, ``(code_bits, side * side)`` of that model; not to be written to.

    Raises
    ------
    EngineError
        No model on the card has them, or their file is missing, altered or damaged.
    """
    card = read_card(where)
    current = load_patterns(card)
    file = f"{FORMER}/{model_id.hex()}.npy"
    if patterns_id(current) == model_id:
        found = current
    elif file in card.former:
        found = _former(card, file, model_id)
    else:
        known = [patterns_id(current).hex(), *(Path(each).stem for each in card.former)]
        raise EngineError(
            f"the mark was made with carrier patterns {model_id.hex()}, this installation has "
            f"{', '.join(known)}; restore with the version that marked it"
        )
    found.setflags(write=False)
    return found


def _former(card: Card, file: str, model_id: bytes) -> Int8:
    """Load the patterns of a former model, which may have had another shape."""
    path = card.path(file)
    try:
        patterns = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise EngineError(f"{path}: holds no patterns: {error}") from error
    square = patterns.ndim == 2 and math.isqrt(patterns.shape[1]) ** 2 == patterns.shape[1]
    if patterns.dtype != np.int8 or not square or patterns_id(patterns) != model_id:
        raise EngineError(f"{path}: are not the patterns {model_id.hex()}: reinstall")
    whole: Int8 = np.ascontiguousarray(patterns)
    return whole
