"""What a destination's answer means, and how long to wait before trying again."""

from __future__ import annotations

import random
from enum import Enum


class Verdict(Enum):
    """What becomes of a delivery after an answer."""

    DELIVERED = "the destination has it"
    TRANSIENT = "try again later"
    HELD = "an administrator has to look"


DELIVERED_STATUSES = frozenset((0x0000, 0xB000, 0xB006, 0xB007))


def verdict_of(status: int) -> Verdict:
    """Return what a C-STORE status means for the delivery.

    References
    ----------
    DICOM PS3.4 B.2.3: success; warnings B000, B006 and B007 (stored); A7xx out of resources.
    """
    if status in DELIVERED_STATUSES:
        return Verdict.DELIVERED
    if 0xA700 <= status <= 0xA7FF:
        return Verdict.TRANSIENT
    return Verdict.HELD


class Backoff:
    """Jittered exponential delays, `initial_s` doubling up to `max_s`, for ever.

    The jitter (half to all of the delay) keeps forwarders that failed together from returning
    together.
    """

    def __init__(self, initial_s: float, max_s: float) -> None:
        self._initial_s = initial_s
        self._max_s = max(initial_s, max_s)

    def delay_s(self, failures: int) -> float:
        """Return the delay after this many failures in a row (1 or more)."""
        # The exponent is capped: 2.0 ** 1100 would overflow after days of failures.
        full = min(self._max_s, self._initial_s * 2.0 ** min(failures - 1, 60))
        return full * random.uniform(0.5, 1.0)
