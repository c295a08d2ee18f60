"""pynetdicom's global switches, set once, and its log reduced to what carries no patient data."""

from __future__ import annotations

import logging

import pynetdicom
from pynetdicom import _config

TESTED_PYNETDICOM = "3.0.4"
"""The release whose inner workings `dicom_node.dimse` replaces; a test fails on any other."""


class _PlaceOnly(logging.Filter):
    """Let errors through as the place they come from, never with their text.

    pynetdicom formats identifiers, command sets and peer values into its messages; what an
    administrator needs of an association is logged by the process that runs it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return False
        raised = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
        record.msg = f"pynetdicom {record.module}.{record.funcName}:{record.lineno}"
        if raised is not None:
            record.msg += f" ({raised.__name__})"
        record.args = ()
        record.exc_info = None
        record.exc_text = None
        record.stack_info = None
        return True


def apply() -> None:
    """Accept every storage class, and keep what peers send out of every log."""
    _config.UNRESTRICTED_STORAGE_SERVICE = True
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    # A logger's filter does not see its children's records: each module's logger gets its own.
    names = [name for name in logging.root.manager.loggerDict if name.startswith("pynetdicom")]
    for name in {"pynetdicom", *names}:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _PlaceOnly) for known in logger.filters):
            logger.addFilter(_PlaceOnly())


def pynetdicom_version() -> str:
    """Return the release in use."""
    return str(pynetdicom.__version__)
