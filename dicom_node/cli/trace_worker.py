"""The process that traces the pictures of one command: what a hostile one brings down is this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dicom_node.config import Config
from dicom_node.errors import NodeError, RegistryError

if TYPE_CHECKING:
    from dicom_node.matching import Matcher
    from dicom_node.registry import MarkedInstance
    from dicom_node.side_by_side import Fetch
    from dicom_node.tracing import Traced


@dataclass(frozen=True)
class Setup:
    """What the command was asked for; what is fetched lies in `scratch`, which it removes."""

    config: Config
    search: bool
    pictures: Path | None
    beside: tuple[Path, ...]
    fetch: bool
    scratch: Path


@dataclass(frozen=True)
class Done:
    """What is known of one picture.

    Attributes
    ----------
    said
        Members of a line of ``trace --json`` but the path; None where it could not be read.
    shown
        Where it is drawn beside its frame, in words.
    problem
        What failed, "" if nothing did.
    registry
        Why the registry was not asked, "" where it was or there is none.
    """

    said: dict[str, Any] | None
    shown: str = ""
    problem: str = ""
    registry: str = ""


def begin(setup: Setup) -> Callable[[Path], Done]:
    """Open keys, networks and registry; return what traces a picture (NodeError)."""
    from dicom_node.inference import open_engine
    from dicom_node.keys import KeyRing
    from dicom_node.side_by_side import SideBySide
    from dicom_node.tracing import trace

    config = setup.config
    keys = [each for each in KeyRing.open(config.keys.directory).all() if each.has_secrets]
    engine = open_engine(config.watermark.engine)
    matcher, registry = _matcher(config)
    drawn = setup.pictures and SideBySide(
        config, setup.pictures, setup.beside, _fetching(config, setup.scratch, setup.fetch)
    )

    def traced(path: Path) -> Done:
        said, shown, problem = None, "", ""
        try:
            found = trace(path, keys, engine, search=setup.search, matcher=matcher)
            said = to_json(found)
            if drawn and found.match is not None:
                shown = drawn.draw(path, found.picture, found.match)
        except (NodeError, OSError) as error:
            problem = str(error)
        return Done(said, shown, problem, registry)

    return traced


def _matcher(config: Config) -> tuple[Matcher | None, str]:
    """Open the registry if there is one, or say why not: marks are read without it, too."""
    from dicom_node.inference.fingerprinter import open_fingerprinter
    from dicom_node.matching import Matcher
    from dicom_node.registry import Registry

    try:
        registry = Registry.existing(config.registry_url, cache=config.spool.directory)
    except RegistryError as error:
        return None, str(error)
    return (None if registry is None else Matcher(registry, open_fingerprinter())), ""


def _fetching(config: Config, scratch: Path, wanted: bool) -> Fetch | None:
    """Return what fetches one instance from the PACS."""
    if not wanted:
        return None
    from dicom_node.verify.fetching import Fetcher
    from dicom_node.verify.pacs import Pacs, Wanted

    pacs = Pacs.of(config)
    fetcher = Fetcher(config, pacs, scratch)

    def fetch(instance: MarkedInstance) -> Path | None:
        one = Wanted(instance.study_instance_uid, (instance.series_instance_uid,),
                     (instance.sop_instance_uid,))  # fmt: skip
        taken: list[Path] = []
        planned = pacs.plan(one)
        if planned:
            fetcher.fetch(one, planned, lambda path, _: taken.append(path), lambda: False)
        return taken[0] if taken else None

    return fetch


def to_json(found: Traced | None) -> dict[str, Any]:
    """Return the members of a line of ``trace --json`` but the path; None: nothing was read."""
    detection = found.detection if found is not None else None
    decoded = detection is not None and detection.decoded
    pose: dict[str, Any] = dict.fromkeys(("rotation_deg", "flip", "scale"))
    if detection is not None and decoded:
        pose = {
            "rotation_deg": round(detection.pose.rotation_deg, 2),
            "flip": detection.pose.flip,
            "scale": round(detection.pose.scale, 4),
        }
    match = found.match if found is not None else None
    return {
        "decoded": decoded,
        "message": detection.message.hex() if detection is not None else "",
        "owner": (detection.owner or None) if detection is not None else None,
        "pose": pose,
        "match": match.to_json() if match is not None else None,
    }
