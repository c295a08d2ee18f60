"""Generated objects of every form, real objects by name, a key ring."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_objects import Making
from peer_tools import needed

from dicom_node.keys import KeyRing


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a generated object and returns its path."""

    def write(codes: np.ndarray, **options: Any) -> Path:
        name = options.pop("name", "source.dcm")
        return Making(codes, **options).save(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def objects(shared: Path) -> list[dict[str, str]]:
    """Return the manifest's rows of real DICOM objects."""
    with (shared / "MANIFEST.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["path"].startswith("dicom/")]


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.open(tmp_path_factory.mktemp("keys") / "ring", owner="TESTS", create=True)


@pytest.fixture
def dcmtk() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a DCMTK (or dicom3tools) program."""

    def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [needed(tool), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run
