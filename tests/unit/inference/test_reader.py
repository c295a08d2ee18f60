"""R2: reads what D1 reads, more of what it does not, and is refused when it is not its card's."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from dicom_node.errors import EngineError
from dicom_node.inference import open_engine
from dicom_node.inference.catalogue import folder
from dicom_node.inference.reader import FILES, WeakReader, open_reader
from dicom_node.watermark.robust import RobustWatermark, code_word


class Key:
    """A key set with nothing but what W1 needs."""

    robust_key, owner, key_id = b"k" * 32, "GENERAL-HOSPITAL", b"k" * 8


def _copied(to: Path) -> Path:
    for path in folder().iterdir():
        if path.is_file():
            shutil.copy(path, to / path.name)
    return to


@pytest.fixture(scope="module")
def marked(shared: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ten marked frames of the validation split, 8 bit, and their code words."""
    watermark = RobustWatermark(open_engine("onnx"))
    names = sorted((shared / "whole" / "val").rglob("*.webp"))
    pairs = []
    for name in names[:: max(1, len(names) // 10)][:10]:
        frame = cv2.imread(str(name), cv2.IMREAD_GRAYSCALE)
        mark = watermark.embed(frame.astype(np.int32), (frame / 255).astype(np.float32), step=1.0,
                               low=0, high=255, padding=None, key=Key())  # fmt: skip
        pairs.append((mark.marked.astype(np.uint8), code_word(mark.message, Key())))
    return pairs


def _agreement(soft: np.ndarray, word: np.ndarray) -> float:
    return float(soft @ word / (np.linalg.norm(soft) * np.sqrt(word.size)))


def test_under_noise_r2_agrees_more_with_the_message_than_d1(
    marked: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    watermark, rng, gains = RobustWatermark(open_engine("onnx")), np.random.default_rng(1), []
    for picture, word in marked:
        noise = 255 * np.sqrt(0.005) * rng.standard_normal(picture.shape)
        noisy = np.clip(np.rint(picture + noise), 0, 255) / 255
        frame = watermark.resample(noisy.astype(np.float32))[None]
        picture = watermark.resample(noisy.astype(np.float32), watermark.second_side)[None]
        d1, r2 = watermark.engine.decode(frame[:, None])[0], watermark.look_again(picture)[0]
        gains.append(_agreement(r2, word) - _agreement(d1, word))
    assert np.mean(gains) > 0.06
    assert sum(gain > 0 for gain in gains) >= len(gains) - 2


def test_noise_that_d1_does_not_read_is_read_in_most_frames(
    marked: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    watermark, rng = RobustWatermark(open_engine("onnx")), np.random.default_rng(2)
    plain, weak = 0, 0
    for picture, word in marked:
        noise = 255 * np.sqrt(0.003) * rng.standard_normal(picture.shape)
        noisy = (np.clip(np.rint(picture + noise), 0, 255) / 255).astype(np.float32)
        plain += watermark.detect(noisy, [Key()]).decoded
        found = watermark.detect(noisy, [Key()], weak=True)
        weak += found.decoded and bool((code_word(found.message, Key()) == word).all())
    assert weak >= len(marked) - 2
    assert weak >= plain + 3


def test_a_reader_for_other_patterns_is_not_used() -> None:
    assert open_reader(b"none") is None


@pytest.mark.parametrize(("folds", "file"), FILES.items())
def test_a_model_without_a_reader_reads_with_d1(folds: int, file: str, tmp_path: Path) -> None:
    where = _copied(tmp_path)
    card = where / "card.toml"
    lines = [line for line in card.read_text("utf-8").splitlines() if file not in line]
    card.write_text("\n".join(lines) + "\n", "utf-8")
    assert open_reader(open_engine("onnx").model_id, where, folds=folds) is None


@pytest.mark.parametrize(("folds", "file"), FILES.items())
def test_a_reader_that_was_altered_is_refused(folds: int, file: str, tmp_path: Path) -> None:
    where = _copied(tmp_path)
    with (where / file).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(EngineError, match="SHA-256"):
        open_reader(open_engine("onnx").model_id, where, folds=folds)


@pytest.mark.parametrize(("file", "side"), [("r2.onnx", 128), ("r2_small.onnx", 64)])
@pytest.mark.parametrize("other", ["strength.onnx", "the other reader"])
def test_a_reader_of_another_shape_is_refused(
    file: str, side: int, other: str, tmp_path: Path
) -> None:
    where = _copied(tmp_path)
    if other == "the other reader":
        other = next(each for each in FILES.values() if each != file)
    shutil.copy(folder() / other, where / file)
    with pytest.raises(EngineError, match="samples"):
        WeakReader(where / file, side)
