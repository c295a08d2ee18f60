"""Reports as they are received: a structured report in a PACS, a page in a browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from dicom_node.config import WatermarkConfig
from dicom_node.errors import AssociationRejected
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.verify.check import check_instance
from dicom_node.verify.report import write_reports
from dicom_node.verify.structured_report import store_report
from dicom_node.verify.study import checked_instance, study_check

pytestmark = pytest.mark.peer
ROOT = Path(__file__).resolve().parents[2]
WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports on a tampered MR slice with a name as long as a name can be; by suffix."""
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
    written = write_reports(
        study_check(found.study_instance_uid, [found]), folder / "out", ring=ring
    )
    return {path.suffix: path for path in written}


def test_dcmtk_stores_the_structured_report(reports, dcmtk_storescp):
    port, folder = dcmtk_storescp()
    store_report(
        reports[".dcm"], "pacs", ("127.0.0.1", port), called_ae="STORESCP", calling_ae="VERIFY"
    )
    [stored] = folder.iterdir()
    sent, got = pydicom.dcmread(reports[".dcm"]), pydicom.dcmread(stored)
    assert got.SOPInstanceUID == sent.SOPInstanceUID
    assert got.ContentSequence == sent.ContentSequence


def test_orthanc_keeps_the_structured_report_with_its_study(reports, orthanc):
    store_report(
        reports[".dcm"], "pacs", ("127.0.0.1", orthanc.port), called_ae="ORTHANC",
        calling_ae="VERIFY",
    )  # fmt: skip
    [study] = orthanc.get("/studies?expand")
    sent = pydicom.dcmread(reports[".dcm"])
    assert study["MainDicomTags"]["StudyInstanceUID"] == sent.StudyInstanceUID


def test_a_pacs_that_is_away_is_an_error_of_the_node(reports):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(AssociationRejected):
            store_report(
                reports[".dcm"], "pacs", closed.getsockname(), called_ae="X", calling_ae="VERIFY",
                timeout_s=2,
            )  # fmt: skip


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
        if shutil.which("pdfinfo") is None:
            pytest.skip("pdfinfo IS MISSING: pages are not measured")
        said = subprocess.run(["pdfinfo", document], capture_output=True, text=True).stdout
        assert "(A4)" in said, said
        assert int(said.split("Pages:")[1].split()[0]) <= 4


def browser(what, out, page, *more):
    """Let Chromium turn a page into a file, in a profile of its own; skip where it is missing."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("CHROMIUM IS MISSING: no browser looks at the page")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--no-pdf-header-footer", f"--user-data-dir={out.parent}/profile", f"{what}={out}",
               *more, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.is_file(), done.stderr
    return out
