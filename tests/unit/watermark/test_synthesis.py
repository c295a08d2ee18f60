"""The residual of W1 is integer arithmetic with an exact inverse."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import WatermarkError
from dicom_node.watermark import synthesis
from dicom_node.watermark.covers import unfolded
from dicom_node.watermark.synthesis import RobustRecord

SIDE, BITS = 96, 160


@pytest.fixture(scope="module")
def patterns() -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(-127, 128, (BITS, SIDE * SIDE)).astype(np.int8)


def _record(seed: int, factor: float) -> RobustRecord:
    rng = np.random.default_rng(seed)
    return RobustRecord(
        b"\1\2\3\4",
        rng.integers(-31, 32, BITS).astype(np.int8),
        rng.integers(0, 8, (16, 16)).astype(np.uint8),
        synthesis.fixed_point(0.03), synthesis.fixed_point(factor),
        np.array([3, 70, 900], np.int64),
    )  # fmt: skip


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(48, 200),
    columns=st.integers(48, 200),
    bits=st.integers(8, 16),
    signed=st.booleans(),
    padded=st.booleans(),
    colour=st.booleans(),
)
@settings(max_examples=40)
def test_what_apply_did_remove_undoes_bit_for_bit(
    seed: int, rows: int, columns: int, bits: int, signed: bool, padded: bool, colour: bool,
    patterns: np.ndarray,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    shape = (rows, columns, 3) if colour else (rows, columns)
    host = rng.integers(low, high + 1, shape).astype(np.int32)
    host[: rows // 3] = low  # saturated, as air is
    host[rows // 2 :] = np.clip(rng.integers(low, low + 12, host[rows // 2 :].shape), low, high)
    padding = (low + 3, low + 4) if padded else None
    delta = synthesis.delta_of(_record(seed, 8e-5 * 2 ** (bits - 8)), patterns, rows, columns)
    marked, exceptions = synthesis.apply(host, delta, low, high, padding)
    assert marked.min() >= low
    assert marked.max() <= high
    if padding is not None:
        was = (host >= padding[0]) & (host <= padding[1])
        now = (marked >= padding[0]) & (marked <= padding[1])
        np.testing.assert_array_equal(was, now)
        np.testing.assert_array_equal(marked[was], host[was])
    assert delta.any()
    for kept in (exceptions, _as_in_a_record(exceptions), _as_first_written(host, marked, delta)):
        back = synthesis.remove(marked, delta, low, high, padding, kept)
        np.testing.assert_array_equal(back, host)


def _as_in_a_record(exceptions: np.ndarray) -> np.ndarray:
    blank = _record(1, 1e-3)
    return RobustRecord.from_bytes(replace(blank, exceptions=exceptions).to_bytes()).exceptions


def _as_first_written(host: np.ndarray, marked: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Records before 0.2: places of all that was left alone (here more than it takes)."""
    kept = (host == marked).reshape(*delta.shape, -1).all(axis=-1) & (delta != 0)
    blank = replace(_record(1, 1e-3), exceptions=np.flatnonzero(kept))
    return RobustRecord.from_bytes(blank.to_bytes()).exceptions


def test_exceptions_take_a_bit_for_each_doubtful_pixel(patterns: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    host = rng.integers(0, 8, (256, 256)).astype(np.int32)  # a dark frame: doubt everywhere
    record = _record(4, 8e-5)
    delta = synthesis.delta_of(record, patterns, 256, 256)
    _, exceptions = synthesis.apply(host, delta, 0, 255, None)
    none, all_of_them = (
        len(replace(record, exceptions=each).to_bytes()) for each in (exceptions[:0], exceptions)
    )
    assert exceptions.sum() > 1000
    assert all_of_them - none <= exceptions.size / 8 + 1


def test_exceptions_of_another_frame_are_refused(patterns: np.ndarray) -> None:
    rng = np.random.default_rng(3)
    host = rng.integers(0, 40, (128, 128)).astype(np.int32)
    delta = synthesis.delta_of(_record(4, 8e-5), patterns, 128, 128)
    marked, exceptions = synthesis.apply(host, delta, 0, 255, None)
    assert exceptions.any()
    with pytest.raises(WatermarkError, match="does not fit"):
        synthesis.remove(marked, delta, 0, 255, None, np.append(exceptions, [True] * 9))


def test_saturated_samples_stay_as_they_are(patterns: np.ndarray) -> None:
    delta = synthesis.delta_of(_record(4, 8e-5), patterns, 128, 128)
    host = np.full((128, 128), 255, np.int32)
    marked, exceptions = synthesis.apply(host, delta, 0, 255, None)
    np.testing.assert_array_equal(marked, host)
    assert exceptions.size == 0


@given(seed=st.integers(0, 2**16), rows=st.integers(48, 200), columns=st.integers(48, 200))
@settings(max_examples=25)
def test_the_residual_is_what_the_formula_says(
    seed: int, rows: int, columns: int, patterns: np.ndarray
) -> None:
    """The rule of the module, in plain array operations: files marked today rely on each bit."""
    record = _record(seed, 8e-5)
    carrier = record.amplitudes.astype(np.int64) @ patterns.astype(np.int64)
    gain, shift = record.carrier_scale
    small = np.clip((carrier * gain + (1 << shift >> 1)) >> shift, -1023, 1023)
    shape = _up(small.reshape(SIDE, SIDE), rows, columns)
    shape = shape * _up(record.strengths.astype(np.int64) * 16, rows, columns)
    gain, shift = record.scale
    expected = (shape * gain + (1 << shift >> 1)) >> shift
    np.testing.assert_array_equal(
        synthesis.delta_of(record, patterns, rows, columns), expected
    )


def _up(small: np.ndarray, rows: int, columns: int) -> np.ndarray:
    tall = (_weights(small.shape[0], rows) @ small + 32) >> 6
    return (tall @ _weights(small.shape[1], columns).T + 32) >> 6


def _weights(source: int, target: int) -> np.ndarray:
    matrix = np.zeros((target, source), np.int64)
    for i in range(target):
        place = min(max((2 * i + 1) * source * 64 // target - 64, 0), (source - 1) * 128)
        left, part = divmod(place, 128)
        matrix[i, left] += 64 - (part + 1) // 2
        matrix[i, min(left + 1, source - 1)] += (part + 1) // 2
    return matrix


@given(seed=st.integers(0, 2**16), folds=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=20)
def test_a_folded_carrier_is_what_its_mirror_images_carry(seed: int, folds: int) -> None:
    """Seen beside its mirror images, a picture correlates with the carrier as it does by itself."""
    rng = np.random.default_rng(seed)
    carrier = rng.integers(-3000, 3000, SIDE * SIDE).astype(np.int32)
    picture = rng.random((SIDE // folds, SIDE // folds)).astype(np.float32)
    seen = unfolded(picture, SIDE).astype(np.float64).reshape(-1) @ carrier
    itself = picture.astype(np.float64).reshape(-1) @ synthesis.folded(carrier, folds)
    assert seen == pytest.approx(itself, rel=1e-9, abs=1e-3)


@given(seed=st.integers(0, 2**16), rows=st.integers(48, 96), columns=st.integers(48, 96))
@settings(max_examples=15)
def test_a_folded_residual_comes_off_bit_for_bit(
    seed: int, rows: int, columns: int, patterns: np.ndarray
) -> None:
    record = replace(_record(seed, 2e-5), folds=2)
    blob = record.to_bytes()
    assert blob[4] == len(record.strengths) | 1 << 5, "where records in archives have it"
    again = RobustRecord.from_bytes(blob)
    assert again.folds == 2
    delta = synthesis.delta_of(again, patterns, rows, columns)
    host = np.random.default_rng(seed).integers(0, 256, (rows, columns)).astype(np.int32)
    marked, exceptions = synthesis.apply(host, delta, 0, 255, None)
    assert (marked != host).any()
    kept = _as_in_a_record(exceptions)
    np.testing.assert_array_equal(synthesis.remove(marked, delta, 0, 255, None, kept), host)
    plain = synthesis.delta_of(replace(record, folds=1), patterns, rows, columns)
    assert (plain != delta).any()


@given(seed=st.integers(0, 2**16), factor=st.floats(1e-6, 0.5))
@settings(max_examples=30)
def test_a_record_survives_its_bytes(seed: int, factor: float) -> None:
    record = _record(seed, factor)
    again = RobustRecord.from_bytes(record.to_bytes())
    assert again.to_bytes() == record.to_bytes()
    np.testing.assert_array_equal(again.amplitudes, record.amplitudes)
    np.testing.assert_array_equal(again.strengths, record.strengths)
    np.testing.assert_array_equal(again.exceptions, record.exceptions)
    assert (again.scale, again.carrier_scale) == (record.scale, record.carrier_scale)


@given(seed=st.integers(0, 2**16), share=st.floats(0, 1))
@settings(max_examples=30)
def test_strengths_of_0_and_1_take_a_bit_each_at_most(seed: int, share: float) -> None:
    grid = (np.random.default_rng(seed).random((16, 16)) < share).astype(np.uint8)
    record = replace(_record(seed, 1e-3), strengths=grid)
    blob = record.to_bytes()
    np.testing.assert_array_equal(RobustRecord.from_bytes(blob).strengths, grid)
    assert len(blob) <= len(replace(record, strengths=grid * 2).to_bytes())
    assert len(blob) <= len(replace(record, strengths=grid * 0).to_bytes()) + 32


def test_strengths_of_0_and_1_are_read_as_they_were_written_before_0_2() -> None:
    """Three bits a cell, plain (kind 0) and deflated (kind 1)."""
    grid = (np.arange(256).reshape(16, 16) % 3 == 0).astype(np.uint8)
    record = replace(_record(1, 1e-3), strengths=grid)
    today = record.to_bytes()
    three = np.unpackbits(grid.reshape(-1, 1), axis=1)[:, 5:].reshape(-1)
    plain = np.packbits(three).tobytes()
    for kind, body in ((0, plain), (1, zlib.compress(plain, 9, -15))):
        former = _with_strengths(today, bytes([kind]) + body)
        np.testing.assert_array_equal(RobustRecord.from_bytes(former).strengths, grid)


def _with_strengths(blob: bytes, strengths: bytes) -> bytes:
    head, count, size = blob[:11], *struct.unpack_from("<BH", blob, 11)
    amplitudes = blob[18 : 18 + (count * 6 + 7) // 8]
    rest = blob[18 + len(amplitudes) + size :]
    lengths = struct.pack("<BHI", count, len(strengths), len(rest))
    return head + lengths + amplitudes + strengths + rest


@given(blob=st.binary(max_size=300))
@settings(max_examples=60)
def test_a_damaged_record_is_an_error_of_ours(blob: bytes) -> None:
    try:
        record = RobustRecord.from_bytes(blob)
    except WatermarkError:
        return
    assert isinstance(record, RobustRecord)
