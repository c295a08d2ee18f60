from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from dicom_node import logging
from dicom_node.errors import SpoolFull


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    text = io.StringIO()
    with warnings.catch_warnings():
        logging.configure(text)
        yield text
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_one_json_object_per_line(stream: io.StringIO) -> None:
    structlog.get_logger().info("marked", job=7, frames=1, psnr_db=44.1)
    [line] = lines(stream)
    assert line["event"] == "marked"
    assert line["job"] == 7
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "fields",
    [
        {"patient_name": "Doe"},
        {"PatientID": "4711"},
        {"ds": "(0010,0010) Doe"},
        {"accession_number": "A1"},
        {"study_instance_uid": "1.2.276.0.7230010.3.1.4.8323329"},
        {"reason": "PACS refused 1.2.276.0.7230010.3.1.4.8323329 with status 0xC000"},
        {"reason": "bad value 'Doe^Jane^^Dr' in PN"},
        {"value": b"Doe^Jane"},
        {"value": {"PatientName": "Doe"}},
        {"value": ["Doe^Jane"]},
        {"value": object()},
    ],
)
def test_what_could_be_patient_data_never_reaches_a_log(
    stream: io.StringIO, fields: dict[str, Any]
) -> None:
    structlog.get_logger().info("stored", **fields)
    for secret in ("Doe", "4711", "8323329", "A1"):
        assert secret not in stream.getvalue()


def test_uids_of_the_standard_stay_readable(stream: io.StringIO) -> None:
    structlog.get_logger().info("refused", syntax="1.2.840.10008.1.2.4.80")
    assert lines(stream)[0]["syntax"] == "1.2.840.10008.1.2.4.80"


def test_a_foreign_exception_shows_its_place_but_not_its_text(stream: io.StringIO) -> None:
    try:
        raise ValueError("Doe Jane is not a date")
    except ValueError:
        structlog.get_logger().exception("marking_failed")
    [line] = lines(stream)
    assert line["error"] == "ValueError"
    assert "test_logging.py" in line["at"][-1]
    assert "Doe" not in stream.getvalue()


def test_our_own_errors_keep_their_words(stream: io.StringIO) -> None:
    try:
        raise SpoolFull("3 MiB free")
    except SpoolFull:
        structlog.get_logger().exception("refused")
    assert lines(stream)[0]["error"] == "3 MiB free"


def test_a_long_text_is_cut(stream: io.StringIO) -> None:
    structlog.get_logger().info("x", text="y" * 10_000)
    assert len(stream.getvalue()) < 1000
