"""A key ring, the networks and a marker, made once a module; and what goes wrong in a child."""

import textwrap

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


@pytest.fixture
def in_children(tmp_path_factory, monkeypatch):
    """Have Python processes that a test starts run some lines before anything else."""

    def first_run(lines):
        folder = tmp_path_factory.mktemp("children")
        (folder / "sitecustomize.py").write_text(textwrap.dedent(lines))
        monkeypatch.syspath_prepend(folder)

    return first_run


@pytest.fixture
def codec_astray(in_children):
    """In every child the JPEG-LS decoder never returns; what it may take is half a second."""
    in_children("""
        import jpeg_ls
        from dicom_node.instance.codecs import limit
        limit.CPU_S = 0.5
        jpeg_ls.decode_buffer = lambda *_, **__: sum(range(10**15))
    """)
