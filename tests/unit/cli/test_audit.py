"""``dicom-node audit``: how far it is, on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dicom_node.cli import audit


def terminal(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(
        audit, "Console", lambda stderr: Console(file=shown, force_terminal=there, width=80)
    )
    return shown


def test_a_terminal_shows_how_many_studies_and_instances_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = terminal(monkeypatch, there=True)
    with audit._bar(3) as (progress, advance):
        progress(2, 5)
        progress(0, 0)  # only asks whether to go on
        advance()
    text = shown.getvalue()
    for expected in ("studies", "1/3", "instances", "2/5"):
        assert expected in text


def test_a_pipe_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, there=False)
    with audit._bar(3) as (progress, advance):
        progress(2, 5)
        advance()
    assert shown.getvalue() == ""
