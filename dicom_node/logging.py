"""Logs: JSON lines in a pipe, readable on a terminal, and nothing in them that names a patient."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from dicom_node.errors import NodeError

EventDict = MutableMapping[str, Any]

MAX_TEXT = 500
DROPPED = "(dropped)"

_FORBIDDEN_KEY = re.compile(
    r"patient|birth|accession|person|physician|operator|identifier|data_?set|^ds$|pixel|uid$",
    re.IGNORECASE,
)
# Every UID but those of the standard itself (SOP classes, ...) names somebody's study.
_UID = re.compile(r"(?<![\d.])(?!1\.2\.840\.10008\.)[0-2](?:\.(?:0|[1-9]\d*)){4,}\b")
_level = [logging.INFO]
# Components of a person's name (VR PN) are separated by carets.
_PERSON = re.compile(r"[^\s'\"(]*\^[^'\")]*")


def configure(stream: TextIO | None = None, *, level: int = logging.INFO) -> None:
    """Set up logging for this process; called once, by the composition root.

    Parameters
    ----------
    stream
        Standard error by default, so that standard output stays for results.
    level
        A level of the standard library.
    """
    _level[0] = level
    stream = stream or sys.stderr
    # Warnings of pydicom quote the value they complain about.
    warnings.simplefilter("ignore")
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        explain_exception,
        drop_patient_data,
    ]
    last: Any = structlog.processors.JSONRenderer()
    if stream.isatty():
        last = structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def level() -> int:
    """Return the level that was set up, for processes of this one."""
    return _level[0]


def explain_exception(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Replace ``exc_info`` by its type and place; only our own errors bring their text along.

    A foreign exception may quote any value of the data set it failed on.
    """
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    if isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        event["error"] = describe(raised)
        frames = traceback.extract_tb(raised.__traceback__)[-8:]
        event["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def describe(error: BaseException) -> str:
    """Return an error in words for a log or a reason: text only of our own, else its type."""
    if isinstance(error, NodeError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__


def drop_patient_data(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Drop what could be patient data: by key, by shape of the value, by what a text contains."""
    for key, value in event.items():
        event[key] = DROPPED if _FORBIDDEN_KEY.search(key) else _harmless(value)
    return event


def _harmless(value: object, depth: int = 0) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        text = _PERSON.sub(DROPPED, _UID.sub("(uid)", value))
        return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."
    if isinstance(value, list | tuple) and depth == 0:
        return [_harmless(item, depth + 1) for item in value[:50]]
    if isinstance(value, dict) and depth == 0:
        return {
            str(key): DROPPED if _FORBIDDEN_KEY.search(str(key)) else _harmless(item, depth + 1)
            for key, item in value.items()
        }
    # Data sets, arrays, bytes: never serialised.
    return f"({type(value).__name__})"
