"""Instances made for the throughput run are distinct, and real texture throughout."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from dicom_node.bench import load
from dicom_node.config import WatermarkConfig
from dicom_node.errors import ConfigError
from dicom_node.inference import open_engine
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker
from dicom_node.verify.check import check_instance


@pytest.fixture
def slice_path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "CT"
    ds.Rows = ds.Columns = 512
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 1
    values = rng.integers(-1000, 1000, (512, 512)).astype(np.int16)
    ds.PixelData = values.tobytes()
    path = tmp_path / "slices" / "one.dcm"
    path.parent.mkdir()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_instances_differ_in_uid_and_pixels_but_not_in_their_histogram(
    slice_path: Path, tmp_path: Path
) -> None:
    load.make_instances([slice_path], 10, tmp_path / "made")
    uids, pixels, histograms = set(), set(), set()
    for path in sorted((tmp_path / "made").iterdir()):
        with closing(open_instance(path, max_pixels=1 << 20)) as instance:
            values = instance.frame(0).values
            uids.add(instance.sop_instance_uid)
            pixels.add(values.tobytes())
            histograms.add(np.sort(values, axis=None).tobytes())
    assert (len(uids), len(pixels), len(histograms)) == (10, 10, 1)


def test_the_same_slice_in_two_files_counts_once(slice_path: Path) -> None:
    (slice_path.parent / "copy.dcm").write_bytes(slice_path.read_bytes())
    assert len(load.ct_slices([slice_path.parent])) == 1


def test_a_folder_without_ct_says_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(ConfigError, match="--source"):
        load.ct_slices([tmp_path])


def test_the_phantom_is_a_ct_slice_as_sources_hold_them_and_takes_both_marks(
    tmp_path: Path,
) -> None:
    path = load.phantom(tmp_path / "phantom.dcm")
    assert load.ct_slices([path]) == [path]
    ring = KeyRing.open(tmp_path / "keys", owner="TESTS", create=True)
    marker = Marker(WatermarkConfig(), ring, open_engine("onnx"))
    done = marker.mark(path, tmp_path / "marked.dcm", marked_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert done.action == "marked"
    verdict = check_instance(tmp_path / "marked.dcm", ring, open_engine("onnx"))
    assert verdict.verdict == "authentic"
    assert verdict.frames[0].robust.decoded
