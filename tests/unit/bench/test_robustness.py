"""What the robustness bench counts: recovered blind, known pose, nothing where nothing is."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pydicom
import pytest
from bench_subjects import subject
from peer_tools import missing

from dicom_node.bench import frames
from dicom_node.bench.attacks import PLAIN, Pair, choose, transplanted
from dicom_node.bench.attacks.base import Scene
from dicom_node.bench.robustness import (
    measure,
    peers,
    remover,
    subjects,
    temporal,
)
from dicom_node.bench.robustness.reading import Attacked, Reader, Strangers
from dicom_node.cli.bench import _stage
from dicom_node.cli.main import main
from dicom_node.config import WatermarkConfig
from dicom_node.errors import EngineError, NodeError
from dicom_node.inference import RobustEngine, open_engine
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker
from dicom_node.watermark.robust import RobustWatermark


def _keys(master: bytes, owner: str = "GENERAL-HOSPITAL") -> KeySet:
    return KeySet.from_master(master * 32, owner, datetime(2026, 11, 21, tzinfo=UTC))


OURS, STRANGER = _keys(b"k"), _keys(b"s", "STRANGER")


@pytest.fixture(scope="module")
def engine() -> RobustEngine:
    return open_engine("onnx")


@pytest.fixture(scope="module")
def covers(shared: Path) -> list[np.ndarray]:
    """Three whole frames of the validation split, 256 x 256."""
    names = sorted((shared / "whole" / "val").rglob("*.webp"))
    return [cv2.imread(str(name), cv2.IMREAD_GRAYSCALE) for name in names[::30][:3]]


@pytest.fixture(scope="module")
def marked(engine: RobustEngine, covers: list[np.ndarray]) -> list[tuple[np.ndarray, str]]:
    """The same frames with our mark, and their messages."""
    watermark, made = RobustWatermark(engine), []
    for cover in covers:
        mark = watermark.embed(
            cover.astype(np.int32), (cover / 255).astype(np.float32), step=1.0, low=0, high=255,
            padding=None, key=OURS,
        )  # fmt: skip
        assert mark.record is not None
        made.append((mark.marked.astype(np.uint8), mark.message.hex()))
    return made


def _reader(engine: RobustEngine, search_s: float = 0.0) -> Reader:
    return Reader(engine, "diagnostic", OURS, [STRANGER], search_s=search_s)


def _attacked(name: str, picture: np.ndarray) -> Attacked:
    [attack] = choose([name])
    out = attack.apply(picture, attack.rng("f"))
    return Attacked(attack, out, attack.upright(out, picture.shape, attack.rng("f")))


def test_a_marked_frame_is_read_as_it_lies_turned_and_compressed(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    picture, message = marked[0]
    reader = _reader(engine)
    names = (PLAIN, "JPEG 70", "rotated 90", "flip vert.", "half size")
    readings = reader.read(message, picture, [_attacked(name, picture) for name in names])
    assert [r.attack for r in readings] == list(names)
    assert [r.found for r in readings] == ["upright", "upright", "pose", "pose", "upright"]
    assert all(r.known and r.bit_accuracy is not None and r.bit_accuracy > 0.95 for r in readings)
    assert readings[0].change_db == float("inf")
    assert readings[-1].change_db is None  # another size
    assert reader.counted == Strangers(wrong_key=len(names))


def test_a_free_rotation_is_read_by_the_search_alone(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    picture, message = marked[0]
    item = _attacked("rotated 10", picture)
    [without] = _reader(engine).read(message, picture, [item])
    assert (without.found, without.known, without.search_s) == ("", True, None)
    [searched] = _reader(engine, search_s=3.0).read(message, picture, [item])
    assert searched.found == "search"
    assert searched.search_s is not None


def test_a_valid_tag_over_another_message_is_counted_and_nothing_is_recovered(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    picture, other = marked[0][0], marked[1][1]
    reader = _reader(engine)
    [reading] = reader.read(other, picture, [_attacked(PLAIN, picture)])
    assert not reading.recovered
    assert not reading.known
    assert reader.counted.wrong_message == 1


def test_a_frame_without_a_mark_counts_as_not_recovered_and_as_a_decode(
    engine: RobustEngine, covers: list[np.ndarray]
) -> None:
    reader = _reader(engine)
    [reading] = reader.read("", covers[0], [_attacked(PLAIN, covers[0])])
    assert (reading.recovered, reading.bit_accuracy) == (False, None)
    reader.read_unmarked(covers)
    assert reader.counted == Strangers(unmarked=1 + 2 * len(covers), wrong_key=1)


def test_a_marked_frame_among_the_unmarked_would_be_noticed(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    reader = _reader(engine)
    reader.read_unmarked([picture for picture, _ in marked])
    assert reader.counted.accepted == len(marked)


def test_overwriting_needs_no_key_of_ours(
    engine: RobustEngine, covers: list[np.ndarray], marked: list[tuple[np.ndarray, str]]
) -> None:
    picture = marked[0][0]
    robust = RobustWatermark(engine)
    scene = Scene({"plain": picture}, covers[0], [], robust, [STRANGER], None)
    [attack] = choose(["overwritten with another key"])
    out = attack.on(scene, attack.rng())
    assert out is not None
    assert robust.detect((out / 255).astype(np.float32), [STRANGER]).decoded


def test_an_attack_that_lacks_what_it_takes_is_left_out(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    picture = marked[0][0]
    scene = Scene({"plain": picture}, picture, [], RobustWatermark(engine), [STRANGER], None)
    for attack in choose(["surrogate network", "mean residual of other frames subtracted",
                          "averaged over 4 owners' copies"]):  # fmt: skip
        assert attack.on(scene, attack.rng()) is None


def test_a_transplanted_residual_is_the_other_frames(
    covers: list[np.ndarray], marked: list[tuple[np.ndarray, str]]
) -> None:
    other = Pair(marked[1][0], covers[1])
    added = transplanted(other, np.full_like(covers[0], 128)).astype(int) - 128
    np.testing.assert_array_equal(added, other.marked.astype(int) - other.cover)


def _windowed(tmp_path: Path) -> Path:
    """An object of values 20 to 199 whose window shows 75 to 125."""
    values = np.random.default_rng(1).integers(20, 200, (64, 64), np.uint8)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    path = frames.wrap_picture(tmp_path / "a.png", tmp_path / "a.dcm")
    ds = pydicom.dcmread(path)
    ds.WindowCenter, ds.WindowWidth = "100", "50"
    ds.save_as(path)
    return path


def test_a_wider_window_shows_what_the_first_one_cut_off(tmp_path: Path) -> None:
    with closing(open_instance(_windowed(tmp_path), max_pixels=1 << 20)) as instance:
        frame = instance.frame(0)
        shown = display_of(instance).image(frame, 0)
        assert (shown == 1).any()
        wide = subjects.unclipped(instance, frame, shown)
    inside = (shown > 0) & (shown < 1)
    np.testing.assert_allclose(wide[inside], shown[inside], atol=1e-4)
    steps = np.diff(np.unique(wide))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)  # one line through all values
    assert wide.max() > 2


def test_stored_values_are_compressed_to_a_twentieth_and_stay_in_their_range(
    tmp_path: Path,
) -> None:
    with closing(open_instance(_windowed(tmp_path), max_pixels=1 << 20)) as instance:
        frame = instance.frame(0)
        coded = subjects.compressed(instance, frame)
        little = subjects.compressed(instance, frame, ratio=2)
    change, less = (np.abs(c.values - frame.values).mean() for c in (coded, little))
    assert 0 < less < change
    assert coded.values.min() >= 0
    assert coded.values.max() <= 255
    assert isinstance(coded, StoredFrame)


def test_a_surrogate_learns_a_residual_that_neighbours_betray_and_not_one_they_do_not() -> None:
    rng = np.random.default_rng(5)
    betrayed, hidden = [], []
    for _ in range(4):
        noise = rng.integers(0, 256, (256, 256)).astype(np.uint8)
        cover = cv2.GaussianBlur(noise, (0, 0), 6).astype(int)
        stripes = 4 * np.sin(np.arange(256) * 1.3).round().astype(int)
        plain = cover.astype(np.uint8)
        betrayed.append(Pair((cover + stripes).astype(np.uint8), plain))
        shade = int(rng.integers(-4, 5))  # of the whole picture: no neighbour tells
        hidden.append(Pair((cover + shade).astype(np.uint8), plain))
    learned = remover.train(betrayed, seed=1)
    assert learned.explained > 0.8
    left = betrayed[0].marked - learned.residual(betrayed[0].marked) - betrayed[0].cover
    before = betrayed[0].marked.astype(float) - betrayed[0].cover
    assert np.var(left[10:-10, 10:-10]) < 0.3 * np.var(before[10:-10, 10:-10])
    assert remover.train(hidden, seed=1).explained < 0.5


def test_a_trained_surrogate_is_kept_in_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cover = rng.integers(0, 250, (64, 64)).astype(np.uint8)
    network = remover.train([Pair(cover + np.uint8(1), cover)], seed=1)
    network.save(tmp_path / "n.npz")
    read = remover.Network.load(tmp_path / "n.npz")
    np.testing.assert_array_equal(read.residual(cover), network.residual(cover))
    assert read.explained == network.explained


@pytest.mark.parametrize("make", peers.PEERS, ids=lambda make: make.__name__)
def test_a_peer_reads_its_own_mark_and_loses_it_when_turned(
    make: type, covers: list[np.ndarray]
) -> None:
    try:
        peer = make()
    except EngineError as error:
        missing(f"PEER MISSING: {error}")
    bits = np.random.default_rng(1).integers(0, 2, peers.BITS, np.uint8)
    picture = peer.mark(covers[0], bits)
    assert picture.shape == (*covers[0].shape, 3)
    np.testing.assert_array_equal(peer.read(picture), bits)
    assert np.mean(peer.read(np.ascontiguousarray(np.rot90(picture))) == bits) < 0.9


def test_a_missing_peer_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    there, missing = peers.available()
    assert there == []
    assert len(missing) == len(peers.PEERS)
    assert all("pip install --no-deps" in reason for reason in missing)


@pytest.mark.slow
def test_a_short_run_marks_attacks_and_reads_in_processes(
    covers: list[np.ndarray], tmp_path: Path
) -> None:
    for number, cover in enumerate(covers[:2]):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), cover)
    samples = frames.select([tmp_path])
    plan = measure.Plan(
        choose([PLAIN, "JPEG 70", "rotated 90", "surrogate network"]), processes=2, search_s=0.0,
        search_frames=1, peer_frames=0, pictures=tmp_path / "out",
    )  # fmt: skip
    result = measure.run(
        samples, WatermarkConfig(), plan, lambda steps, name: nullcontext(_nothing)
    )
    assert [f.subject.path for f in result.frames] == [str(s.path) for s in samples]
    for frame in result.frames:
        assert frame.subject.psnr_db > 38
        assert all(frame.readings[name].recovered for name in (PLAIN, "JPEG 70", "rotated 90"))
        assert frame.readings["surrogate network"].change_db is not None
    assert result.strangers.decodes > 40
    assert result.strangers.accepted == 0
    assert len(result.explained) == 2
    assert (tmp_path / "out" / "picture.png").is_file()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_message(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64), 9, np.uint8))
    setting = measure._prepare(
        tmp_path, WatermarkConfig(), measure.Plan(choose([PLAIN]), 1, 0.0, 1, 0), 1, ()
    )
    with (
        measure.workers.workers(1, setting) as pool,
        pytest.raises(NodeError, match="a process of the benchmark died"),
    ):
        pool.each(_die, [0], lambda: None)


def test_a_long_run_counts_enough_false_accepts_and_not_more_than_it_has_time_for(
    tmp_path: Path,
) -> None:
    plan = measure.Plan(choose([]), 1, 0.0, 1, 0)
    few = measure._prepare(tmp_path / "few", WatermarkConfig(), plan, 20, ())
    assert few.every == 1
    setting = measure._prepare(tmp_path / "many", WatermarkConfig(), plan, 248, ())
    assert setting.every == 3
    some = [subject("CT", path=f"{n}.dcm") for n in range(248)]
    counts = partial(measure.workers._Worker._counts, SimpleNamespace(setting=setting))
    asked = {each.path: {a.name for a in plan.attacks if counts(a, each)} for each in some}
    still = [a for a in plan.attacks if not a.searched and a.knowing is None]
    assert sum(a.name in asked[each.path] for a in still for each in some) > 5_000
    assert set().union(*asked.values()) == {a.name for a in plan.attacks}


def test_a_picture_that_is_not_asked_is_not_read_with_other_keys(
    engine: RobustEngine, marked: list[tuple[np.ndarray, str]]
) -> None:
    reader, (picture, message) = _reader(engine), marked[0]
    items = [_attacked(name, picture) for name in (PLAIN, "JPEG 70")]
    reader.read(message, picture, [items[0], replace(items[1], foreign=False)])
    assert (reader.counted.wrong_key, reader.counted.accepted) == (1, 0)


def test_verify_notices_every_change_to_the_order_of_frames(
    engine: RobustEngine, shared: Path, tmp_path: Path
) -> None:
    [source] = (shared / "dicom").rglob("pydicom-data__emri_small_big_endian.dcm")
    ring = KeyRing.open(tmp_path / "keys", create=True)
    marked = tmp_path / "marked.dcm"
    Marker(WatermarkConfig(), ring, engine).mark(source, marked, marked_at=datetime.now(UTC))
    judged = temporal.changed_and_checked(marked, "emri", ring, engine, tmp_path)
    assert {each.change: each.verdict for each in judged} == {
        change: "authentic" if change == "none" else "tampered" for change in temporal.CHANGES
    }


def test_frames_to_search_come_from_all_over_a_modality_and_others_from_other_files() -> None:
    some = [subject("CT", path=f"{i}.dcm", frame=i) for i in range(9)] + [subject("MR")]
    assert [s.frame for s in measure._some(some, 3)] == [0, 4, 8, 1]
    others = measure._others(some[2], some)
    assert some[2] not in others
    assert len(others) == 9


def test_a_misspelt_attack_ends_the_command_before_anything_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "robustness", str(tmp_path), "--attacks", "JPG"]) == 2
    assert "--attacks JPG: no such attack" in capsys.readouterr().err


def test_a_log_is_told_how_far_a_long_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    with _stage(248, "attacking") as step:
        for _ in range(248):
            step()
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == ["attacking: 248", "attacking: 25 of 248", "attacking: 50 of 248"]
    assert told[-1] == "attacking: 248 of 248"
    assert len(told) == 11


def _nothing() -> None:
    """Count no steps."""


def _die(_: int) -> None:
    import os

    os._exit(1)
