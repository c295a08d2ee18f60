"""Refused instances in the audit trail: each sender is told of, and none can flood it."""

import time

import pytest
from harness import wait_for

from dicom_node.dimse import Incoming
from dicom_node.verify.refusals import Refusals

CT = "1.2.840.10008.5.1.4.1.1.2"


def instance(number, address="192.0.2.1", calling_ae="STRANGER"):
    return Incoming(CT, f"1.2.{number}", "1.2.840.10008.1.2", calling_ae, "US", address)


@pytest.fixture
def told():
    return []


def refusals(told, every_s=60.0):
    return Refusals(told.append, "nobody asked for it", 0x0124, every_s)


def test_the_first_is_told_at_once_and_a_flood_by_its_number(told):
    some = refusals(told)
    for number in range(1000):
        some.add(instance(number, calling_ae=f"NAME{number}"))
    [first] = told
    assert (first.sop_instance_uid, first.peer_ae, first.count) == ("1.2.0", "NAME0", 0)
    assert (first.stage, first.outcome, first.status) == ("receive", "rejected", 0x0124)
    some.close()
    [_, rest] = told
    assert (rest.sop_instance_uid, rest.peer_address, rest.count) == ("", "192.0.2.1", 999)


def test_every_address_is_told_of(told):
    some = refusals(told)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        some.add(instance(1, address))
    assert [event.peer_address for event in told] == ["192.0.2.1", "192.0.2.2"]
    some.close()


def test_what_was_counted_is_told_when_its_time_is_over_though_nothing_follows(told):
    some = refusals(told, 0.2)
    some.add(instance(1))
    some.add(instance(2))
    wait_for(lambda: len(told) == 2, 5)
    time.sleep(0.3)
    some.add(instance(3))
    assert [event.count for event in told] == [0, 1, 0]
    some.close()
    assert len(told) == 3


def test_nothing_refused_is_nothing_told(told):
    refusals(told).close()
    assert told == []
