"""Fixtures around a whole running node, for tests/faults and tests/peers."""

import harness
import pytest


@pytest.fixture(name="wait_for")
def _wait_for():
    return harness.wait_for


@pytest.fixture
def running_node(tmp_path):
    """Return a function that starts a node: ``running_node(destinations=[...], spool={...})``."""
    made = []

    def make(destinations=(), start=True, **sections):
        one = harness.RunningNode(tmp_path / f"running{len(made)}", destinations, **sections)
        made.append(one)
        return one.start() if start else one

    yield make
    for one in made:
        one.kill_all()


@pytest.fixture
def orthanc(tmp_path):
    """A real Orthanc with a folder of its own."""
    one = harness.Orthanc(tmp_path)
    yield one
    one.child.end()


@pytest.fixture
def pacs(tmp_path):
    """Return a function that starts pynetdicom's Storage SCP in a mode of ``children.py``."""
    made = []

    def make(mode="ok"):
        one = harness.Pacs(tmp_path)
        made.append(one)
        return one.start(mode) if mode else one

    yield make
    for one in made:
        one.stop()
