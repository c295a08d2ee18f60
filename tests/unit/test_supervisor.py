"""Real processes: started, killed, restarted, drained."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from dicom_node.errors import ConfigError, SpoolError
from dicom_node.supervisor import Role, StopEvent, Supervisor


def tell(folder: Path, *, stop: StopEvent, ready: Any) -> None:
    """Write our pid, work until told to stop, say goodbye."""
    (folder / f"pid-{os.getpid()}").touch()
    ready()
    while not stop.is_set():
        time.sleep(0.01)
    (folder / f"bye-{os.getpid()}").touch()


def refuse(*, stop: StopEvent, ready: Any) -> None:
    raise ConfigError("node.port = 104: in use")


def refuse_once(folder: Path, *, stop: StopEvent, ready: Any) -> None:
    if not (folder / "tried").exists():
        (folder / "tried").touch()
        raise SpoolError("still held by the process before us")
    tell(folder, stop=stop, ready=ready)


def recycle(folder: Path, *, stop: StopEvent, ready: Any) -> None:
    (folder / f"pid-{os.getpid()}").touch()
    ready()
    time.sleep(1.1)


def never_end(folder: Path, *, stop: StopEvent, ready: Any) -> None:
    ready()
    time.sleep(600)


def pids(folder: Path) -> list[int]:
    return [int(path.name[4:]) for path in sorted(folder.glob("pid-*"), key=os.path.getmtime)]


def when(condition: Any, then: Any, timeout_s: float = 20.0) -> threading.Thread:
    """Do something from another thread once something holds; at the time limit, end the run."""

    def watch() -> None:
        end = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def end() -> None:
    # Only while a supervisor listens: otherwise the signal would end the test run itself.
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)


def supervise(*roles: Role, **more: Any) -> Supervisor:
    return Supervisor(roles, environment={}, shutdown_timeout_s=10.0, **more)


def test_sigterm_lets_every_child_finish(tmp_path: Path) -> None:
    announced: list[bool] = []
    supervisor = supervise(
        Role("a", tell, (tmp_path,)),
        Role("b", tell, (tmp_path,)),
        on_ready=lambda: announced.append(True),
    )
    watcher = when(lambda: announced, end)
    assert supervisor.run() == 0
    watcher.join()
    assert announced == [True]
    assert len(list(tmp_path.glob("bye-*"))) == 2


def test_a_killed_child_is_started_again_after_its_claims_are_freed(tmp_path: Path) -> None:
    freed: list[bool] = []
    announced: list[bool] = []
    supervisor = supervise(
        Role("a", tell, (tmp_path,)), on_death=lambda: freed.append(True),
        on_ready=lambda: announced.append(True),
    )  # fmt: skip

    def kill_then_end() -> None:
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        when(lambda: len(pids(tmp_path)) == 2, end).join()

    watcher = when(lambda: announced, kill_then_end)  # before that its end is a failed start
    assert supervisor.run() == 0
    watcher.join()
    assert len(pids(tmp_path)) == 2
    assert freed == [True]


def test_what_a_drain_kills_is_told_from_what_ended_by_itself(tmp_path: Path) -> None:
    calls: list[str] = []
    announced: list[bool] = []
    supervisor = Supervisor(
        [Role("a", never_end, (tmp_path,)), Role("b", tell, (tmp_path,))],
        environment={},
        shutdown_timeout_s=0.5,
        on_death=lambda: calls.append("died"),
        on_kill=lambda: calls.append("killed"),
        on_ready=lambda: announced.append(True),
    )
    watcher = when(lambda: announced, end)
    assert supervisor.run() == 0
    watcher.join()
    assert calls == ["died", "killed"]


def test_a_drain_that_kills_nobody_says_so(tmp_path: Path) -> None:
    calls: list[str] = []
    supervisor = supervise(Role("a", tell, (tmp_path,)), on_kill=lambda: calls.append("killed"))
    watcher = when(lambda: pids(tmp_path), end)
    assert supervisor.run() == 0
    watcher.join()
    assert calls == []


def test_a_child_that_recycles_itself_is_started_again(tmp_path: Path) -> None:
    watcher = when(lambda: len(pids(tmp_path)) == 2, end)
    assert supervise(Role("a", recycle, (tmp_path,))).run() == 0
    watcher.join()
    assert len(pids(tmp_path)) == 2


def test_a_role_that_cannot_start_ends_the_node_with_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(Role("a", tell, (tmp_path,)), Role("b", refuse)).run() == 2
    assert "node.port = 104" in capfd.readouterr().err


def test_an_inessential_role_that_cannot_start_delays_nothing_and_ends_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    announced: list[bool] = []
    supervisor = supervise(
        Role("a", tell, (tmp_path,)),
        Role("b", refuse, essential=False),
        on_ready=lambda: announced.append(True),
    )
    seen: list[str] = []

    def refused_twice() -> bool:
        seen.append(capfd.readouterr().err)
        return "".join(seen).count("node.port = 104") >= 2

    watcher = when(refused_twice, end)
    assert supervisor.run() == 0
    watcher.join()
    assert announced == [True]
    assert len(pids(tmp_path)) == 1


def test_a_role_may_be_tried_again_less_often_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.supervisor._BACKOFF_INITIAL_S", 0.02)
    often = Role("often", refuse, essential=False, longest_backoff_s=0.04)
    seldom = Role("seldom", refuse, essential=False, longest_backoff_s=60.0)

    def delays(role: str) -> list[float]:
        ended = [line for line in said if line["event"] == "process_ended"]
        return [line["restart_in_s"] for line in ended if line["role"] == role]

    with structlog.testing.capture_logs() as said:
        watcher = when(lambda: min(len(delays("often")), len(delays("seldom"))) >= 4, end, 60.0)
        assert supervise(Role("a", tell, (tmp_path,)), often, seldom).run() == 0
        watcher.join()
    assert delays("often")[:4] == [0.02, 0.04, 0.04, 0.04]
    assert delays("seldom")[:4] == [0.02, 0.04, 0.08, 0.16]


def test_an_inessential_role_on_its_own_still_says_that_it_cannot_start() -> None:
    assert supervise(Role("b", refuse, essential=False)).run() == 2


def test_a_receiver_waits_for_the_port_of_its_killed_predecessor(tmp_path: Path) -> None:
    role = Role("receive", refuse_once, (tmp_path,), retry_start=True)
    watcher = when(lambda: pids(tmp_path), end)
    assert supervise(role).run() == 0
    watcher.join()


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    supervisor = os.fork()
    if supervisor == 0:
        supervise(Role("a", tell, (tmp_path,))).run()
        os._exit(0)
    limit = time.monotonic() + 20
    while not pids(tmp_path) and time.monotonic() < limit:
        time.sleep(0.02)
    [child] = pids(tmp_path)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    while not (tmp_path / f"bye-{child}").exists():
        assert time.monotonic() < limit
        time.sleep(0.02)
