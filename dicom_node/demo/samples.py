"""The studies that ship with the project; demo/ATTRIBUTION.md says where they come from."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dicom_node.demo.children import StepFailed
from dicom_node.instance.frames import open_instance

MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Sample:
    """One study as it lies in the package.

    Attributes
    ----------
    files
        By SOP Instance UID, in the order they are sent.
    """

    name: str
    title: str
    study_uid: str
    series_uid: str
    files: dict[str, Path]
    frames: int


# Folder, and what the reader calls it.
STUDIES = (
    ("mr_brain", "MR brain"),
    ("cr_hand", "CR hand"),
    ("us_doppler", "colour Doppler ultrasound"),
)


def load_samples() -> list[Sample]:
    """Return the shipped studies.

    Raises
    ------
    StepFailed
        If they are not there, or a study is not one series.
    """
    return [_load(name, title) for name, title in STUDIES]


def _load(name: str, title: str) -> Sample:
    files: dict[str, Path] = {}
    series: set[tuple[str, str]] = set()
    frames = 0
    for path in sorted((_folder() / name).glob("*.dcm")):
        with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
            files[instance.sop_instance_uid] = path
            series.add((instance.study_instance_uid, instance.series_instance_uid))
            frames += instance.frame_count
    if len(series) != 1:
        raise StepFailed(f"the sample data of {title} is incomplete: reinstall dicom-node")
    study_uid, series_uid = series.pop()
    return Sample(name, title, study_uid, series_uid, files, frames)


def _folder() -> Path:
    """Return the data that ships with the package, or, in a source tree, beside it."""
    packaged = Path(str(resources.files("dicom_node").joinpath("demo_data")))
    return packaged if packaged.is_dir() else packaged.parents[1] / "demo"
