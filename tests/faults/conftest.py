"""Whole nodes and real peers for the fault tests."""

from fixtures import _wait_for, orthanc, pacs, running_node

__all__ = ["_wait_for", "orthanc", "pacs", "running_node"]
