"""mark, verify and restore on real files: the studies that ship with the project."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import JPEGLSLossless

from dicom_node.cli.main import main

DEMO = Path(__file__).parents[3] / "demo"

# What other programs read out of `verify --json`: the contract, and what we say beyond it.
INSTANCE = {
    "path", "sop_instance_uid", "verdict", "owner", "signed_by", "marked_at", "header", "frames"
}  # fmt: skip
FRAME = {"frame", "verdict", "integrity", "robust", "tampered"}
ROBUST = {"decoded", "bit_accuracy", "phash_distance"}
BOX = {"row", "column", "rows", "columns"}
INSTANCE_EXTRA = {"header_seal"}
WHERE_IT_NEEDS_WORDS = {"reason"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with keys, a folder of two originals and a broken file, and their marking."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "node.toml").write_text(
        f'[keys]\ndirectory = "{folder}/keys"\n[watermark]\nengine = "onnx"\nowner = "CLINIC"\n'
    )
    assert main(["keys", "init", *config(folder)]) == 0
    (folder / "in/series").mkdir(parents=True)
    for path in sorted((DEMO / "mr_brain").glob("*.dcm"))[:2]:
        shutil.copy(path, folder / "in/series")
    (folder / "in/notes.txt").write_text("not DICOM")
    return folder


@pytest.fixture(scope="module")
def marked(workplace: Path) -> Path:
    assert main(["mark", f"{workplace}/in", "--out", f"{workplace}/out", *config(workplace)]) == 3
    return workplace / "out"


def config(folder: Path) -> list[str]:
    return ["--config", str(folder / "node.toml")]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_mark_goes_on_after_a_bad_file_and_says_so(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(
        capsys, "mark", workplace / "in", "--out", tmp_path, "--json", *config(workplace)
    )
    assert code == 3
    bad, *good = lines
    assert bad["path"].endswith("notes.txt")
    assert bad["out"] is None
    assert bad["reason"]
    assert set(bad) == {
        "path", "out", "action", "reason", "frames", "message", "psnr_db", "ssim", "max_change"
    }  # fmt: skip
    for line in good:
        assert set(line) == set(bad)
        assert line["action"] == "marked"
        assert Path(line["out"]).parent == tmp_path / "series", "relative paths are kept"
        assert Path(line["out"]).is_file()
        assert len(line["message"]) == line["frames"] == 1
        assert line["psnr_db"] > 35
        assert line["max_change"] >= 1


def test_verify_finds_what_was_marked_authentic(
    workplace: Path, marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, "verify", marked, "--json", *config(workplace))
    assert code == 0
    assert [line["verdict"] for line in lines] == ["authentic", "authentic"]
    for line in lines:
        assert line["owner"] == "CLINIC"
        assert line["header"] == {"changed": []}
        assert line["frames"][0]["integrity"] == "valid"


def test_every_line_of_verify_has_the_keys_of_the_contract_and_those_named_here(
    workplace: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = min(marked.rglob("*.dcm"))
    shutil.copy(source, tmp_path / "authentic.dcm")
    ds = pydicom.dcmread(source)
    ds.PatientID = "SOMEBODY-ELSE"
    ds.save_as(tmp_path / "header.dcm")
    pixels = ds.pixel_array.copy()
    pixels[pixels.shape[0] // 2, pixels.shape[1] // 2] += 1
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "pixels.dcm")
    shutil.copy(min((workplace / "in/series").glob("*.dcm")), tmp_path / "unmarked.dcm")
    shutil.copy(workplace / "in/notes.txt", tmp_path / "unreadable.txt")
    _, lines = run(capsys, "verify", tmp_path, "--json", *config(workplace))
    assert [line["verdict"] for line in lines] == [
        "authentic", "authentic", "tampered", "unmarked", "unreadable"
    ]  # fmt: skip
    assert lines[1]["header"]["changed"] == ["PatientID"]
    frames = [frame for line in lines for frame in line["frames"]]
    boxes = [box for frame in frames for box in frame["tampered"]]
    assert len(frames) >= 3
    assert boxes
    for line in lines:
        assert set(line) - WHERE_IT_NEEDS_WORDS == INSTANCE | INSTANCE_EXTRA
        assert set(line["header"]) == {"changed"}
    for frame in frames:
        assert set(frame) - WHERE_IT_NEEDS_WORDS == FRAME
        assert set(frame["robust"]) == ROBUST
    assert {frozenset(box) for box in boxes} == {frozenset(BOX)}
    authentic = lines[0]
    assert not WHERE_IT_NEEDS_WORDS & {*authentic, *authentic["frames"][0]}


def test_verify_works_with_the_public_key_alone(
    workplace: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = tmp_path / "public.pem"
    assert main(["keys", "export-public", "--out", str(pem), *config(workplace)]) == 0
    code, lines = run(
        capsys, "verify", marked, "--public-key", pem, "--json", *config(tmp_path.parent)
    )
    assert code == 2, "a missing configuration is wrong usage"
    code, lines = run(capsys, "verify", marked, "--public-key", pem, "--json", *config(workplace))
    assert (code, {line["verdict"] for line in lines}) == (0, {"authentic"})


def test_verify_exits_with_1_for_a_changed_pixel_and_says_where(
    workplace: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = min(marked.rglob("*.dcm"))
    ds = pydicom.dcmread(source)
    pixels = ds.pixel_array.copy()
    row, column = pixels.shape[0] // 2, pixels.shape[1] // 2
    pixels[row, column] += 1
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "changed.dcm")
    code, [line] = run(capsys, "verify", tmp_path, "--json", *config(workplace))
    assert (code, line["verdict"]) == (1, "tampered")
    [box] = line["frames"][0]["tampered"]
    assert box["row"] <= row < box["row"] + box["rows"]
    assert box["column"] <= column < box["column"] + box["columns"]
    assert main(["verify", str(tmp_path), *config(workplace)]) == 1
    assert f"rows {box['row']}-" in capsys.readouterr().out


def test_verify_exits_with_3_if_the_only_fault_is_an_unreadable_file(
    workplace: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(min(marked.rglob("*.dcm")), tmp_path)
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"rubbish" * 9)
    code, lines = run(capsys, "verify", tmp_path, "--json", *config(workplace))
    assert code == 3
    assert {line["verdict"] for line in lines} == {"authentic", "unreadable"}


def test_restore_gives_the_original_pixels_back(
    workplace: Path, marked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, "restore", marked, "--out", tmp_path, "--json", *config(workplace))
    assert code == 0
    assert len(lines) == 2
    for line in lines:
        assert set(line) == {"path", "out", "exact", "reason"}
        assert line["exact"] is True
        name = Path(line["out"]).name
        original = pydicom.dcmread(workplace / "in/series" / name)
        assert pydicom.dcmread(line["out"]).PixelData == original.PixelData
        assert pydicom.dcmread(marked / "series" / name).PixelData != original.PixelData


def test_restore_of_what_was_never_marked_exits_with_3(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(
        capsys, "restore", workplace / "in/series", "--out", tmp_path, "--json", *config(workplace)
    )
    assert code == 3
    assert [line["exact"] for line in lines] == [False, False]
    assert all(line["reason"] for line in lines)


def test_mark_without_keys_names_the_command_to_run(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text(f'[keys]\ndirectory = "{tmp_path}/none"\n')
    assert main(["mark", f"{workplace}/in", "--out", f"{tmp_path}/o", *config(tmp_path)]) == 3
    assert "keys" in capsys.readouterr().err


def test_keys_that_others_can_read_are_refused_with_the_chmod_to_run(
    workplace: Path, marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = workplace / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    keys.chmod(0o755)
    try:
        assert main(["verify", str(marked), *config(workplace)]) == 3
        assert "chmod 700" in capsys.readouterr().err
    finally:
        keys.chmod(0o700)
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}


def test_engines_are_what_their_card_says(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, "engines", "list", "--json", *config(workplace))
    assert code == 0
    assert {line["file"] for line in lines} >= {"strength.onnx", "d1.onnx"}
    code, lines = run(capsys, "engines", "check", "--json", *config(workplace))
    assert (code, {line["ok"] for line in lines}) == (0, {True})


# One file brings out a fault nobody foresaw.
FAILING_ONCE = """
    import pkgutil
    from pathlib import Path
    owner = pkgutil.resolve_name({owner!r})
    honest = getattr(owner, {name!r})
    def call(*arguments, **more):
        if any(isinstance(each, Path) and each.name == {bad!r} for each in arguments):
            raise ZeroDivisionError("Doe^Jane")
        return honest(*arguments, **more)
    setattr(owner, {name!r}, call)
"""


@pytest.mark.parametrize(
    ("command", "owner", "name"),
    [
        ("mark", "dicom_node.marking:Marker", "mark"),
        ("verify", "dicom_node.verify.check", "check_instance"),
        ("restore", "dicom_node.marking", "restore"),
    ],
)
def test_a_fault_of_ours_over_one_file_is_an_error_that_names_it_and_the_others_are_done(
    command: str, owner: str, name: str, workplace: Path, marked: Path, tmp_path: Path,
    in_children: Callable[[str], None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = workplace / "in/series" if command == "mark" else marked / "series"
    bad, good = sorted(folder.glob("*.dcm"))
    place = [] if command == "verify" else ["--out", tmp_path]
    in_children(FAILING_ONCE.format(owner=owner, name=name, bad=bad.name))
    code, lines = run(capsys, command, folder, *place, "--json", *config(workplace))
    assert code == 3
    assert [line["path"] for line in lines] == [str(bad), str(good)]
    assert "fault in " in lines[0]["reason"]
    assert "ZeroDivisionError" in lines[0]["reason"]
    assert "Doe" not in json.dumps(lines)
    said = {"mark": ("action", "marked"), "verify": ("verdict", "authentic")}
    key, word = said.get(command, ("exact", True))
    assert lines[1][key] == word
    assert lines[0][key] != word


@pytest.mark.parametrize(
    ("command", "word", "others"),
    [
        ("mark", {"action": "held"}, {"action": "marked"}),
        ("verify", {"verdict": "unreadable"}, {"verdict": "authentic"}),
        ("restore", {"exact": False}, {"exact": True}),
    ],
)
def test_a_decoder_that_never_returns_costs_its_own_file_only(
    command: str, word: dict[str, Any], others: dict[str, Any], workplace: Path, marked: Path,
    tmp_path: Path, codec_astray: None, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "files"
    shutil.copytree(workplace / "in/series" if command == "mark" else marked / "series", folder)
    first, last = sorted(folder.glob("*.dcm"))
    hostile = last.with_name(f"{first.stem}_hostile.dcm")
    ds = pydicom.dcmread(min((workplace / "in/series").glob("*.dcm")))
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.save_as(hostile)
    out = tmp_path / "out"
    place = [] if command == "verify" else ["--out", out]
    code, lines = run(capsys, command, folder, *place, "--json", *config(workplace))
    assert code == 3
    assert [line["path"] for line in lines] == [str(first), str(hostile), str(last)]
    assert [word.items() <= line.items() for line in lines] == [False, True, False]
    assert [others.items() <= line.items() for line in lines] == [True, False, True]
    assert "a decoder did not come back" in lines[1]["reason"]
    if place:
        assert lines[1]["out"] is None
        assert sorted(out.iterdir()) == [out / first.name, out / last.name], "nothing lies about"


@pytest.mark.parametrize("command", ["mark", "verify", "restore"])
def test_a_folder_without_a_file_is_wrong_usage_and_a_link_to_nothing_unreadable(
    command: str, workplace: Path, marked: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty/.hidden").mkdir(parents=True)
    (tmp_path / "empty/.hidden/file.dcm").touch()
    place = [] if command == "verify" else ["--out", str(tmp_path / "out")]
    names = [str(marked), str(tmp_path / "empty")]
    assert main([command, *names, *place, *config(workplace)]) == 2
    assert f"{tmp_path / 'empty'}: no file" in capsys.readouterr().err
    (tmp_path / "links").mkdir()
    (tmp_path / "links/gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    code, [line] = run(capsys, command, tmp_path / "links", *place, "--json", *config(workplace))
    assert code == 3
    assert line["reason"]
    code, [line] = run(
        capsys, command, tmp_path / "links/gone.dcm", *place, "--json", *config(workplace)
    )
    assert code == 3


@pytest.mark.parametrize("what", ["write_pictures", "write_reports"])
def test_a_fault_over_a_report_is_an_error_and_the_verdicts_are_given(
    what: str, workplace: Path, marked: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(f"dicom_node.verify.report.{what}", lambda *_, **__: 1 // 0)
    code = main(["verify", str(marked), "--report", str(tmp_path), *config(workplace)])
    said = capsys.readouterr()
    assert code == 3
    assert said.out.count("authentic") == 2
    assert "fault in dicom-node: ZeroDivisionError" in said.err


def test_a_fault_before_the_first_file_does_not_say_not_authentic(
    workplace: Path, marked: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("dicom_node.keys.KeyRing.open", lambda *_: 1 // 0)
    assert main(["verify", str(marked), *config(workplace)]) == 3
    assert "dicom-node: fault in dicom-node: ZeroDivisionError" in capsys.readouterr().err
