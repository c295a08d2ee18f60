"""Which frame a picture shows: real studies marked, registered, exported and looked up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from registry_rows import digest

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.inference.base import RobustEngine
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.matching import Matcher
from dicom_node.registry import MarkedInstance, Registry
from dicom_node.tracing import Traced, trace

DEMO = Path(__file__).parents[2] / "demo"


@dataclass(frozen=True)
class Place:
    """A registry of the studies that ship with the project, and where their files are."""

    folder: Path
    ring: KeyRing
    engine: RobustEngine
    registry: Registry
    sources: dict[str, Path]
    marked: dict[str, Path]

    def trace(self, path: Path, *, search: bool = False) -> Traced:
        matcher = Matcher(self.registry, open_fingerprinter())
        return trace(path, self.ring.all(), self.engine, search=search, matcher=matcher)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("matching")
    ring = KeyRing.open(folder / "keys", owner="CLINIC", create=True)
    engine = open_engine("onnx")
    marker = Marker(WatermarkConfig(), ring, engine)
    registry = Registry.open(f"sqlite:///{folder}/registry.sqlite")
    sources, marked = {}, {}
    for source in sorted(DEMO.rglob("*.dcm")):
        out = folder / source.name
        done = marker.mark(source, out, marked_at=datetime(2026, 11, 22, tzinfo=UTC))
        assert done.action == "marked", done.reason
        registry.add(MarkedInstance(
            done.sop_instance_uid, done.series_instance_uid, done.study_instance_uid,
            done.sop_class_uid, done.transfer_syntax_uid, done.action, digest(source.name),
            digest(out.name, "marked"), ring.current.key_id, 1_790_000_000, 1_790_000_000.0, "CT1",
            done.facts.modality, done.facts.instance_number, done.facts.frame_count,
            done.facts.frames,
        ))  # fmt: skip
        sources[done.sop_instance_uid], marked[done.sop_instance_uid] = source, out
    yield Place(folder, ring, engine, registry, sources, marked)
    registry.close()


def shown(path: Path) -> NDArray[np.uint8]:
    """Return the first frame as somebody would export it."""
    with closing(open_instance(path, max_pixels=1 << 28)) as instance:
        picture = display_of(instance).image(instance.frame(0), 0)
    return np.rint(picture * 255).astype(np.uint8)


def test_every_marked_file_is_found_bit_for_bit(place: Place) -> None:
    for uid, path in place.marked.items():
        found = place.trace(path).match
        assert found is not None
        assert (found.by, found.confidence, found.found.frame) == ("samples", 1.0, 1)
        assert found.found.instance.sop_instance_uid == uid


def test_every_exported_picture_is_found_by_its_mark(place: Place, tmp_path: Path) -> None:
    for uid, path in place.marked.items():
        picture = tmp_path / "export.jpg"
        cv2.imwrite(str(picture), shown(path), [cv2.IMWRITE_JPEG_QUALITY, 80])
        found = place.trace(picture)
        assert found.detection.decoded, path.name
        assert found.match is not None
        assert (found.match.by, found.match.found.instance.sop_instance_uid) == ("message", uid)
        assert found.match.confidence > 0.9


def test_a_picture_without_a_mark_is_found_by_its_looks_turned_and_bordered(
    place: Place, tmp_path: Path
) -> None:
    for uid, source in place.sources.items():
        plain = np.ascontiguousarray(np.rot90(shown(source))[:, ::-1])
        bordered = cv2.copyMakeBorder(plain, 30, 30, 20, 50, cv2.BORDER_CONSTANT, value=240)
        picture = tmp_path / "screenshot.png"
        cv2.imwrite(str(picture), bordered)
        found = place.trace(picture)
        assert not found.detection.decoded
        assert found.match is not None, source.name
        assert (found.match.by, found.match.found.instance.sop_instance_uid) == ("look", uid)
        assert 0.3 < found.match.confidence < 0.96


def test_pictures_of_others_are_not_ours(place: Place, shared: Path) -> None:
    others = sorted((shared / "whole" / "val").iterdir())[::4]
    assert len(others) == 22
    found = [(path.name, place.trace(path).match) for path in others]
    assert [each for each in found if each[1] is not None] == []


def test_an_edited_copy_of_our_picture_still_leads_to_its_frame(
    place: Place, tmp_path: Path
) -> None:
    uid, path = next((u, p) for u, p in place.marked.items() if p.name == "hand.dcm")
    picture = shown(path)
    picture[300:700, 300:700] = 128
    cv2.imwrite(str(tmp_path / "edited.png"), picture)
    found = place.trace(tmp_path / "edited.png", search=True).match
    assert found is not None
    assert found.found.instance.sop_instance_uid == uid


def test_two_frames_that_look_alike_share_the_confidence(
    place: Place, tmp_path: Path
) -> None:
    [original] = place.registry.instances(sop_instance_uid=next(iter(place.marked)))
    with Registry.open(f"sqlite:///{tmp_path}/registry.sqlite") as registry:
        registry.add_all([original, replace(original, sop_instance_uid="1.2.826.7")])
        picture = tmp_path / "export.png"
        cv2.imwrite(str(picture), shown(place.marked[original.sop_instance_uid]))
        matcher = Matcher(registry, open_fingerprinter())
        found = trace(picture, place.ring.all(), place.engine, search=False, matcher=matcher)
    assert found.match is not None
    assert found.match.confidence == pytest.approx(0.999 / 2)


def test_a_frame_without_a_fingerprint_is_found_by_its_hash_alone(
    place: Place, tmp_path: Path
) -> None:
    uid, source = next(iter(place.sources.items()))
    [original] = place.registry.instances(sop_instance_uid=uid)
    bare = tuple(replace(frame, fingerprint=b"") for frame in original.frames)
    with Registry.open(f"sqlite:///{tmp_path}/registry.sqlite") as registry:
        registry.add(replace(original, frames=bare))
        picture = tmp_path / "plain.png"
        cv2.imwrite(str(picture), shown(source))
        matcher = Matcher(registry, open_fingerprinter())
        found = trace(picture, place.ring.all(), place.engine, search=False, matcher=matcher)
    assert found.match is not None
    assert (found.match.by, found.match.changed_share) == ("look", None)
    assert found.match.confidence < 0.5
