"""Fixtures for every test."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a command run inside the test set up: its stream is closed with the test."""
    before = structlog.get_config()
    with warnings.catch_warnings():
        yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real medical data; skips where it is missing."""
    root = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DICOM_NODE_SHARED", root)) / "data"
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"REAL DATA MISSING: no {folder}/MANIFEST.csv; set DICOM_NODE_SHARED")
    return folder
