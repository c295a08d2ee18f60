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
