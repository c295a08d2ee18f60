"""What a mark worker and an inference process say to each other over a Unix socket.

Every message is of a length known beforehand, little-endian, floats as they lie in memory: nothing
is unpickled, nothing is grown to a size the other side names. ::

    worker    hello     magic, protocol, version, model
    process   welcome   the same of its own, accepted or why not, most frames a question, backend
    worker    question  network, frames, number; then the frames, float32
    process   answer    done or failed, network, frames, number; then the rows, float32
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import dicom_node
from dicom_node.errors import EngineError
from dicom_node.inference.base import Float32, RobustEngine
from dicom_node.inference.catalogue import Card

PROTOCOL = 1
MOST_FRAMES = 256  # a question of more is nonsense whatever was agreed
RECEIVED_AT_ONCE_S = 5.0  # once a message has begun
SOCKET = "socket"  # its name in the folder of an inference process

_MAGIC = b"dicom-node infer"
_HELLO = struct.Struct("<16sH32s32s")
_WELCOME = struct.Struct("<16sH32s32s?H64s256s")
_QUESTION = struct.Struct("<BHI")
_ANSWER = struct.Struct("<?BHI")
_CREDENTIALS = struct.Struct("3i")

NETWORKS: tuple[str, ...] = ("whiten", "strengths", "decode")


class WireError(EngineError):
    """What came over the socket is not what was agreed, came too late, or nobody is there."""


class Identity(NamedTuple):
    """Who speaks: both sides must be the same.

    Attributes
    ----------
    protocol
        Counts up whenever a message changes.
    version
        Of this package, UTF-8, padded.
    model
        SHA-256 of what the networks are, see :func:`identity_of`.
    """

    protocol: int
    version: bytes
    model: bytes

    def differs(self, other: Identity) -> str:
        """Say in which way `other` may not talk to us, "" if it may."""
        if other.protocol != self.protocol:
            return f"protocol {other.protocol} instead of {self.protocol}"
        if other.version != self.version:
            return f"version {_text(other.version)} instead of {_text(self.version)}"
        if other.model != self.model:
            return f"model {other.model.hex()[:16]} instead of {self.model.hex()[:16]}"
        return ""


class Welcome(NamedTuple):
    """How an inference process answers a hello."""

    who: Identity
    accepted: bool
    most: int
    backend: str
    reason: str


class Question(NamedTuple):
    """What is asked: which network, and for which frames ``(frames, 1, side, side)``."""

    network: str
    frames: Float32
    number: int


def identity_of(card: Card) -> Identity:
    """Return who we are: the model is its shapes, its loop, and the files the networks are in."""
    files = {name: card.files.get(name, "") for name in ("d1.onnx", "strength.onnx")}
    said = repr((card.side, card.code_bits, card.grid, card.loop, sorted(files.items())))
    patterns = card.files.get("patterns.npy", "")
    digest = hashlib.sha256(f"{said} {patterns}".encode()).digest()
    return Identity(PROTOCOL, dicom_node.__version__.encode()[:32].ljust(32, b"\0"), digest)


def row_shape(engine: RobustEngine, network: str) -> tuple[int, ...]:
    """Return the shape of one row of a network's answer."""
    shapes = {
        "whiten": (engine.side**2,),
        "strengths": (engine.grid, engine.grid),
        "decode": (engine.code_bits,),
    }
    return shapes[network]


def is_same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as our user (unix(7), SO_PEERCRED)."""
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(told)[1] == os.geteuid())


# -- both ends ---------------------------------------------------------------------------------


def send_hello(connection: socket.socket, who: Identity) -> None:
    """Say who we are."""
    _send(connection, _HELLO.pack(_MAGIC, *who))


def receive_hello(connection: socket.socket) -> Identity:
    """Return who the other is (WireError)."""
    magic, *who = _HELLO.unpack(_receive(connection, _HELLO.size))
    if magic != _MAGIC:
        raise WireError("what was said first is no hello of ours")
    return Identity(*who)


def send_welcome(connection: socket.socket, welcome: Welcome) -> None:
    """Answer a hello."""
    who, accepted, most, backend, reason = welcome
    said = _cut(backend, 64), _cut(reason, 256)
    _send(connection, _WELCOME.pack(_MAGIC, *who, accepted, most, *said))


def receive_welcome(connection: socket.socket) -> Welcome:
    """Return the answer to our hello (WireError)."""
    told = _WELCOME.unpack(_receive(connection, _WELCOME.size))
    magic, protocol, version, model, accepted, most, backend, reason = told
    if magic != _MAGIC or not 1 <= most <= MOST_FRAMES:
        raise WireError("what was answered is no welcome of ours")
    who = Identity(protocol, version, model)
    return Welcome(who, accepted, most, _text(backend), _text(reason))


def send_question(connection: socket.socket, question: Question) -> None:
    """Ask; a worker does so and then waits for its answer."""
    frames = np.ascontiguousarray(question.frames, np.float32)
    head = _QUESTION.pack(NETWORKS.index(question.network), len(frames), question.number)
    _send(connection, head, frames)


def receive_question(connection: socket.socket, side: int, most: int) -> Question | None:
    """Wait for a question; None when the other has ended between two of them.

    Raises
    ------
    WireError
        It is no question, of more frames than agreed, or breaks off.
    """
    head = _receive(connection, _QUESTION.size, may_end=True, waits=True)
    if not head:
        return None
    network, count, number = _QUESTION.unpack(head)
    if network >= len(NETWORKS) or not 1 <= count <= most:
        raise WireError(f"question {network} for {count} frames, at most {most} were agreed")
    frames = _floats(connection, (count, 1, side, side))
    return Question(NETWORKS[network], frames, number)


def send_answer(connection: socket.socket, question: Question, rows: Float32 | None) -> None:
    """Answer a question; None: it could not be answered."""
    kind = NETWORKS.index(question.network)
    head = _ANSWER.pack(rows is not None, kind, len(question.frames), question.number)
    if rows is None:
        _send(connection, head)
    else:
        _send(connection, head, np.ascontiguousarray(rows, np.float32))


def receive_answer(
    connection: socket.socket, question: Question, row: tuple[int, ...], within_s: float
) -> Float32:
    """Wait for the answer to a question, ``(frames, *row)``.

    Raises
    ------
    WireError
        It does not come in time, is not to this question, says that it failed, or is no number.
    """
    head = _receive(connection, _ANSWER.size, within_s=within_s)
    done, network, count, number = _ANSWER.unpack(head)
    asked = (NETWORKS.index(question.network), len(question.frames), question.number)
    if (network, count, number) != asked:
        raise WireError(f"the answer is to {(network, count, number)}, asked was {asked}")
    if not done:
        raise WireError("the inference process could not answer")
    return _floats(connection, (count, *row))


def _floats(connection: socket.socket, shape: tuple[int, ...]) -> Float32:
    values: Float32 = np.empty(shape, np.float32)
    _fill(connection, values.data.cast("B"), RECEIVED_AT_ONCE_S)
    if not np.isfinite(values).all():
        raise WireError("what came is no number")
    return values


# -- sockets -----------------------------------------------------------------------------------


def _send(connection: socket.socket, head: bytes, body: NDArray[np.float32] | None = None) -> None:
    try:
        connection.settimeout(RECEIVED_AT_ONCE_S)
        connection.sendall(head)
        if body is not None:
            connection.sendall(body.data.cast("B"))
    except OSError as error:
        raise WireError(f"the other end takes nothing: {error}") from error


def _receive(
    connection: socket.socket, size: int, *, may_end: bool = False, waits: bool = False,
    within_s: float = RECEIVED_AT_ONCE_S,
) -> bytes:  # fmt: skip
    """Return the next `size` bytes; b"" for an end before the first of them, if it `may_end`.

    With `waits`, the first byte may take any time.
    """
    taken = bytearray(size)
    view = memoryview(taken)
    if waits:
        first = _some(connection, view, None)
        if not first and may_end:
            return b""
        view = view[first:]
    _fill(connection, view, within_s)
    return bytes(taken)


def _fill(connection: socket.socket, view: memoryview, within_s: float) -> None:
    """Receive until `view` is full; the time is that of the whole, not of each piece."""
    due = monotonic() + within_s
    while view:
        size = _some(connection, view, due - monotonic())
        if not size:
            raise WireError("the other end broke off")
        view = view[size:]


def _some(connection: socket.socket, view: memoryview, within_s: float | None) -> int:
    if within_s is not None and within_s <= 0:
        raise WireError("the other end is too slow")
    try:
        connection.settimeout(within_s)
        return connection.recv_into(view)
    except TimeoutError as error:
        raise WireError("the other end is too slow") from error
    except OSError as error:
        raise WireError(f"the other end is gone: {error}") from error


def at_folder(folder: int, act: Callable[[str], None]) -> None:
    """Bind or connect to the socket in an open folder: its path may be longer than 107 bytes.

    Raises
    ------
    OSError
        As `act` does.
    """
    act(f"/proc/self/fd/{folder}/{SOCKET}")


def _cut(said: str, size: int) -> bytes:
    return said.encode("utf-8", "replace")[:size]


def _text(told: bytes) -> str:
    """Return what another process wrote, fit for a log line."""
    said = told.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in said)
