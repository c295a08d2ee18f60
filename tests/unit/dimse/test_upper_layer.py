import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dimse.upper_layer import presentation_data_values


def item(context_id, control, data):
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


@given(st.lists(st.tuples(st.integers(1, 255), st.integers(0, 3), st.binary(max_size=50))))
def test_fragments_come_out_as_they_were_packed(items):
    body = memoryview(b"".join(item(*one) for one in items))
    assert [(c, h, bytes(f)) for c, h, f in presentation_data_values(body)] == items


@given(st.binary(max_size=60))
def test_garbage_is_a_value_error_and_never_reads_past_the_pdu(garbage):
    try:
        fragments = [bytes(f) for _, _, f in presentation_data_values(memoryview(garbage))]
    except ValueError:
        return
    assert sum(map(len, fragments)) <= len(garbage)


@pytest.mark.parametrize("length", [0, 1, 2**32 - 1])
def test_an_impossible_item_length_is_refused(length):
    body = memoryview(struct.pack(">LBB", length, 1, 0) + b"abc")
    with pytest.raises(ValueError, match="presentation data value"):
        list(presentation_data_values(body))
