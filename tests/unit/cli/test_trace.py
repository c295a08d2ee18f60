"""``dicom-node trace`` on pictures of the studies that ship with the project."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
import registry_rows as rows
from pydicom.uid import JPEGLSLossless

from dicom_node.cli.main import main
from dicom_node.facts import MarkedFrame, stored_digest
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.registry import MarkedInstance, Registry
from dicom_node.watermark.perceptual import perceptual_hash

DEMO = Path(__file__).parents[3] / "demo"
FIELDS = {"path", "decoded", "message", "owner", "pose", "match"}
MATCH = {"study_instance_uid", "series_instance_uid", "sop_instance_uid", "frame", "confidence"}
MATCH_EXTRA = {"by", "distance_bits"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with keys, a marked CR hand, its message, and an 8-bit picture of it."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "node.toml").write_text(
        f'[spool]\ndirectory = "{folder}/spool"\n[keys]\ndirectory = "{folder}/keys"\n'
        '[watermark]\nengine = "onnx"\nowner = "CLINIC"\n'
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


def test_what_carries_no_mark_and_is_in_no_registry_is_called_not_ours(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    hand = DEMO / "cr_hand" / "hand.dcm"
    assert main(["trace", str(hand), "--no-search", *config(place)]) == 1
    assert capsys.readouterr().out == f"{hand}  no mark of this key ring  not ours\n"


def test_a_decoder_that_never_returns_costs_its_own_picture_only(
    place: Path, tmp_path: Path, codec_astray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ds = pydicom.dcmread(DEMO / "mr_brain" / "brain_012.dcm")
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "hand_hostile.dcm")
    for name in ("a.png", "z.png"):
        shutil.copy(place / "hand.png", tmp_path / name)
    capsys.readouterr()
    assert main(["trace", str(tmp_path), "--no-search", "--json", *config(place)]) == 3
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["decoded"] for line in lines] == [True, False, True]
    assert "a decoder did not come back" in said.err


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


@pytest.fixture
def registered(place: Path) -> Iterator[MarkedInstance]:
    """The marked hand in the registry of the node, as the registrar would put it there."""
    with closing(open_instance(place / "out/hand.dcm", max_pixels=1 << 28)) as instance:
        frame = instance.frame(0)
        looks = perceptual_hash(display_of(instance).image(frame, 0))
        facts = MarkedFrame(marked_digest=stored_digest(frame.values), perceptual_hash=looks)
        uid = instance.sop_instance_uid
    hand = replace(rows.instance(1), sop_instance_uid=uid, frames=(facts,))
    with Registry.open(f"sqlite:///{place}/spool/registry.sqlite") as registry:
        registry.add(hand)
    yield hand
    shutil.rmtree(place / "spool")


def test_a_registered_picture_is_named_and_shown_beside_what_it_shows(
    place: Path, tmp_path: Path, registered: MarkedInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DEMO / "cr_hand" / "hand.dcm", tmp_path / "original.dcm")
    shutil.copy(DEMO / "mr_brain" / "brain_012.dcm", tmp_path / "other.dcm")
    shutil.copy(place / "out/hand.dcm", tmp_path / "marked.dcm")
    code, lines = trace(capsys, place, tmp_path, "--no-search", "--pictures", tmp_path / "shown",
                        "--beside", place / "out")  # fmt: skip
    assert code == 1
    marked, original, other = lines
    assert other["match"] is None
    assert (marked["match"]["by"], marked["match"]["confidence"]) == ("samples", 1.0)
    assert (original["decoded"], original["match"]["by"]) == (False, "look")
    for line in (marked, original):
        match = line["match"]
        assert set(match) == MATCH | MATCH_EXTRA
        assert match["sop_instance_uid"] == registered.sop_instance_uid
        assert match["study_instance_uid"] == registered.study_instance_uid
        assert (match["frame"], 0 < match["confidence"] <= 1) == (1, True)
    drawn = sorted((tmp_path / "shown").iterdir())
    assert len(drawn) == 2
    left, right = np.array_split(cv2.imread(str(drawn[0]), cv2.IMREAD_GRAYSCALE), 2, axis=1)
    assert left.shape[0] == 512
    # The same hand on both sides.
    assert np.corrcoef(left[:, :400].ravel(), right[:, -400:].ravel())[0, 1] > 0.5


def test_a_picture_whose_frame_is_not_here_is_named_without_a_picture(
    place: Path, tmp_path: Path, registered: MarkedInstance, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["trace", str(DEMO / "cr_hand"), "--no-search", "--pictures", str(tmp_path / "p"),
                 *config(place)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert f"instance {registered.sop_instance_uid}" in said
    assert "by its looks" in said
    assert "no file of that instance here" in said
    assert not (tmp_path / "p").exists()


def test_a_registry_that_cannot_be_read_is_said_and_marks_are_read_all_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "spool").mkdir()
    (place / "spool" / "registry.sqlite").write_bytes(b"no database " * 100)
    code = main(["trace", str(place / "hand.png"), *config(place)])
    shutil.rmtree(place / "spool")
    printed = capsys.readouterr()
    assert code == 3
    assert "marked by CLINIC" in printed.out
    assert "not a database" in printed.err


def test_a_missing_key_ring_is_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text(f'[keys]\ndirectory = "{tmp_path}/none"\n')
    assert main(["trace", str(place / "hand.png"), *config(tmp_path)]) == 3
    assert f"{tmp_path}/none" in capsys.readouterr().err
