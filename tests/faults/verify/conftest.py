"""The verification service before an archive with faults on demand."""

from __future__ import annotations

import pytest
import verifying
from harness import wait_for
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from verify_faults import hanging_port, left
from verifying import FakePacs, Marks, Service

from dicom_node.config import parse


@pytest.fixture(scope="package")
def marks(tmp_path_factory):
    return Marks(tmp_path_factory.mktemp("marks"))


@pytest.fixture(scope="package")
def pacs(marks):
    """A pynetdicom archive with studies 1 (6 slices) and 2 (2 slices)."""
    files = [marked for number, slices in ((1, 6), (2, 2))
             for _, marked in marks.study(number, slices, size=128)]  # fmt: skip
    one = FakePacs(files)
    yield one
    one.stop()


@pytest.fixture(scope="package")
def taking():
    """Return the port of a Storage SCP that takes every instance."""
    ae = AE("TAKING")
    ae.add_supported_context(CTImageStorage)
    server = ae.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0x0000)]
    )
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="package")
def service(tmp_path_factory, marks, pacs, taking):
    folder = tmp_path_factory.mktemp("service")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, max_matches=20, max_unchecked=40,
        move=[("HANGING", hanging_port()), ("TAKING", taking)],
    )
    one = Service(parse(text, "test")).start()
    yield one
    one.end()


@pytest.fixture(autouse=True)
def _healthy(request):
    """Begin with a sound archive; end with nothing left in the service."""
    pacs, service = request.getfixturevalue("pacs"), request.getfixturevalue("service")
    pacs.abort_after, pacs.delay_s, pacs.matches, pacs.send = None, 0.0, None, None
    pacs.ignores_cancel, pacs.stall, pacs.images = False, None, None
    pacs.cancelled.clear()
    yield
    wait_for(lambda: not left(service), 15, lambda: str(left(service)))
