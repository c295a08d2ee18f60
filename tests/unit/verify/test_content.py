"""What is said of a picture whose integrity mark is gone: is the content still what it was?"""

import html
import json
import re
import subprocess
from datetime import UTC, datetime

import cv2
import numpy as np
import openjpeg.utils
import pydicom
import pytest
from peer_tools import needed
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000

from dicom_node.bench.frames import wrap_picture
from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.registry.records import MarkedInstance
from dicom_node.registry.registry import Registry
from dicom_node.verify.check import check_instance
from dicom_node.verify.content import fingerprints_at, fingerprints_in
from dicom_node.verify.report import write_reports
from dicom_node.verify.study import checked_instance, study_check
from dicom_node.watermark import fingerprint

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
SPOT = (250, 190, 26)  # row, column, radius


class Leak:
    """A marked frame that left the hospital as a picture, and what the node remembers of it."""

    def __init__(self, folder, source):
        self.folder = folder
        self.ring = KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)
        self.engine = open_engine("onnx")
        marker = Marker(WatermarkConfig(), self.ring, self.engine)
        self.outcome = marker.mark(source, folder / "marked.dcm", marked_at=WHEN)
        assert self.outcome.action == "marked", self.outcome.reason
        self.facts = self.outcome.facts.frames[0]
        instance = open_instance(folder / "marked.dcm", max_pixels=1 << 24)
        self.picture = display_of(instance).export_8bit(instance.frame(0), 0)
        instance.close()

    def verdict(self, picture, known=None, quality=70):
        """On a screenshot of it, sent to the PACS as a Secondary Capture."""
        coded = self.folder / "leak.jpg"
        assert cv2.imwrite(str(coded), picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        wrap_picture(coded, self.folder / "leak.dcm")
        return check_instance(self.folder / "leak.dcm", self.ring, self.engine, known=known)

    def known(self, message):
        assert message == self.facts.message
        return [self.facts.fingerprint]

    def forged(self):
        row, column, radius = SPOT
        y, x = np.ogrid[: self.picture.shape[0], : self.picture.shape[1]]
        spot = np.clip((radius - np.hypot(y - row, x - column)) / 5 + 0.5, 0, 1)
        sign = 1 if self.picture[row, column] < 128 else -1
        return np.clip(self.picture + sign * 100 * spot, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def leak(tmp_path_factory, shared):
    source = shared / "dicom/ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm"
    return Leak(tmp_path_factory.mktemp("leak"), source)


def test_an_export_of_the_frame_has_its_content_preserved(leak):
    [frame] = leak.verdict(leak.picture, leak.known).frames
    assert (frame.verdict, frame.integrity) == ("content-preserved", "absent")
    assert "likelihood, not proof" in frame.reason
    assert "a sixth of the picture's width" in frame.reason


def test_a_lesion_painted_into_an_export_is_tampering_and_is_outlined(leak):
    verdict = leak.verdict(leak.forged(), leak.known)
    [frame] = verdict.frames
    assert (verdict.verdict, frame.integrity, frame.robust.decoded) == ("tampered", "absent", True)
    assert "differs from its fingerprint in" in frame.reason
    assert "likelihood, not proof" in frame.reason
    assert "judged by likelihood, not proof" in verdict.reason
    row, column, radius = SPOT
    box = frame.tampered[0]
    assert box.row <= row <= box.row + box.rows
    assert box.column <= column <= box.column + box.columns
    assert max(box.rows, box.columns) <= 8 * radius


def test_every_report_on_a_lossy_copy_says_what_may_hide_and_how_big(leak, tmp_path):
    """A faint spot in the copy is not seen: nothing may read as if it could not be there."""
    ds = pydicom.dcmread(leak.folder / "marked.dcm")
    values = ds.pixel_array.copy()
    values[SPOT[0] - 5 : SPOT[0] + 5, SPOT[1] - 5 : SPOT[1] + 5] += 15
    code = openjpeg.utils.encode_array(values, bits_stored=ds.BitsStored, compression_ratios=[10])
    ds.PixelData = encapsulate([code])
    ds.file_meta.TransferSyntaxUID = JPEG2000
    ds.save_as(leak.folder / "copy.dcm")
    verdict = check_instance(leak.folder / "copy.dcm", leak.ring, leak.engine, known=leak.known)
    assert verdict.verdict == "content-preserved", "or choose a fainter spot"
    assert "judged by likelihood, not proof" in verdict.to_json()["reason"]
    found = checked_instance(leak.folder / "copy.dcm", verdict)
    check = study_check(found.study_instance_uid, [found])
    assert not check.sound
    written = write_reports(check, tmp_path, ring=leak.ring)
    text = {path.suffix: path.read_bytes() for path in written}
    said = json.loads(text[".json"])
    page = re.sub(r"\s+", " ", html.unescape(text[".html"].decode()))
    report = " ".join(_texts(pydicom.dcmread(next(p for p in written if p.suffix == ".dcm"))))
    for told in (" ".join([*said["sentences"], *said["caveats"]]), page, report):
        assert "by likelihood, not proof, the picture that was marked" in told
        assert "smaller than about a sixth of the picture's width, or faint" in told
    pdf = next(path for path in written if path.suffix == ".pdf")
    printed = subprocess.run([needed("pdftotext"), pdf, "-"], capture_output=True, text=True)
    assert "no proof" in " ".join(printed.stdout.split())


def _texts(item):
    yield str(item.get("TextValue", ""))
    for inside in item.get("ContentSequence", ()):
        yield from _texts(inside)


def test_the_lesion_is_outlined_in_the_picture_as_it_lies(leak):
    turned = np.ascontiguousarray(np.rot90(leak.forged())[:, ::-1])
    where = np.zeros(leak.picture.shape, np.uint8)
    where[SPOT[0], SPOT[1]] = 1
    [[row, column]] = np.argwhere(np.rot90(where)[:, ::-1])
    [frame] = leak.verdict(turned, leak.known).frames
    box = frame.tampered[0]
    assert box.row <= row <= box.row + box.rows
    assert box.column <= column <= box.column + box.columns


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (None, "no registry was asked"),
        (lambda message: (), "the registry has no fingerprint of it"),
        (lambda message: [b"\x09\x00" + bytes(256)], "a fingerprint of model 9"),
    ],
)
def test_without_a_fingerprint_the_verdict_says_that_the_content_was_not_compared(leak, known, why):
    [frame] = leak.verdict(leak.forged(), known).frames
    assert frame.verdict == "content-preserved"
    assert frame.reason.startswith("content not compared: ")
    assert why in frame.reason
    assert frame.reason.endswith("any local change may hide")


def test_a_registry_that_cannot_be_reached_is_said_and_is_no_verdict(leak, tmp_path):
    """It is not the image's fault."""
    (tmp_path / "registry.sqlite").mkdir()
    known = fingerprints_at(f"sqlite:///{tmp_path}/registry.sqlite")
    [frame] = leak.verdict(leak.picture, known).frames
    assert frame.verdict == "content-preserved"
    assert frame.reason.startswith("content not compared: ")


def test_of_several_frames_with_the_same_mark_it_is_enough_to_be_one(leak):
    """Slices that look alike carry the same message."""
    own, network = leak.facts.fingerprint, open_fingerprinter()
    shown = leak.picture / np.float32(255)
    others = [fingerprint.compute(np.roll(shown, 37 * k, 0), network) for k in range(1, 12)]
    [frame] = leak.verdict(leak.picture, lambda message: [*others, own]).frames
    assert frame.verdict == "content-preserved"
    assert frame.reason.startswith("no cell of its fingerprint differs")
    [frame] = leak.verdict(leak.picture, lambda message: others).frames
    assert frame.verdict == "tampered"


def test_the_registry_is_asked_by_the_message_the_picture_carries(leak, tmp_path):
    done = leak.outcome
    record = MarkedInstance(
        done.sop_instance_uid, done.series_instance_uid, done.study_instance_uid,
        done.sop_class_uid, done.transfer_syntax_uid, "marked", b"r" * 32, b"d" * 32,
        leak.ring.current.key_id, int(WHEN.timestamp()), WHEN.timestamp(), "MODALITY",
        frame_count=1, frames=done.facts.frames,
    )  # fmt: skip
    with Registry.open(f"sqlite:///{tmp_path}/registry.sqlite") as registry:
        known = fingerprints_in(registry)
        there = fingerprints_at(f"sqlite:///{tmp_path}/registry.sqlite")
        assert "no fingerprint" in leak.verdict(leak.picture, known).frames[0].reason
        registry.add(record)
        assert leak.verdict(leak.picture, known).verdict == "content-preserved"
        assert leak.verdict(leak.forged(), known).verdict == "tampered"
    assert leak.verdict(leak.forged(), there).verdict == "tampered"
