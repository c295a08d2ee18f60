"""A key ring, the networks and a marker, made once a module."""

import pytest

from dicom_node.config import WatermarkConfig
from dicom_node.inference import open_engine
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker


@pytest.fixture(scope="module")
def engine():
    return open_engine("onnx")


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)


@pytest.fixture(scope="module")
def marker(ring, engine):
    return Marker(WatermarkConfig(), ring, engine)
