"""Programs that tests run beside ours: skipped loudly where missing, failed where required."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

import dicom_node

PACKAGES = str(Path(dicom_node.__file__).parents[1])
"""Where the package under test was imported from; children get it on their PYTHONPATH."""
SYSTEM = "/usr/sbin:/usr/local/sbin"


def needed(
    tool: str, unchecked: str = "its tests do not run; `make peers` installs it",
    beside: str = SYSTEM,
) -> str:  # fmt: skip
    """Return the path of a program on PATH or `beside`; without it the test ends in `missing`."""
    path = shutil.which(tool) or shutil.which(tool, path=beside)
    return path or missing(f"{tool.upper()} IS MISSING: {unchecked}")


def missing(said: str) -> NoReturn:
    """Skip, or fail with DICOM_NODE_REQUIRE_PEERS=1."""
    if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
        pytest.fail(said)
    pytest.skip(said)
