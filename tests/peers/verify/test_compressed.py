"""Compressed, colour and multi-frame instances, retrieved with codecs and without."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import verifying
from pydicom.pixels import pixel_array
from pydicom.uid import JPEG2000Lossless
from verifying import STUDY_GET, STUDY_MOVE, client, keys

pytestmark = [pytest.mark.peer, pytest.mark.slow]


COMPRESSED = {
    "CT, JPEG-LS": "ct_transfer_syntaxes/cornerstoneWADOImageLoader__CTImage.dcm_JPEGLSLossless"
                   "TransferSyntax_1.2.840.10008.1.2.4.80.dcm",
    "colour, RLE": "sc/pydicom__SC_rgb_rle.dcm",
    "multi-frame, RLE": "mr/pylibjpeg-data__emri_small_RLE.dcm",
}  # fmt: skip


@pytest.fixture(scope="module")
def compressed(marks, pacs, shared):
    """Real objects, marked; the PACS has them as they are coded."""
    made = {}
    for name, path in COMPRESSED.items():
        made[name] = marks.mark(shared / "dicom" / path)
        pacs.upload(made[name])
    return made


def is_the_same_decompressed(came, marked, marks, syntax=verifying.EXPLICIT):
    there, sent = pydicom.dcmread(came), pydicom.dcmread(marked)
    assert sent.file_meta.TransferSyntaxUID.is_encapsulated
    assert there.file_meta.TransferSyntaxUID == syntax
    before = pixel_array(sent, raw=True)
    assert before.size == sent.Rows * sent.Columns * sent.SamplesPerPixel * int(
        sent.get("NumberOfFrames", 1)
    )
    assert np.array_equal(pixel_array(there, raw=True), before)
    assert there.PhotometricInterpretation == sent.PhotometricInterpretation
    assert marks.verdict(came) == "authentic"


@pytest.mark.parametrize("syntax", [verifying.EXPLICIT, verifying.IMPLICIT])
@pytest.mark.parametrize("name", COMPRESSED)
def test_a_client_without_codecs_gets_every_pixel_and_the_same_verdict(
    service, marks, compressed, name, syntax, tmp_path
):
    sent = pydicom.dcmread(compressed[name], stop_before_pixels=True)
    came = tmp_path / "came.dcm"

    def store(event):
        assert not came.exists()
        came.write_bytes(event.encoded_dataset())
        return 0x0000

    with client(service, STUDY_GET, storage=[sent.SOPClassUID], on_store=store,
                storage_syntax=syntax) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status = list(assoc.send_c_get(asked, STUDY_GET))[-1][0]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 1)
    is_the_same_decompressed(came, compressed[name], marks, syntax)


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_destination_without_codecs_gets_every_pixel_and_the_same_verdict(
    service, marks, compressed, name, viewer
):
    sent = pydicom.dcmread(compressed[name], stop_before_pixels=True)
    with client(service, STUDY_MOVE) as assoc:
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status = list(assoc.send_c_move(asked, "VIEWER", STUDY_MOVE))[-1][0]
    assert (status.Status, status.NumberOfCompletedSuboperations) == (0x0000, 1)
    [came] = viewer.stored()[sent.SOPInstanceUID]
    is_the_same_decompressed(came, compressed[name], marks)


def test_a_destination_with_codecs_gets_a_compressed_instance_as_it_is(
    service, compressed, workstation
):
    marked = compressed["CT, JPEG-LS"]
    sent = pydicom.dcmread(marked, stop_before_pixels=True)
    with client(service, STUDY_MOVE) as assoc:
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        assert list(assoc.send_c_move(asked, "WORKSTATION", STUDY_MOVE))[-1][0].Status == 0x0000
    [came] = workstation.stored()[sent.SOPInstanceUID]
    there = pydicom.dcmread(came)
    assert there.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    assert there.PixelData == pydicom.dcmread(marked).PixelData


def test_what_a_client_takes_in_no_syntax_of_ours_is_a_failed_sub_operation(service, compressed):
    sent = pydicom.dcmread(compressed["CT, JPEG-LS"], stop_before_pixels=True)
    came = []
    with client(service, STUDY_GET, storage=[sent.SOPClassUID], on_store=came.append,
                storage_syntax=JPEG2000Lossless) as assoc:  # fmt: skip
        asked = keys(StudyInstanceUID=sent.StudyInstanceUID)
        status, identifier = list(assoc.send_c_get(asked, STUDY_GET))[-1]
    assert (came, status.Status, status.NumberOfFailedSuboperations) == ([], 0xA702, 1)
    assert identifier.FailedSOPInstanceUIDList == sent.SOPInstanceUID
