"""A spool whose time is set by the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_node.config import SpoolConfig
from dicom_node.spool import Spool


@pytest.fixture
def clock() -> SimpleNamespace:
    """Return the time: ``clock.now``, in seconds, stands until a test moves it."""
    return SimpleNamespace(now=1_700_000_000.0)


@pytest.fixture
def settings(tmp_path: Path) -> SpoolConfig:
    return SpoolConfig(directory=tmp_path / "spool", min_free_mib=0, max_backlog=1000)


@pytest.fixture
def spool(settings: SpoolConfig, clock: SimpleNamespace) -> Iterator[Spool]:
    with Spool(settings, clock=lambda: float(clock.now)) as opened:
        yield opened
