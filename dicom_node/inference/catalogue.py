"""Find the networks, check them against their card, open them on the best backend."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, RobustEngine


@dataclass(frozen=True)
class Card:
    """A machine-read model card (``card.toml``): what the files are and what they must hash to."""

    folder: Path
    name: str
    version: str
    side: int
    code_bits: int
    grid: int
    files: dict[str, str]  # file name -> SHA-256, hex

    def path(self, file: str) -> Path:
        """Return the path of `file` after checking that it is what the card says (EngineError)."""
        if file not in self.files:
            raise EngineError(f"{self.folder / 'card.toml'}: names no file {file}")
        path = self.folder / file
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}; reinstall") from error
        if digest != self.files[file]:
            raise EngineError(
                f"{path}: SHA-256 {digest[:16]}... is not the card's {self.files[file][:16]}...; "
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
        return Card(where, model["name"], model["version"], model["side"], model["code_bits"],
                    model["grid"], dict(table["files"]))  # fmt: skip
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise EngineError(f"{where / 'card.toml'}: unreadable or incomplete: {error}") from error


def load_patterns(card: Card) -> Float32:
    """Return the carrier patterns as float32 whole numbers, ``(code_bits, side * side)``."""
    patterns = np.load(card.path("patterns.npy"), allow_pickle=False)
    if patterns.shape != (card.code_bits, card.side**2) or patterns.dtype != np.int8:
        raise EngineError(
            f"patterns.npy: {patterns.dtype} {patterns.shape}, expected int8 "
            f"({card.code_bits}, {card.side**2})"
        )
    whole: Float32 = patterns.astype(np.float32)
    return whole


def patterns_id(patterns: Float32) -> bytes:
    """Return the first four bytes of the SHA-256 of the patterns, by which records name them."""
    return hashlib.sha256(patterns.astype(np.int8).tobytes()).digest()[:4]


def open_engine(choice: str = "auto", where: Path | None = None) -> RobustEngine:
    """Return W1's networks on the backend `choice`: ``auto``, ``onnx`` or ``tensorrt``.

    Raises
    ------
    EngineError
        The weights do not match their card, or the backend is not on this machine.
    """
    from dicom_node.inference.onnx import OnnxEngine

    if choice == "tensorrt":
        raise EngineError('no TensorRT on this machine; set engine = "onnx" or "auto"')
    return OnnxEngine(read_card(where))


def list_engines() -> list[dict[str, object]]:
    """Return one row per network file: name, version, backend, file, bytes and SHA-256."""
    card = read_card()
    return [
        {"name": card.name, "version": card.version, "backend": "onnx", "file": file,
         "bytes": (card.folder / file).stat().st_size if (card.folder / file).is_file() else None,
         "sha256": digest}
        for file, digest in card.files.items()
    ]  # fmt: skip


def check_engines() -> list[dict[str, object]]:
    """Check every file against its card, then mark and read a picture on every backend here."""
    rows: list[dict[str, object]] = []
    card = read_card()
    for file in card.files:
        try:
            card.path(file)
        except EngineError as error:
            rows.append({"name": file, "ok": False, "detail": str(error)})
        else:
            rows.append({"name": file, "ok": True, "detail": "SHA-256 as on the card"})
    rows.append(_round_trip())
    return rows


def _round_trip() -> dict[str, object]:
    try:
        engine = open_engine("onnx")
    except EngineError as error:
        return {"name": "onnx", "ok": False, "detail": str(error)}
    rng = np.random.default_rng(7)
    side, ramp = engine.side, np.linspace(0.2, 0.8, engine.side, dtype=np.float32)
    texture = rng.normal(0, 0.02, (side, side)).astype(np.float32)
    frame = np.clip(ramp[:, None] * 0.5 + ramp[None] * 0.5 + texture, 0, 1)[None, None]
    word = rng.choice(np.array([-1, 1], np.float32), (1, engine.code_bits))
    amplitudes, strengths = engine.encode(frame, word, np.full((1, 1), 0.007, np.float32))
    carrier = (amplitudes @ engine.patterns).reshape(1, 1, side, side)
    shaped = carrier * np.kron(strengths[0], np.ones((side // engine.grid,) * 2, np.float32))
    marked = frame + shaped * (0.007 / max(float(np.sqrt(np.mean(shaped**2))), 1e-9))
    right = float(np.mean(np.sign(engine.decode(marked.astype(np.float32))) == word))
    return {"name": engine.name, "ok": right > 0.95, "detail": f"bit accuracy {right:.3f}"}
