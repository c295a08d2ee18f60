"""Both marks on real objects: what is promised of one instance from marking to restoration."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import harness
import numpy as np
import pydicom
import pytest
from harness import ct
from pydicom.uid import RLELossless

from dicom_node.config import WatermarkConfig
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, restore
from dicom_node.verify.check import check_instance

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
CT_512 = "ct_transfer_syntaxes/cornerstoneWADOImageLoader__CTImage.dcm_"
DEFLATED = "1.2.840.10008.1.2.1.99"
REAL = {
    "CT implicit, 16 bit signed": "ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
    "CT big endian": f"{CT_512}BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
    "CT deflated": f"{CT_512}DeflatedExplicitVRLittleEndianTransferSyntax_{DEFLATED}.dcm",
    "CT JPEG lossless": f"{CT_512}JPEGProcess14SV1TransferSyntax_1.2.840.10008.1.2.4.70.dcm",
    "CT JPEG 2000 lossy": f"{CT_512}JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm",
    "CT small": "ct/pydicom__CT_small.dcm",
    "MR 64 x 64": "mr/pydicom__MR_small.dcm",
    "MR mosaic": "mr_mosaic/Siemens_Skyra_EPI/epi_pe_ap-00001.dcm",
    "MR overlay in the high bits": "mr/pydicom__examples_overlay.dcm",
    "MR enhanced, 10 frames, RLE": "mr/pylibjpeg-data__emri_small_RLE.dcm",
    "US RGB": "us/pydicom__examples_rgb_color.dcm",
    "SC 4:2:2": "sc/pydicom__SC_ybr_full_422_uncompressed.dcm",
    "SC 16 bit RGB": "sc/pylibjpeg-data__SC_rgb_16bit.dcm",
    "SC JPEG baseline": "sc/pydicom__SC_rgb_jpeg_dcmtk.dcm",
    "US JPEG 2000 RCT": "us/pydicom__examples_jpeg2k.dcm",
    "JPEG-LS 7 bit": "jpegls_misc/pydicom-data__JLSL_08_07_0_1F.dcm",
    "DX MONOCHROME1": "cr_dx/highdicom__dx_image.dcm",
    "PT": "pt/dicom__1.dcm",
    "HTJ2K RGB": "htj2k/pydicom-data__HTJ2KLossless_08_RGB.dcm",
    "SM tiles of 10 x 10": "sm/highdicom__sm_image.dcm",
}
SR = "sr/pydicom__test-SR.dcm"
SEALED = {
    "SR": SR,
    "ECG": "ecg/pydicom__waveform_ecg.dcm",
    "RT dose": "rt/pydicom__rtdose.dcm",
    "PDF": "encapsulated_pdf_generated/dicom-ecg-plot__anonymous_ecg_report.dcm",
    "palette": "us/pydicom__examples_palette.dcm",
    "float": "pmap_float/pydicom-data__parametric_map_float.dcm",
    "3 x 3 pixels": "sc/pydicom__SC_rgb_small_odd.dcm",
    "deflated SR": "deflated/dcm4che__report_dfl",
}


@pytest.fixture(scope="module")
def marked_ct(marker, tmp_path_factory):
    """A marked CT of 128 x 128: small enough to be changed in many ways."""
    folder = tmp_path_factory.mktemp("marked")
    source = harness.save(ct(size=128), folder / "source.dcm")
    outcome = marker.mark(source, folder / "marked.dcm", marked_at=WHEN)
    assert outcome.action == "marked"
    return folder / "marked.dcm"


def seals(policy, ring, engine):
    return Marker(WatermarkConfig(on_unmarkable=policy), ring, engine)


def object_of(shared, name):
    return shared / "dicom" / {**REAL, **SEALED}[name]


@pytest.mark.parametrize("name", REAL)
def test_what_is_marked_is_authentic_and_restores_bit_for_bit(
    name, shared, marker, ring, engine, tmp_path
):
    source, out = object_of(shared, name), tmp_path / "marked.dcm"
    outcome = marker.mark(source, out, marked_at=WHEN)
    if outcome.action == "sealed":
        assert "cannot hold" in outcome.reason
        assert check_instance(out, ring, engine).verdict == "authentic"
        return
    assert outcome.action == "marked", outcome.reason
    verdict = check_instance(out, ring, engine)
    assert (verdict.verdict, verdict.changed) == ("authentic", ())
    assert verdict.owner == "TEST-HOSPITAL"
    assert verdict.marked_at == int(WHEN.timestamp())
    assert outcome.max_change
    restored = restore(out, tmp_path / "restored.dcm", ring)
    assert restored.exact, restored.reason
    assert harness.differences(source, tmp_path / "restored.dcm") == []


@pytest.mark.parametrize("name", ["CT small", "MR 64 x 64", "MR enhanced, 10 frames, RLE", "PT"])
def test_both_marks_together_leave_the_smallest_frames_forty_decibels(
    name, shared, ring, engine, tmp_path
):
    measuring = Marker(WatermarkConfig(), ring, engine, measure=True)
    outcome = measuring.mark(object_of(shared, name), tmp_path / "out.dcm", marked_at=WHEN)
    assert outcome.action == "marked"
    assert outcome.psnr_db >= 40.0


def test_marking_keeps_the_uids_and_describes_itself(marked_ct):
    before = pydicom.dcmread(marked_ct.with_name("source.dcm"))
    after = pydicom.dcmread(marked_ct)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPClassUID"):
        assert after[keyword].value == before[keyword].value
    assert after.file_meta.MediaStorageSOPInstanceUID == before.SOPInstanceUID
    equipment = after.ContributingEquipmentSequence[-1]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109103"
    assert "reversible" in equipment.ContributionDescription


@pytest.mark.parametrize("name", ["CT small", "US RGB", "SC 4:2:2", "SR"])
def test_the_same_source_time_and_key_give_the_same_bytes(
    name, shared, ring, engine, marker, tmp_path
):
    outs = [tmp_path / "a.dcm", tmp_path / "b.dcm", tmp_path / "c.dcm"]
    others = [marker, marker, Marker(WatermarkConfig(), ring, engine)]
    for out, each in zip(outs, others, strict=True):
        each.mark(object_of(shared, name), out, marked_at=WHEN)
    assert len({hashlib.sha256(out.read_bytes()).digest() for out in outs}) == 1


@pytest.mark.parametrize("policy", ["hold", "reject"])
def test_what_an_administrator_releases_is_sealed_whatever_the_policy_says(
    policy, shared, ring, engine, tmp_path
):
    marker, source, out = seals(policy, ring, engine), object_of(shared, "SR"), tmp_path / "out.dcm"
    assert marker.mark(source, out, marked_at=WHEN).action in ("held", "rejected")
    assert marker.mark(source, out, marked_at=WHEN, released=True).action == "sealed"
    assert check_instance(out, ring, engine).verdict == "authentic"


@pytest.mark.parametrize("name", ["CT small", "US RGB", "SR", "3 x 3 pixels"])
def test_what_was_marked_before_is_passed_on_untouched(name, shared, marker, tmp_path):
    once, twice = tmp_path / "once.dcm", tmp_path / "twice.dcm"
    marker.mark(object_of(shared, name), once, marked_at=WHEN)
    outcome = marker.mark(once, twice, marked_at=WHEN + timedelta(days=1))
    assert outcome.action == "untouched"
    assert "already" in outcome.reason
    assert twice.read_bytes() == once.read_bytes()


def test_what_an_older_key_of_the_ring_marked_is_passed_on_untouched(engine, tmp_path):
    ring = KeyRing.open(tmp_path / "keys", owner="TEST-HOSPITAL", create=True)
    source = harness.save(ct(), tmp_path / "source.dcm")
    Marker(WatermarkConfig(), ring, engine).mark(source, tmp_path / "a.dcm", marked_at=WHEN)
    old = ring.current.key_id
    ring.rotate("TEST-HOSPITAL")
    assert ring.current.key_id != old
    newer = Marker(WatermarkConfig(), ring, engine)
    outcome = newer.mark(tmp_path / "a.dcm", tmp_path / "b.dcm", marked_at=WHEN)
    assert outcome.action == "untouched"
    assert check_instance(tmp_path / "b.dcm", ring, engine).signed_by == old
    assert restore(tmp_path / "b.dcm", tmp_path / "c.dcm", ring).exact


def one_pixel(ds):
    pixels = bytearray(ds.PixelData)
    pixels[len(pixels) // 2] ^= 1
    ds.PixelData = bytes(pixels)


def every_pixel(ds):
    flipped = np.frombuffer(ds.PixelData, "<u2") ^ 1
    ds.PixelData = flipped.tobytes()


def patient(ds):
    ds.PatientID = "SOMEBODY-ELSE"


def stripped_and_one_pixel(ds):
    ds.remove_private_tags()
    one_pixel(ds)


TAMPERINGS = [one_pixel, every_pixel, stripped_and_one_pixel]


@pytest.mark.parametrize("change", TAMPERINGS)
def test_a_tampered_instance_that_comes_again_is_never_signed_anew(
    change, marked_ct, marker, ring, engine, tmp_path
):
    ds = pydicom.dcmread(marked_ct)
    change(ds)
    path, again = tmp_path / "tampered.dcm", tmp_path / "again.dcm"
    ds.save_as(path)
    outcome = marker.mark(path, again, marked_at=WHEN + timedelta(days=1))
    assert outcome.action == "untouched"
    assert "passed on as received" in outcome.reason
    assert again.read_bytes() == path.read_bytes()
    assert check_instance(again, ring, engine).verdict != "authentic"


def test_a_replaced_first_frame_is_not_signed_anew(shared, marker, ring, engine, tmp_path):
    source = shared / "dicom/mr/pylibjpeg-data__emri_small.dcm"
    marked, path, again = (tmp_path / f"{name}.dcm" for name in ("marked", "path", "again"))
    assert marker.mark(source, marked, marked_at=WHEN).action == "marked"
    ds, original = pydicom.dcmread(marked), pydicom.dcmread(source)
    frame = ds.Rows * ds.Columns * 2
    ds.PixelData = original.PixelData[:frame] + ds.PixelData[frame:]
    for private in (False, True):
        if private:
            ds.remove_private_tags()
        ds.save_as(path)
        outcome = marker.mark(path, again, marked_at=WHEN)
        assert outcome.action == "untouched", f"private tags removed: {private}"
        assert check_instance(again, ring, engine).verdict == "tampered"


@pytest.mark.parametrize("name", ["SR", "3 x 3 pixels", "palette"])
def test_a_changed_sealed_instance_that_comes_again_is_not_sealed_anew(
    name, shared, marker, ring, engine, tmp_path
):
    marked, path, again = (tmp_path / f"{each}.dcm" for each in ("marked", "path", "again"))
    assert marker.mark(object_of(shared, name), marked, marked_at=WHEN).action == "sealed"
    ds = pydicom.dcmread(marked)
    ds.PatientID = "SOMEBODY-ELSE"
    ds.save_as(path)
    outcome = marker.mark(path, again, marked_at=WHEN + timedelta(days=1))
    assert outcome.action == "untouched"
    verdict = check_instance(again, ring, engine)
    assert (verdict.verdict, verdict.changed) == ("tampered", ("PatientID",))


@pytest.mark.parametrize("name", SEALED)
def test_what_cannot_be_marked_is_sealed_and_authentic_until_it_is_changed(
    name, shared, marker, ring, engine, tmp_path
):
    source, out, path = object_of(shared, name), tmp_path / "sealed.dcm", tmp_path / "changed.dcm"
    outcome = marker.mark(source, out, marked_at=WHEN)
    assert outcome.action == "sealed"
    assert outcome.reason
    verdict = check_instance(out, ring, engine)
    assert (verdict.verdict, verdict.owner) == ("authentic", "TEST-HOSPITAL")
    ours = {"(0071,0010)", "(0071,1001)", "(0071,1002)"}
    added = harness.header_differences(source, out)
    assert {line.partition(" ")[0] for line in added} == ours
    ds = pydicom.dcmread(out)
    ds.PatientBirthDate = "19000101"
    ds.save_as(path)
    verdict = check_instance(path, ring, engine)
    assert (verdict.verdict, verdict.changed) == ("tampered", ("PatientBirthDate",))


def test_a_changed_pixel_of_a_sealed_image_is_tampering(shared, marker, ring, engine, tmp_path):
    out = tmp_path / "sealed.dcm"
    marker.mark(object_of(shared, "palette"), out, marked_at=WHEN)
    ds = pydicom.dcmread(out)
    one_pixel(ds)
    ds.save_as(out)
    verdict = check_instance(out, ring, engine)
    assert (verdict.verdict, verdict.changed) == ("tampered", ("PixelData",))


@pytest.mark.parametrize(
    ("policy", "action"),
    [("forward-sealed", "sealed"), ("forward-untouched", "untouched"), ("hold", "held"),
     ("reject", "rejected")],
)  # fmt: skip
def test_each_policy_for_what_cannot_be_marked(policy, action, shared, ring, engine, tmp_path):
    source, out = shared / "dicom" / SR, tmp_path / "out.dcm"
    outcome = seals(policy, ring, engine).mark(source, out, marked_at=WHEN)
    assert outcome.action == action
    assert "no pixel data" in outcome.reason
    assert out.exists() == (action in ("sealed", "untouched"))
    if action == "untouched":
        assert out.read_bytes() == source.read_bytes()
        assert check_instance(out, ring, engine).verdict == "unmarked"


@pytest.mark.parametrize(
    ("policy", "action"), [("forward-sealed", "held"), ("forward-untouched", "untouched")]
)
def test_what_cannot_even_be_parsed_is_held_or_passed_on_as_it_is(
    policy, action, shared, ring, engine, tmp_path
):
    source, out = shared / "dicom/malformed/pydicom__MR_truncated.dcm", tmp_path / "out.dcm"
    outcome = seals(policy, ring, engine).mark(source, out, marked_at=WHEN)
    assert outcome.action == action
    assert "cut short" in outcome.reason
    assert out.exists() == (action == "untouched")


def test_a_file_that_is_no_dicom_at_all_leaves_nothing_behind(marker, tmp_path):
    for number, content in enumerate((b"", b"\0", b"hello " * 100, os.urandom(5000), bytes(5000))):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(content)
        outcome = marker.mark(path, tmp_path / "out" / "x.dcm", marked_at=WHEN)
        assert outcome.action == "held"
        assert outcome.reason
        assert not (tmp_path / "out").exists()


def test_constant_and_saturated_and_random_frames_are_marked_or_sealed_never_wrong(
    marker, ring, engine, tmp_path
):
    random = np.random.default_rng(3)
    size = 96
    frames = {
        "black": np.zeros((size, size)),
        "white": np.full((size, size), 4095),
        "half and half": np.repeat([[0], [4095]], size // 2, axis=0) * np.ones(size),
        "noise": random.integers(0, 4096, (size, size)),
        "checkerboard": np.indices((size, size)).sum(0) % 2 * 4095,
        "every fourth level": random.integers(0, 1024, (size, size)) * 4,
        "one bright pixel": np.eye(1, size * size, 77).reshape(size, size) * 4095,
    }
    for name, pixels in frames.items():
        ds = ct(size=size)
        ds.PixelData = pixels.astype("<u2").tobytes()
        source = harness.save(ds, tmp_path / "source.dcm")
        out, back = tmp_path / "out.dcm", tmp_path / "back.dcm"
        outcome = marker.mark(source, out, marked_at=WHEN)
        assert outcome.action in ("marked", "sealed"), (name, outcome)
        assert check_instance(out, ring, engine).verdict == "authentic", name
        if outcome.action == "marked":
            assert restore(out, back, ring).exact, name
            assert harness.differences(source, back) == [], name


def test_padding_stays_padding(marker, ring, tmp_path):
    ds = ct(size=128, PixelPaddingValue=0)
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(128, 128).copy()
    y, x = np.mgrid[:128, :128]
    outside = (x - 64) ** 2 + (y - 64) ** 2 > 50**2
    pixels[outside] = 0
    ds.PixelData = pixels.tobytes()
    source = harness.save(ds, tmp_path / "source.dcm")
    assert marker.mark(source, tmp_path / "out.dcm", marked_at=WHEN).action == "marked"
    after = pydicom.dcmread(tmp_path / "out.dcm").pixel_array
    assert np.array_equal(after == 0, outside)


def test_restoring_needs_the_keys(marked_ct, ring, engine, tmp_path):
    stranger = KeyRing.open(tmp_path / "other", owner="ELSEWHERE", create=True)
    public = KeyRing.from_public_pem(ring.export_public())
    for each in (stranger, public):
        outcome = restore(marked_ct, tmp_path / "out.dcm", each)
        assert not outcome.exact
        assert outcome.reason
        assert not (tmp_path / "out.dcm").exists()


def test_a_marked_file_that_lost_our_private_block_restores_its_pixels(marker, ring, tmp_path):
    source = harness.save(ct(size=256), tmp_path / "source.dcm")
    marker.mark(source, tmp_path / "marked.dcm", marked_at=WHEN)
    ds = pydicom.dcmread(tmp_path / "marked.dcm")
    ds.remove_private_tags()
    ds.save_as(tmp_path / "stripped.dcm")
    outcome = restore(tmp_path / "stripped.dcm", tmp_path / "back.dcm", ring)
    assert not outcome.exact
    assert "pixels exact" in outcome.reason
    back = pydicom.dcmread(tmp_path / "back.dcm")
    assert back.PixelData == pydicom.dcmread(source).PixelData


MEMORY = """
import json, re, sys
from datetime import UTC, datetime
from pathlib import Path
from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.watermark.robust import RobustWatermark
import numpy as np
folder, one, many = map(Path, sys.argv[1:])
ring = KeyRing.open(folder / "keys", owner="TEST", create=True)
marker = Marker(WatermarkConfig(), ring, open_engine("onnx"))
# Which frames are read back by the second network depends on the key: have it from the start.
flat = np.zeros((256, 256), np.float32)
RobustWatermark(open_engine("onnx")).detect(flat, [ring.current], weak=True)
peak = []
for path in (one, many):
    outcome = marker.mark(path, folder / "out.dcm", marked_at=datetime(2026, 11, 21, tzinfo=UTC))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
    peak.append(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024)
print(json.dumps({"action": outcome.action, "frames": outcome.frames, "peak_mib": peak}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_thousand_frames_need_little_memory(tmp_path, compressed):
    """Peak resident memory of a fresh process: after one frame (interpreter, network, codecs), then
    after the whole object; what the object adds must stay below 1.5 times its size.

    DICOM_NODE_MEMORY_FRAMES and _SIZE make it 1000 frames of 512 x 512 (about two minutes).
    """
    frames = int(os.environ.get("DICOM_NODE_MEMORY_FRAMES", "60"))
    size = int(os.environ.get("DICOM_NODE_MEMORY_SIZE", "256"))
    paths = [tmp_path / "one.dcm", tmp_path / "many.dcm"]
    for path, count in zip(paths, (1, frames), strict=True):
        ds = ct(size=size)
        tile = ds.PixelData
        ds.NumberOfFrames = count
        ds.PixelData = tile * count
        if compressed:
            harness.save(ds, path)
            ds.compress(RLELossless, generate_instance_uid=False)
            ds.save_as(path)
        else:
            harness.save(ds, path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, *paths],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": harness.PACKAGES},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["action"], said["frames"]) == ("marked", frames)
    base, peak = said["peak_mib"]
    object_mib = frames * size * size * 2 / (1 << 20)
    print(f"{object_mib:.0f} MiB object: peak {base:.0f} MiB after one frame, {peak:.0f} after all")
    assert peak - base <= 1.5 * object_mib
    assert peak < 700


def test_uids_are_never_new(shared, marker, tmp_path):
    """Neither our writer nor a codec may give a marked instance another identity."""
    for name in ("CT JPEG 2000 lossy", "CT JPEG lossless", "SC JPEG baseline", "HTJ2K RGB"):
        source, out = object_of(shared, name), tmp_path / "out.dcm"
        marker.mark(source, out, marked_at=WHEN)
        with contextlib.closing(out.open("rb")) as file:
            meta = harness.read_file_meta(file)
        before = pydicom.dcmread(source, stop_before_pixels=True)
        after = pydicom.dcmread(out, stop_before_pixels=True)
        assert after.SOPInstanceUID == before.SOPInstanceUID == meta.sop_instance_uid
