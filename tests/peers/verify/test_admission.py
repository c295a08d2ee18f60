"""Who may ask, and who may send where the PACS has to move instances to us."""

from __future__ import annotations

import pydicom
import pytest
import verifying
from auditors import get
from pynetdicom import AE
from verifying import STUDY_FIND, QueryOrthanc, Service, keys

from dicom_node.config import parse

pytestmark = [pytest.mark.peer, pytest.mark.slow]


# Who may ask


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, marks, pacs):
    """A service for listed clients: KNOWN from anywhere, NEAR and FAR from an address each."""
    folder = tmp_path_factory.mktemp("guarded")
    text = verifying.config_text(
        folder, marks.keys, pacs.port, admit="listed", retrieve="get",
        clients=[("KNOWN", ""), ("NEAR", "restored", "127.0.0.0/8"),
                 ("FAR", "restored", "192.0.2.7")],
    )  # fmt: skip
    pacs.store(*(marked for _, marked in marks.study(1)))
    one = Service(parse(text, "test")).start()
    yield one
    one.end()


@pytest.mark.parametrize(("title", "returncode"), [("KNOWN", 0), ("NEAR", 0)])
def test_a_listed_client_is_admitted(guarded, dcmtk, title, returncode):
    result = dcmtk("echoscu", "-aet", title, "-aec", "DICOMVERIFY", "127.0.0.1", guarded.port)
    assert result.returncode == returncode, result.stderr


@pytest.mark.parametrize(
    ("title", "why"), [("STRANGER", "not among"), ("FAR", "from another address")]
)
def test_who_is_not_listed_is_rejected_for_good_and_the_trail_says_so(guarded, dcmtk, title, why):
    result = dcmtk("findscu", "-S", "-aet", title, "-aec", "DICOMVERIFY", "-k",
                   "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1", "127.0.0.1",
                   guarded.port)  # fmt: skip
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Rejected Permanent" in said
    assert "Calling AE Title Not Recognized" in said
    [event] = [e for e in guarded.audit_events("refused") if e["peer_ae"] == title]
    assert (event["stage"], event["outcome"], event["peer_address"]) == (
        "associate", "rejected", "127.0.0.1")  # fmt: skip
    assert why in event["reason"]
    assert not [e for e in guarded.audit_events("queried") if e["client_ae"] == title]


def test_a_listed_client_without_a_policy_of_its_own_gets_what_others_get(guarded, marks):
    for title, index in (("KNOWN", 1), ("NEAR", 0)):
        came, status, _ = get(guarded, keys(StudyInstanceUID="1.2.3.1"), title)
        assert (len(came), status.Status) == (4, 0x0000)
        expected = {p.PixelData for pair in marks.study(1) for p in [pydicom.dcmread(pair[index])]}
        assert {ds.PixelData for ds in came} == expected


def test_openness_to_all_does_not_open_a_listed_title_to_all_addresses(tmp_path, marks, pacs):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, retrieve="get",
                                 clients=[("TRUSTED", "restored", "192.0.2.0/24")])  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        for title, admitted in (("ANYBODY", True), ("TRUSTED", False)):
            ae = AE(title)
            ae.add_requested_context(STUDY_FIND)
            assoc = ae.associate("127.0.0.1", one.port, ae_title="DICOMVERIFY")
            assert assoc.is_established is admitted
            assoc.release()
    finally:
        one.end()


# Through C-MOVE, from a PACS that has no C-GET


def test_only_the_pacs_sends_to_the_fetch_port_where_its_address_is_known(
    tmp_path, marks, pacs, dcmtk
):
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, retrieve="move",
                                 fetch_from="192.0.2.1")  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        sent = dcmtk("storescu", "-aet", "FORGER", "-aec", "DICOMFETCH", "127.0.0.1",
                     one.config.verify.fetch_port, marks.study(1)[0][1])  # fmt: skip
        assert sent.returncode != 0
        assert "Calling AE Title Not Recognized" in sent.stdout + sent.stderr
        [event] = one.audit_events("refused")
        assert (event["stage"], event["peer_ae"]) == ("associate", "FORGER")
    finally:
        one.end()


def test_a_pacs_without_c_get_moves_to_the_inner_scp(tmp_path, marks):
    pacs = QueryOrthanc(tmp_path, get=False)
    text = verifying.config_text(tmp_path, marks.keys, pacs.port, port=pacs.verify_port,
                                 fetch_port=pacs.fetch_port, retrieve="move",
                                 fetch_from="127.0.0.0/8")  # fmt: skip
    one = Service(parse(text, "test")).start()
    try:
        study = marks.study(1)
        pacs.store(*(marked for _, marked in study))
        one.register(*(verifying.entry_of(marked) for _, marked in study))
        came, status, _ = get(one, keys(StudyInstanceUID="1.2.3.1"))
        assert (len(came), status.Status) == (4, 0x0000)
        for ds in came:
            marked = pydicom.dcmread(marks.folder / f"{ds.SOPInstanceUID}.dcm")
            assert ds.PixelData == marked.PixelData
        assert one.scratch() == []
    finally:
        one.end()
        pacs.child.end()
