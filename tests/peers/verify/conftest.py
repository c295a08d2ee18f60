"""A real Orthanc with marked studies, the verification service before it, and move destinations."""

from __future__ import annotations

import threading

import harness
import pytest
import verifying
from verifying import Marks, QueryOrthanc, Service

from dicom_node.config import parse


@pytest.fixture(scope="package")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="package")
def pacs(tmp_path_factory):
    one = QueryOrthanc(tmp_path_factory.mktemp("pacs"))
    yield one
    one.child.end()


@pytest.fixture(scope="package")
def workstation(tmp_path_factory):
    """A move destination: DCMTK's storescp, bit for bit."""
    one = harness.StoreSCP(tmp_path_factory.mktemp("workstation"), "-d")
    yield one
    one.child.kill()


@pytest.fixture(scope="package")
def viewer(tmp_path_factory):
    """A move destination without codecs: uncompressed transfer syntaxes only."""
    one = harness.StoreSCP(tmp_path_factory.mktemp("viewer"), "+x=")
    yield one
    one.child.kill()


@pytest.fixture(scope="package")
def service(tmp_path_factory, marks, pacs, workstation, viewer):
    """The service, over an Orthanc with study 1 (4 slices, authentic) and 2 (slice 2 tampered)."""
    folder = tmp_path_factory.mktemp("service")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, port=pacs.verify_port, fetch_port=pacs.fetch_port,
        move=[("WORKSTATION", workstation.port), ("VIEWER", viewer.port),
              ("AWAY", verifying.refusing_port())],
        clients=[("TRUSTED", "restored"), ("STRICT", "refuse-tampered")], max_matches=50,
    )  # fmt: skip
    one = Service(parse(text, "test")).start()
    first, second = marks.study(1), marks.study(2)
    pacs.store(*(marked for _, marked in first))
    changed = verifying.tampered(second[1][1], folder / "changed.dcm")
    pacs.store(second[0][1], changed, second[2][1], second[3][1])
    one.register(*(verifying.entry_of(m) for _, m in [*first, *second]))
    yield one
    one.end()
    assert one.scratch() == []
    assert [t.name for t in threading.enumerate() if "association" in t.name] == []
