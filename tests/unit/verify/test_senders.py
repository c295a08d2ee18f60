"""Sending on to a client that takes nothing compressed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from dicom_node.dimse.query_scp import Cancelled
from dicom_node.errors import ContextRefused, ForwardError
from dicom_node.verify.senders import ClientSender

NATIVE = min((Path(__file__).parents[3] / "demo/mr_brain").glob("*.dcm"))


class Client:
    """Takes Explicit VR Little Endian only."""

    calling_ae = "AUDITOR"
    cancelled = False

    def __init__(self):
        self.taken = []

    def accepted_syntaxes(self, _sop_class_uid):
        return (str(ExplicitVRLittleEndian),)

    def store(self, file, meta, timeout_s):
        if meta.transfer_syntax_uid != ExplicitVRLittleEndian:
            raise ContextRefused("AUDITOR", meta.sop_class_uid, meta.transfer_syntax_uid)
        self.taken.append(meta.sop_instance_uid)
        return SimpleNamespace(status=0)


@pytest.fixture
def fetched(tmp_path):
    """A compressed instance and one that is not, in the scratch folder of the service."""
    ds = pydicom.dcmread(NATIVE)
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "coded.dcm")
    shutil.copy(NATIVE, tmp_path / "native.dcm")
    return tmp_path


def sender_to(client):
    return ClientSender(client, 1 << 24)


def test_a_compressed_instance_is_sent_uncompressed(fetched):
    client = Client()
    sender = sender_to(client)
    assert sender.send(fetched / "coded.dcm") == 0
    sender.close()
    assert client.taken == [pydicom.dcmread(NATIVE).SOPInstanceUID]
    assert sorted(path.name for path in fetched.iterdir()) == ["coded.dcm", "native.dcm"]


def test_a_copy_goes_under_the_uid_that_the_pacs_sent_it_under(fetched):
    ds = pydicom.dcmread(fetched / "coded.dcm")
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.9"
    pydicom.dcmwrite(fetched / "coded.dcm", ds, enforce_file_format=False)
    client = Client()
    sender = sender_to(client)
    assert sender.send(fetched / "coded.dcm") == 0
    sender.close()
    assert client.taken == ["1.2.3.9"]


def test_what_no_decoder_comes_back_from_fails_alone_and_not_the_service(fetched, codec_astray):
    client = Client()
    sender = sender_to(client)
    with pytest.raises(ForwardError, match="a decoder did not come back"):
        sender.send(fetched / "coded.dcm")
    assert sender.send(fetched / "native.dcm") == 0
    sender.close()
    assert len(client.taken) == 1
    assert sorted(path.name for path in fetched.iterdir()) == ["coded.dcm", "native.dcm"]


def test_what_a_check_could_not_read_is_not_decoded_again_to_send_it(fetched, codec_astray):
    client = Client()
    sender = sender_to(client)
    with pytest.raises(ContextRefused):
        sender.send(fetched / "coded.dcm", readable=False)
    assert sender.send(fetched / "native.dcm", readable=False) == 0
    sender.close()


def test_a_client_that_calls_off_does_not_wait_for_a_copy(fetched):
    client = Client()
    client.cancelled = True
    sender = sender_to(client)
    with pytest.raises(Cancelled):
        sender.send(fetched / "coded.dcm")
    sender.close()
    assert client.taken == []
