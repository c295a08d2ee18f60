"""Keep the carrier patterns of the model that is being replaced: its marks come off only with them.

Called by the exporter before it writes new patterns; returns ``[former]`` of the next card.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import numpy as np


def keep_former(out: Path, patterns: np.ndarray) -> list[str]:
    """Copy ``patterns.npy`` of `out` to ``patterns/<id>.npy`` unless `patterns` are the same.

    Everything the present card lists as former is checked and stays; a card is never written that
    vouches for a damaged file, nor one from which a former model is missing.
    """
    card, present = out / "card.toml", out / "patterns.npy"
    former = tomllib.loads(card.read_text("utf-8")).get("former", {}) if card.is_file() else {}
    for name, wanted in former.items():
        if digest(out / name) != wanted:
            raise SystemExit(f"{out / name}: not what the card says; nothing written")
    if present.is_file():
        old = np.load(present, allow_pickle=False)
        name = f"patterns/{model_id(old)}.npy"
        if model_id(old) != model_id(patterns) and name not in former:
            (out / "patterns").mkdir(exist_ok=True)
            (out / name).write_bytes(present.read_bytes())
            former[name] = digest(out / name)
    former.pop(f"patterns/{model_id(patterns)}.npy", None)  # it is the present one again
    return ["", "[former]", *(f'"{name}" = "{former[name]}"' for name in sorted(former))]


def model_id(patterns: np.ndarray) -> str:
    """Return the id by which records name these patterns, hex."""
    return hashlib.sha256(patterns.tobytes()).hexdigest()[:8]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
