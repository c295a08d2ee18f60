"""Display values are what a viewer shows."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_objects import noise
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence

from dicom_node.errors import PixelError
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance

LIMIT = 400_000_000


def shown(path, index=0):
    instance = open_instance(path, max_pixels=LIMIT)
    display = display_of(instance)
    return display.image(instance.frame(index), index), display.step(index)


def width(path):
    return display_of(open_instance(path, max_pixels=LIMIT)).width(0)


def test_real_objects_are_shown_between_black_and_white(shared, objects):
    for row in objects[::5]:
        try:
            instance = open_instance(shared / row["path"], max_pixels=LIMIT)
        except PixelError:
            continue
        display = display_of(instance)
        frame = instance.frame(0)
        image = display.image(frame, 0)
        assert image.dtype == np.float32, row["path"]
        assert image.shape == (instance.rows, instance.columns)
        assert image.min() >= 0
        assert image.max() <= 1
        assert display.step(0) > 0
        assert display.export_8bit(frame, 0).dtype == np.uint8


def test_colour_is_exported_as_pydicom_converts_it(shared):
    for name in (
        "us/pydicom__examples_ybr_color.dcm",
        "us/pydicom__examples_rgb_color.dcm",
        "us/cornerstoneWADOImageLoader__US-YBR_FULL_422-EVRLE.dcm",
        "ot_testpattern/cornerstone3D__TestPattern_JPEG-LS-Lossless.dcm",
    ):
        path = shared / "dicom" / name
        instance = open_instance(path, max_pixels=LIMIT)
        picture = display_of(instance).export_8bit(instance.frame(0), 0)
        reference = pydicom.dcmread(path).pixel_array
        assert np.array_equal(picture, reference[0] if reference.ndim == 4 else reference), name


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_applied_as_the_standard_says(make, function):
    codes = noise(32, 32, bits=12)
    path = make(
        codes,
        bits_stored=12,
        extra={
            "RescaleSlope": 2,
            "RescaleIntercept": -1000,
            "WindowCenter": [2040, 5],
            "WindowWidth": [1400, 6],
            "VOILUTFunction": function,
        },
    )
    image, step = shown(path)
    reference = apply_voi_lut(codes * 2.0 - 1000, pydicom.dcmread(path), index=0)
    low, high = -1000, 2 * 4095 - 1000  # pydicom scales to the range of modality values
    assert np.allclose(image, (reference - low) / (high - low), atol=2e-5)
    assert step == pytest.approx(1400 / 2 / 256, rel=0.01)
    assert width(path) == 700


def test_monochrome1_is_inverted_and_padding_is_black(make):
    codes = np.arange(256, dtype=np.uint16).reshape(16, 16)
    extra = {"WindowCenter": 128, "WindowWidth": 256, "PixelPaddingValue": 7}
    image, _ = shown(make(codes, photometric="MONOCHROME1", extra=extra))
    assert image[0, 0] == 1
    assert image[15, 15] == 0
    assert image[0, 7] == 0


def test_without_a_window_ct_has_its_usual_one_and_others_percentiles(make):
    codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    hu = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = make(codes, extra={"Modality": "CT", **hu})
    image, step = shown(path)
    assert width(path) == 400
    assert image.flat[1024 + 40] == pytest.approx(0.5, abs=0.01)
    assert step == pytest.approx(400 / 256, rel=0.01)
    image, step = shown(make(codes, extra={"Modality": "MR"}))
    assert image.flat[20] == 0
    assert image.flat[4090] == 1
    assert step == pytest.approx(4096 * 0.992 / 256, rel=0.01)


def test_lookup_tables_are_applied(make):
    modality, voi = Dataset(), Dataset()
    modality.add_new("LUTDescriptor", "US", [256, 0, 16])
    modality.add_new("LUTData", "OW", (np.arange(256) * 10).astype("<u2").tobytes())
    voi.add_new("LUTDescriptor", "US", [2551, 0, 8])
    voi.add_new("LUTData", "OW", (np.arange(2551) // 10).astype("<u2").tobytes())
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    extra = {"ModalityLUTSequence": Sequence([modality]), "VOILUTSequence": Sequence([voi])}
    image, step = shown(make(codes, extra=extra))
    assert np.allclose(image, codes / 255, atol=1e-6)
    assert step == pytest.approx(1, rel=0.05)


def test_a_frame_has_the_window_of_its_functional_group(make):
    codes = np.full((2, 8, 8), 100, np.uint8)
    groups = []
    for center in (50.5, 100.5):
        voi, item = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 2
        item.FrameVOILUTSequence = Sequence([voi])
        groups.append(item)
    extra = {"PerFrameFunctionalGroupsSequence": Sequence(groups)}
    path = make(codes, frames=2, extra=extra)
    assert shown(path, 0)[0].min() == 1
    assert shown(path, 1)[0].max() == pytest.approx(0.5)


def test_a_window_that_shows_nothing_of_a_frame_is_not_the_one_it_is_shown_in(make):
    """A PET slice far from what is hot, in the window of the whole series."""
    codes = noise(32, 32, bits=8).astype(np.uint16)
    cases = {
        "too wide": ({"WindowCenter": 20_000, "WindowWidth": 40_000}, 256 * 0.992),
        "beside it": ({"WindowCenter": 5000, "WindowWidth": 100}, 100),
    }
    for case, (extra, narrower) in cases.items():
        path = make(codes, bits_stored=16, extra=extra)
        image, step = shown(path)
        assert ((image > 0) & (image < 1)).mean() > 0.9, case
        assert step == pytest.approx(256 * 0.992 / 256, rel=0.02), case
        assert width(path) == pytest.approx(narrower, rel=0.02), case
    window = {"WindowCenter": 128, "WindowWidth": 100}
    instance = open_instance(make(codes, bits_stored=16, extra=window), max_pixels=LIMIT)
    display, frame = display_of(instance), instance.frame(0)
    assert display.image(frame, 0).mean() == pytest.approx(0.5, abs=0.05)
    assert not display.stands_in(0)


def test_a_flat_frame_keeps_the_window_of_its_header(make):
    path = make(np.full((16, 16), 7, np.uint16), extra={"WindowCenter": 500, "WindowWidth": 10})
    assert shown(path)[0].max() == 0
    assert width(path) == 10


def test_real_pet_is_seen_where_its_window_shows_black(shared):
    path = shared / "dicom/pt/dicom__1.dcm"
    instance = open_instance(path, max_pixels=LIMIT)
    display, frame = display_of(instance), instance.frame(0)
    image = display.image(frame, 0)
    header = instance.header
    black = header.WindowCenter - header.WindowWidth / 2
    values = (frame.values * float(header.RescaleSlope) - black) / header.WindowWidth
    assert (np.rint(values * 255) > 2).mean() < 0.002
    assert (image > 0.1).mean() > 0.05
    assert display.stands_in(0)
    assert display.width(0) < header.WindowWidth / header.RescaleSlope / 20


def test_unusable_window_values_are_treated_as_absent(make):
    for extra in ({"WindowCenter": 5, "WindowWidth": 0}, {"WindowCenter": "", "WindowWidth": ""}):
        image, step = shown(make(noise(16, 16, bits=8), extra=extra))
        assert np.isfinite(image).all()
        assert 0 < step <= 1.01
