"""Reports as they are received: a structured report in a PACS, a page in a browser."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from peer_tools import needed

from dicom_node.config import WatermarkConfig
from dicom_node.errors import AssociationRejected
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.verify.check import check_instance
from dicom_node.verify.report import write_reports
from dicom_node.verify.report_storing import Destination, store_report, store_study_report
from dicom_node.verify.study import checked_instance, study_check

pytestmark = pytest.mark.peer
ROOT = Path(__file__).resolve().parents[2]
WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Key ring, engine, and the check of a tampered slice with a name as long as a name can be."""
    folder = tmp_path_factory.mktemp("reports")
    ring = KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)
    engine = open_engine("onnx")
    source = min((ROOT / "demo" / "mr_brain").glob("*.dcm"))
    Marker(WatermarkConfig(), ring, engine).mark(source, folder / "marked.dcm", marked_at=WHEN)
    ds = pydicom.dcmread(folder / "marked.dcm")
    pixels = ds.pixel_array.copy()
    pixels[100:120, 100:120] += 50
    ds.PixelData = pixels.tobytes()
    ds.PatientName = "W" * 60 + "^" + "M" * 60
    ds.save_as(folder / "changed.dcm")
    verdict = check_instance(folder / "changed.dcm", ring, engine)
    found = checked_instance(folder / "changed.dcm", verdict)
    return ring, engine, study_check(found.study_instance_uid, [found])


@pytest.fixture(scope="module")
def reports(bench, tmp_path_factory):
    """The reports on it, by suffix."""
    ring, _, check = bench
    written = write_reports(check, tmp_path_factory.mktemp("out"), ring=ring)
    return {path.suffix: path for path in written}


def test_dcmtk_stores_the_structured_report_as_it_was_written(reports, dcmtk_storescp):
    port, folder = dcmtk_storescp()
    to = Destination("pacs", ("127.0.0.1", port), "STORESCP", "VERIFY")
    assert store_report(reports[".dcm"], to) == 0
    [stored] = folder.iterdir()
    sent, got = pydicom.dcmread(reports[".dcm"]), pydicom.dcmread(stored)
    assert got.SOPInstanceUID == sent.SOPInstanceUID
    assert got.ContentSequence == sent.ContentSequence


def test_a_report_in_the_pacs_is_authentic_like_its_study(reports, bench, dcmtk_storescp):
    ring, engine, check = bench
    port, folder = dcmtk_storescp()
    to = Destination("pacs", ("127.0.0.1", port), "STORESCP", "VERIFY")
    entry = store_study_report(check, to, ring, checked_by="audit")
    [stored] = folder.iterdir()
    assert check_instance(stored, ring, engine).verdict == "authentic"
    found = checked_instance(stored, check_instance(stored, ring, engine))
    again = study_check(check.study_instance_uid, [found], [entry], destination="pacs")
    assert (again.extra, again.missing, again.transcoded) == ((), (), ())
    script = ROOT / "examples" / "check_signature.py"
    (folder.parent / "public.pem").write_text(ring.export_public())
    command = [sys.executable, script, folder.parent / "public.pem", stored]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_orthanc_keeps_the_structured_report_with_its_study(reports, orthanc):
    store_report(reports[".dcm"], Destination("pacs", ("127.0.0.1", orthanc.port), "ORTHANC", "V"))
    [study] = orthanc.get("/studies?expand")
    sent = pydicom.dcmread(reports[".dcm"])
    assert study["MainDicomTags"]["StudyInstanceUID"] == sent.StudyInstanceUID


def test_a_pacs_that_is_away_is_an_error_of_the_node(reports):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(AssociationRejected):
            store_report(
                reports[".dcm"], Destination("pacs", closed.getsockname(), "X", "VERIFY", 2)
            )


@pytest.mark.parametrize(("width_px", "height_px"), [(500, 3000), (1100, 2600)])
def test_a_browser_shows_the_whole_page_and_cuts_nothing_off(
    width_px, height_px, reports, tmp_path
):
    picture = browser("--screenshot", tmp_path / "page.png", reports[".html"],
                      f"--window-size={width_px},{height_px}")  # fmt: skip
    shown = cv2.imread(str(picture))
    assert shown.shape[:2] == (height_px, width_px)
    assert (shown != 255).any(), "an empty page"
    # Whatever is too wide would reach the margins.
    assert (shown[:, :8] == 255).all()
    assert (shown[:, -8:] == 255).all()
    red = np.abs(shown.astype(int) - (0x20, 0x2A, 0xE0)).max(axis=2) < 40
    assert red.sum() > 100, "the changed region is outlined"


def test_a_browser_prints_the_page_on_a4(reports, tmp_path):
    printed = browser("--print-to-pdf", tmp_path / "page.pdf", reports[".html"])
    for document in (printed, reports[".pdf"]):
        needed("pdfinfo", "pages are not measured")
        said = subprocess.run(["pdfinfo", document], capture_output=True, text=True).stdout
        assert "(A4)" in said, said
        assert int(said.split("Pages:")[1].split()[0]) <= 4


def browser(what, out, page, *more):
    """Let Chromium turn a page into a file, in a profile of its own; skip where it is missing."""
    program = needed("chromium", "no browser looks at the page")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--no-pdf-header-footer", f"--user-data-dir={out.parent}/profile", f"{what}={out}",
               *more, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.is_file(), done.stderr
    return out
