"""The content fingerprint: what it says of a frame, and what of one that was changed."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dicom_node.bench import attacks
from dicom_node.config import WatermarkConfig
from dicom_node.errors import WatermarkError
from dicom_node.inference import open_engine
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.instance.block import read_block
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker
from dicom_node.planes import bounds_of, split
from dicom_node.watermark import fingerprint, integrity
from dicom_node.watermark.integrity import Bounds
from dicom_node.watermark.placement import Placement
from dicom_node.watermark.robust import DIHEDRAL, Pose

GOLDEN = Path(__file__).parents[2] / "golden" / "fingerprint.npz"
SHAPE = (8, 16, 16)
CODES = arrays.arrays(np.bool_, SHAPE)


def displays(shared: Path, count: int) -> list[Any]:
    """Real frames that neither networks nor thresholds were made with, 0..1."""
    held_out = ("ct_00724", "mr_01060", "cr_00615", "us_00229", "xa_00453", "mg_00909")
    found = [next((shared / "whole").glob(f"*/{name}.webp")) for name in held_out[:count]]
    return [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / np.float32(255) for path in found]


def processed(display: Any, *names: str) -> Any:
    picture = np.rint(display * 255).astype(np.uint8)
    for attack in attacks.choose(names):
        picture = attack.apply(picture, np.random.default_rng(0))
    return picture / np.float32(255)


def with_lesion(display: Any, row: int, column: int, radius: int) -> Any:
    """A soft spot, 40 % of the window brighter, or darker where it is bright."""
    y, x = np.ogrid[: display.shape[0], : display.shape[1]]
    spot = np.clip((radius - np.hypot(y - row, x - column)) / 4 + 0.5, 0, 1)
    sign = 1 if display[row, column] < 0.5 else -1
    return np.clip(display + sign * 0.4 * spot, 0, 1).astype(np.float32)


def overlaps(box: Any, row: int, column: int, radius: int) -> bool:
    return bool(
        box.row < row + radius and row - radius < box.row + box.rows
        and box.column < column + radius and column - radius < box.column + box.columns
    )  # fmt: skip


@given(CODES)
@settings(max_examples=60)
def test_a_code_comes_back_from_its_bytes(code: Any) -> None:
    packed = fingerprint.pack(code, 1)
    assert len(packed) <= 2 + 256
    assert (fingerprint.unpack(packed, 1, SHAPE) == code).all()


@given(CODES, CODES)
@settings(max_examples=30)
def test_the_distance_is_the_number_of_bits_that_differ(a: Any, b: Any) -> None:
    packed = fingerprint.pack(a, 1), fingerprint.pack(b, 1)
    assert fingerprint.distance(*packed, 1, SHAPE) == int((a != b).sum())


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_foreign_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        code = fingerprint.unpack(data, 1, SHAPE)
    except WatermarkError:
        return
    assert code.shape == SHAPE


def test_bytes_that_inflate_without_end_are_refused() -> None:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01\x01" + packer.compress(bytes(1 << 24)) + packer.flush()
    with pytest.raises(WatermarkError, match="damaged"):
        fingerprint.unpack(bomb, 1, SHAPE)


def test_a_fingerprint_of_other_networks_says_so() -> None:
    packed = fingerprint.pack(np.zeros(SHAPE, np.bool_), 2)
    with pytest.raises(WatermarkError, match="model 2, this installation has model 1"):
        fingerprint.unpack(packed, 1, SHAPE)


def test_golden_fingerprints_are_read() -> None:
    stored = np.load(GOLDEN)
    for form, name in enumerate(("plain", "deflated")):
        packed = stored[f"bytes_{name}"].tobytes()
        assert packed[:2] == bytes([1, form])
        assert (fingerprint.unpack(packed, 1, SHAPE) == stored[f"code_{name}"]).all()


def test_a_golden_frame_says_its_fingerprint_under_its_signature() -> None:
    stored = np.load(GOLDEN)
    keys = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
    public = KeyRing.from_public_pem(KeyRing((keys,)).export_public())
    for ring in (KeyRing((keys,)), public):
        found = integrity.check(
            stored["marked"].astype(np.int32), None, Bounds(0, 4095, (0, 0)), ring=ring,
            sop_instance_uid="1.2.826.0.1.3680043.8.498.7", frame_number=1,
        )  # fmt: skip
        assert (found.status, found.signature_valid) == ("valid", True)
        assert (found.recovered == stored["original"]).all()
        assert found.record is not None
        assert found.record.features == stored["bytes_deflated"].tobytes()


PROCESSING = (
    attacks.PLAIN, "JPEG 70", "JPEG 50", "blur 7 x 7", "mean 3 x 3", "median 3 x 3", "half size",
    "scaled x 0.75", "scaled x 2", "gamma 0.5", "brightness +50", "contrast x 0.6",
    "Gaussian noise 0.0005",
)  # fmt: skip


HAND = 2  # of `displays`: a radiograph with a ring of one pixel around the letter R
WIPED_OUT = {("median 3 x 3", HAND)}


@pytest.mark.parametrize("name", PROCESSING)
def test_processing_leaves_the_content_as_it_was(shared: Path, name: str) -> None:
    network = open_fingerprinter()
    for number, display in enumerate(displays(shared, 6)):
        if (name, number) in WIPED_OUT:
            continue
        features = fingerprint.compute(display, network)
        assert fingerprint.compare(features, processed(display, name), network).same


def test_a_letter_that_a_filter_wipes_out_is_a_change_there_and_nowhere_else(shared: Path) -> None:
    """A median over 3 x 3 takes the whole ring away: that side of the body is marked no longer."""
    network, display = open_fingerprinter(), displays(shared, 6)[HAND]
    filtered = processed(display, "median 3 x 3")
    lost = cv2.resize(np.abs(filtered - display), (16, 16), interpolation=cv2.INTER_AREA)
    made = fingerprint.compare(fingerprint.compute(display, network), filtered, network)
    [box] = made.boxes(display.shape)
    assert overlaps(box, 50, 218, 12)
    assert not (made.changed & (lost < 0.025)).any()  # as the benchmark counts what was changed
    assert max(box.rows, box.columns) <= 32  # two cells


def test_a_lesion_is_found_where_it_was_painted_whatever_way_the_picture_lies(
    shared: Path,
) -> None:
    network = open_fingerprinter()
    for display in displays(shared, 3):
        features = fingerprint.compute(display, network)
        forged = with_lesion(display, 140, 100, 20)
        y, x = np.mgrid[:256, :256]
        there = (np.hypot(y - 140, x - 100) < 20).astype(np.float32)
        for pose in (Pose(), *DIHEDRAL):
            picture, where = (_laid(each, pose) for each in (forged, there))
            made = fingerprint.compare(features, picture, network, pose)
            assert not made.same
            box = made.boxes(picture.shape, pose)[0]
            assert where[box.row : box.row + box.rows, box.column : box.column + box.columns].any()
            assert max(box.rows, box.columns) <= 96


def _laid(upright: Any, pose: Pose) -> Any:
    """The picture that `pose` turns upright again."""
    turned = np.rot90(upright, round(pose.rotation_deg / 90))
    return np.ascontiguousarray(turned[:, ::-1] if pose.flip else turned)


def test_a_patch_of_another_patient_is_found_after_jpeg_70(shared: Path) -> None:
    network = open_fingerprinter()
    frames = displays(shared, 6)
    for display, other in zip(frames, [*frames[1:], frames[0]], strict=True):
        features = fingerprint.compute(display, network)
        forged = display.copy()
        forged[96:152, 96:152] = other[96:152, 96:152]
        made = fingerprint.compare(features, processed(forged, "JPEG 70"), network)
        assert any(overlaps(box, 124, 124, 28) for box in made.boxes(display.shape))


def test_what_lies_outside_the_picture_is_not_compared(shared: Path) -> None:
    network = open_fingerprinter()
    [display] = displays(shared, 1)
    features = fingerprint.compute(display, network)
    right = np.ascontiguousarray(display[:, 64:])
    pose = Placement(columns=256, rows=256, centre=(64.0, 128.0))
    made = fingerprint.compare(features, right, network, pose)
    assert not made.compared[:, :3].any()
    assert made.compared[:, 5:].all()
    assert made.same


def test_the_nearest_of_several_fingerprints_is_the_frames_own(shared: Path) -> None:
    network = open_fingerprinter()
    frames = displays(shared, 6)
    all_features = [fingerprint.compute(display, network) for display in frames]
    for display, own in zip(frames, all_features, strict=True):
        shown = processed(display, "JPEG 50")
        assert fingerprint.nearest(all_features, shown, network)[0] == own


def test_another_picture_is_changed_throughout(shared: Path) -> None:
    network = open_fingerprinter()
    frames = displays(shared, 6)
    for display, other in zip(frames, [*frames[1:], frames[0]], strict=True):
        features = fingerprint.compute(display, network)
        assert fingerprint.compare(features, other, network).changed.all()


def test_only_cells_that_hang_together_with_a_sure_one_count() -> None:
    scores = np.full((16, 16), -5.0, np.float32)
    scores[2, 2], scores[2, 3], scores[3, 4] = 4.0, 1.0, 1.0
    scores[10, 10] = 1.0
    everywhere = np.ones((16, 16), np.bool_)
    found = fingerprint.changed_cells(scores, everywhere, alarm=3.0, near=0.5)
    assert np.argwhere(found).tolist() == [[2, 2], [2, 3], [3, 4]]
    assert not fingerprint.changed_cells(scores, ~everywhere, alarm=3.0, near=0.5).any()


def test_the_fingerprint_is_the_first_that_a_frame_without_room_gives_up(marks: Any) -> None:
    """Tiles and restoration stay in the pixels; what was signed says what was left out."""
    y, x = np.mgrid[:256, :256]
    smooth = 2000 + 500 * np.sin(x / 23) * np.cos(y / 31)
    host = np.rint(smooth + np.random.default_rng(1).normal(0, 4, (256, 256))).astype(np.int32)
    features = fingerprint.pack(np.random.default_rng(5).random(SHAPE) < 0.5, 1)
    looked: list[int] = []

    def from_the_second_on(_: Any) -> bool:
        looked.append(1)
        return len(looked) > 1

    for unseen, kept in ((None, features), (from_the_second_on, b"")):
        record = marks.record(host, features=features)
        mark = integrity.embed(host, None, Bounds(0, 4095), record, marks.keys, unseen=unseen)
        assert (mark.profile, mark.tile_px, mark.features) == ("tiled", 64, kept)
        found = marks.check(mark.marked)
        assert (found.status, found.record.features) == ("valid", kept)
        assert found.record.restoration == record.restoration


def test_every_marked_frame_is_remembered_with_its_fingerprint(
    shared: Path, tmp_path: Path
) -> None:
    """Signed where it has room, and said where not."""
    ring = KeyRing.open(tmp_path / "keys", owner="TEST-HOSPITAL", create=True)
    marker = Marker(WatermarkConfig(), ring, open_engine("onnx"))
    source = shared / "dicom/mr/pylibjpeg-data__emri_small.dcm"
    out = tmp_path / "marked.dcm"
    done = marker.mark(source, out, marked_at=datetime(2026, 11, 21, tzinfo=UTC))
    signed = 0
    with (
        closing(open_instance(source, max_pixels=1 << 24)) as before,
        closing(open_instance(out, max_pixels=1 << 24)) as after,
    ):
        display, block = display_of(before), read_block(after.data)
        for index, facts in enumerate(done.facts.frames):
            shown = display.image(before.frame(index), index)
            own = fingerprint.compute(shown, open_fingerprinter())
            planes = split(after.frame(index), after.host_index)
            blocks = block.frames if block else ()
            found = integrity.check(
                planes.host, planes.side, bounds_of(after), ring=ring,
                sop_instance_uid=after.sop_instance_uid, frame_number=index + 1,
                header_block=blocks[index] if blocks else b"",
            )  # fmt: skip
            assert facts.fingerprint == own
            assert found.record is not None
            assert found.record.features in (own, b"")
            signed += found.record.features == own
    without = len(done.facts.frames) - signed
    assert signed > 0
    assert (f"{without} frames carry no fingerprint" in done.reason) == (without > 0)
