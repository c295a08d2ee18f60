"""What was written is read back before it may leave; what does not hold stays, without a file."""

from dataclasses import replace
from datetime import UTC, datetime

import harness
import pydicom
import pytest
from harness import ct

from dicom_node import marking, read_back
from dicom_node.config import WatermarkConfig
from dicom_node.errors import WatermarkError
from dicom_node.instance.undo_block import undo_block
from dicom_node.marking import Marker

WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
CT_512 = "ct_transfer_syntaxes/cornerstoneWADOImageLoader__CTImage.dcm_"


def test_a_failed_read_back_is_held_and_leaves_nothing(marker, monkeypatch, tmp_path):
    source = harness.save(ct(), tmp_path / "source.dcm")
    honest = marking.FrameWriter.append

    def faulty(self, frame):
        frame.values[5, 5] ^= 1
        honest(self, frame)

    monkeypatch.setattr(marking.FrameWriter, "append", faulty)
    out = tmp_path / "out" / "x.dcm"
    out.parent.mkdir()
    outcome = marker.mark(source, out, marked_at=WHEN)
    assert outcome.action == "held"
    assert "does not read back" in outcome.reason
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("policy", ["forward-sealed", "reject", "forward-untouched"])
def test_a_result_that_cannot_be_read_back_is_held_whatever_the_policy(
    policy, ring, engine, monkeypatch, tmp_path
):
    source = harness.save(ct(size=128), tmp_path / "source.dcm")
    finish = marking.FrameWriter.finish

    def cut_short(self, header, out):
        syntax = finish(self, header, out)
        out.write_bytes(out.read_bytes()[:-1000])
        return syntax

    def unreadable(*_):
        raise WatermarkError("the record is damaged")

    sealing = Marker(WatermarkConfig(on_unmarkable=policy), ring, engine)
    out = tmp_path / "out" / "x.dcm"
    out.parent.mkdir()
    for name, faulty in (
        ("marking.FrameWriter.finish", cut_short), ("read_back.original_frame", unreadable),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(f"dicom_node.{name}", faulty)
            outcome = sealing.mark(source, out, marked_at=WHEN)
        assert (outcome.action, outcome.reason[:38]) == (
            "held", "the file written cannot be read back: "
        )  # fmt: skip
        assert list(out.parent.iterdir()) == []


def test_a_header_that_was_written_otherwise_than_sealed_is_held(marker, monkeypatch, tmp_path):
    source = harness.save(ct(size=128), tmp_path / "source.dcm")
    finish = marking.FrameWriter.finish

    def misspelt(self, header, out):
        syntax = finish(self, header, out)
        raw = out.read_bytes()
        assert raw.count(b"1.2.840.10008.5.1.4.1.1.2\0") == 2  # the meta header's, and its own
        at = raw.rindex(b"1.2.840.10008.5.1.4.1.1.2\0")
        out.write_bytes(raw[:at] + b"1.2.840.10008.5.1.4.1.1.4\0" + raw[at + 26 :])
        return syntax

    monkeypatch.setattr(marking.FrameWriter, "finish", misspelt)
    outcome = marker.mark(source, tmp_path / "out.dcm", marked_at=WHEN)
    assert outcome.action == "held"
    assert outcome.reason.startswith("the header seal of ")
    assert not (tmp_path / "out.dcm").exists()


def test_a_header_whose_original_does_not_come_back_is_held(marker, monkeypatch, tmp_path):
    source = harness.save(ct(size=128), tmp_path / "source.dcm")
    describe = marking.derivation.describe

    def forgetful(instance, *arguments):
        return replace(describe(instance, *arguments), undo=undo_block(instance.data, []))

    monkeypatch.setattr(marking.derivation, "describe", forgetful)
    outcome = marker.mark(source, tmp_path / "out.dcm", marked_at=WHEN)
    assert outcome.action == "held"
    assert outcome.reason.startswith("the header of ")
    assert outcome.reason.endswith(" does not come back exactly")
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("name", [
    "ct_series/liver_3slice_GE_LightSpeedUltra/01.dcm",
    f"{CT_512}BigEndianExplicitTransferSyntax_1.2.840.10008.1.2.2.dcm",
])
def test_group_lengths_counted_anew_hold_no_instance(name, shared, marker, tmp_path):
    source = shared / "dicom" / name
    assert any(item.tag.element == 0 for item in pydicom.dcmread(source))
    outcome = marker.mark(source, tmp_path / "out.dcm", marked_at=WHEN)
    assert (outcome.action, outcome.reason.count("header")) == ("marked", 0)


def test_a_fault_of_ours_while_reading_back_leaves_no_file(marker, monkeypatch, tmp_path):
    source = harness.save(ct(size=128), tmp_path / "source.dcm")
    monkeypatch.setattr(read_back, "original_frame", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        marker.mark(source, tmp_path / "out.dcm", marked_at=WHEN)
    assert not (tmp_path / "out.dcm").exists()
