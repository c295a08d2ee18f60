"""Where structured reports are stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.config import Config, load
from dicom_node.errors import ConfigError
from dicom_node.verify.report_storing import Destination

TWO = """
[[destination]]
name = "first"
ae_title = "FIRST"
host = "10.0.0.1"
port = 104

[[destination]]
name = "second"
ae_title = "SECOND"
host = "10.0.0.2"
port = 105
"""


def configured(tmp_path: Path, pacs: str, destinations: str = TWO) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(f'[verify]\nae_title = "VERIFY"\npacs = "{pacs}"\n{destinations}')
    return load(path)


def test_reports_go_to_the_pacs_that_is_asked(tmp_path: Path) -> None:
    to = Destination.of(configured(tmp_path, "second"))
    assert to == Destination("second", ("10.0.0.2", 105), "SECOND", "VERIFY", 60.0)


def test_reports_go_to_the_first_destination_where_none_is_named(tmp_path: Path) -> None:
    assert Destination.of(configured(tmp_path, "")).name == "first"


def test_without_a_destination_the_error_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="store_reports"):
        Destination.of(configured(tmp_path, "", ""))
