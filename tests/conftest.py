"""Fixtures for every test."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog
from peer_tools import missing

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker

# Last, so that what is installed is tested: a spawned process looks for `tests.…` there.
sys.path.append(str(Path(__file__).parents[1]))

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def loops_compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile the loops over samples once, so that nothing is timed with its compiler."""
    ring = KeyRing.open(tmp_path_factory.mktemp("warm") / "keys", owner="TESTS", create=True)
    Marker(WatermarkConfig(), ring, open_engine("onnx")).warm_up()


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what commands set up inside a test or fixture: level, and a stream closed by now."""
    structlog.reset_defaults()
    with warnings.catch_warnings():
        yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real medical data; skips where it is missing."""
    root = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DICOM_NODE_SHARED", root)) / "data"
    if not (folder / "MANIFEST.csv").is_file():
        missing(f"REAL DATA MISSING: no {folder}/MANIFEST.csv; set DICOM_NODE_SHARED")
    return folder
