"""Recipes: what a model is trained with, one TOML file each, read into frozen sections.

A key that is unknown, missing or of another kind is an error that names it. Checkpoints store the
recipe as a table (:func:`table`); exporters read a setting out of it by name (:func:`flat`),
also out of checkpoints from before there were sections: names are unique within a recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Pair = tuple[float, float]


@dataclass(frozen=True)
class Model:
    code_bits: int
    width: int
    turns: int
    look_blur_px: float


@dataclass(frozen=True)
class Running:
    seed: int
    steps: int
    batch: int
    attacks: str  # "opencv" or "torch"
    precision: str  # "float32" or "bfloat16"
    cut: float
    average: float
    report_every: int
    save_every: int
    validate_every: int


@dataclass(frozen=True)
class Rates:
    patterns: float
    network: float
    warm_up: float


@dataclass(frozen=True)
class Strength:
    psnr_db: Pair
    psnr_ramp: float
    spread_db: Pair
    local_rms: float


@dataclass(frozen=True)
class Attacks:
    severity: Pair
    severity_ramp: float
    floor: float
    power: float
    memory: float
    refresh_every: int
    together: int
    jpeg_after: float


@dataclass(frozen=True)
class Loss:
    ssim: float
    unread: float
    enough: float


@dataclass(frozen=True)
class Adversary:
    weight: float
    starts: float
    features: int
    adversary_rate: float


@dataclass(frozen=True)
class Validation:
    every_psnr_db: float
    least_ssim: float


@dataclass(frozen=True)
class W1:
    """Patterns, D1 and E1 together: ``train_w1.py``."""

    model: Model
    run: Running
    rates: Rates
    strength: Strength
    attacks: Attacks
    loss: Loss
    adversary: Adversary
    validation: Validation


@dataclass(frozen=True)
class ReaderModel:
    folds: int
    width: int
    hidden: int


@dataclass(frozen=True)
class ReaderRun:
    seed: int
    steps: int
    batch: int
    average: float
    save_every: int
    validate_every: int


@dataclass(frozen=True)
class ReaderRates:
    network: float


@dataclass(frozen=True)
class ReaderLoss:
    enough: float
    unread: float


@dataclass(frozen=True)
class R2:
    """The reader: ``train_r2.py``."""

    model: ReaderModel
    run: ReaderRun
    rates: ReaderRates
    loss: ReaderLoss


@dataclass(frozen=True)
class FingerprintModel:
    bits: int
    width: int


@dataclass(frozen=True)
class FingerprintRun:
    seed: int
    steps: int
    batch: int
    save_every: int
    validate_every: int


@dataclass(frozen=True)
class FingerprintRates:
    network: float


@dataclass(frozen=True)
class FingerprintLoss:
    few_bits: float
    hardest: float
    steady: float


@dataclass(frozen=True)
class Fingerprint:
    """The content fingerprint: ``fingerprint.py``."""

    model: FingerprintModel
    run: FingerprintRun
    rates: FingerprintRates
    loss: FingerprintLoss


@dataclass(frozen=True)
class ComparatorModel:
    width: int
    rounds: int


@dataclass(frozen=True)
class ComparatorRun:
    seed: int
    steps: int
    batch: int
    save_every: int
    validate_every: int
    average: float


@dataclass(frozen=True)
class ComparatorRates:
    network: float
    decay: float


@dataclass(frozen=True)
class ComparatorLoss:
    hardest: float
    ranked: float


@dataclass(frozen=True)
class Comparator:
    """What compares a fingerprint with a picture: ``comparator.py``."""

    model: ComparatorModel
    run: ComparatorRun
    rates: ComparatorRates
    loss: ComparatorLoss


T = TypeVar("T")


def read(path: Path, kind: type[T]) -> T:
    """Return the recipe in a TOML file (SystemExit: which key is wrong, and what to do)."""
    with path.open("rb") as file:
        return build(tomllib.load(file), kind, str(path))


def build(table: dict[str, Any], kind: type[T], where: str) -> T:
    """Return a recipe or one of its sections from a table."""
    kinds = typing.get_type_hints(kind)
    for name in table:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(kinds)}"
            raise SystemExit(f"{where}: unknown key {name}{hint}")
    values = {}
    for name, wanted in kinds.items():
        if name not in table:
            raise SystemExit(f"{where}: {name} is missing")
        here = f"{where}: {name}"
        if dataclasses.is_dataclass(wanted):
            values[name] = build(table[name], typing.cast("type[Any]", wanted), here)
        else:
            values[name] = _value(table[name], wanted, here)
    return kind(**values)


def _value(value: Any, wanted: Any, where: str) -> Any:
    if wanted == Pair:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise SystemExit(f"{where} = {value!r}: two numbers are wanted")
        return tuple(_value(each, float, where) for each in value)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise SystemExit(f"{where} = {value!r}: {wanted.__name__} is wanted")
    return value


def table(recipe: Any) -> dict[str, Any]:
    """Return a recipe as plain tables, for a checkpoint."""
    return dataclasses.asdict(recipe)


def same(recipe: Any, checkpoint: Path) -> None:
    """Stop unless a checkpoint was made with this recipe: half of each is a run of neither."""
    import torch

    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)["recipe"]
    wanted = flat(table(recipe))
    differing = [k for k, v in flat(stored).items() if v != wanted.get(k)]
    if differing:
        raise SystemExit(f"{checkpoint} was made with another {', '.join(differing)}")


def flat(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a stored recipe by name, without their sections."""
    out: dict[str, Any] = {}
    for name, value in stored.items():
        out.update(value if isinstance(value, dict) else {name: value})
    return out
