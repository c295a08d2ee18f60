"""dciodvfy on what we send: no error that the input did not have."""

import subprocess
from datetime import UTC, datetime

import harness
import pytest

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, restore

pytestmark = pytest.mark.peer

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
CT_512 = "ct_transfer_syntaxes/cornerstoneWADOImageLoader__CTImage.dcm_"
# What comes in, and in which transfer syntax it goes out.
OBJECTS = {
    "CT": ("ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm", "marked", "1.2.840.10008.1.2"),
    "CT big endian": (
        f"{CT_512}BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
        "marked", "1.2.840.10008.1.2.2",
    ),
    "CT JPEG lossless": (
        f"{CT_512}JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm",
        "marked", "1.2.840.10008.1.2.4.80",
    ),
    "CT enhanced": ("ct_enhanced/pydicom-data__eCT_Supplemental.dcm", "marked",
                    "1.2.840.10008.1.2.1"),
    "MR": ("mr/pydicom__MR_small.dcm", "marked", "1.2.840.10008.1.2.1"),
    "MR enhanced RLE": ("mr/pylibjpeg-data__emri_small_RLE.dcm", "marked", "1.2.840.10008.1.2.5"),
    "DX": ("cr_dx/highdicom__dx_image.dcm", "marked", "1.2.840.10008.1.2.1"),
    "MG JPEG lossless": ("mg/fo-dicom__OutOfBoundsOverlay.dcm", "marked",
                         "1.2.840.10008.1.2.4.80"),
    "US RGB": ("us/pydicom__examples_rgb_color.dcm", "marked", "1.2.840.10008.1.2.1"),
    "US JPEG 2000": ("us/pydicom__examples_jpeg2k.dcm", "marked", "1.2.840.10008.1.2.4.90"),
    "NM": ("nm/pydicom-data__JPEG2000_UNC.dcm", "marked", "1.2.840.10008.1.2.1"),
    "PT": ("pt/dicom__1.dcm", "marked", "1.2.840.10008.1.2.1"),
    "SC JPEG baseline": ("sc/pydicom__SC_rgb_jpeg_dcmtk.dcm", "marked", None),
    "SR": ("sr/pydicom__test-SR.dcm", "sealed", "1.2.840.10008.1.2.1"),
    "SEG": ("seg", "sealed", None),
    "RT dose": ("rt/pydicom__rtdose.dcm", "sealed", "1.2.840.10008.1.2"),
    "ECG": ("ecg/pydicom__waveform_ecg.dcm", "sealed", "1.2.840.10008.1.2.1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    keys = tmp_path_factory.mktemp("conformance") / "keys"
    ring = KeyRing.open(keys, owner="TEST-HOSPITAL", create=True)
    made = Marker(WatermarkConfig(), ring, open_engine("onnx"))
    made.ring = ring
    return made


def complaints(path):
    """Return how many warnings and errors dcmdump has about a file."""
    done = subprocess.run(
        [harness.tool("dcmdump"), path], capture_output=True, timeout=60, check=False
    )
    return done.stderr.count(b"\n") + 100 * done.returncode


@pytest.mark.parametrize("kind", OBJECTS)
def test_what_leaves_has_no_error_that_what_came_did_not_have(kind, shared, marker, tmp_path):
    name, action, syntax = OBJECTS[kind]
    source = shared / "dicom" / name
    if source.is_dir():
        source = min(path for path in source.rglob("*") if path.is_file())
    out = tmp_path / "out.dcm"
    outcome = marker.mark(source, out, marked_at=WHEN)
    assert outcome.action == action
    assert syntax in (None, outcome.transfer_syntax_uid)
    assert harness.dciodvfy_errors(out) - harness.dciodvfy_errors(source) == set()
    assert complaints(out) <= complaints(source)
    if action == "marked":
        back = tmp_path / "back.dcm"
        assert restore(out, back, marker.ring).exact
        assert harness.dciodvfy_errors(back) - harness.dciodvfy_errors(source) == set()
