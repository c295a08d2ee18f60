"""Reports on real studies after what may happen to them, and on data sets made to break them."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from highdicom.sr import ComprehensiveSR
from peer_tools import needed
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicom_node.config import WatermarkConfig
from dicom_node.errors import NodeError
from dicom_node.inference import open_engine
from dicom_node.instance.rewrite import copy_with_header
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.registry.records import DeliveryEntry, MarkedInstance
from dicom_node.verify.check import check_instance
from dicom_node.verify.report import report_stem, write_reports
from dicom_node.verify.report_facts import facts_of
from dicom_node.verify.report_html import how_to, html_page
from dicom_node.verify.report_pictures import outline
from dicom_node.verify.report_text import printable
from dicom_node.verify.study import StudyCheck, checked_instance, study_check
from dicom_node.verify.verdict import InstanceVerdict
from dicom_node.watermark.box import Box

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script>^\u202egnaM&\"'"


class Bench:
    """Marks real instances, changes copies of them, and checks studies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ring = KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)
        self.engine = open_engine("onnx")
        self.marker = Marker(WatermarkConfig(), self.ring, self.engine)

    def mark(self, source: Path, name: str) -> Path:
        out = self.folder / name
        assert self.marker.mark(source, out, marked_at=WHEN).action == "marked"
        return out

    def check(self, *paths: Path, entries: tuple[MarkedInstance, ...] = ()) -> StudyCheck:
        found = [checked_instance(p, check_instance(p, self.ring, self.engine)) for p in paths]
        return study_check(found[0].study_instance_uid, found, entries, checked_at=WHEN)

    def entry(self, path: Path) -> MarkedInstance:
        [found] = self.check(path).instances
        sent = (DeliveryEntry("pacs", 0, WHEN.timestamp() + 3),)
        return MarkedInstance(
            found.sop_instance_uid, found.series_instance_uid, found.study_instance_uid,
            found.sop_class_uid, found.transfer_syntax_uid, "marked", b"r" * 32, b"d" * 32,
            self.ring.current.key_id, int(WHEN.timestamp()), WHEN.timestamp() - 2, "CT-ROOM1",
            found.modality, found.instance_number, 1, deliveries=sent,
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def ct(bench: Bench, shared: Path) -> Path:
    return bench.mark(shared / "dicom/ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm", "ct.dcm")


@pytest.fixture(scope="module")
def us(bench: Bench, shared: Path) -> Path:
    return bench.mark(shared / "dicom/us/pydicom__examples_rgb_color.dcm", "us.dcm")


@pytest.fixture(scope="module")
def loop(bench: Bench, shared: Path) -> Path:
    return bench.mark(shared / "dicom/mr/pylibjpeg-data__emri_small.dcm", "loop.dcm")


@pytest.fixture(scope="module")
def series(bench: Bench) -> list[Path]:
    demo = Path(__file__).parents[3] / "demo" / "mr_brain"
    return [bench.mark(path, path.name) for path in sorted(demo.glob("*.dcm"))]


def changed(path: Path, out: Path, change: Any) -> Path:
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(out)
    return out


def paint(where: Any, value: int) -> Any:
    def change(ds: Dataset) -> None:
        pixels = ds.pixel_array.copy()
        pixels[where] = value
        ds.PixelData = pixels.tobytes()

    return change


def rename(ds: Dataset) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = HOSTILE
    ds.StudyDescription = "\u5c71\u7530 ]]> \\\x07" + "x" * 5000


class Reader(html.parser.HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.paths: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action") and v]
        assert not [name for name in values if name.startswith("on")], "no event handlers"
        if tag == "path":
            self.paths.append(str(values["d"]))

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(check: StudyCheck, bench: Bench, folder: Path) -> dict[str, Path]:
    written = write_reports(check, folder, ring=bench.ring, checked_by="AUDITOR")
    return {path.name.split(".", 1)[1]: path for path in written}


def page_of(check: StudyCheck, ring: KeyRing | None) -> Reader:
    return Reader(html_page(facts_of(check, ring, checked_by="AUDITOR"), how_to("s", signed=True)))


def test_an_authentic_study_is_called_authentic_and_its_chain_is_told(
    bench: Bench, series: list[Path]
) -> None:
    entries = tuple(map(bench.entry, series))
    page = page_of(bench.check(*series, entries=entries), bench.ring)
    assert "All 5 instances are authentic" in page.text
    assert "What was found" not in page.text
    for told in ("2026-11-21 08:59:58 UTC", "5 instances from CT-ROOM1", "answered 0x0000",
                 "5 instances marked with key " + bench.ring.current.key_id.hex(),
                 "asked for by AUDITOR"):  # fmt: skip
        assert told in page.text


def test_a_missing_slice_makes_the_study_incomplete_and_is_named(
    bench: Bench, series: list[Path]
) -> None:
    entries = tuple(map(bench.entry, series))
    facts = facts_of(bench.check(*series[:2], *series[3:], entries=entries), bench.ring)
    assert (facts.level, facts.headline) == ("incomplete", "Incomplete")
    [missing] = facts.missing
    assert missing == f"MR {entries[2].instance_number} {entries[2].sop_instance_uid}"
    assert "1 instance that this node delivered did not come back." in facts.sentences


@pytest.mark.parametrize("kind", ["ct", "us", "loop"])
def test_the_outline_of_a_painted_region_encloses_it(
    kind: str, bench: Bench, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path: Path = request.getfixturevalue(kind)
    where: tuple[Any, ...] = np.s_[200:220, 140:160]
    where = {"ct": where, "us": (*where, 1), "loop": np.s_[4, 20:30, 20:30]}[kind]
    bad = changed(path, tmp_path / "x.dcm", paint(where, 250))
    [finding] = facts_of(bench.check(bad), bench.ring).findings
    assert finding.verdict == "tampered"
    [picture] = finding.pictures
    assert picture.frame == (5 if kind == "loop" else 1)
    rows, columns = where[-2:] if kind == "loop" else where[:2]
    xs = [x for x0, _, x1, _ in picture.outline for x in (x0, x1)]
    ys = [y for _, y0, _, y1 in picture.outline for y in (y0, y1)]
    assert min(xs) <= columns.start < columns.stop <= max(xs)
    assert min(ys) <= rows.start < rows.stop <= max(ys)
    shown = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape[0] / shown.shape[1] == pytest.approx(picture.rows / picture.columns, 0.01)


def test_a_changed_attribute_is_shown_with_the_digest_signed_and_the_value_now(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    bad = changed(ct, tmp_path / "x.dcm", lambda ds: setattr(ds, "PatientID", "ANOTHER"))
    facts = facts_of(bench.check(bad), bench.ring)
    assert facts.headline == "Authentic pixels, changed header"
    [finding] = facts.findings
    [line] = finding.header
    assert (line.name, line.tag, line.value) == ("PatientID", "(0010,0020)", "ANOTHER")
    assert line.before != line.now
    assert len(line.before) == len(line.now) == 16
    assert line.original == "", "nobody noted what it was"


def test_an_older_version_than_was_delivered_last_is_not_called_authentic(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    entry = bench.entry(ct)
    newer = replace(entry, marked_at=entry.marked_at + 60, delivered_digest=b"n" * 32)
    check = bench.check(ct, entries=(entry, newer))
    facts = facts_of(check, bench.ring)
    assert (facts.level, facts.headline) == ("superseded", "An older version")
    assert "came back in an older version" in " ".join(facts.sentences)
    assert facts.findings[0].finding == "Authentic, an older version"
    made = pages(check, bench, tmp_path / "out")
    assert "older version" in Reader(made["html"].read_text("utf-8")).text
    assert json.loads(made["json"].read_bytes())["headline"] == "An older version"
    report = made["dcm"]
    texts = [str(item.get("TextValue", "")) for item in pydicom.dcmread(report).ContentSequence]
    assert any("older version" in text for text in texts)


def test_authentic_pixels_under_a_header_without_a_seal_are_a_finding(
    bench: Bench, ct: Path, us: Path, tmp_path: Path
) -> None:
    bare = changed(ct, tmp_path / "x.dcm", lambda ds: ds.remove_private_tags())
    facts = facts_of(bench.check(bare), bench.ring)
    assert facts.headline == "Authentic pixels, header not sealed"
    [finding] = facts.findings
    assert finding.finding == "Authentic pixels, header not sealed"
    assert "the header seal is gone" in finding.remarks[0]
    text = page_of(bench.check(bare), bench.ring).text
    assert "pixels are vouched for, most of the header is not" in " ".join(text.split())
    assert facts_of(bench.check(us), bench.ring).findings == ()


def test_a_value_that_was_noted_before_it_was_corrected_is_proven_by_its_digest(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    was = str(pydicom.dcmread(ct).PatientName)

    def correct(ds: Dataset, noted: str = was) -> None:
        item, before = Dataset(), Dataset()
        before.PatientName = noted
        item.ModifiedAttributesSequence = Sequence([before])
        ds.OriginalAttributesSequence = Sequence([item])
        ds.PatientName = "Corrected^Name"

    def shown(path: Path) -> str:
        [finding] = facts_of(bench.check(path), bench.ring).findings
        return next(line.original for line in finding.header if line.name == "PatientName")

    assert shown(changed(ct, tmp_path / "x.dcm", correct)) == was
    forged = changed(ct, tmp_path / "y.dcm", lambda ds: correct(ds, "Somebody^Else"))
    assert shown(forged) == "", "what was not signed is not called the original"


def test_what_a_hostile_header_says_is_text_and_nothing_else(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    bad = changed(ct, tmp_path / "x.dcm", rename)
    made = pages(bench.check(bad), bench, tmp_path / "out")
    text = made["html"].read_text("utf-8")
    page = Reader(text)
    assert "script" not in page.tags
    assert "<script>alert('x')</script>^<U+202E>gnaM&\"'" in page.text
    assert "\u202e" not in text
    assert "(5008 characters)" in page.text
    assert {address.partition(",")[0] for address in page.addresses} <= {"data:image/jpeg;base64"}
    assert made["pdf"].read_bytes().startswith(b"%PDF-")
    [instance] = json.loads(made["json"].read_text("ascii"))["instances"]
    assert "<script>" in str(instance["header"]["attributes"])


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 999", b"M\xfcller^J\xf6rg"),
        ("ISO_IR 192", b"M\xfcller^\xff\xfe"),
        ("ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$B"),
        ("\\\\\\", b"\x00\x1b\x7f^=^=^=^"),
    ],
)
def test_a_broken_character_set_breaks_no_report(
    charset: str, name: bytes, bench: Bench, ct: Path, tmp_path: Path
) -> None:
    # As bytes: no library would write this.
    values = {0x00080005: ("CS", charset.encode()), 0x00100010: ("PN", name)}
    raw = {
        tag: RawDataElement(Tag(tag), vr, len(value), value, 0, True, True)
        for tag, (vr, value) in values.items()
    }
    path = tmp_path / "x.dcm"
    copy_with_header(ct, raw, path)
    assert name in path.read_bytes()
    made = pages(bench.check(path), bench, tmp_path / "out")
    assert set(made) == {"html", "pdf", "json", "json.sig", "dcm"}
    for text in (made["html"].read_text("utf-8"), made["json"].read_text("ascii")):
        assert not any(ord(c) < 32 and c != "\n" for c in text)


def test_files_are_named_by_a_hash_even_of_a_uid_that_is_a_path(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    check = replace(bench.check(ct), study_instance_uid="../../../etc/passwd")
    written = write_reports(check, tmp_path / "out", ring=bench.ring, formats=["html", "json"])
    for path in written:
        assert path.parent == tmp_path / "out"
        assert path.name.startswith("study-")
        assert "passwd" not in path.name
    uid = bench.check(ct).study_instance_uid
    assert uid not in report_stem(uid)
    assert report_stem(uid) == report_stem(uid) != report_stem(uid + ".1")


def test_the_json_report_is_signed_and_holds_what_the_page_says(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    entry = bench.entry(ct)
    bad = changed(ct, tmp_path / "x.dcm", paint(np.s_[200:260, 130:170], 40))
    made = pages(bench.check(bad, entries=(entry,)), bench, tmp_path / "out")
    text = made["json"].read_bytes()
    assert bench.ring.current.verify(text, made["json.sig"].read_bytes())
    assert not bench.ring.current.verify(text + b" ", made["json.sig"].read_bytes())
    report = json.loads(text)
    assert (report["verdict"], report["counts"]) == ("tampered", {"tampered": 1})
    [instance] = report["instances"]
    assert instance["frames"][0]["tampered"]
    assert report["chain"][0]["received_from"] == "CT-ROOM1"
    assert report["keys"][0]["key_id"] == bench.ring.current.key_id.hex()


def test_the_key_on_the_page_is_the_one_openssl_reads(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    needed("openssl", "the key on the page is not checked")
    [key] = facts_of(bench.check(ct), bench.ring).keys
    (tmp_path / "key.pem").write_text(key.pem)
    command = f"openssl pkey -pubin -in {tmp_path}/key.pem -outform DER | openssl dgst -sha256"
    printed = subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout
    assert printed.split()[-1] == key.fingerprint


def test_a_report_with_a_public_key_says_what_it_could_not_see(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    public = KeyRing.from_public_pem(bench.ring.export_public())
    found = checked_instance(ct, check_instance(ct, public, bench.engine))
    check = study_check(found.study_instance_uid, [found])
    written = write_reports(check, tmp_path, ring=public)
    assert not [path for path in written if path.suffix == ".sig"]
    assert "Checked with public keys alone" in page_of(check, public).text


def test_files_thrown_away_since_the_check_leave_a_report_without_pictures(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    bad = changed(ct, tmp_path / "x.dcm", paint(np.s_[200:260, 130:170], 40))
    check = bench.check(bad)
    gone = replace(check, instances=tuple(replace(e, path=None) for e in check.instances))
    bad.unlink()
    for each in (check, gone):
        written = write_reports(each, tmp_path / "out", ring=bench.ring)
        assert [path.suffix for path in written] == [".html", ".pdf", ".json", ".sig"]
        page = page_of(each, bench.ring)
        assert "tampered" in page.text
        assert page.paths == []


def test_files_that_cannot_be_read_get_a_report_too(bench: Bench, tmp_path: Path) -> None:
    verdict = InstanceVerdict("bad.dcm", "", "unreadable", reason="no DICOM <b>file</b>")
    check = study_check("", [checked_instance(tmp_path / "bad.dcm", verdict)])
    written = write_reports(check, tmp_path / "out", ring=bench.ring)
    assert [path.suffix for path in written] == [".html", ".pdf", ".json", ".sig"]
    assert "no DICOM <b>file</b>" in page_of(check, bench.ring).text


def test_a_folder_that_cannot_be_written_is_an_error_of_the_node(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="cannot be written"):
        write_reports(bench.check(ct), tmp_path / "file" / "out", ring=bench.ring)


def test_the_structured_report_refers_to_every_instance_and_outlines_changes(
    bench: Bench, loop: Path, tmp_path: Path
) -> None:
    bad = changed(loop, tmp_path / "x.dcm", paint(np.s_[4, 20:30, 20:30], 300))
    made = pages(bench.check(bad), bench, tmp_path / "out")
    source, report = pydicom.dcmread(bad), pydicom.dcmread(made["dcm"])
    assert ComprehensiveSR.from_dataset(report)
    assert report.StudyInstanceUID == source.StudyInstanceUID
    assert report.PatientName == source.get("PatientName", "")
    [series] = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    regions = [
        item
        for instance in report.ContentSequence
        if instance.ConceptNameCodeSequence[0].CodeValue == "INSTANCE"
        for item in instance.ContentSequence
        if item.ValueType == "SCOORD"
    ]
    assert regions
    [image] = regions[0].ContentSequence
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 5
    assert list(regions[0].GraphicData)[:2] == [0, 0]


def texts_of(report: Dataset, term: str) -> list[str]:
    """Return the texts of a term of ours, anywhere in a structured report."""
    found = []
    for item in report.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == term and "TextValue" in item:
            found.append(str(item.TextValue))
        found += texts_of(item, term) if "ContentSequence" in item else []
    return found


def changed_study(bench: Bench, ct: Path, folder: Path) -> tuple[StudyCheck, dict[str, Path]]:
    """Check and report a CT that was delivered, and has another patient now and no Study ID."""

    def change(ds: Dataset) -> None:
        ds.PatientID = "ANOTHER-ID"
        del ds.StudyID

    bad = changed(ct, folder / "x.dcm", change)
    check = bench.check(bad, entries=(bench.entry(ct),))
    return check, pages(check, bench, folder / "out")


def test_the_structured_report_tells_the_chain_the_keys_and_what_values_are_now(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    assert "StudyID" in pydicom.dcmread(ct)
    check, made = changed_study(bench, ct, tmp_path)
    facts, report = facts_of(check, bench.ring), pydicom.dcmread(made["dcm"])
    for term, what in (("RECEIVED", "CT-ROOM1"), ("MARKED", "2026-11-21 09:00"),
                       ("DELIVERED", "pacs"), ("RECHECK", "2026-11-21 09:00")):  # fmt: skip
        [text] = texts_of(report, term)
        assert what in text
    [key] = texts_of(report, "KEY")
    for part in (bench.ring.current.key_id.hex(), "TEST-HOSPITAL", facts.keys[0].fingerprint):
        assert part
        assert part in key
    lines = {text.split(";")[0]: text for text in texts_of(report, "CHANGEDATTR")}
    assert set(lines) == {"PatientID", "StudyID"}
    [finding] = facts.findings
    for line in finding.header:
        assert f"digest signed {line.before}, now {line.now or 'none'}" in lines[line.name]
    assert "value now: ANOTHER-ID" in lines["PatientID"]
    assert "value now: none" in lines["StudyID"]
    needed("dciodvfy", "the structured report is not checked")
    checked = subprocess.run(["dciodvfy", made["dcm"]], capture_output=True, text=True)
    assert "Error" not in checked.stderr + checked.stdout, checked.stderr


def test_the_pdf_says_in_text_the_verdict_the_digests_and_the_keys(
    bench: Bench, ct: Path, tmp_path: Path
) -> None:
    needed("pdftotext", "what the PDF says is not read")
    check, made = changed_study(bench, ct, tmp_path)
    facts = facts_of(check, bench.ring)
    done = subprocess.run(
        ["pdftotext", "-layout", made["pdf"], "-"], capture_output=True, text=True, check=True
    )
    words, unbroken = " ".join(done.stdout.split()), "".join(done.stdout.split())
    assert "Authentic pixels, changed header" in words
    [finding], [key] = facts.findings, facts.keys
    for line in finding.header:
        assert line.name in words
        assert line.before in unbroken
    assert "ANOTHER-ID" in words
    assert key.key_id in unbroken
    assert key.fingerprint in unbroken
    for step in ("Received", "Marked", "Delivered", "Checked"):
        assert step in words


@pytest.mark.parametrize("kind", ["ct", "us", "loop"])
def test_dciodvfy_and_dcmtk_accept_the_structured_report(
    kind: str, bench: Bench, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    for tool in ("dciodvfy", "dsrdump"):
        needed(tool, "the structured report is not checked")
    path: Path = request.getfixturevalue(kind)
    for name, change in (("as-is", lambda ds: None), ("hostile", rename)):
        copy = changed(path, tmp_path / f"{name}.dcm", change)
        made = pages(bench.check(copy), bench, tmp_path / name)
        checked = subprocess.run(["dciodvfy", made["dcm"]], capture_output=True, text=True)
        assert "Error" not in checked.stderr + checked.stdout, checked.stderr
        dumped = subprocess.run(["dsrdump", made["dcm"]], capture_output=True, text=True)
        assert dumped.returncode == 0, dumped.stderr


def test_only_a_report_loads_what_reports_are_written_with() -> None:
    code = (
        "import sys, dicom_node.cli.verify, dicom_node.verify.report, dicom_node.verify.check\n"
        "print([m for m in ('jinja2', 'reportlab', 'highdicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_touching_boxes_share_one_outline() -> None:
    both = outline([Box(0, 0, 10, 10), Box(0, 10, 10, 5)])
    assert set(both) == {(0, 0, 15, 0), (0, 10, 15, 10), (0, 0, 0, 10), (15, 0, 15, 10)}
    apart = outline([Box(0, 0, 10, 10), Box(20, 20, 5, 5)])
    assert len(apart) == 8
    assert outline([]) == ()


def test_every_character_of_a_printed_text_can_be_seen() -> None:
    assert printable("a\x00b\u200fc\ud800\n") == "a<U+0000>b<U+200F>c<U+D800><U+000A>"
    assert printable("\u5c71\u7530 & <b>") == "\u5c71\u7530 & <b>"
    assert printable("x" * 200, 10) == "x" * 10 + "\u2026 (200 characters)"
