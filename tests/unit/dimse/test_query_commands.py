"""The command sets of query and retrieve: what we write pynetdicom reads, and the reverse."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_MOVE_RQ
from pynetdicom.dimse_primitives import C_MOVE
from pynetdicom.dsutils import decode, encode

from dicom_node.dimse import commands, query_commands
from dicom_node.dimse.query_commands import QueryRequest, QueryResponse, SubOperations

UIDS = st.from_regex(r"[0-9]{1,8}(\.[0-9]{1,8}){0,6}", fullmatch=True)
TITLES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=16)
US = st.integers(0, 0xFFFF)
KINDS = st.sampled_from(["find", "get", "move"])


@given(KINDS, US, UIDS, TITLES)
def test_a_request_reads_back(kind, message_id, sop_class, title):
    request = QueryRequest(kind, message_id, sop_class, title if kind == "move" else "")
    elements = commands.decode_command(request.encode())
    field = commands.us(elements, commands.COMMAND_FIELD)
    assert query_commands.REQUESTS[field] == kind
    assert QueryRequest.decode(kind, elements) == request


@given(KINDS, US, US, UIDS, st.none() | st.builds(SubOperations, US, US, US, US), st.booleans())
def test_a_response_reads_back(kind, message_id, status, sop_class, counts, has_identifier):
    response = QueryResponse(kind, message_id, status, sop_class, "why", counts, has_identifier)
    back = QueryResponse.decode(kind, commands.decode_command(response.encode()))
    if counts is not None and status not in (0xFF00, 0xFF01, 0xFE00):
        # A final response says nothing of what remains.
        counts = SubOperations(0, counts.completed, counts.failed, counts.warning)
    assert back == QueryResponse(kind, message_id, status, sop_class, "why", counts, has_identifier)


def test_pynetdicom_reads_our_move_response_with_its_counts():
    response = QueryResponse("move", 7, 0xFF00, "1.2.3", counts=SubOperations(5, 4, 3, 2))
    ds = _by_pynetdicom(response.encode())
    assert ds.MessageIDBeingRespondedTo == 7
    counted = (ds.NumberOfRemainingSuboperations, ds.NumberOfCompletedSuboperations,
               ds.NumberOfFailedSuboperations, ds.NumberOfWarningSuboperations)  # fmt: skip
    assert counted == (5, 4, 3, 2)


def test_we_read_pynetdicoms_move_request():
    request = C_MOVE()
    request.MessageID, request.AffectedSOPClassUID = 9, "1.2.840.10008.5.1.4.1.2.2.2"
    request.Priority, request.MoveDestination = 2, "WORKSTATION"
    request.Identifier = BytesIO(b"\0\0")
    message = C_MOVE_RQ()
    message.primitive_to_message(request)
    encoded = _encode(message)
    read = QueryRequest.decode("move", commands.decode_command(encoded))
    assert read == QueryRequest("move", 9, "1.2.840.10008.5.1.4.1.2.2.2", "WORKSTATION")


def test_a_request_that_no_answer_could_name_is_no_request():
    elements = commands.decode_command(QueryRequest("find", 1, "1.2").encode())
    del elements[commands.MESSAGE_ID]
    with pytest.raises(ValueError, match="Message ID"):
        QueryRequest.decode("find", elements)


@given(st.integers(0, 200_000))
def test_more_sub_operations_than_a_number_holds_are_the_most_it_holds(number):
    encoded = QueryResponse("get", 1, 0xFF00, counts=SubOperations(number, 0, 0, 0)).encode()
    back = QueryResponse.decode("get", commands.decode_command(encoded))
    assert back.counts == SubOperations(min(number, 0xFFFF))


def _encode(message):
    return encode(message.command_set, True, True)


def _by_pynetdicom(encoded):
    return decode(BytesIO(encoded), True, True)
