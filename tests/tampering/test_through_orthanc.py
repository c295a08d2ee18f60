"""The same through a real Orthanc: stored over DICOM, fetched back, checked."""

import harness
import pytest
from tampering import KINDS, judged

pytestmark = [pytest.mark.peer, pytest.mark.xdist_group("tampering-orthanc")]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    one = harness.Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield one
    one.child.end()


def stored_and_fetched(orthanc, path, out):
    sent = harness.run_tool(
        "storescu", "-xf", _profiles(path), "Any", "-aec", "ORTHANC", "127.0.0.1", orthanc.port,
        path,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    [identifier] = harness.orthanc_instances(orthanc).values()
    harness.fetch(orthanc, identifier, out)
    harness.delete(orthanc, f"/instances/{identifier}")
    return out


def _profiles(path):
    """Write an association profile for the very transfer syntax of a file, as DCMTK wants it."""
    import pydicom

    ds = pydicom.dcmread(path, stop_before_pixels=True)
    file = path.with_suffix(".cfg")
    file.write_text(
        "[[TransferSyntaxes]]\n[Own]\n"
        f"TransferSyntax1 = {ds.file_meta.TransferSyntaxUID}\n"
        "[[PresentationContexts]]\n[One]\n"
        f"PresentationContext1 = {ds.SOPClassUID}\\Own\n"
        "[[Profiles]]\n[Any]\nPresentationContexts = One\n"
    )
    return file


@pytest.mark.parametrize("name", KINDS)
def test_a_pacs_between_changes_nothing_about_the_verdict(name, orthanc, subject_named, tmp_path):
    kind = KINDS[name]
    subject = subject_named("multi-frame" if kind.loops else "CT")
    made = kind.make(subject, tmp_path / "tampered.dcm")
    before = subject.bench.verdict(made.path)
    came = stored_and_fetched(orthanc, made.path, tmp_path / "came.dcm")
    after = subject.bench.verdict(came)
    assert (after.verdict, after.changed, after.frames) == (
        before.verdict, before.changed, before.frames
    )  # fmt: skip
    if not kind.unsure:
        outcome = judged(kind, made, after, subject.bench.entries[subject.marked])
        assert outcome.caught
        assert outcome.named, (outcome.changed, outcome.words)
        assert outcome.contains is not False


def test_a_patient_name_coerced_by_the_pacs_itself_is_named(orthanc, subject_named, tmp_path):
    subject = subject_named("CT")
    stored_and_fetched(orthanc, subject.marked, tmp_path / "plain.dcm")
    sent = harness.run_tool("storescu", "-aec", "ORTHANC", "127.0.0.1", orthanc.port,
                            subject.marked)  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    [identifier] = harness.orthanc_instances(orthanc).values()
    changed = harness.peers.urllib.request.Request(
        f"http://127.0.0.1:{orthanc.http}/instances/{identifier}/modify",
        b'{"Replace": {"PatientName": "ROE^RICHARD", "SOPInstanceUID": "%s"}, "Force": true}'
        % str(subject.bench.verdict(subject.marked).sop_instance_uid).encode(),
    )
    with harness.peers.urllib.request.urlopen(changed, timeout=20) as answer:
        (tmp_path / "coerced.dcm").write_bytes(answer.read())
    harness.delete(orthanc, f"/instances/{identifier}")
    verdict = subject.bench.verdict(tmp_path / "coerced.dcm")
    assert verdict.verdict == "authentic", verdict
    assert "PatientName" in verdict.changed
