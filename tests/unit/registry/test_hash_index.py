"""The nearest hash is the nearest hash, whatever happened to the file of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_rows import instance

from dicom_node.registry import MarkedFrame, Registry
from dicom_node.registry.hash_file import BLOCK, Hashes, HashFile, Ids
from dicom_node.registry.hash_index import HashIndex, Near

NAME = "00112233445566778899aabbccddeeff"


class Frames:
    """What a database holds: ids that grow, with gaps, and hashes."""

    def __init__(self, count: int, seed: int = 0, levels: int = 1 << 63) -> None:
        random = np.random.default_rng(seed)
        self.ids = np.cumsum(random.integers(1, 4, count)).astype(np.int64)
        self.hashes = random.integers(0, levels, count).astype(np.uint64)
        self.asked = 0

    def fetch(self, after: int, most: int) -> tuple[Ids, Hashes]:
        start = int(np.searchsorted(self.ids, after, side="right"))
        self.asked += len(self.ids[start : start + most])
        return self.ids[start : start + most].copy(), self.hashes[start : start + most].copy()

    def known(self, frame_id: int) -> int | None:
        place = int(np.searchsorted(self.ids, frame_id))
        there = place < len(self.ids) and self.ids[place] == frame_id
        return int(self.hashes[place]) if there else None

    def by_hand(self, queries: list[int], within: int, limit: int) -> list[tuple[int, int]]:
        found = []
        for frame_id, hash_ in zip(self.ids.tolist(), self.hashes.tolist(), strict=True):
            distance = min((hash_ ^ query).bit_count() for query in queries)
            if distance <= within:
                found.append((distance, frame_id))
        return sorted(found)[:limit]


def index_of(frames: Frames, path: Path | None) -> HashIndex:
    file = HashFile(path, NAME, frames.known) if path is not None else None
    index = HashIndex(frames.fetch, file)
    assert index.refresh() == len(frames.ids)
    return index


def pairs(near: list[Near]) -> list[tuple[int, int]]:
    return [(each.distance, each.frame_id) for each in near]


# A test that finds the nearest of 3 blocks by hand takes a while; few of them say enough.
@settings(max_examples=25)
@given(
    count=st.sampled_from([0, 1, 500, BLOCK + 7]),
    levels=st.sampled_from([2, 1 << 10, 1 << 63]),
    queries=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=3),
    within=st.integers(0, 64),
    limit=st.integers(1, 40),
)
def test_the_search_gives_what_comparing_one_by_one_gives(
    count: int, levels: int, queries: list[int], within: int, limit: int
) -> None:
    frames = Frames(count, seed=within, levels=levels)
    near = index_of(frames, None).nearest(queries, within, limit)
    assert pairs(near) == frames.by_hand(queries, within, limit)
    for each in near:
        hash_ = frames.known(each.frame_id)
        assert hash_ is not None
        assert (hash_ ^ queries[each.query]).bit_count() == each.distance


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.hashes"


def test_whole_blocks_are_kept_and_need_not_be_asked_for_again(path: Path) -> None:
    frames = Frames(2 * BLOCK + 100)
    index_of(frames, path)
    again = Frames(2 * BLOCK + 100)
    index = index_of(again, path)
    assert again.asked == 100
    query = int(again.hashes[BLOCK // 2])
    assert pairs(index.nearest([query], 12, 5)) == again.by_hand([query], 12, 5)


def damages() -> Iterator[tuple[str, object]]:
    yield "cut off in a block", lambda path: os.truncate(path, path.stat().st_size - 1000)
    yield "something appended", lambda path: path.open("ab").write(b"x" * 1000)
    yield "a bit of the last block changed", lambda path: _flip(path, path.stat().st_size - 500)
    yield "another registry's header", lambda path: _flip(path, 10)
    yield "empty", lambda path: os.truncate(path, 0)
    yield "gone", lambda path: path.unlink()


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [pytest.param(d, id=n) for n, d in damages()])
def test_a_damaged_file_costs_time_and_no_frame(path: Path, damage: object) -> None:
    frames = Frames(2 * BLOCK + 5)
    index_of(frames, path)
    damage(path)  # type: ignore[operator]
    query = int(frames.hashes[-10])
    index = index_of(frames, path)
    assert pairs(index.nearest([query], 16, 9)) == frames.by_hand([query], 16, 9)
    # It is whole again for the next one.
    frames.asked = 0
    index_of(frames, path)
    assert frames.asked == 5


def test_a_database_put_back_to_an_earlier_state_gets_a_new_file(path: Path) -> None:
    index_of(Frames(2 * BLOCK, seed=1), path)
    other = Frames(2 * BLOCK, seed=2)
    query = int(other.hashes[3])
    assert pairs(index_of(other, path).nearest([query], 0, 3)) == other.by_hand([query], 0, 3)
    shorter = Frames(50, seed=2)
    assert pairs(index_of(shorter, path).nearest([query], 0, 3)) == shorter.by_hand([query], 0, 3)


def test_two_processes_append_each_block_once(path: Path) -> None:
    frames = Frames(BLOCK - 1)
    one, two = index_of(frames, path), index_of(frames, path)
    more = Frames(3 * BLOCK)
    frames.ids, frames.hashes = more.ids, more.hashes
    # The first BLOCK - 1 are the same: one seed.
    assert (one.refresh(), two.refresh(), one.refresh()) == (3 * BLOCK,) * 3
    assert (path.stat().st_size - 64) // BLOCK // 16 == 3
    for index in (one, two):
        query = int(more.hashes[2 * BLOCK])
        assert pairs(index.nearest([query], 10, 7)) == more.by_hand([query], 10, 7)


def test_who_may_not_write_the_file_searches_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    frames = Frames(BLOCK + 9)
    index = index_of(frames, path)
    assert not path.exists()
    query = int(frames.hashes[5])
    assert pairs(index.nearest([query], 9, 4)) == frames.by_hand([query], 9, 4)


def test_the_registry_writes_its_file_beside_the_database_and_makes_a_lost_one_anew(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(3)
    frames = tuple(MarkedFrame(perceptual_hash=random.bytes(8)) for _ in range(BLOCK + 10))
    cine = instance(1, frames=len(frames))
    with Registry.open(f"sqlite:///{tmp_path}/registry.sqlite") as registry:
        registry.add(replace(cine, frames=frames))
        assert registry.refresh_index() == BLOCK + 10
    kept = tmp_path / "registry.hashes"
    whole = kept.read_bytes()
    kept.unlink()
    with Registry.open(f"sqlite:///{tmp_path}/registry.sqlite") as registry:
        [match] = registry.similar(frames[BLOCK + 3].perceptual_hash, within=3)
        assert (match.distance, match.frame) == (0, BLOCK + 4)
    assert kept.read_bytes() == whole
