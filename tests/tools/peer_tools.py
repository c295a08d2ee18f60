"""Programs that tests run beside ours: skipped loudly where missing, failed where required."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(tool: str, unchecked: str = "its tests do not run; `make peers` installs it") -> str:
    """Return the program's path; without it skip, or fail with DICOM_NODE_REQUIRE_PEERS=1."""
    path = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        said = f"{tool.upper()} IS MISSING: {unchecked}"
        if os.environ.get("DICOM_NODE_REQUIRE_PEERS"):
            pytest.fail(said)
        pytest.skip(said)
    return path
