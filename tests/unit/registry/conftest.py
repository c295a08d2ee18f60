"""Every test that takes a registry runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgresql import Cluster

from dicom_node.registry import Registry


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    one = Cluster()
    yield one
    one.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/registry.sqlite"
    made: str = request.getfixturevalue("cluster").new_database()
    return made


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[Callable[[], Registry]]:
    """A function that opens the registry, as another process would."""
    made: list[Registry] = []

    def make() -> Registry:
        made.append(Registry.open(url, cache=tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def registry(opened: Callable[[], Registry]) -> Registry:
    return opened()
