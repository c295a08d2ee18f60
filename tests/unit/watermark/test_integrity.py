"""W2 as a whole: exact recovery, every change found in its place, damage survived."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.errors import CapacityError, WatermarkError
from dicom_node.keys import KeyRing
from dicom_node.watermark import integrity
from dicom_node.watermark.integrity import Bounds, IntegrityCheck, IntegrityMark, Sealing

from .conftest import TWELVE_BITS, UID, Marks, tissue

CT = Bounds(-32768, 32767, (-2000, -2000))
RELAXED = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _only_tile(result: IntegrityCheck, row: int, column: int) -> bool:
    if len(result.tampered) != 1:
        return False
    [box] = result.tampered
    return box.row <= row < box.row + box.rows and box.column <= column < box.column + box.columns


@st.composite
def frames(draw: st.DrawFn) -> tuple[Any, Any, Bounds]:
    """Frames of every depth, sign, shape, texture, saturation, padding, gap, with side samples."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows, columns = draw(st.tuples(*[st.one_of(st.integers(8, 40), st.integers(41, 200))] * 2))
    bits, signed = draw(st.integers(8, 16)), draw(st.booleans())
    low = -(1 << (bits - 1)) if signed else 0
    low, high = low + draw(st.integers(0, 2)), low + (1 << bits) - 1 - draw(st.integers(0, 2))
    width = high - low
    y, x = np.mgrid[:rows, :columns]
    scale = draw(st.sampled_from([6.0, 20.0, 60.0]))
    host = low + width * (0.5 + 0.45 * np.sin(x / scale) * np.cos(y / scale))
    host += rng.normal(0, width * draw(st.sampled_from([0, 0.001, 0.01, 0.2])), host.shape)
    match draw(st.sampled_from(["plain", "constant", "saturated", "noise", "dots"])):
        case "constant":
            host[:] = draw(st.sampled_from([low, high, (low + high) // 2]))
        case "saturated":
            host = np.where(
                host > low + 0.6 * width, high, np.where(host < low + 0.4 * width, low, host)
            )
        case "noise":
            host = rng.integers(low, high + 1, host.shape).astype(float)
        case "dots":
            host = np.where(rng.random(host.shape) < 0.02, high, host)
    values = np.clip(np.rint(host), low, high).astype(np.int32)
    step = draw(st.sampled_from([1, 1, 2, 5, 16]))
    values = (low + (values - low) // step * step).astype(np.int32)
    padding = None
    if draw(st.booleans()):
        first = draw(st.one_of(st.integers(low, high), st.just(low)))
        padding = (first, min(high, first + draw(st.integers(0, 3))))
        outside = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 > (0.4 * max(rows, columns)) ** 2
        values = np.where(outside, first, values).astype(np.int32)
    side = None
    if draw(st.booleans()):
        side = rng.integers(0, 256, (rows, columns, 2)).astype(np.uint32)
    return values, side, Bounds(low, high, padding)


@given(frames(), st.integers(0, 300))
@RELAXED
def test_any_frame_that_can_be_marked_comes_back_exactly(
    marks: Marks, frame: tuple[Any, Any, Bounds], length: int
) -> None:
    host, side, bounds = frame
    original = host.copy()
    try:
        mark = marks.embed(host, side, bounds, restoration=b"r" * length)
    except CapacityError:
        return
    assert (host == original).all()
    assert mark.marked.dtype == np.int32
    assert mark.marked.min() >= bounds.low
    assert mark.marked.max() <= bounds.high
    if bounds.padding is not None:
        before, after = (
            (v >= bounds.padding[0]) & (v <= bounds.padding[1]) for v in (host, mark.marked)
        )
        assert (before == after).all()
        assert (host[before] == mark.marked[before]).all()
    result = marks.check(mark.marked, side, bounds, header_block=mark.header_block)
    assert result.status == "valid"
    assert result.signature_valid
    assert result.bound
    assert result.tampered == ()
    assert (result.profile, result.tile_px) == (mark.profile, mark.tile_px)
    assert (result.recovered == host).all()
    assert result.record is not None
    assert result.record.restoration == b"r" * length


@given(frames(), st.integers(0, 10**6), st.sampled_from([-1, 1]))
@RELAXED
def test_a_pixel_changed_by_one_is_never_valid(
    marks: Marks, frame: tuple[Any, Any, Bounds], seed: int, change: int
) -> None:
    host, side, bounds = frame
    try:
        mark = marks.embed(host, side, bounds)
    except CapacityError:
        return
    rng = np.random.default_rng(seed)
    row, column = int(rng.integers(host.shape[0])), int(rng.integers(host.shape[1]))
    changed = mark.marked.copy()
    changed[row, column] += change
    result = marks.check(changed, side, bounds, header_block=mark.header_block)
    assert result.status != "valid"
    if mark.tile_px and mark.profile == "tiled" and len(result.tampered):
        assert _only_tile(result, row, column)


@given(
    st.sampled_from(["noise", "low", "high", "flat", "outside"]), st.integers(8, 200),
    st.integers(8, 200), st.binary(max_size=80),
)  # fmt: skip
@RELAXED
def test_an_unmarked_frame_of_any_content_is_absent(
    marks: Marks, kind: str, rows: int, columns: int, block: bytes
) -> None:
    rng = np.random.default_rng(rows * 1000 + columns)
    host = {
        "noise": rng.integers(0, 4096, (rows, columns)),
        "low": np.zeros((rows, columns)),
        "high": np.full((rows, columns), 4095),
        "flat": np.full((rows, columns), 77),
        "outside": rng.integers(-(2**31), 2**31 - 1, (rows, columns)),
    }[kind].astype(np.int32)
    result = marks.check(host, header_block=block, bounds=Bounds(0, 4095, (0, 0)))
    assert result.status == "absent"
    assert result.record is None
    assert (result.recovered == host).all()


@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
@RELAXED
def test_damage_of_any_sort_gets_an_answer(marks: Marks, seed: int, count: int, big: bool) -> None:
    host = tissue(130, 200)
    marked = marks.embed(host).marked
    rng = np.random.default_rng(seed)
    spots = rng.integers(0, host.size, count)
    reach = 2**31 - 1 if big else 3
    marked.reshape(-1)[spots] = rng.integers(-reach, reach, count)
    result = marks.check(marked)
    assert result.status in ("partial", "absent")
    assert result.recovered.shape == host.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (7, 900), (3, 3)])
def test_frames_too_small_to_be_marked_are_absent(marks: Marks, shape: tuple[int, int]) -> None:
    assert marks.check(np.zeros(shape, np.int32)).status == "absent"


def test_pixels_side_samples_and_padding_are_each_located(marks: Marks) -> None:
    host = tissue(256, 320)
    host[:64, :128] = 0
    host[100:140, 100:110] = 0
    side = np.full((256, 320, 2), 9, np.uint32)
    side[:64, :128] = 0
    bounds = Bounds(0, 4095, (0, 0))
    mark = marks.embed(host, side, bounds)
    assert (mark.profile, mark.tile_px) == ("tiled", 64)
    assert marks.check(mark.marked, side, bounds).status == "valid"
    for row, column in [(0, 0), (63, 127), (0, 128), (120, 105), (255, 319), (200, 77)]:
        changed = mark.marked.copy()
        changed[row, column] += 1
        result = marks.check(changed, side, bounds)
        assert result.status == "partial", (row, column)
        assert _only_tile(result, row, column), (row, column, result.tampered)
        for plane in range(2):
            other = side.copy()
            other[row, column, plane] ^= 1
            result = marks.check(mark.marked, other, bounds)
            assert result.status == "partial"
            assert _only_tile(result, row, column), (row, column, result.tampered)
            assert not result.signature_valid


def _with_air(columns: int = 4, noise: float = 2.0) -> Any:
    """Return a frame of 8 x 8 tiles, the left `columns` of which are one value throughout."""
    host = tissue(512, 512, noise=noise)
    host[:, : 64 * columns] = 9
    return host


def _changed_tiles(mark: IntegrityMark, host: Any) -> Any:
    return (mark.marked != host).reshape(8, 64, 8, 64).any(axis=(1, 3))


def test_tiles_of_one_value_are_left_as_they_are_and_vouched_for(marks: Marks) -> None:
    host = _with_air(columns=3)
    host[:64, 448:] = 700  # another value carries
    mark = marks.embed(host)
    changed = _changed_tiles(mark, host)
    assert not changed[:, :3].any()
    assert changed[:, 3:].all()
    public = KeyRing.from_public_pem(marks.ring.export_public())
    for ring in (marks.ring, public):
        result = marks.check(mark.marked, ring=ring)
        assert (result.status, result.signature_valid) == ("valid", True)
        assert (result.recovered == host).all()
    for area in (np.s_[70:71, 5:6], np.s_[64:128, 64:128], np.s_[64:128, 320:384]):
        for put in (8, 9, 4095):
            other = mark.marked.copy()
            other[area] = put
            if (other == mark.marked).all():
                continue
            result = marks.check(other)
            assert result.status == "partial"
            assert _only_tile(result, area[0].start, area[1].start), (area, put)
            assert marks.check(other, ring=public).status == "partial"


def test_tiles_of_one_value_carry_where_any_other_sample_differs(marks: Marks) -> None:
    host = _with_air()
    side = np.full((512, 512, 1), 3, np.uint32)
    assert _changed_tiles(marks.embed(host, side), host).all()


def test_half_of_all_tiles_carry_and_in_small_frames_every_one(marks: Marks) -> None:
    for columns in (5, 8):
        host = _with_air(columns=columns)
        mark = marks.embed(host)
        assert _changed_tiles(mark, host).sum() == 32
        assert marks.check(mark.marked).status == "valid"
    small = np.full((256, 256), 9, np.int32)
    mark = marks.embed(small)
    assert (mark.marked != small).reshape(4, 64, 4, 64).any(axis=(1, 3)).all()


def test_tiles_of_one_value_carry_where_the_others_would_change_more_without_them(
    marks: Marks,
) -> None:
    for noise, carrying in ((2.0, 32), (25.0, 64)):
        host = _with_air(noise=noise)
        mark = marks.embed(host, restoration=bytes(700))
        assert (mark.profile, mark.tile_px) == ("tiled", 64)
        assert _changed_tiles(mark, host).sum() == carrying
        assert np.abs(mark.marked - host).max() == 1 or carrying == 64
        assert marks.check(mark.marked).status == "valid"


def test_as_many_tiles_may_be_destroyed_as_if_all_of_them_carried(marks: Marks) -> None:
    host = _with_air()
    marked = marks.embed(host).marked
    rng = np.random.default_rng(3)
    places = [(int(n) // 4, 4 + int(n) % 4) for n in rng.permutation(32)]
    for row, column in places[:13]:
        marked[row * 64 + 40, column * 64 + 30] ^= 1
        marked[row * 64 : row * 64 + 20, column * 64 : column * 64 + 64] ^= 1
    result = marks.check(marked)
    assert result.status == "partial"
    assert result.record is not None
    assert result.record.restoration == bytes(range(200))
    assert {(b.row // 64, b.column // 64) for b in result.tampered} == set(places[:13])
    # Without the record nobody says which tiles were of one value: none is believed to have been.
    for row, column in places[13:20]:
        marked[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = 9
    result = marks.check(marked)
    assert result.record is None
    tampered = {(b.row // 64, b.column // 64) for b in result.tampered}
    assert set(places[:20]) <= tampered
    assert not tampered & set(places[20:])


def test_every_pixel_of_a_tile_counts(marks: Marks) -> None:
    host = tissue(96, 128)
    marked = marks.embed(host).marked
    for row in range(0, 96, 9):
        for column in range(0, 128, 11):
            changed = marked.copy()
            changed[row, column] -= 1
            result = marks.check(changed)
            assert result.status == "partial", (row, column)
            assert _only_tile(result, row, column), (row, column)


@pytest.mark.parametrize("secret", [True, False])
def test_a_fifth_of_the_tiles_may_be_destroyed(marks: Marks, secret: bool) -> None:
    host = tissue(512, 512)
    marked = marks.embed(host).marked
    rng = np.random.default_rng(2)
    tiles = rng.choice(64, 12 if secret else 8, replace=False)
    for tile in tiles:
        row, column = tile // 8 * 64, tile % 8 * 64
        marked[row : row + 64, column : column + 64] += rng.integers(-1, 2, (64, 64), np.int32)
    ring = marks.ring if secret else KeyRing.from_public_pem(marks.ring.export_public())
    result = marks.check(marked, ring=ring)
    assert result.status == "partial"
    assert result.record_authentic
    assert not result.signature_valid
    assert result.record is not None
    assert result.record.original_digest == integrity.frame_digest(host, None)
    if secret:
        assert {(b.row // 64) * 8 + b.column // 64 for b in result.tampered} == {*map(int, tiles)}
        assert result.record.restoration == bytes(range(200))
        intact = np.ones(host.shape, np.bool_)
        for box in result.tampered:
            intact[box.row : box.row + box.rows, box.column : box.column + box.columns] = False
        assert (result.recovered[intact] == host[intact]).all()


def test_a_tile_of_another_place_or_frame_is_tampered(marks: Marks) -> None:
    first, second = tissue(256, 256), tissue(256, 256, seed=1)
    one, two = marks.embed(first).marked, marks.embed(second, frame_number=2).marked
    moved = one.copy()
    moved[64:128, 64:128] = one[0:64, 0:64]
    assert _only_tile(marks.check(moved), 64, 64)
    pasted = one.copy()
    pasted[64:128, 64:128] = two[64:128, 64:128]
    assert _only_tile(marks.check(pasted), 64, 64)
    again = marks.embed(first, frame_number=2).marked
    mixed = one.copy()
    mixed[:64, 128:192] = again[:64, 128:192]
    assert _only_tile(marks.check(mixed), 0, 128)


@pytest.mark.parametrize("secret", [True, False])
@pytest.mark.parametrize("asked", [{"frame_number": 2}, {"sop_instance_uid": UID + ".9"}])
def test_marks_of_another_frame_or_instance_are_named_unbound(
    marks: Marks, asked: dict[str, Any], secret: bool
) -> None:
    host = tissue(256, 256)
    ring = marks.ring if secret else KeyRing.from_public_pem(marks.ring.export_public())
    result = marks.check(marks.embed(host).marked, ring=ring, **asked)
    assert (result.status, result.bound, result.signature_valid) == ("partial", False, True)
    assert result.tampered == ()
    assert result.record is not None
    assert result.record.frame_number == 1
    assert result.record.belongs_to(UID, 1)
    assert (result.recovered == host).all()


def test_an_unbound_frame_is_still_localised(marks: Marks) -> None:
    marked = marks.embed(tissue(256, 256)).marked
    marked[200, 10] += 1
    result = marks.check(marked, sop_instance_uid="9.9")
    assert not result.bound
    assert _only_tile(result, 200, 10)


def test_a_strange_key_finds_nothing(marks: Marks) -> None:
    marked = marks.embed(tissue(256, 256)).marked
    result = Marks(b"x" * 32).check(marked)
    assert (result.status, result.record, result.signature_valid) == ("absent", None, False)


def test_an_older_key_of_the_ring_is_found(marks: Marks) -> None:
    marked = marks.embed(tissue(256, 256)).marked
    ring = KeyRing((Marks(b"n" * 32).keys, marks.keys))
    assert marks.check(marked, ring=ring).status == "valid"


def test_public_keys_verify_but_do_not_open(marks: Marks) -> None:
    host = tissue(256, 256)
    ring = KeyRing.from_public_pem(marks.ring.export_public())
    result = marks.check(marks.embed(host).marked, ring=ring)
    assert (result.status, result.signature_valid) == ("valid", True)
    assert result.record is not None
    assert result.record.restoration is None
    assert result.record.features == b"f" * 10
    assert (result.recovered == host).all()


def test_the_same_frame_gives_the_same_bytes(marks: Marks) -> None:
    host = tissue(200, 300)
    assert (marks.embed(host).marked == marks.embed(host).marked).all()


def test_more_record_than_fits_moves_to_the_header(marks: Marks) -> None:
    host = tissue(64, 64)
    mark = marks.embed(host, restoration=b"r" * 900)
    assert mark.profile == "header"
    whole = marks.check(mark.marked, header_block=mark.header_block)
    assert whole.status == "valid"
    assert whole.record is not None
    assert whole.record.restoration == b"r" * 900
    for block in (b"", mark.header_block[:-1], b"DNW2\x01\x01junk"):
        stripped = marks.check(mark.marked, header_block=block)
        assert (stripped.status, stripped.tampered) == ("valid", ())
        assert stripped.record is not None
        assert stripped.record.restoration is None
        assert not stripped.record.complete


@pytest.mark.parametrize("profile", ["noted", "compact"])
def test_a_digest_alone_vouches_with_and_without_its_block(
    profile: str, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tissue(24, 24, noise=60.0)
    if profile == "compact":
        monkeypatch.setattr(integrity.noted, "take_apart", lambda *_: None)
    mark = marks.embed(host)
    assert mark.profile == profile
    whole = marks.check(mark.marked, header_block=mark.header_block)
    assert (whole.status, whole.signature_valid) == ("valid", True)
    assert (whole.recovered == host).all()
    stripped = marks.check(mark.marked)
    assert (stripped.status, stripped.tampered, stripped.record) == ("partial", (), None)
    assert (stripped.recovered == host).all() == (profile == "compact")
    other = marks.check(mark.marked, header_block=mark.header_block, frame_number=7)
    assert (other.status, other.bound) == ("partial", False)
    public = KeyRing.from_public_pem(marks.ring.export_public())
    assert marks.check(mark.marked, header_block=mark.header_block, ring=public).status == "valid"
    changed = mark.marked.copy()
    changed[5, 5] += 1
    for ring in (marks.ring, public):
        assert marks.check(changed, header_block=mark.header_block, ring=ring).status == "partial"
    assert marks.check(changed).status == "absent"


def test_a_digest_in_lowest_bits_moves_no_sample_by_more_than_one(marks: Marks) -> None:
    """In a small, noisy frame, which a digest shifted in changes nearly everywhere."""
    host = tissue(64, 64, noise=25.0)
    mark = marks.embed(host, restoration=bytes(range(240)))
    moved = np.abs(mark.marked - host)
    assert mark.profile == "noted"
    assert moved.max() == 1
    assert 30 < moved.sum() < 100


def test_every_bit_a_digest_is_written_over_is_vouched_for(marks: Marks) -> None:
    host = tissue(24, 24, noise=60.0)
    mark = marks.embed(host)
    for row, column in np.argwhere(mark.marked != host):
        changed = mark.marked.copy()
        changed[row, column] = host[row, column]
        assert marks.check(changed, header_block=mark.header_block).status == "partial"
        assert marks.check(changed).status == "absent"


def test_the_block_of_another_frame_gives_no_frame_back(marks: Marks) -> None:
    one, two = (marks.embed(tissue(24, 24, noise=60.0, seed=seed)) for seed in (1, 2))
    mixed = marks.check(one.marked, header_block=two.header_block)
    assert (mixed.status, mixed.signature_valid, mixed.record) == ("partial", False, None)
    for damaged in (one.header_block[:40], one.header_block + b"x", b"DNW2\x01\x03"):
        assert marks.check(one.marked, header_block=damaged).status != "valid"


def test_a_forged_block_is_not_believed(marks: Marks) -> None:
    mark = marks.embed(tissue(24, 24, noise=60.0))
    forged = bytearray(mark.header_block)
    forged[-70] ^= 1
    result = marks.check(mark.marked, header_block=bytes(forged))
    assert not result.signature_valid
    assert result.record is None


def test_pixels_with_few_levels_are_packed(marks: Marks) -> None:
    host = tissue(256, 256) // 16 * 16 + 3
    mark = marks.embed(host)
    assert (mark.marked % 16 == 3).all()
    changed = mark.marked.copy()
    changed[100, 100] += 1
    assert _only_tile(marks.check(changed), 100, 100)


def test_uniform_noise_has_room_for_a_digest_alone(marks: Marks) -> None:
    rng = np.random.default_rng(1)
    host = rng.integers(0, 256, (128, 128)).astype(np.int32)
    assert marks.embed(host, bounds=Bounds(0, 255)).profile == "noted"
    few = rng.integers(0, 256, (8, 8)).astype(np.int32)
    with pytest.raises(CapacityError, match="cannot hold even one digest"):
        marks.embed(few, bounds=Bounds(0, 255))


@pytest.mark.parametrize(
    ("host", "side"),
    [
        (np.zeros((7, 64), np.int32), None),
        (np.full((64, 64), 5000, np.int32), None),
        (np.zeros((64, 64), np.int64), None),
        (np.zeros((64, 64), np.int32), np.zeros((64, 63, 1), np.uint32)),
    ],
)
def test_what_is_not_a_frame_is_refused(marks: Marks, host: Any, side: Any) -> None:
    with pytest.raises(WatermarkError):
        marks.embed(host, side)


def test_large_frames_carry_several_copies_of_the_record(marks: Marks) -> None:
    host = tissue(1100, 1500)
    mark = marks.embed(host)
    assert mark.tile_px == 64
    changed = mark.marked.copy()
    changed[:400] = 0
    result = marks.check(changed)
    assert result.status == "partial"
    assert result.record_authentic or result.record is None
    changed = mark.marked.copy()
    changed[1000, 1400] += 1
    assert _only_tile(marks.check(changed), 1000, 1400)


def test_capacity_grows_with_the_threshold_and_costs_distortion() -> None:
    host = tissue(256, 256)
    offers = [integrity.capacity(host, Bounds(0, 4095), t) for t in (1, 4, 16)]
    assert offers[0].bits < offers[1].bits < offers[2].bits <= host.size
    assert 0 < offers[0].rmse < offers[1].rmse < offers[2].rmse
    with pytest.raises(WatermarkError):
        integrity.capacity(host, Bounds(0, 4095), 5)


def test_frame_digests_tell_shape_samples_and_sides_apart() -> None:
    host = np.arange(64, dtype=np.int32).reshape(8, 8)
    side = np.zeros((8, 8, 1), np.uint32)
    digests = {
        integrity.frame_digest(host, None),
        integrity.frame_digest(host.reshape(4, 16), None),
        integrity.frame_digest(host + 1, None),
        integrity.frame_digest(host + 40000, None),
        integrity.frame_digest(host - 65536 * 2, None),
        integrity.frame_digest(host, side),
        integrity.frame_digest(host, side + 1),
    }
    assert len(digests) == 7
    assert integrity.frame_digest(np.asfortranarray(host), None) in digests


def test_a_small_frame_is_marked_more_gently_the_less_has_to_stand_in_its_pixels(
    marks: Marks,
) -> None:
    host = tissue(128, 128, noise=12.0)
    record = marks.record(host, restoration=bytes(range(236)))

    def embed(**how: Any) -> tuple[float, IntegrityMark]:
        mark = integrity.embed(host, None, TWELVE_BITS, record, marks.keys, **how)
        return float(np.square(mark.marked - host).mean()), mark

    in_pixels, tiled = embed()
    outside, header = embed(restoration_in_header=True)
    least, noted = embed(unseen=lambda marked: False)
    assert (tiled.profile, header.profile, noted.profile) == ("tiled", "header", "noted")
    assert in_pixels > 2 * outside > 40 * least
    for mark in (header, noted):
        result = marks.check(mark.marked, header_block=mark.header_block)
        assert result.status == "valid"
        assert (result.recovered == host).all()
        assert result.record is not None
        assert result.record.restoration == bytes(range(236))


def test_attempts_go_on_until_the_mark_is_not_seen(marks: Marks) -> None:
    host = tissue(128, 128, noise=12.0)
    looked: list[float] = []

    def unseen(marked: Any) -> bool:
        looked.append(float(np.square(marked - host).mean()))
        return len(looked) == 3

    mark = integrity.embed(host, None, TWELVE_BITS, marks.record(host), marks.keys, unseen=unseen)
    assert len(looked) == 3
    assert np.square(mark.marked - host).mean() == looked[-1]
    assert marks.check(mark.marked, header_block=mark.header_block).status == "valid"


def test_what_is_remembered_of_a_frame_never_excuses_a_change(marks: Marks) -> None:
    """Embedding leaves digests for the reader in the same process: good for that frame only."""
    mark = integrity.embed(
        host := tissue(256, 256, noise=4.0), None, TWELVE_BITS, marks.record(host), marks.keys
    )
    assert len(mark.carried.tiles) == 16
    read = marks.check(mark.marked, known=mark.carried)
    assert (read.status, read.record) == ("valid", marks.check(mark.marked).record)
    changed = mark.marked.copy()
    changed[100, 200] += 1
    result = marks.check(changed, known=mark.carried)
    assert result.status == "partial"
    assert _only_tile(result, 100, 200)
    forged = replace(mark.carried, tiles=dict.fromkeys(mark.carried.tiles, bytes(8)))
    assert marks.check(mark.marked, known=forged).tampered, "the digests are compared"


def test_attempts_on_one_frame_give_what_each_would_give_alone(marks: Marks) -> None:
    """What earlier attempts worked out of a frame is used again; it changes nothing."""
    for noise in (2.0, 12.0, 60.0):
        host = tissue(192, 130, noise=noise, high=900)
        record = marks.record(host)
        together = Sealing(host, None, TWELVE_BITS, record, marks.keys)
        for goes_on in (0, 3, 1, 9, 2):
            left = [goes_on, goes_on]

            def unseen(_marked: Any, place: int, left: list[int] = left) -> bool:
                left[place] -= 1
                return left[place] < 0

            again = together.embed(unseen=partial(unseen, place=0))
            alone = integrity.embed(
                host, None, TWELVE_BITS, record, marks.keys, unseen=partial(unseen, place=1)
            )
            assert (again.profile, again.tile_px) == (alone.profile, alone.tile_px)
            assert (again.marked == alone.marked).all()
            assert again.header_block == alone.header_block


def test_two_frames_are_digested_together_as_they_are_alone() -> None:
    grey, bright = tissue(60, 40), tissue(60, 40, seed=1) + 40000
    side = np.arange(60 * 40 * 2, dtype=np.uint32).reshape(60, 40, 2)
    for first, second in (
        ((grey, None), (grey + 1, None)), ((grey, None), (bright, None)),
        ((grey, side), (bright, None)),
        ((grey, side), (grey + 1, side)), ((grey - 70000, None), (bright, None)),
    ):  # fmt: skip
        alone = integrity.frame_digest(*first), integrity.frame_digest(*second)
        assert integrity.frame_digests(first, second) == alone
