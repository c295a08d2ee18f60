"""Batches through a device: while one lane computes, the next is loaded.

What a lane is made of is in :mod:`gpu`; everything here runs and is tested without one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Protocol

import numpy as np

from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32


class DeviceLost(EngineError):
    """The accelerator is gone, or in a state this process cannot get it out of."""


class OutOfDeviceMemory(EngineError):
    """The accelerator has no room for a batch of this size."""


class Lane(Protocol):
    """One batch at a time through one network: its own stream, its own memory."""

    def submit(self, frames: Float32, output: str) -> None:
        """Start on `frames`; return at once. The array may be changed afterwards."""

    def collect(self) -> Float32:
        """Wait for the batch submitted last and return its output."""

    def drain(self) -> None:
        """Wait until nothing is under way; what comes of it is thrown away."""


class Pipeline:
    """One network on one device, asked by one thread at a time.

    Parameters
    ----------
    lanes
        Two for double buffering.
    most
        Frames that one lane takes at once.
    """

    def __init__(self, lanes: Sequence[Lane], most: int) -> None:
        self._lanes, self._most = lanes, most
        self._lock = Lock()

    def run(self, frames: Float32, output: str) -> Float32:
        """Return one output of the network for every frame, in their order.

        Raises
        ------
        DeviceLost, OutOfDeviceMemory
            The lanes are empty then and may be asked again.
        """
        frames = np.ascontiguousarray(frames, np.float32)
        waiting: deque[Lane] = deque()
        results: list[Float32] = []
        with self._lock:
            try:
                for index, first in enumerate(range(0, len(frames), self._most)):
                    if len(waiting) == len(self._lanes):
                        results.append(waiting.popleft().collect())
                    lane = self._lanes[index % len(self._lanes)]
                    lane.submit(frames[first : first + self._most], output)
                    waiting.append(lane)
                while waiting:
                    results.append(waiting.popleft().collect())
            except EngineError:
                for lane in self._lanes:
                    with suppress(EngineError):  # the first error is the one that says what broke
                        lane.drain()
                raise
        return results[0] if len(results) == 1 else np.concatenate(results)


def bucket(frames: int, most: int) -> int:
    """Return the batch size a device runs for `frames`: a power of two, at most `most`.

    Few sizes, because each one is captured or specialised once.
    """
    return min(1 << (frames - 1).bit_length(), most)
