"""An engine that outlives its accelerator: what was asked is answered, by the CPU if need be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock

import numpy as np
import structlog

from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.lanes import DeviceLost, OutOfDeviceMemory

_log = structlog.get_logger(__name__)
Ask = Callable[[Float32], Float32]


class ResilientEngine(RobustEngine):
    """`primary` for as long as its device answers, then `spare` for good; without one, DeviceLost.

    A batch that is too large for the device is asked again in halves; one that the device was lost
    over is asked of the spare. Either way the caller sees an answer for every frame, in order.
    E1's loop asks for one pass at a time, so a loop that began on the device ends on the spare.
    """

    def __init__(self, primary: RobustEngine, spare: RobustEngine | None) -> None:
        self.side, self.code_bits, self.grid = primary.side, primary.code_bits, primary.grid
        self.loop = primary.loop
        self._engine, self._spare = primary, spare
        self._most = sys.maxsize
        self._lock = Lock()

    @property
    def name(self) -> str:  # type: ignore[override]  # changes when the device is lost
        """Name of the backend that answers at present."""
        return self._engine.name

    @property
    def patterns(self) -> Int8:
        """Carrier patterns, see `RobustEngine`."""
        return (self._spare or self._engine).patterns

    @property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return (self._spare or self._engine).model_id

    def whiten(self, frames: Float32) -> Float32:
        """Run D1's whitener, see `RobustEngine`."""
        return self._in_pieces(frames, lambda engine: engine.whiten)

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        return self._in_pieces(frames, lambda engine: engine.strengths)

    def decode(self, frames: Float32) -> Float32:
        """Run D1, see `RobustEngine`."""
        return self._in_pieces(frames, lambda engine: engine.decode)

    def _in_pieces(self, frames: Float32, network: Callable[[RobustEngine], Ask]) -> Float32:
        """Ask for all frames in as few pieces as the device has room for."""
        answers: list[Float32] = []
        done = 0
        while done < len(frames):
            engine, size = self._engine, min(self._most, len(frames) - done)
            try:
                answers.append(network(engine)(frames[done : done + size]))
            except (DeviceLost, OutOfDeviceMemory) as error:
                if engine is self._spare:
                    raise
                self._retreat(engine, size, error)
            else:
                done += size
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def _retreat(
        self, engine: RobustEngine, size: int, error: DeviceLost | OutOfDeviceMemory
    ) -> None:
        """Halve the batch, or give the device up where halving cannot help; each said once."""
        with self._lock:
            if self._engine is not engine:
                return  # another thread has given it up meanwhile
            if isinstance(error, OutOfDeviceMemory) and size > 1:
                if size <= self._most:
                    self._most = size // 2
                    _log.warning("batch_halved", engine=engine.name, frames=self._most,
                                 reason=str(error))  # fmt: skip
                return
            if self._spare is None:
                raise DeviceLost(f"{engine.name}: {error}") from error
            self._engine = self._spare
            _log.error("device_lost", engine=engine.name, instead=self._spare.name,
                       reason=str(error))  # fmt: skip
