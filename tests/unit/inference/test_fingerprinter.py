"""The networks of the fingerprint are what their card says, or they are refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import EngineError
from dicom_node.inference import catalogue, check_engines, list_engines
from dicom_node.inference.fingerprinter import (
    CODER,
    COMPARATOR,
    Fingerprinter,
    open_fingerprinter,
    read_fingerprint_card,
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a copy of the installed networks that a test may damage."""
    source = catalogue.folder()
    for name in ("card.toml", CODER, COMPARATOR):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


def seen(folder: Path) -> np.ndarray:
    card = read_fingerprint_card(folder)
    y, x = np.mgrid[: card.side, : card.side]
    return (0.5 + 0.3 * np.sin(x / 9) * np.cos(y / 7)).astype(np.float32)


def use_both(folder: Path) -> None:
    network, frame = Fingerprinter(read_fingerprint_card(folder)), seen(folder)
    network.changed(frame, network.code(frame))


def test_the_networks_are_listed_and_pass_their_check() -> None:
    assert {CODER, COMPARATOR} <= {row["file"] for row in list_engines()}
    rows = {row["name"]: row for row in check_engines()}
    assert rows[CODER]["ok"]
    assert rows[COMPARATOR]["ok"]
    assert rows["fingerprint"]["ok"], rows["fingerprint"]


def test_the_same_frame_has_the_same_code(installed: Path) -> None:
    """And a code is of the shape that the card says."""
    card, frame = read_fingerprint_card(installed), seen(installed)
    codes = [Fingerprinter(card).code(frame) for _ in range(2)]
    assert codes[0].shape == (card.bits, card.cells, card.cells)
    assert (codes[0] == codes[1]).all()


def test_they_are_loaded_once_a_process() -> None:
    assert open_fingerprinter() is open_fingerprinter()


@pytest.mark.parametrize("name", [CODER, COMPARATOR])
def test_a_file_altered_by_one_bit_is_refused_by_name(installed: Path, name: str) -> None:
    data = bytearray((installed / name).read_bytes())
    data[len(data) // 2] ^= 1
    (installed / name).write_bytes(bytes(data))
    with pytest.raises(EngineError, match=f"{name}.*altered or damaged"):
        use_both(installed)


def test_a_card_without_a_fingerprint_is_refused(installed: Path) -> None:
    text = (installed / "card.toml").read_text("utf-8")
    (installed / "card.toml").write_text(text.split("[fingerprint]")[0], "utf-8")
    with pytest.raises(EngineError, match="no fingerprint"):
        read_fingerprint_card(installed)


@pytest.mark.parametrize("name", [CODER, COMPARATOR])
def test_a_network_of_another_shape_is_refused(installed: Path, name: str) -> None:
    shutil.copy(catalogue.folder() / "strength.onnx", installed / name)
    card = installed / "card.toml"
    digest = hashlib.sha256((installed / name).read_bytes()).hexdigest()
    wanted = read_fingerprint_card(installed).files[name]
    card.write_text(card.read_text("utf-8").replace(wanted, digest), "utf-8")
    with pytest.raises(EngineError, match=f"{name}: takes"):
        use_both(installed)
