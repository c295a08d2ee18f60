"""``dicom-node trace`` on pictures of the studies that ship with the project."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dicom_node.cli.main import main
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance

DEMO = Path(__file__).parents[3] / "demo"
FIELDS = {"path", "decoded", "message", "owner", "pose", "match"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with keys, a marked CR hand, its message, and an 8-bit picture of it."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "node.toml").write_text(
        f'[keys]\ndirectory = "{folder}/keys"\n[watermark]\nengine = "onnx"\nowner = "CLINIC"\n'
    )
    assert main(["keys", "init", *config(folder)]) == 0
    hand = DEMO / "cr_hand" / "hand.dcm"
    assert main(["mark", str(hand), "--out", f"{folder}/out", *config(folder)]) == 0
    with closing(open_instance(folder / "out/hand.dcm", max_pixels=1 << 28)) as instance:
        shown = display_of(instance).image(instance.frame(0), 0)
    picture = cv2.resize(shown, None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "hand.png"), np.rint(picture * 255).astype(np.uint8))
    return folder


def config(folder: Path) -> list[str]:
    return ["--config", str(folder / "node.toml")]


def trace(
    capsys: pytest.CaptureFixture[str], place: Path, *words: object
) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["trace", *map(str, words), "--json", *config(place)])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def turned(picture: np.ndarray, degrees: float) -> np.ndarray:
    rows, columns = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(picture, matrix, (columns, rows), flags=cv2.INTER_CUBIC)


def test_a_marked_file_and_pictures_of_it_say_whose_they_are(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = cv2.imread(str(place / "hand.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "export.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(tmp_path / "colour.png"), cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(tmp_path / "deep.png"), picture.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "lossless.webp"), picture)
    shutil.copy(place / "out/hand.dcm", tmp_path / "hand.dcm")
    code, lines = trace(capsys, place, tmp_path)
    assert code == 0
    assert [Path(line["path"]).name for line in lines] == [
        "colour.png", "deep.png", "export.jpg", "hand.dcm", "lossless.webp"
    ]  # fmt: skip
    for line in lines:
        assert set(line) == FIELDS
        assert line["decoded"] is True
        assert line["owner"] == "CLINIC"
        assert line["pose"] == {"rotation_deg": 0.0, "flip": False, "scale": 1.0}
        assert line["match"] is None
    assert len({line["message"] for line in lines}) == 1
    assert len(bytes.fromhex(lines[0]["message"])) == 12


def test_a_turned_picture_is_found_and_only_by_a_search(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = cv2.imread(str(place / "hand.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "turned.png"), turned(picture, 12))
    code, [line] = trace(capsys, place, tmp_path)
    assert (code, line["decoded"]) == (0, True)
    assert line["pose"]["rotation_deg"] == pytest.approx(12, abs=0.5)
    code, [line] = trace(capsys, place, tmp_path, "--no-search")
    assert (code, line["decoded"], line["owner"], line["message"]) == (1, False, None, "")
    assert line["pose"] == {"rotation_deg": None, "flip": None, "scale": None}


def test_a_mirrored_picture_needs_no_search(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = cv2.imread(str(place / "hand.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "mirrored.png"), picture[:, ::-1])
    code, [line] = trace(capsys, place, tmp_path, "--no-search")
    assert (code, line["pose"]["flip"]) == (0, True)


def test_an_original_carries_no_mark(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, [line] = trace(capsys, place, DEMO / "cr_hand" / "hand.dcm", "--no-search")
    assert (code, line["decoded"]) == (1, False)


def test_what_is_no_picture_is_reported_and_the_rest_is_done(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(place / "hand.png", tmp_path / "a.png")
    (tmp_path / "b.txt").write_text("no picture")
    (tmp_path / "c.png").write_bytes((place / "hand.png").read_bytes()[:200])
    (tmp_path / "d.png").write_bytes(b"")
    code, lines = trace(capsys, place, tmp_path)
    assert code == 3
    assert [line["decoded"] for line in lines] == [True, False, False, False]
    assert main(["trace", str(tmp_path), *config(place)]) == 3
    printed = capsys.readouterr()
    assert "marked by CLINIC" in printed.out
    assert len(printed.out.splitlines()) == 1
    for name in ("b.txt", "c.png", "d.png"):
        assert f"{tmp_path / name}: " in printed.err


def test_a_missing_key_ring_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text(f'[keys]\ndirectory = "{tmp_path}/none"\n')
    assert main(["trace", str(place / "hand.png"), *config(tmp_path)]) == 3
    assert f"{tmp_path}/none" in capsys.readouterr().err
