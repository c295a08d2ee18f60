import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.forward import Backoff, Verdict, verdict_of
from dicom_node.forward.forwarder import Pause


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007])
def test_success_and_the_three_warnings_are_delivered(status):
    assert verdict_of(status) is Verdict.DELIVERED


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF])
def test_out_of_resources_is_tried_again(status):
    assert verdict_of(status) is Verdict.TRANSIENT


@pytest.mark.parametrize(
    "status", [0x0110, 0x0117, 0x0122, 0x0124, 0xA900, 0xB001, 0xC000, 0xC123, 0xFF00]
)
def test_every_other_answer_is_held(status):
    assert verdict_of(status) is Verdict.HELD


@given(st.integers(1, 10**6), st.floats(0.01, 100), st.floats(0.01, 1000))
def test_a_delay_stays_between_half_the_first_and_the_longest(failures, initial_s, max_s):
    delay = Backoff(initial_s, max_s).delay_s(failures)
    assert initial_s / 2 <= delay <= max(initial_s, max_s)


def test_delays_grow_to_the_longest_and_stay_there():
    backoff = Backoff(2.0, 300.0)
    assert 1.0 <= backoff.delay_s(1) <= 2.0
    assert 4.0 <= backoff.delay_s(3) <= 8.0
    assert 150.0 <= backoff.delay_s(10_000) <= 300.0


def test_lanes_that_find_the_same_fault_count_it_once():
    pause = Pause(Backoff(100.0, 10_000.0))
    first = pause.failed()
    assert 50.0 <= first <= 100.0
    assert pause.failed() <= first
    assert 0 < pause.left_s <= first


def test_a_success_ends_the_pause():
    pause = Pause(Backoff(100.0, 10_000.0))
    pause.failed()
    pause.succeeded()
    assert pause.left_s <= 0
    assert pause.failed() <= 100.0
