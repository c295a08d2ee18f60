"""The query that the conformance statement shows an auditor, sent by findscu as it stands there."""

import re
import shlex

import harness
import pytest
import verifying

from dicom_node.config import parse

pytestmark = [pytest.mark.peer, pytest.mark.slow]
TEXT = (harness.ROOT / "docs" / "CONFORMANCE.md").read_text("utf-8")
STUDY = "1.2.3.1"


@pytest.fixture
def service(tmp_path):
    """The service in front of a PACS with one study that nobody has checked yet."""
    marks = verifying.Marks(tmp_path / "marks")
    archive = verifying.FakePacs([marked for _, marked in marks.study(1, slices=2)])
    text = verifying.config_text(tmp_path, marks.keys, archive.port)
    one = verifying.Service(parse(text, "test")).start()
    yield one
    one.end()
    archive.stop()


def documented():
    """Return the arguments of the one findscu line of the document."""
    [line] = re.findall(r"^`findscu (.+?)`", TEXT, re.MULTILINE)
    return shlex.split(line)


def test_the_documented_findscu_line_has_the_study_checked_first(service, dcmtk):
    places = {"HOST": "127.0.0.1", "11113": str(service.port), "StudyInstanceUID=1.2.3":
              f"StudyInstanceUID={STUDY}"}  # fmt: skip
    words = documented()
    assert set(places) <= set(words)
    done = dcmtk("findscu", *(places.get(word, word) for word in words))
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for expected in (f"[{STUDY}", "(0071,1010) LO [authentic"):
        assert expected in said
    checked = service.audit_events("verified")
    assert len(checked) == 2, "the archive's instances were not checked"
