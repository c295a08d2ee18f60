"""Connections to SQLite and PostgreSQL that behave alike: short transactions, writers in turn."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from dicom_node import write_ahead
from dicom_node.errors import ConfigError, RegistryError

BUSY_TIMEOUT_S = 30
# A server that is reached and silent, and one whose machine is gone: neither is waited for longer.
CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 60
SILENCE_S = 30
_KEPT_OPEN = 2  # connections; more are made when they are needed, and closed after
_WRITERS_TURN = 0x4449434F4D  # the advisory lock of PostgreSQL that writers take: "DICOM"


class Database:
    """One database, named by its URL; safe to use from several threads.

    Parameters
    ----------
    url
        ``sqlite:///FILE`` or ``postgresql+psycopg://USER@HOST/NAME`` (``postgresql://`` will do).
        libpq's parameters in its query replace the time limits here (``?connect_timeout=3``).

    Raises
    ------
    ConfigError
        If the URL is neither, or the package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        try:
            self._engine = create_engine(self.url, **self._settings())
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"registry.url: {error.name} is not installed: pip install 'dicom-node[cluster]'"
            ) from error
        if self._sqlite:
            _settle_sqlite(self._engine)

    def _settings(self) -> dict[str, Any]:
        if self._sqlite:
            arguments = {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
            return {"connect_args": arguments, "pool_size": _KEPT_OPEN}
        limits: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_S}s",
            "tcp_user_timeout": SILENCE_S * 1000,
            "keepalives_idle": SILENCE_S // 2,
            "keepalives_interval": SILENCE_S // 6,
            "keepalives_count": 3,
        }
        return {
            # What the URL says itself goes before.
            "connect_args": {k: v for k, v in limits.items() if k not in self.url.query},
            "pool_pre_ping": True,
            "pool_size": _KEPT_OPEN,
        }

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(str(self.url.database)).absolute() if self._sqlite else None

    @property
    def name(self) -> str:
        """What errors call it; without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view (RegistryError)."""
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def adding(self) -> Iterator[Connection]:
        """Insert rows whose order is nobody's concern; on disk when it returns (RegistryError)."""
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Hold the writers' turn: what the one before wrote is seen (RegistryError)."""
        with self._translated(), self._engine.connect() as plain:
            connection = plain.execution_options(writes=True)
            with connection.begin():
                if not self._sqlite:
                    connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITERS_TURN}
                    )
                yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            said = " ".join(str(cause).split())
            raise RegistryError(f"the registry {self.name}: {said}") from error


def _checked(url: str) -> URL:
    try:
        made = make_url(url)
        backend = made.get_backend_name()
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigError(f"registry.url = {url!r}: {error}") from error
    if backend == "postgresql":
        return made.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not made.database or made.database == ":memory:":
        raise ConfigError(
            f"registry.url = {made.render_as_string(hide_password=True)!r}:"
            " use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    return made


def _settle_sqlite(engine: Engine) -> None:
    """Write-ahead log, and transactions that begin where we say: Python begins them too late."""

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        write_ahead.turn_on(connection, BUSY_TIMEOUT_S)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16384")

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
