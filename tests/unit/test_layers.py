"""Who may import whom, and what an installed package must carry."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
HEAVY = ("onnxruntime", "cv2", "numba")
FORCED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def test_no_module_imports_upwards_or_sideways() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("dicom_node.cli.main", ("onnxruntime", "pydicom", "pynetdicom", "cv2", "numba")),
        ("dicom_node.node", ("onnxruntime", "pydicom", "pynetdicom", "dicom_node.keys", "numba")),
        ("dicom_node.receive", (*HEAVY, "dicom_node.keys", "dicom_node.watermark")),
        ("dicom_node.registering", (*HEAVY, "pydicom", "pynetdicom")),
        ("dicom_node.forward", (*HEAVY, "dicom_node.keys", "dicom_node.watermark")),
    ],
)
def test_a_process_loads_only_what_it_needs(module: str, forbidden: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_asking_every_command_for_its_options_loads_nothing_heavy() -> None:
    script = (
        "import sys; from dicom_node.cli.main import build_parser; build_parser()\n"
        f"print([m for m in {(*HEAVY, 'pydicom', 'pynetdicom')!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_wheel_carries_every_file_on_the_card_and_the_defaults() -> None:
    card = tomllib.loads((ROOT / "engines" / "card.toml").read_text("utf-8"))
    for name in ("card.toml", *card["files"]):
        assert FORCED[f"engines/{name}"] == f"dicom_node/engines_data/{name}"
    assert FORCED["engines/check_frames.npy"] == "dicom_node/engines_data/check_frames.npy"
    assert FORCED["conf/node.toml"] == "dicom_node/node.toml"
    if card.get("former"):
        # Marks made with the patterns of former models come off with nothing else.
        assert FORCED["engines/patterns"] == "dicom_node/engines_data/patterns"


def test_what_the_wheel_carries_exists() -> None:
    for source in FORCED:
        assert (ROOT / source).exists(), source
