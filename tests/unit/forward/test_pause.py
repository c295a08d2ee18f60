"""How long a destination rests after a failure."""

from dicom_node.forward.forwarder import Pause
from dicom_node.forward.rules import Backoff


def failures(pause, count, **how):
    delays = []
    for _ in range(count):
        delays.append(pause.failed(**how))
        pause._until = 0.0  # the pause has passed
    return delays


def test_a_destination_that_cannot_be_reached_rests_longer_and_longer():
    delays = failures(Pause(Backoff(1.0, 300.0)), 12)
    assert delays[0] <= 1.0
    assert delays[-1] >= 150.0


def test_one_instance_that_is_never_taken_does_not_delay_the_others_for_minutes():
    pause = Pause(Backoff(1.0, 300.0))
    assert max(failures(pause, 50, reachable=True)) <= 4.0
    # Gone for good afterwards: the pause grows again from there.
    assert failures(pause, 10)[-1] >= 150.0


def test_lanes_that_fail_together_count_once():
    pause = Pause(Backoff(1.0, 300.0))
    first = pause.failed()
    assert pause.failed() <= first
    assert pause.left_s <= first


def test_instances_refused_between_others_that_are_taken_never_stop_the_lanes():
    pause = Pause(Backoff(1.0, 300.0))
    for number in range(200):
        assert pause.refused(number) == 0.0
        if number % 15 == 14:
            pause.succeeded()


def test_the_same_few_instances_refused_again_and_again_never_stop_the_lanes():
    pause = Pause(Backoff(1.0, 300.0))
    assert {pause.refused(number % 19) for number in range(400)} == {0.0}


def test_many_different_instances_refused_in_a_row_give_the_destination_a_rest():
    pause = Pause(Backoff(1.0, 300.0))
    delays = [pause.refused(number) for number in range(20)]
    assert delays[:19] == [0.0] * 19
    assert 0.0 < delays[19] <= 1.0
    assert pause.left_s > 0.0


def test_300_instances_that_are_never_taken_delay_the_next_by_a_minute_at_most():
    pause, total = Pause(Backoff(1.0, 300.0)), 0.0
    for number in range(300):
        total += pause.refused(number)
        pause._until = 0.0  # the pause has passed
    assert 0.0 < total <= 60.0
