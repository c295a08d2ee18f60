"""Documents about images, as workstations make them: key objects and a presentation state."""

import pydicom
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.pr import GrayscaleSoftcopyPresentationState
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid


def _about(images):
    read = [pydicom.dcmread(image) for image in images]
    for each in read:
        if not each.get("SpecificCharacterSet"):
            each.SpecificCharacterSet = "ISO_IR 100"  # highdicom takes no empty one
    return read


def _named():
    return {
        "series_instance_uid": generate_uid(), "series_number": 90, "instance_number": 1,
        "sop_instance_uid": generate_uid(), "manufacturer": "tests",
    }  # fmt: skip


def key_objects(images, path):
    """Write a key object selection of `images` (paths) and return its path."""
    read = _about(images)
    selection = KeyObjectSelection(codes.DCM.ForReferringProvider, read)
    KeyObjectSelectionDocument(read, selection, **_named()).save_as(path)
    return path


def presentation_state(images, path):
    """Write a presentation state of `images` (paths) and return its path."""
    GrayscaleSoftcopyPresentationState(
        _about(images), **_named(), manufacturer_model_name="tests", software_versions="1",
        device_serial_number="1", content_label="WINDOW",
    ).save_as(path)  # fmt: skip
    return path
