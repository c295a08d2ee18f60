"""A registry that is away or hangs: who asks waits no longer than he is willing to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from dicom_node.errors import RegistryError
from dicom_node.registry import access
from dicom_node.registry.access import RegistryAccess
from dicom_node.registry.database import Database
from dicom_node.registry.registry import Registry


@pytest.fixture
def hanging() -> Iterator[str]:
    """Return the URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/registry?connect_timeout=2"


class Opening:
    """Opens the registry, or fails; counts how often."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = True
        self.tried = 0
        self._url = f"sqlite:///{folder}/registry.sqlite"
        really = Registry.open

        def opens(url: str) -> Registry:
            self.tried += 1
            if self.fails:
                raise RegistryError("connection refused")
            return really(url)

        monkeypatch.setattr(Registry, "open", opens)
        self.access = RegistryAccess(self._url)

    def ask(self) -> tuple[str, ...]:
        return self.access.ask(lambda registry: registry.studies())


@pytest.fixture
def opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opening]:
    one = Opening(tmp_path, monkeypatch)
    yield one
    one.access.close()


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(RegistryError) as failed:
        ask()
    return str(failed.value)


def test_a_registry_that_was_away_a_moment_ago_is_not_tried_again(opening: Opening) -> None:
    with structlog.testing.capture_logs() as logs:
        said = {refused(opening.ask) for _ in range(5)}
    assert (opening.tried, said) == (1, {"connection refused"})
    assert [line["event"] for line in logs] == ["registry not reached"]


def test_a_registry_that_is_back_is_found_after_a_while(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "AWAY_S", 0.2)
    refused(opening.ask)
    opening.fails = False
    refused(opening.ask)
    time.sleep(0.3)
    with structlog.testing.capture_logs() as logs:
        assert opening.ask() == ()
        assert opening.ask() == ()
    assert opening.tried == 2
    assert [line["event"] for line in logs] == ["registry reached again"]


def test_only_one_finds_out_whether_it_is_back(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening.fails = False
    assert opening.ask() == ()
    going_on = threading.Event()

    def slow(_registry: Registry) -> str:
        going_on.wait(10)
        return "there"

    opening.access._is_away(RegistryError("gone"))
    monkeypatch.setattr(opening.access, "_away_until", time.monotonic())
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(opening.access.ask(slow)))
    first.start()
    while opening.access._away_until <= time.monotonic():
        time.sleep(0.01)
    assert refused(opening.ask) == "gone"
    going_on.set()
    first.join(10)
    assert found == ["there"]
    assert opening.ask() == ()


def test_whoever_gives_up_need_not_wait_for_a_server_that_hangs(hanging: str) -> None:
    class GivenUp(Exception):
        pass

    def watch() -> None:
        if time.monotonic() > began + 0.3:
            raise GivenUp

    one = RegistryAccess(hanging)
    began = time.monotonic()
    with pytest.raises(GivenUp):
        one.ask(lambda registry: registry.studies(), watch=watch)
    one.close()
    assert time.monotonic() - began < 1


def test_a_server_that_hangs_is_away_for_everybody_after_one_wait(hanging: str) -> None:
    one = RegistryAccess(hanging)
    first = refused(lambda: one.ask(lambda registry: registry.studies(), within_s=0.5))
    assert first == "the registry did not answer within 0.5 s"
    began = time.monotonic()
    for _ in range(100):
        refused(lambda: one.ask(lambda registry: registry.studies()))
    assert time.monotonic() - began < 0.5
    one.close()


def test_one_thread_answers_one_question_after_another_and_ends_with_the_access(
    opening: Opening,
) -> None:
    opening.fails = False
    asked_by = {opening.access.ask(lambda _: threading.current_thread()) for _ in range(20)}
    opening.access.close()
    [asker] = asked_by
    asker.join(5)
    assert not asker.is_alive()


def test_no_statement_and_no_silence_of_postgresql_is_without_end() -> None:
    made = Database("postgresql://me@127.0.0.1/registry?connect_timeout=3")
    limits = made._settings()["connect_args"]
    assert limits["options"] == "-c statement_timeout=60s"
    assert {"tcp_user_timeout", "keepalives_idle"} < limits.keys()
    assert "connect_timeout" not in limits  # the URL's own goes before
    made.close()
