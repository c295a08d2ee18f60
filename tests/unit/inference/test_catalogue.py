"""The networks are what their card says, or they are refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dicom_node.errors import EngineError
from dicom_node.inference import catalogue, check_engines, list_engines, open_engine
from dicom_node.inference.onnx import OnnxEngine
from dicom_node.inference.onnx_cuda import OnnxCudaEngine


def cuda(card: catalogue.Card) -> OnnxCudaEngine:
    """Open the third backend on the provider that is here."""
    return OnnxCudaEngine(card, "CPUExecutionProvider")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a copy of the installed networks that a test may damage."""
    source = catalogue.folder()
    for name in ("card.toml", *catalogue.read_card(source).files):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


def _reseal(folder: Path, name: str) -> None:
    """Write the card anew so that it vouches for a changed file."""
    card = catalogue.read_card(folder)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = (folder / "card.toml").read_text("utf-8").replace(card.files[name], digest)
    (folder / "card.toml").write_text(text, "utf-8")


def test_every_file_of_the_installed_networks_passes_its_check() -> None:
    rows = check_engines()
    assert {str(row["name"]) for row in rows} >= {
        "patterns.npy",
        "strength.onnx",
        "d1.onnx",
        "onnx",
    }
    assert all(row["ok"] for row in rows), rows


def test_the_networks_take_at_most_eight_megabytes() -> None:
    sizes = [row["bytes"] for row in list_engines()]
    assert sum(int(str(size)) for size in sizes) <= 8 << 20


@pytest.mark.parametrize("name", ["patterns.npy", "strength.onnx", "d1.onnx"])
def test_a_file_altered_by_one_bit_is_refused_by_name(installed: Path, name: str) -> None:
    data = bytearray((installed / name).read_bytes())
    data[-1] ^= 1
    (installed / name).write_bytes(bytes(data))
    with pytest.raises(EngineError, match=f"{name}.*altered or damaged"):
        assert open_engine("onnx", installed).patterns.size


def test_a_missing_file_is_named(installed: Path) -> None:
    (installed / "d1.onnx").unlink()
    with pytest.raises(EngineError, match=r"d1\.onnx.*cannot be read"):
        open_engine("onnx", installed)


def test_patterns_of_another_shape_are_refused(installed: Path) -> None:
    np.save(installed / "patterns.npy", np.zeros((3, 16), np.int8))
    _reseal(installed, "patterns.npy")
    with pytest.raises(EngineError, match="expected int8"):
        assert open_engine("onnx", installed).patterns.size


def test_a_network_of_another_shape_is_refused(installed: Path) -> None:
    shutil.copy(installed / "strength.onnx", installed / "d1.onnx")
    _reseal(installed, "d1.onnx")
    with pytest.raises(EngineError, match="do not fit their card"):
        open_engine("onnx", installed)


@pytest.mark.parametrize("opened", [OnnxEngine, cuda], ids=["onnx", "cuda"])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("strength.onnx", b"\x12\x05batch", b"\x08\x81\x80\x80\x80\x80\x00"),  # one frame only
        ("d1.onnx", b"\x12\x05batch", b"\x08\x81\x80\x80\x80\x80\x00"),
        ("strength.onnx", b"frame", b"image"),  # another name
        ("d1.onnx", b"frame", b"image"),
    ],
)
def test_a_network_of_one_batch_or_another_input_is_refused_when_it_is_opened(
    installed: Path, opened: Callable[[catalogue.Card], object], name: str, before: bytes,
    after: bytes,
) -> None:  # fmt: skip
    blob = (installed / name).read_bytes()
    assert before in blob
    (installed / name).write_bytes(blob.replace(before, after))
    _reseal(installed, name)
    with pytest.raises(EngineError, match=f"{name}: .*(do not fit their card|cannot load)"):
        opened(catalogue.read_card(installed))


@pytest.mark.parametrize("opened", [OnnxEngine, cuda], ids=["onnx", "cuda"])
@pytest.mark.parametrize("name", ["strength.onnx", "d1.onnx"])
def test_every_backend_refuses_a_network_of_another_shape_or_of_other_bytes(
    installed: Path, opened: Callable[[catalogue.Card], object], name: str
) -> None:
    [other] = {"strength.onnx", "d1.onnx"} - {name}
    shutil.copy(installed / other, installed / name)
    with pytest.raises(EngineError, match=f"{name}.*altered or damaged"):
        opened(catalogue.read_card(installed))
    _reseal(installed, name)
    with pytest.raises(EngineError, match=f"{name}: .*do not fit their card"):
        opened(catalogue.read_card(installed))


def test_what_is_no_network_at_all_is_refused(installed: Path) -> None:
    (installed / "strength.onnx").write_bytes(b"not a network")
    _reseal(installed, "strength.onnx")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load it"):
        open_engine("onnx", installed)


def test_an_incomplete_card_is_refused(installed: Path) -> None:
    (installed / "card.toml").write_text("[model]\nname = 'w1'\n", "utf-8")
    with pytest.raises(EngineError, match="unreadable or incomplete"):
        catalogue.read_card(installed)


def test_a_backend_that_is_not_here_says_what_to_write_instead() -> None:
    with pytest.raises(EngineError, match='engine = "onnx"'):
        open_engine("tensorrt")


def test_soft_bits_do_not_depend_on_the_batch() -> None:
    engine = open_engine("onnx")
    frames = np.random.default_rng(1).random((3, 1, engine.side, engine.side)).astype(np.float32)
    together = engine.decode(frames)
    alone = np.concatenate([engine.decode(frames[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
