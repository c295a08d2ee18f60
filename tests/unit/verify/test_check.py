"""The verdict on real objects after everything that may happen to them on the way."""

import json
import subprocess
from datetime import UTC, datetime

import harness
import numpy as np
import openjpeg.utils
import pydicom
import pytest
from harness import ct
from peer_tools import needed
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, restore
from dicom_node.verify.check import check_instance

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


class Bench:
    """A marker with its keys, and the verdict of what it marked."""

    def __init__(self, folder):
        self.folder = folder
        self.ring = KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)
        self.engine = open_engine("onnx")
        self.marker = Marker(WatermarkConfig(), self.ring, self.engine)

    def mark(self, source, name):
        out = self.folder / name
        outcome = self.marker.mark(source, out, marked_at=WHEN)
        assert outcome.action == "marked", outcome.reason
        return out

    def verdict(self, path, ring=None):
        return check_instance(path, ring or self.ring, self.engine)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def marked(bench):
    source = harness.save(ct(size=256), bench.folder / "source.dcm")
    return bench.mark(source, "marked.dcm")


@pytest.fixture(scope="module")
def loop(bench, shared):
    """An enhanced MR of ten frames, marked."""
    return bench.mark(shared / "dicom/mr/pylibjpeg-data__emri_small.dcm", "loop.dcm")


@pytest.fixture(scope="module")
def real_ct(bench, shared):
    return bench.mark(shared / "dicom/ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm", "ct.dcm")


def changed(path, out, change):
    ds = pydicom.dcmread(path)
    change(ds)
    ds.save_as(out)
    return out


def frames_of(ds):
    size = ds.Rows * ds.Columns * ds.BitsAllocated // 8
    return [ds.PixelData[k : k + size] for k in range(0, len(ds.PixelData), size)]


def set_frames(ds, frames):
    ds.PixelData = b"".join(frames)
    ds.NumberOfFrames = len(frames)


@pytest.mark.parametrize("place", [(0, 0), (100, 30), (63, 64), (255, 255), (200, 128)])
@pytest.mark.parametrize("step", [1, -1, 256])
def test_one_changed_pixel_is_found_in_the_box_that_holds_it(place, step, bench, marked, tmp_path):
    def change(ds):
        pixels = ds.pixel_array.copy()
        pixels[place] = (int(pixels[place]) + step) % 4096
        ds.PixelData = pixels.tobytes()

    verdict = bench.verdict(changed(marked, tmp_path / "x.dcm", change))
    assert verdict.verdict == "tampered"
    [box] = verdict.frames[0].tampered
    assert box.row <= place[0] < box.row + box.rows
    assert box.column <= place[1] < box.column + box.columns
    assert box.rows * box.columns < 256 * 256 / 4
    assert verdict.changed == ()
    assert verdict.owner == "TEST-HOSPITAL"


@pytest.mark.parametrize("place", [(0, 0), (40, 60), (127, 127)])
def test_of_a_frame_of_one_tile_a_changed_pixel_leaves_no_integrity_mark(place, bench, tmp_path):
    """What it shows is still judged by the robust mark, as after a re-encoding; never authentic."""
    source = harness.save(ct(size=128), tmp_path / "source.dcm")
    marked = bench.mark(source, f"small {place}.dcm")

    def change(ds):
        pixels = ds.pixel_array.copy()
        pixels[place] += 1
        ds.PixelData = pixels.tobytes()

    assert bench.verdict(marked).verdict == "authentic"
    verdict = bench.verdict(changed(marked, tmp_path / "x.dcm", change))
    assert verdict.verdict in ("tampered", "content-preserved")
    assert verdict.frames[0].integrity != "valid"


def test_a_painted_region_is_covered_by_the_boxes_and_little_else_is(bench, real_ct, tmp_path):
    def change(ds):
        pixels = ds.pixel_array.copy()
        pixels[200:260, 130:170] = 40
        ds.PixelData = pixels.tobytes()

    verdict = bench.verdict(changed(real_ct, tmp_path / "x.dcm", change))
    covered = np.zeros((512, 512), bool)
    for box in verdict.frames[0].tampered:
        covered[box.row : box.row + box.rows, box.column : box.column + box.columns] = True
    assert verdict.verdict == "tampered"
    assert covered[200:260, 130:170].all()
    assert covered.mean() < 0.2
    line = json.loads(json.dumps(verdict.to_json()))
    assert set(line["frames"][0]["tampered"][0]) == {"row", "column", "rows", "columns"}


def test_a_changed_colour_plane_that_carries_no_mark_is_found(bench, shared, tmp_path):
    path = bench.mark(shared / "dicom/us/pydicom__examples_rgb_color.dcm", "rgb.dcm")
    for sample in range(3):

        def change(ds, sample=sample):
            pixels = bytearray(ds.PixelData)
            pixels[(120 * ds.Columns + 160) * 3 + sample] ^= 1
            ds.PixelData = bytes(pixels)

        verdict = bench.verdict(changed(path, tmp_path / "x.dcm", change))
        assert verdict.verdict == "tampered"
        [box] = verdict.frames[0].tampered
        assert box.row <= 120 < box.row + box.rows
        assert box.column <= 160 < box.column + box.columns


def test_an_overlay_changed_in_the_high_bits_is_found(bench, shared, tmp_path):
    path = bench.mark(shared / "dicom/mr/pydicom__examples_overlay.dcm", "overlay.dcm")
    assert bench.verdict(path).verdict == "authentic"

    def change(ds):
        pixels = bytearray(ds.PixelData)
        pixels[2 * (150 * ds.Columns + 200) + 1] ^= 0x80
        ds.PixelData = bytes(pixels)

    verdict = bench.verdict(changed(path, tmp_path / "x.dcm", change))
    assert verdict.verdict == "tampered"
    assert any(box.row <= 150 < box.row + box.rows for box in verdict.frames[0].tampered)


def swapped(frames):
    frames[2], frames[5] = frames[5], frames[2]


def dropped(frames):
    del frames[4]


def dropped_last(frames):
    del frames[-1]


def repeated(frames):
    frames.insert(3, frames[3])


def reversed_(frames):
    frames.reverse()


@pytest.mark.parametrize("change", [swapped, dropped, dropped_last, repeated, reversed_])
def test_frames_out_of_order_missing_or_twice_are_tampering(change, bench, loop, tmp_path):
    def rearrange(ds):
        frames = frames_of(ds)
        change(frames)
        set_frames(ds, frames)

    verdict = bench.verdict(changed(loop, tmp_path / "x.dcm", rearrange))
    assert verdict.verdict == "tampered"
    if change is swapped:
        wrong = [frame.frame for frame in verdict.frames if frame.verdict == "tampered"]
        assert wrong == [3, 6]
    if change is dropped_last:
        assert "10 frames" in verdict.reason


def test_a_frame_from_another_instance_is_tampering(bench, loop, shared, tmp_path):
    def other(ds):
        ds.SOPInstanceUID = generate_uid()
        set_frames(ds, frames_of(ds)[::-1])

    source = shared / "dicom/mr/pylibjpeg-data__emri_small.dcm"
    twin = bench.mark(changed(source, tmp_path / "twin.dcm", other), "twin.dcm")
    strange = frames_of(pydicom.dcmread(twin))

    def change(ds):
        frames = frames_of(ds)
        frames[4] = strange[4]
        set_frames(ds, frames)

    verdict = bench.verdict(changed(loop, tmp_path / "x.dcm", change))
    assert verdict.verdict == "tampered"
    assert [frame.frame for frame in verdict.frames if frame.verdict != "authentic"] == [5]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "SOMEBODY-ELSE"),
        ("PatientName", "ROE^JOHN"),
        ("StudyInstanceUID", "1.2.3.99"),
        ("SeriesInstanceUID", "1.2.3.99"),
        ("Modality", "MR"),
        ("WindowCenter", 50),
        ("RescaleIntercept", -1000),
        ("InstitutionName", "ELSEWHERE"),
    ],
)
def test_a_changed_attribute_is_named_and_the_pixels_stay_authentic(
    keyword, value, bench, marked, tmp_path
):
    path = changed(marked, tmp_path / "x.dcm", lambda ds: setattr(ds, keyword, value))
    verdict = bench.verdict(path)
    assert verdict.verdict == "authentic"
    assert verdict.changed == (keyword,)


@pytest.mark.parametrize("keyword", ["PatientID", "PatientName", "Modality"])
def test_a_changed_attribute_is_named_even_without_our_private_block(
    keyword, bench, marked, tmp_path
):
    def change(ds):
        ds.remove_private_tags()
        setattr(ds, keyword, "XX")

    verdict = bench.verdict(changed(marked, tmp_path / "x.dcm", change))
    assert (verdict.verdict, verdict.changed) == ("authentic", (keyword,))


def _strip(ds):
    ds.remove_private_tags()


def _damage(ds):
    seal = ds.private_block(0x0071, "DICOM-NODE WATERMARK 1.0")[2]
    seal.value = seal.value[:-20] + bytes([seal.value[-20] ^ 1]) + seal.value[-19:]


@pytest.mark.parametrize(
    ("harm", "state", "why"),
    [(_strip, "absent", "the header seal is gone"), (_damage, "invalid", "seal is damaged")],
)
def test_a_header_that_nobody_vouches_for_is_not_passed_over_in_silence(
    harm, state, why, bench, marked, tmp_path
):
    def change(ds):
        harm(ds)
        ds.StudyDescription = "ANOTHER STUDY"  # in the seal alone

    verdict = bench.verdict(changed(marked, tmp_path / "x.dcm", change))
    assert (verdict.verdict, verdict.changed) == ("authentic", ())
    assert verdict.to_json()["header_seal"] == state
    assert why in verdict.reason
    assert verdict.reason.endswith("of the header only what the pixels' record names was checked")
    public = KeyRing.from_public_pem(bench.ring.export_public())
    verdict = check_instance(tmp_path / "x.dcm", public, bench.engine)
    assert verdict.reason.endswith("of the header nothing was checked")
    assert bench.verdict(marked).to_json()["header_seal"] == "valid"


def test_another_sop_instance_uid_is_tampering_and_named(bench, marked, tmp_path):
    path = changed(
        marked, tmp_path / "x.dcm", lambda ds: setattr(ds, "SOPInstanceUID", generate_uid())
    )
    verdict = bench.verdict(path)
    assert verdict.verdict == "tampered"
    assert "SOPInstanceUID" in verdict.changed


def test_without_our_private_block_the_pixels_are_authentic_and_restore(bench, marked, tmp_path):
    path = changed(marked, tmp_path / "x.dcm", lambda ds: ds.remove_private_tags())
    verdict = bench.verdict(path)
    assert (verdict.verdict, verdict.changed) == ("authentic", ())
    outcome = restore(path, tmp_path / "back.dcm", bench.ring)
    assert "pixels exact" in outcome.reason
    original = pydicom.dcmread(bench.folder / "source.dcm").PixelData
    assert pydicom.dcmread(tmp_path / "back.dcm").PixelData == original


def test_what_was_never_marked_is_unmarked(bench, shared):
    for name in ("ct/pydicom__CT_small.dcm", "us/pydicom__examples_rgb_color.dcm",
                 "sr/pydicom__test-SR.dcm", "mr/pylibjpeg-data__emri_small.dcm"):  # fmt: skip
        verdict = bench.verdict(shared / "dicom" / name)
        assert verdict.verdict == "unmarked", name
        assert verdict.owner == ""


def test_what_cannot_be_read_is_unreadable(bench, tmp_path):
    for content in (b"", b"no DICOM at all", bytes(4000)):
        path = tmp_path / "x.dcm"
        path.write_bytes(content)
        verdict = bench.verdict(path)
        assert verdict.verdict == "unreadable"
        assert verdict.reason


def test_a_stranger_sees_no_mark_and_a_public_key_holder_sees_it_is_authentic(
    bench, marked, tmp_path
):
    stranger = KeyRing.open(tmp_path / "keys", owner="ELSEWHERE", create=True)
    assert bench.verdict(marked, stranger).verdict == "unmarked"
    public = KeyRing.from_public_pem(bench.ring.export_public())
    verdict = bench.verdict(marked, public)
    assert verdict.verdict == "authentic"
    assert verdict.signed_by == bench.ring.current.key_id
    assert (verdict.changed, verdict.owner) == ((), "TEST-HOSPITAL")

    def change(ds):
        pixels = ds.pixel_array.copy()
        pixels[100, 100] ^= 1
        ds.PixelData = pixels.tobytes()

    path = changed(marked, tmp_path / "x.dcm", change)
    assert bench.verdict(path, public).verdict != "authentic"


def test_a_seal_copied_onto_another_instance_does_not_make_it_authentic(bench, shared, tmp_path):
    sealed = tmp_path / "sealed.dcm"
    bench.marker.mark(shared / "dicom/sr/pydicom__test-SR.dcm", sealed, marked_at=WHEN)
    block = pydicom.dcmread(sealed)

    def change(ds):
        for element in block:
            if element.tag.group == 0x0071:
                ds.add(element)

    other = shared / "dicom/sr/pydicom__reportsi.dcm"
    verdict = bench.verdict(changed(other, tmp_path / "x.dcm", change))
    assert verdict.verdict == "tampered"


LOSSLESS = {
    "dcmconv implicit": ["dcmconv", "+ti"],
    "dcmconv big endian": ["dcmconv", "+tb"],
    "dcmconv deflated": ["dcmconv", "+td"],
    "dcmconv undefined lengths": ["dcmconv", "+te", "-e"],
    "dcmcjpls": ["dcmcjpls", "+el"],
    "dcmcrle": ["dcmcrle"],
    "dcmcjpeg": ["dcmcjpeg", "+e1"],
}


@pytest.mark.peer
@pytest.mark.parametrize("how", LOSSLESS)
def test_lossless_transcoding_by_dcmtk_stays_authentic_and_restores(how, bench, real_ct, tmp_path):
    program, *options = LOSSLESS[how]
    out = tmp_path / "x.dcm"
    done = harness.run_tool(program, *options, real_ct, out)
    assert done.returncode == 0, done.stderr
    verdict = bench.verdict(out)
    assert verdict.verdict == "authentic", verdict
    assert set(verdict.changed) <= {"DerivationDescription"}  # DCMTK says it recompressed
    restored = restore(out, tmp_path / "back.dcm", bench.ring)
    assert restored.exact, restored.reason
    source = pydicom.dcmread(real_ct.with_name("ct.dcm"))
    assert source.SOPInstanceUID == verdict.sop_instance_uid


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
@pytest.mark.parametrize("name", ["marked", "colour"])
def test_lossless_transcoding_by_pydicom_stays_authentic(
    syntax, name, bench, marked, shared, tmp_path
):
    path = marked
    if name == "colour":
        path = bench.mark(shared / "dicom/us/pydicom__examples_rgb_color.dcm", "colour.dcm")
    ds = pydicom.dcmread(path)
    if syntax == JPEG2000Lossless:
        code = openjpeg.utils.encode_array(ds.pixel_array, use_mct=False)
        ds.PixelData = pydicom.encaps.encapsulate([code])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
    else:
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(tmp_path / "x.dcm")
    verdict = bench.verdict(tmp_path / "x.dcm")
    assert verdict.verdict == "authentic", verdict


@pytest.mark.peer
@pytest.mark.parametrize("quality", [90, 70])
def test_a_lossy_copy_is_content_preserved_never_authentic(quality, bench, shared, tmp_path):
    path = bench.mark(shared / "dicom/us/deid-data__GREYSCALE_IMAGE.dcm", "grey.dcm")
    out = tmp_path / "x.dcm"
    done = harness.run_tool("dcmcjpeg", "+eb", "+q", quality, "+un", path, out)
    assert done.returncode == 0, done.stderr
    verdict = bench.verdict(out)
    assert verdict.verdict == "content-preserved"
    [frame] = verdict.frames
    assert frame.integrity == "absent"
    assert frame.robust.phash_distance <= 4


@pytest.mark.peer
def test_a_lossy_copy_under_a_seal_that_is_not_ours_says_so(bench, shared, tmp_path):
    """As after somebody marked the copy again, and W1 was still to be read."""
    path = bench.mark(shared / "dicom/us/deid-data__GREYSCALE_IMAGE.dcm", "grey-again.dcm")
    out = tmp_path / "x.dcm"
    done = harness.run_tool("dcmcjpeg", "+eb", "+q", "90", "+un", path, out)
    assert done.returncode == 0, done.stderr
    theirs = bench.verdict(changed(out, tmp_path / "y.dcm", _damage))
    assert theirs.verdict == bench.verdict(out).verdict == "content-preserved"
    assert theirs.reason.endswith("signed by a key this ring does not have")
    assert "signed by" not in bench.verdict(out).reason


def test_damaged_files_get_a_verdict_never_an_exception(bench, marked, tmp_path):
    raw = marked.read_bytes()
    random = np.random.default_rng(11)
    seen = set()
    for _ in range(60):
        damaged = bytearray(raw)
        for _ in range(int(random.integers(1, 6))):
            at = int(random.integers(132, 6000)) if random.random() < 0.7 else (
                int(random.integers(len(raw)))
            )
            damaged[at] = int(random.integers(256))
        if random.random() < 0.2:
            del damaged[int(random.integers(200, len(raw))) :]
        path = tmp_path / "x.dcm"
        path.write_bytes(damaged)
        seen.add(bench.verdict(path).verdict)
    assert "tampered" in seen or "unreadable" in seen


@pytest.mark.peer
def test_openssl_agrees_that_the_exported_key_is_ed25519(bench, tmp_path):
    needed("openssl", "nobody else reads the exported key")
    (tmp_path / "key.pem").write_text(bench.ring.export_public())
    done = subprocess.run(
        ["openssl", "pkey", "-pubin", "-noout", "-text", "-in", tmp_path / "key.pem"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ED25519" in done.stdout
