"""The engine of a mark worker whose networks run in an inference process, as long as it answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from time import monotonic

import numpy as np
import structlog

from dicom_node.inference import wire
from dicom_node.inference.base import Float32, Int8, RobustEngine
from dicom_node.inference.catalogue import Card
from dicom_node.inference.comparison import MOST_CELLS, MOST_SOFT, check_frames
from dicom_node.inference.wire import Question, WireError

_log = structlog.get_logger(__name__)

ANSWER_S = 5.0  # slower is as good as gone
LOOK_AGAIN_S = 1.0  # for one that is not there
LOOK_AGAIN_MAX_S = 60.0  # for one that was there and did not do
STABLE_S = 60.0
COMPARED_EVERY = 256  # one answer in so many is compared with our own


class RemoteEngine(RobustEngine):
    """An inference process for as long as it answers, else `own`; asked by one thread.

    It is looked for between two instances only (:meth:`settle`), so that an instance which began
    on the CPU stays there. A question that gets no answer in time, or one that makes no sense, is
    answered by `own`, and so is everything after it until the next :meth:`settle`.

    Parameters
    ----------
    folders
        Of the inference processes, the one to try first first.
    own
        Answers when none of them does.
    card
        Of the model; its check frames are asked about before anything else is.
    """

    def __init__(self, folders: Sequence[Path], own: RobustEngine, card: Card) -> None:
        self.side, self.code_bits, self.grid = own.side, own.code_bits, own.grid
        self.loop = own.loop
        self._own, self._folders, self._card = own, tuple(folders), card
        self._who = wire.identity_of(card)
        self._link: _Link | None = None
        self._due = 0.0
        self._failures = 0
        self._said = ""
        self.losses = 0

    @property
    def name(self) -> str:  # type: ignore[override]  # changes when the process comes or goes
        """Name of the backend that answers at present."""
        return self._own.name if self._link is None else self._link.backend

    @property
    def own(self) -> RobustEngine:
        """Return the engine that answers when the inference process does not."""
        return self._own

    @property
    def patterns(self) -> Int8:
        """Carrier patterns, see `RobustEngine`."""
        return self._own.patterns

    @property
    def model_id(self) -> bytes:
        """Which patterns a record refers to."""
        return self._own.model_id

    def settle(self) -> None:
        """Between two instances: take an inference process up if one is there again."""
        if self._link is not None or monotonic() < self._due:
            return
        missing = False
        for folder in self._folders:
            try:
                self._link = self._taken_up(folder)
            except (FileNotFoundError, ConnectionRefusedError):
                missing = True  # it starts, or was killed; the supervisor has said so
            except (WireError, OSError) as error:
                self._say("inference_not_used", str(error))
            else:
                self._said = ""
                _log.info("inference_used", engine=self._link.backend)
                return
        self._wait(LOOK_AGAIN_S if missing else self._longer_s())

    def whiten(self, frames: Float32) -> Float32:
        """Run D1's whitener, see `RobustEngine`."""
        return self._ask("whiten", frames)

    def strengths(self, frames: Float32) -> Float32:
        """Run E1's strength network, see `RobustEngine`."""
        return self._ask("strengths", frames)

    def decode(self, frames: Float32) -> Float32:
        """Run D1, see `RobustEngine`."""
        return self._ask("decode", frames)

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _ask(self, network: str, frames: Float32) -> Float32:
        link = self._link
        if link is not None:
            try:
                answer = link.ask(network, frames)
                if link.asked % COMPARED_EVERY == 0:
                    own: Float32 = getattr(self._own, network)(frames)
                    _compare(network, answer, own)
                return answer
            except WireError as error:
                self._lose(link, error)
        mine: Float32 = getattr(self._own, network)(frames)
        return mine

    def _lose(self, link: _Link, error: WireError) -> None:
        """Give the process up for this instance; said once, the next is told when it is back."""
        self.close()
        self.losses += 1
        if monotonic() - link.since > STABLE_S:
            self._failures = 0
        self._wait(self._longer_s())
        self._say("inference_lost", str(error))

    def _longer_s(self) -> float:
        self._failures += 1
        return min(LOOK_AGAIN_MAX_S, LOOK_AGAIN_S * 2.0 ** (self._failures - 1))

    def _wait(self, seconds: float) -> None:
        self._due = monotonic() + seconds

    def _say(self, event: str, reason: str) -> None:
        """Say what is new; reasons of the same may change with every try."""
        if event != self._said:
            self._said = event
            _log.warning(event, reason=reason, instead=self._own.name)

    def _taken_up(self, folder: Path) -> _Link:
        """Connect, and see that what is answered is what our own engine says.

        Raises
        ------
        WireError
            It is another version or model, does not answer, or is out of tolerance.
        OSError
            Nobody is there.
        """
        link = _Link(folder, self._who, self._own)
        try:
            for network, expected in self._expected.items():
                _compare(network, link.ask(network, check_frames(self._card)), expected)
        except BaseException:
            link.close()
            raise
        return link

    @cached_property
    def _expected(self) -> dict[str, Float32]:
        frames = check_frames(self._card)
        return {network: getattr(self._own, network)(frames) for network in wire.NETWORKS}


class _Link:
    """One connection to an inference process."""

    def __init__(self, folder: Path, who: wire.Identity, own: RobustEngine) -> None:
        self._own = own
        self.asked, self.since = 0, monotonic()
        opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._socket.settimeout(ANSWER_S)
                wire.at_folder(opened, self._socket.connect)
                self._most, self.backend = self._greet(who)
            except BaseException:
                self._socket.close()
                raise
        finally:
            os.close(opened)

    def _greet(self, who: wire.Identity) -> tuple[int, str]:
        if not wire.is_same_user(self._socket):
            raise WireError("another user's process answers")
        wire.send_hello(self._socket, who)
        welcome = wire.receive_welcome(self._socket)
        reason = who.differs(welcome.who) or welcome.reason
        if reason or not welcome.accepted:
            raise WireError(f"the inference process is another: {reason or 'it refused us'}")
        return welcome.most, welcome.backend

    def ask(self, network: str, frames: Float32) -> Float32:
        """Return the answer for every frame (WireError)."""
        row = wire.row_shape(self._own, network)
        answers = []
        for first in range(0, len(frames), self._most):
            self.asked += 1
            some = frames[first : first + self._most]
            question = Question(network, some, self.asked % (1 << 32))
            wire.send_question(self._socket, question)
            answers.append(wire.receive_answer(self._socket, question, row, ANSWER_S))
        answer = answers[0] if len(answers) == 1 else np.concatenate(answers)
        if network == "strengths" and not _are_strengths(answer):
            raise WireError("strengths that are no whole numbers from 0 to 7")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _are_strengths(grids: Float32) -> bool:
    return bool(((grids >= 0) & (grids <= 7) & (grids == np.rint(grids))).all())


def _compare(network: str, answer: Float32, own: Float32) -> None:
    """Refuse an answer that is farther from ours than a backend may be (WireError)."""
    if network == "strengths":
        off = np.abs(answer - own)
        # Of one frame a few cells may differ; the share is that of a whole check.
        fine = off.max() <= 1 and np.mean(off > 0) <= max(MOST_CELLS, 8 / off.size)
    else:
        size = np.sqrt(np.mean(np.square(own), axis=1, keepdims=True))
        worst = np.abs(answer - own) / np.maximum(size, np.float32(1e-6))
        # A sample of a whitened picture may be off by more than a soft bit, which is a sum of many.
        fine = float(worst.max() if network == "decode" else worst.mean()) <= MOST_SOFT
    if not fine:
        raise WireError(f"what is answered is out of tolerance ({network})")
