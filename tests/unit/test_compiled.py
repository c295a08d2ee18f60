"""Machine code of compiled loops: kept where it may be, and never that of another version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOP = """
import numpy as np
from dicom_node import compiled
from dicom_node.inference.correlator import superpose
total = superpose(np.array([2, -1], np.int32), np.array([[1, 5], [3, 4]], np.int8))
print(compiled._kept_in, total.tolist())
"""


def run(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # -B: Python's own cache of bytecode would take a source of the same time and size for the same.
    return subprocess.run(
        [sys.executable, "-B", "-c", LOOP], cwd=root, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
    )  # fmt: skip


def test_where_nothing_can_be_kept_the_loops_are_compiled_in_memory_and_that_is_said() -> None:
    done = run(ROOT, NUMBA_CACHE_DIR="/dev/null/nowhere")
    assert done.stdout.split() == ["None", "[-1,", "6]"]
    assert "set NUMBA_CACHE_DIR" in done.stderr


def test_code_is_kept_in_the_folder_of_the_environment(tmp_path: Path) -> None:
    done = run(ROOT, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.split()[1:] == ["[-1,", "6]"]
    assert list(tmp_path.glob("compiled-*/**/*.nbi"))


def test_a_change_in_any_source_of_a_loop_leaves_the_old_code_alone(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "dicom_node", tmp_path / "dicom_node", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")).stdout
    source = tmp_path / "dicom_node" / "inference" / "correlator.py"
    stat = source.stat()
    text = source.read_text("utf-8")
    source.write_text(text.replace("here[i] += amplitude", "here[i] -= amplitude"), "utf-8")
    # As wheels are unpacked: the same time and the same size whatever the version.
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source.stat().st_size == stat.st_size
    after = run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept")).stdout
    assert before.split()[1:] == ["[-1,", "6]"]
    assert after.split()[1:] == ["[1,", "-6]"]
    assert before.split()[0] != after.split()[0]
