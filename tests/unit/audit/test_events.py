"""Events: what is kept of them, and what is not."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.audit.events import KINDS, Refused, Verified, event_of
from dicom_node.errors import AuditError

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)


@given(
    verdict=st.text(), changed=st.lists(st.text()),
    at=st.datetimes(timezones=st.just(UTC)).filter(lambda at: at.year >= 1000),
)  # fmt: skip
def test_an_event_comes_back_from_json_as_it_was(verdict, changed, at):
    event = Verified(at=at, sop_instance_uid="1.2", verdict=verdict, changed=tuple(changed))
    came = event_of(json.loads(json.dumps(event.to_json())) | {"verdict": verdict})
    assert came == event


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        Verified(at=datetime(2026, 1, 1), sop_instance_uid="1.2", verdict="x")  # noqa: DTZ001


def test_a_reason_loses_names_and_uids():
    event = Refused(at=AT, stage="mark", reason="DOE^JANE has 1.2.826.0.1.3680043.8.498.1 twice")
    said = event.to_json()["reason"]
    assert "DOE" not in said
    assert "3680043" not in said
    assert "twice" in said


def test_no_event_has_a_field_for_patient_data():
    names = {name for kind in KINDS.values() for name in kind.__dataclass_fields__}
    assert not {name for name in names if "patient" in name or "birth" in name or "name" in name}


def test_an_unknown_kind_and_a_malformed_event_are_errors():
    for values in ({"kind": "danced"}, {"kind": "verified"}, {"kind": "verified", "at": "soon"},
                   {"kind": "verified", "at": "2026-11-22T03:00:00", "sop_instance_uid": "1",
                    "verdict": "x"}):  # fmt: skip
        with pytest.raises(AuditError):
            event_of(values)
