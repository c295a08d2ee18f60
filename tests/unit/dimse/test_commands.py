from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from dicom_node.dimse import MoveOriginator, StoreRequest, StoreResponse
from dicom_node.dimse.commands import decode_command, encode_command, uid

UIDS = st.from_regex(r"1(\.(0|[1-9][0-9]{0,5})){1,6}", fullmatch=True)
SHORTS = st.integers(0, 0xFFFF)


@given(SHORTS, UIDS, UIDS)
def test_a_request_survives_encoding(message_id, sop_class, sop_instance):
    request = StoreRequest(message_id, sop_class, sop_instance)
    assert StoreRequest.decode(decode_command(request.encode())) == request


@given(SHORTS, SHORTS, st.from_regex(r"([!-~]([ -~]{0,62}[!-~])?)?", fullmatch=True), UIDS, UIDS)
def test_a_response_survives_encoding(message_id, status, comment, sop_class, sop_instance):
    response = StoreResponse(message_id, status, comment, sop_class, sop_instance)
    assert StoreResponse.decode(decode_command(response.encode())) == response


def test_a_request_is_encoded_as_pynetdicom_encodes_it():
    primitive = C_STORE()
    primitive.MessageID = 7
    primitive.Priority = 0
    primitive.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    primitive.DataSet = BytesIO(b"\0\0")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    ours = StoreRequest(7, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4").encode()
    assert ours == encode(message.command_set, True, True)


def test_a_sub_operation_names_its_move_as_pynetdicom_does():
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = 7, 0
    primitive.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    primitive.MoveOriginatorApplicationEntityTitle = "PHYSICIST"
    primitive.MoveOriginatorMessageID = 4711
    primitive.DataSet = BytesIO(b"\0\0")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    request = StoreRequest(7, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4",
                           MoveOriginator("PHYSICIST", 4711))  # fmt: skip
    assert request.encode() == encode(message.command_set, True, True)


def test_a_response_is_encoded_as_pynetdicom_encodes_it():
    primitive = C_STORE()
    primitive.MessageIDBeingRespondedTo = 7
    primitive.Status = 0xA700
    primitive.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    primitive.AffectedSOPInstanceUID = "1.2.3.4"
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    # pynetdicom's codec does not encode an Error Comment of a success; ours is compared without.
    ours = StoreResponse(7, 0xA700, "", "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4").encode()
    assert ours == encode(message.command_set, True, True)


def test_a_long_comment_is_cut_to_the_64_characters_of_its_vr():
    response = StoreResponse(1, 0xA700, "x" * 100)
    assert StoreResponse.decode(decode_command(response.encode())).comment == "x" * 64


@pytest.mark.parametrize("value", [b"", b"\0", b" " * 64, b"1" * 65, b"1.2\xff", b"1.2\n3"])
def test_an_impossible_uid_reads_as_none(value):
    assert uid({2: value}, 2) == ""


def test_a_uid_that_looks_like_a_path_is_kept_as_it_is():
    assert uid({2: b"../../x\0"}, 2) == "../../x"


@given(st.binary(max_size=80))
def test_garbage_is_a_value_error_and_nothing_else(garbage):
    try:
        elements = decode_command(garbage)
        StoreRequest.decode(elements)
    except ValueError:
        return
    assert all(0 <= element <= 0xFFFF for element in elements)


@given(st.dictionaries(st.integers(1, 0xFFFF), st.binary(max_size=40)))
def test_a_command_set_survives_encoding(elements):
    decoded = decode_command(encode_command(elements))
    assert decoded.pop(0) == (len(encode_command(elements)) - 12).to_bytes(4, "little")
    assert decoded == elements
