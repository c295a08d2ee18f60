"""Other exports than the plain one: another window, lossy JPEG 2000 of the stored values."""

from __future__ import annotations

from dicom_node.bench.attacks.base import Attack, Source, steady

_FAMILY = "export"


def _export(name: str, source: Source, target: float | None) -> Attack:
    return Attack(name, _FAMILY, steady(lambda p: p), target=target, source=source)


EXPORT: tuple[Attack, ...] = (
    _export("window 1.5 times as wide", "wide", 0.97),
    _export("window 0.6 times as wide", "narrow", 0.97),
    _export("window moved by a quarter", "shifted", 0.97),
    _export("JPEG 2000 20:1 of stored values", "stored", None),
)
