"""A sample of every kind of real object through a real node into a real Orthanc; none is lost.

All of them: ``python tests/tools/all_objects.py ../shared/data/dicom`` (the table in
docs/BENCHMARKS.md).
"""

from collections import Counter

import all_objects
import pytest

pytestmark = [pytest.mark.peer, pytest.mark.slow]

PER_KIND = 2
MORE = {"malformed": 10, "ct_transfer_syntaxes": 5, "sc": 5, "us": 4, "mr": 4, "ot_testpattern": 3}
LARGEST = 400_000


def sample(root):
    """Return the smallest few of every kind, among them one from each transfer syntax folder."""
    chosen = []
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        paths = sorted(
            (path for path in kind.rglob("*") if path.is_file()),
            key=lambda path: (path.stat().st_size > LARGEST, hash_of(path)),
        )
        chosen += paths[: MORE.get(kind.name, PER_KIND)]
    return [path for path in chosen if path.stat().st_size <= LARGEST]


def hash_of(path):
    """Order files as if at random, but the same on every machine."""
    return sum(ord(letter) * (place % 97) for place, letter in enumerate(path.name)) % 101


@pytest.mark.timeout(600)
def test_every_kind_of_object_arrives_or_says_why_not(shared, tmp_path):
    root = shared / "dicom"
    paths = sample(root)
    assert 50 <= len(paths) <= 80
    items = all_objects.run(root, paths, tmp_path)
    print(all_objects.table(items))
    assert [(item.path.name, item.problems) for item in items if item.problems] == []
    assert all(item.action in all_objects.ENDS for item in items)
    assert all(item.reason for item in items if item.action not in ("marked", "untouched"))
    assert all(item.restored for item in items if item.action == "marked")
    ends = Counter(item.action for item in items)
    assert ends["marked"] > len(items) / 3
