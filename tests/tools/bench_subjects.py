"""Subjects of the robustness bench as they stand in a list: nothing is read from their files."""

from __future__ import annotations

from pathlib import Path

from dicom_node.bench.robustness.subjects import Subject


def subject(modality: str, shape: tuple[int, int] = (64, 80), message: str = "00" * 12,
            path: str = "a.dcm", frame: int = 1) -> Subject:  # fmt: skip
    """Return a marked frame of 44 dB; without `message` one that carries no mark."""
    return Subject(Path("00001/00000.npz"), path, modality, frame, *shape, message, 44.0, 0.99)
