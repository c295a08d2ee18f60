"""One process that checks files: what a hostile image brings down is this, and nothing else.

A child that `checking_pool` begins.
"""

from __future__ import annotations

from collections.abc import Callable

from dicom_node.verify.checking import Checked, Checker, Setup, Task


def begin(setup: Setup) -> Callable[[Task], Checked]:
    """Open keys and networks; return what checks a file (NodeError)."""
    return Checker(setup).check
