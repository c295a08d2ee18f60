"""``verify --report``: pictures of instances, and a report for each study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_node.cli.main import main
from dicom_node.errors import RegistryError
from dicom_node.instance.datafile import open_data_file
from dicom_node.registry import Registry
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify.report import report_stem
from dicom_node.verify.study import StudyCheck, study_check

DEMO = Path(__file__).parents[3] / "demo"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two marked studies in ``marked/mr`` (two slices) and ``marked/us``, with their keys."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "node.toml").write_text(
        f'[keys]\ndirectory = "{folder}/keys"\n[spool]\ndirectory = "{folder}/spool"\n'
        '[watermark]\nengine = "onnx"\nowner = "CLINIC"\n'
    )
    for kind, paths in (
        ("mr", sorted((DEMO / "mr_brain").glob("*.dcm"))[:2]),
        ("us", sorted(DEMO.rglob("doppler.dcm"))),
    ):
        (folder / "in" / kind).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / "in" / kind)
    assert main(["keys", "init", *config(folder)]) == 0
    assert main(["mark", f"{folder}/in", "--out", f"{folder}/marked", *config(folder)]) == 0
    return folder


def config(folder: Path) -> list[str]:
    return ["--config", str(folder / "node.toml")]


def verify(place: Path, *words: object) -> int:
    return main(["verify", *map(str, words), *config(place)])


def read(out: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("study-*.json"))]


def test_every_study_gets_a_report_of_each_kind_and_pictures_stay(
    place: Path, tmp_path: Path
) -> None:
    assert verify(place, place / "marked", "--report", tmp_path) == 0
    kinds = sorted(path.name.partition(".")[2] for path in tmp_path.glob("study-*"))
    assert kinds == sorted(2 * ["html", "pdf", "json", "json.sig", "dcm"])
    assert sorted(len(report["instances"]) for report in read(tmp_path)) == [1, 2]
    # What the help promises, where every frame is authentic.
    assert len(list(tmp_path.rglob("*-frame1-authentic.png"))) == 3


def test_the_help_says_that_an_authentic_instance_gets_a_picture_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "or of the first frame where all are" in " ".join(capsys.readouterr().out.split())


def test_no_name_of_a_report_tells_of_the_patient(place: Path, tmp_path: Path) -> None:
    verify(place, place / "marked" / "us", "--report", tmp_path)
    ds = pydicom.dcmread(next((place / "marked" / "us").iterdir()))
    for path in tmp_path.glob("study-*"):
        for told in (ds.PatientID, str(ds.PatientName), ds.StudyInstanceUID):
            assert str(told) not in path.name


def test_what_is_wrong_is_in_the_report_and_in_the_exit_code(place: Path, tmp_path: Path) -> None:
    ds = pydicom.dcmread(min((place / "marked" / "mr").iterdir()))
    ds.PatientID = "ANOTHER"
    pixels = ds.pixel_array.copy()
    pixels[60, 60] += 1
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "changed.dcm")
    assert verify(place, tmp_path / "changed.dcm", "--report", tmp_path / "out") == 1
    [report] = read(tmp_path / "out")
    assert report["headline"] == "Tampered"
    [instance] = report["instances"]  # type: ignore[misc]
    [line] = instance["header"]["attributes"]
    assert (line["attribute"], line["value"]) == ("PatientID", "ANOTHER")


def test_two_files_of_one_instance_each_tell_what_changed_in_their_own_header(
    place: Path, tmp_path: Path
) -> None:
    source = min((place / "marked" / "mr").iterdir())
    names = {"first": "PatientID", "second": "PatientName"}
    for name, keyword in names.items():
        ds = pydicom.dcmread(source)
        setattr(ds, keyword, name)
        ds.save_as(tmp_path / f"{name}.dcm")
    assert verify(place, tmp_path, "--report", tmp_path / "out") == 0
    [report] = read(tmp_path / "out")
    found = {
        Path(instance["path"]).stem: [(each["attribute"], each["value"]) for each in lines]
        for instance in report["instances"]  # type: ignore[attr-defined]
        if (lines := instance["header"].get("attributes"))
    }
    assert found == {name: [(keyword, name)] for name, keyword in names.items()}


def test_a_machine_with_a_public_key_alone_reports_without_signing(
    place: Path, tmp_path: Path
) -> None:
    pem = tmp_path / "public.pem"
    assert main(["keys", "export-public", "--out", str(pem), *config(place)]) == 0
    code = verify(place, place / "marked/us", "--public-key", pem, "--report", tmp_path / "out")
    assert code == 0
    assert not list((tmp_path / "out").glob("*.sig"))


def test_the_node_s_registry_tells_which_slice_is_missing(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "node"
    shutil.copytree(place, folder)
    text = (folder / "node.toml").read_text().replace(str(place), str(folder))
    (folder / "node.toml").write_text(text)
    paths = sorted((folder / "marked" / "mr").iterdir())
    url = f"sqlite:///{folder / 'spool' / 'registry.sqlite'}"
    with Registry.open(url) as registry:
        registry.add_all(map(record, paths))
    paths[1].unlink()
    assert verify(folder, folder / "marked" / "mr", "--report", tmp_path / "out") == 0
    [report] = read(tmp_path / "out")
    assert report["headline"] == "Incomplete"
    assert report["missing"] == [record(place / "marked" / "mr" / paths[1].name).sop_instance_uid]


def test_a_study_is_summed_up_once_for_the_trail_and_the_report(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed_up = []

    def counted(uid: str, *rest: Any, **more: Any) -> StudyCheck:
        summed_up.append(uid)
        return study_check(uid, *rest, **more)

    monkeypatch.setattr("dicom_node.verify.study.study_check", counted)
    assert verify(place, place / "marked", "--report", tmp_path) == 0
    assert len(summed_up) == len(set(summed_up)) == 2


def test_a_registry_that_cannot_be_asked_costs_the_report_and_no_verdict(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "node"
    shutil.copytree(place, folder)
    text = (folder / "node.toml").read_text().replace(str(place), str(folder))
    (folder / "node.toml").write_text(text)
    Registry.open(f"sqlite:///{folder / 'spool' / 'registry.sqlite'}").close()

    def away(*_: object, **__: object) -> None:
        raise RegistryError("the registry is away")

    monkeypatch.setattr(Registry, "instances", away)
    assert verify(folder, folder / "marked" / "us", "--report", tmp_path / "out") == 3
    out, err = capsys.readouterr()
    assert "authentic" in out
    assert "no report" in err
    assert "the registry is away" in err
    [trail] = (folder / "spool").rglob("00000001.jsonl")
    assert '"kind":"verdict-given"' in trail.read_text()


def test_verifying_files_makes_no_registry(place: Path, tmp_path: Path) -> None:
    verify(place, place / "marked" / "us", "--report", tmp_path)
    assert not (place / "spool").exists()


def test_a_report_that_cannot_be_written_exits_with_3(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = tmp_path / "sealed.dcm"
    source = place / "marked" / "us"
    sealed.write_bytes(next(source.iterdir()).read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / study_file(sealed)).mkdir()
    assert verify(place, sealed, "--report", tmp_path / "out") == 3
    assert "cannot be written" in capsys.readouterr().err


def study_file(path: Path) -> str:
    return report_stem(pydicom.dcmread(path).StudyInstanceUID) + ".html"


def record(path: Path) -> MarkedInstance:
    data = open_data_file(path)
    try:
        sop, series, study = map(data.text, (0x00080018, 0x0020000E, 0x0020000D))
        return MarkedInstance(
            sop, series, study, data.text(0x00080016), data.transfer_syntax_uid, "marked",
            b"r" * 32, sop.encode().ljust(32)[:32], b"k" * 8, 1_790_000_000, 1_790_000_000.0,
            "MR1", "MR", 1, 1, deliveries=(DeliveryEntry("pacs", 0, 1_790_000_001.0),),
        )  # fmt: skip
    finally:
        data.close()
