import logging

import pynetdicom
from pynetdicom import _config

from dicom_node.dimse import TESTED_PYNETDICOM, pynetdicom_version, settings


def test_pynetdicom_is_the_release_our_replacements_were_written_for():
    # Another release may have changed what `dicom_node.dimse` overrides: read its changes first.
    assert pynetdicom_version() == pynetdicom.__version__ == TESTED_PYNETDICOM


def test_what_pynetdicom_would_log_of_a_patient_is_dropped(caplog):
    settings.apply()
    caplog.set_level(logging.DEBUG)
    for name in ("pynetdicom", "pynetdicom.association", "pynetdicom.service_class"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)
        logger.info("(0010,0010) PN [DOE^JOHN]")
        logger.error("bad identifier: %s", "DOE^JOHN")
        try:
            raise ValueError("DOE^JOHN")
        except ValueError as error:
            logger.exception(error)  # noqa: TRY401 - as pynetdicom does it
        logger.setLevel(logging.NOTSET)
    assert "DOE" not in caplog.text
    assert "ValueError" in caplog.text


def test_every_storage_class_is_accepted_and_identifiers_are_not_logged():
    settings.apply()
    assert _config.UNRESTRICTED_STORAGE_SERVICE
    assert _config.LOG_HANDLER_LEVEL == "none"
    assert not _config.LOG_REQUEST_IDENTIFIERS
    assert not _config.LOG_RESPONSE_IDENTIFIERS
    assert not _config.STORE_RECV_CHUNKED_DATASET
