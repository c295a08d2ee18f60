"""Under which UID an instance is sent, and that what refers to it follows in every order."""

import sqlite3
from contextlib import closing
from pathlib import Path

import harness
import pydicom
import pytest
from harness import ct
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless, RLELossless

from dicom_node.cli.main import main
from dicom_node.config import SpoolConfig, WatermarkConfig
from dicom_node.dimse import encode_file_meta
from dicom_node.errors import PixelError
from dicom_node.inference import open_engine
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.transcode import TARGETS, transcode
from dicom_node.instance.uids import derive_uid, referenced_uids
from dicom_node.keys import KeyRing
from dicom_node.marking import Marker, restore
from dicom_node.naming import BatchNames, JournalNames
from dicom_node.pipeline import MarkWorker
from dicom_node.spool import Spool
from dicom_node.verify.check import check_instance

PALETTE = "us/pydicom__examples_palette.dcm"
SR = "sr/pydicom__test-SR.dcm"
WAIT_S = 100.0
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def engine():
    return open_engine("onnx")


@pytest.fixture
def clock(monkeypatch):
    """The time, which only `tick` moves on."""

    class Clock:
        now = 1_800_000_000.0

        def __call__(self):
            return self.now

        def tick(self, seconds):
            self.now += seconds

    one = Clock()
    monkeypatch.setattr("dicom_node.naming.time.time", one)
    return one


class Node:
    """A spool and a mark worker, without a network."""

    def __init__(self, folder, engine, clock):
        self.folder, self.engine, self.clock = folder, engine, clock
        self.ring = KeyRing.open(folder / "keys", owner="TEST-HOSPITAL", create=True)
        self.spool = Spool(SpoolConfig(directory=folder / "spool", min_free_mib=0), clock=clock)
        self.sent = {}
        self.made = {}

    def receive(self, path):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        syntax = str(ds.file_meta.TransferSyntaxUID)
        return self.spool.receive(
            encode_file_meta(str(ds.SOPClassUID), str(ds.SOPInstanceUID), syntax, "MODALITY"),
            harness.data_set_bytes(path), sop_class_uid=str(ds.SOPClassUID),
            sop_instance_uid=str(ds.SOPInstanceUID), transfer_syntax_uid=syntax,
        ).job_id  # fmt: skip

    def names(self, policy):
        key = self.ring.uid_key if policy == "derive" else None
        return JournalNames(self.spool, key, WAIT_S)

    def mark(self, policy="derive", **settings):
        """Let a worker do all that is due, and everything be delivered."""
        config = WatermarkConfig(uid_policy=policy, reference_wait_s=WAIT_S, **settings)

        def marker_for(key_id):
            # As in `pipeline.markers`: the ring as it was when that key was the newest.
            keys = self.ring.current if key_id is None else self.ring.get(key_id)
            then = KeyRing(tuple(k for k in self.ring.all() if k.created <= keys.created))
            return Marker(config, then, self.engine, names=self.names(policy))

        worker = MarkWorker(self.spool, marker_for, current_key_id=self.ring.current.key_id,
                            destinations=["pacs"])  # fmt: skip
        while worker.step():
            pass
        for delivery in self.spool.claim_delivery("pacs", limit=1000):
            path = self.folder / f"sent-{delivery.job_id}.dcm"
            path.write_bytes(delivery.path.read_bytes())
            self.sent[delivery.job_id] = path
            self.spool.delivered(delivery)

    def job(self, job_id):
        return self.spool.job(job_id)


@pytest.fixture
def node(tmp_path, engine, clock):
    one = Node(tmp_path / "node", engine, clock)
    yield one
    one.spool.close()


def refers_to(*uids, sop_class=harness.CT):
    items = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    return Sequence(items)


@pytest.fixture
def image(tmp_path):
    """Return a function that writes an image: ``image("1.2.1", refers_to=["1.2.2"])``."""

    def make(uid, about=(), **attributes):
        if about:
            attributes["ReferencedImageSequence"] = refers_to(*about)
        return harness.save(ct(uid, **attributes), tmp_path / f"{uid}.dcm")

    return make


@pytest.fixture
def report(shared, tmp_path):
    """Return a function that writes a report about instances."""

    def make(*about, sop_class=harness.CT):
        ds = pydicom.dcmread(shared / "dicom" / SR)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.77"
        series = Dataset()
        series.SeriesInstanceUID = "1.2.7"
        series.ReferencedSOPSequence = refers_to(*about, sop_class=sop_class)
        study = Dataset()
        study.StudyInstanceUID = "1.2"
        study.ReferencedSeriesSequence = Sequence([series])
        ds.CurrentRequestedProcedureEvidenceSequence = Sequence([study])
        for item in ds.ContentSequence:
            for keyword in ("ReferencedSOPSequence", "ContentSequence"):
                if keyword in item:
                    del item[keyword]
        for keyword in ("PertinentOtherEvidenceSequence", "PredecessorDocumentsSequence",
                        "IdenticalDocumentsSequence", "ReferencedRequestSequence"):  # fmt: skip
            if keyword in ds:
                del ds[keyword]
        path = tmp_path / "report.dcm"
        ds.save_as(path)
        return path

    return make


def uid_of(path):
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def references(path):
    with closing(open_data_file(path)) as data:
        return referenced_uids(data.read_header())


# What the journal knows


def test_what_was_said_first_holds_for_all_time(node):
    spool = node.spool
    assert spool.fate_of("1.2").sent_as is None
    assert not spool.has_new_uids
    assert spool.assign_uid("1.2", "2.25.1") == "2.25.1"
    assert spool.assign_uid("1.2", "1.2") == "2.25.1"
    assert spool.fate_of("1.2").sent_as == "2.25.1"
    assert spool.fate_of("2.25.1").sent_as == "2.25.1", "a new UID of ours is sent as it is"
    assert spool.assign_uid("2.25.1", "2.25.2") == "2.25.1"
    assert spool.has_new_uids


def test_a_journal_of_the_last_release_gains_the_new_column_and_loses_nothing(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        connection.executescript((GOLDEN / "journal_2.sql").read_text("utf-8"))
    with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
        [delivered, marked] = spool.jobs()
        assert (delivered.state, marked.state) == ("delivered", "marked")
        assert marked.sent_instance_uid == marked.sop_instance_uid
        assert spool.fate_of(delivered.sop_instance_uid).sent_as == delivered.sop_instance_uid
        [row] = spool.outbox()
        assert (row.sop_instance_uid, row.received_sop_instance_uid) == (
            marked.sop_instance_uid, "",
        )  # fmt: skip
        [delivery] = spool.claim_delivery("pacs")
        assert delivery.sop_instance_uid == marked.sop_instance_uid
    with Spool(SpoolConfig(directory=folder, min_free_mib=0)) as spool:
        assert len(spool.jobs()) == 2


# Orders of arrival


@pytest.mark.parametrize("first", ["image", "report"])
def test_a_report_follows_its_image_whichever_comes_first(first, node, image, report):
    paths = {"image": image("1.2.1"), "report": report("1.2.1")}
    order = sorted(paths, key=lambda kind: kind != first)
    jobs = {}
    for kind in order:
        jobs[kind] = node.receive(paths[kind])
        node.mark()
        node.clock.tick(1.0)
    node.mark()
    new = derive_uid("1.2.1", node.ring.uid_key)
    assert uid_of(node.sent[jobs["image"]]) == new
    assert references(node.sent[jobs["report"]]) == {new}
    assert uid_of(node.sent[jobs["report"]]) == "1.2.77", "nothing of it was marked"
    assert node.job(jobs["image"]).sent_instance_uid == new
    assert {check_instance(p, node.ring, node.engine).verdict for p in node.sent.values()} == {
        "authentic"
    }


def test_who_waits_says_for_what_and_loses_no_attempt(node, report, image):
    job = node.receive(report("1.2.1", "1.2.2"))
    node.receive(image("1.2.3"))
    for _ in range(3):
        node.mark()
        node.clock.tick(2.0)
    waiting = node.job(job)
    assert (waiting.state, waiting.attempts) == ("received", 0)
    assert waiting.reason == (
        "waits for 2 of 2 instances it refers to, 0 of them are here and not marked yet"
    )


def test_images_that_refer_to_each_other_do_not_wait_for_each_other(node, image):
    jobs = [node.receive(image("1.2.1", ["1.2.2"])), node.receive(image("1.2.2", ["1.2.1"]))]
    node.mark()
    node.clock.tick(1.0)
    node.mark()
    first, second = (node.sent[job] for job in jobs)
    assert uid_of(first) in references(second)
    assert uid_of(second) in references(first)


def test_what_is_here_is_waited_for_beyond_the_limit(node, report, image):
    node.receive(image("1.2.1"))
    job = node.receive(report("1.2.1"))
    # The image's worker hangs: nobody knows its UID, and somebody will.
    claimed = node.spool.claim(lease_s=1e6)
    for _ in range(8):
        node.clock.tick(WAIT_S)
        node.mark()
    assert node.job(job).state == "received"
    assert "1 of them are here" in node.job(job).reason
    node.spool.unclaim(claimed)
    node.mark()
    node.clock.tick(WAIT_S)
    node.mark()
    assert references(node.sent[job]) == {derive_uid("1.2.1", node.ring.uid_key)}


def test_an_image_that_comes_too_late_keeps_its_uid_and_every_reference_resolves(
    node, report, image
):
    job = node.receive(report("1.2.1"))
    node.mark()
    node.clock.tick(WAIT_S)
    node.mark()
    assert references(node.sent[job]) == {"1.2.1"}
    late = node.receive(image("1.2.1"))
    node.mark()
    assert uid_of(node.sent[late]) == "1.2.1"
    assert node.job(late).action == "marked"
    assert check_instance(node.sent[late], node.ring, node.engine).verdict == "authentic"


# What is not marked


@pytest.mark.parametrize("first", ["palette", "report"])
def test_what_cannot_be_marked_keeps_its_uid_and_who_refers_to_it_its_reference(
    first, node, report, shared
):
    palette = shared / "dicom" / PALETTE
    uid = uid_of(palette)
    paths = {"palette": palette, "report": report(uid, sop_class="1.2.840.10008.5.1.4.1.1.6.1")}
    jobs = {}
    for kind in sorted(paths, key=lambda kind: kind != first):
        jobs[kind] = node.receive(paths[kind])
        node.mark()
        node.clock.tick(1.0)
    node.mark()
    assert {node.job(job).action for job in jobs.values()} == {"sealed"}
    assert uid_of(node.sent[jobs["palette"]]) == uid
    assert references(node.sent[jobs["report"]]) == {uid}


def test_what_is_held_stops_nobody_and_keeps_its_uid_when_it_is_released(node, shared, image):
    palette = shared / "dicom" / PALETTE
    held = node.receive(palette)
    job = node.receive(image("1.2.1", [uid_of(palette)]))
    node.mark(on_unmarkable="hold")
    assert node.job(held).state == "held"
    node.clock.tick(WAIT_S)
    node.mark(on_unmarkable="hold")
    assert references(node.sent[job]) >= {uid_of(palette)}
    node.spool.release(held)
    node.mark(on_unmarkable="hold")
    assert node.job(held).action == "sealed"
    assert uid_of(node.sent[held]) == uid_of(palette)


def test_what_turns_out_to_hold_no_marks_is_sealed_under_the_uid_that_others_were_told(
    node, tmp_path, report
):
    # Two grey levels in 8 x 8 pixels: an image, and no room for a mark.
    ds = ct("1.2.1", size=8)
    ds.PixelData = bytes([0, 0, 255, 15] * 32)
    path = harness.save(ds, tmp_path / "tiny.dcm")
    image_job, report_job = node.receive(path), node.receive(report("1.2.1"))
    node.mark()
    new = derive_uid("1.2.1", node.ring.uid_key)
    sent = node.sent[image_job]
    assert (node.job(image_job).action, uid_of(sent)) == ("sealed", new)
    assert references(node.sent[report_job]) == {new}
    assert check_instance(sent, node.ring, node.engine).verdict == "authentic"
    assert restore(sent, tmp_path / "back.dcm", node.ring).exact
    assert harness.data_set_bytes(tmp_path / "back.dcm") == harness.data_set_bytes(path)


def test_a_seal_that_covers_coded_pixels_is_not_broken_by_recoding_them(node, tmp_path, report):
    ds = ct("1.2.1", size=8)
    ds.PixelData = bytes([0, 0, 255, 15] * 32)
    path = harness.save(ds, tmp_path / "plain.dcm")
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(path)
    node.spool.assign_uid("1.2.1", "2.25.1")
    image_job = node.receive(path)
    node.mark()
    assert (node.job(image_job).action, uid_of(node.sent[image_job])) == ("sealed", "2.25.1")
    with pytest.raises(PixelError, match="the header seal covers the pixel data as it is coded"):
        transcode(node.sent[image_job], tmp_path / "out.dcm", TARGETS, max_pixels=1 << 20)


def test_what_comes_back_from_the_pacs_is_passed_on_and_gets_no_third_uid(node, image, report):
    job = node.receive(image("1.2.1"))
    node.mark()
    sent = node.sent[job]
    again, about = node.receive(sent), node.receive(report(uid_of(sent)))
    node.mark()
    assert node.job(again).action == "untouched"
    assert harness.data_set_bytes(node.sent[again]) == harness.data_set_bytes(sent)
    assert references(node.sent[about]) == {uid_of(sent)}


# Again, and after changes


def test_the_same_study_sent_again_is_the_same_bytes_even_after_a_new_key(node, image, report):
    paths = [report("1.2.1", "1.2.9"), image("1.2.1", ["1.2.2"]), image("1.2.2")]
    jobs = [node.receive(path) for path in paths]
    node.mark()
    node.clock.tick(WAIT_S)
    node.mark()
    node.ring.rotate("TEST-HOSPITAL")
    again = [node.receive(path) for path in paths]
    node.mark()
    for first, second in zip(jobs, again, strict=True):
        assert node.job(second).repeat_of == first
        assert node.sent[second].read_bytes() == node.sent[first].read_bytes()
    other = node.receive(image("1.2.3", ["1.2.1"]))
    node.mark()
    assert uid_of(node.sent[jobs[1]]) in references(node.sent[other])


def test_what_was_sent_before_the_policy_changed_keeps_the_uid_it_was_sent_under(
    node, image, report
):
    kept = node.receive(image("1.2.1"))
    node.mark("keep")
    assert uid_of(node.sent[kept]) == "1.2.1"
    about, again = node.receive(report("1.2.1", "1.2.2")), node.receive(image("1.2.1"))
    renamed = node.receive(image("1.2.2"))
    node.mark()
    node.clock.tick(1.0)
    node.mark()
    new = uid_of(node.sent[renamed])
    assert references(node.sent[about]) == {"1.2.1", new}
    assert node.sent[again].read_bytes() == node.sent[kept].read_bytes()
    back = node.receive(image("1.2.2"))
    third = node.receive(image("1.2.3", ["1.2.2"]))
    node.mark("keep")
    assert node.sent[back].read_bytes() == node.sent[renamed].read_bytes()
    assert uid_of(node.sent[third]) == "1.2.3"
    assert references(node.sent[third]) == {new}


# Taking it back


def test_a_report_is_restored_byte_for_byte_unless_somebody_changed_it(
    node, image, report, tmp_path
):
    path = report("1.2.1")
    node.receive(image("1.2.1"))
    job = node.receive(path)
    node.mark()
    sent = node.sent[job]
    assert restore(sent, tmp_path / "back.dcm", node.ring).exact
    assert harness.data_set_bytes(tmp_path / "back.dcm") == harness.data_set_bytes(path)
    said = pydicom.dcmread(sent)
    assert "references follow" in said.ContributingEquipmentSequence[-1].ContributionDescription
    [before] = said.OriginalAttributesSequence[-1].ModifiedAttributesSequence
    assert "CurrentRequestedProcedureEvidenceSequence" in before
    said.PatientID = "SOMEBODY-ELSE"
    said.save_as(tmp_path / "changed.dcm")
    outcome = restore(tmp_path / "changed.dcm", tmp_path / "no.dcm", node.ring)
    assert not outcome.exact
    assert not (tmp_path / "no.dcm").exists()


def test_a_large_sequence_is_taken_back_and_told_of_only_once(node, image, shared, tmp_path):
    ds = pydicom.dcmread(shared / "dicom/seg/dcmqi__liver.dcm")
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups * (3000 // len(groups)))
    path = tmp_path / "seg.dcm"
    ds.save_as(path)
    about = [uid for uid in references(path) if uid != uid_of(path)]
    for uid in about:
        node.receive(image(uid))
    job = node.receive(path)
    node.mark()
    node.clock.tick(1.0)
    node.mark()
    sent = node.sent[job]
    assert references(sent) == {derive_uid(uid, node.ring.uid_key) for uid in about}
    assert sent.stat().st_size < 1.5 * path.stat().st_size
    assert restore(sent, tmp_path / "back.dcm", node.ring).exact
    assert harness.data_set_bytes(tmp_path / "back.dcm") == harness.data_set_bytes(path)


def test_files_marked_by_one_command_follow_each_other(engine, tmp_path, image, report):
    ring = KeyRing.open(tmp_path / "keys", owner="TEST-HOSPITAL", create=True)
    names = BatchNames(ring.uid_key)
    assert names.own("1.2.1", marked=True) == names.own("1.2.1", marked=False)
    assert names.own("1.2.2", marked=False) == "1.2.2"
    names.all_tried()
    found = names.references({"1.2.1", "1.2.2", "1.2.3"}, since=None)
    assert found == {"1.2.1": derive_uid("1.2.1", ring.uid_key)}


@pytest.fixture
def batch(tmp_path, image, report):
    """Keys, a folder with a report on an image that comes after it, and ``mark`` on that."""
    ring = KeyRing.open(tmp_path / "keys", owner="TEST-HOSPITAL", create=True)
    (tmp_path / "in").mkdir()
    report("1.2.1", "1.2.9").rename(tmp_path / "in" / "a.dcm")
    image("1.2.1").rename(tmp_path / "in" / "b.dcm")
    conf = tmp_path / "node.toml"
    conf.write_text(
        f'[watermark]\nowner = "TEST-HOSPITAL"\nengine = "onnx"\nuid_policy = "derive"\n'
        f'[keys]\ndirectory = "{tmp_path}/keys"\n[spool]\ndirectory = "{tmp_path}/spool"\n'
    )
    words = ["mark", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--config", str(conf)]
    return ring, lambda: main(words)


def test_mark_lets_a_report_follow_whatever_the_files_are_called(batch, tmp_path):
    ring, mark = batch
    assert mark() == 0
    out = tmp_path / "out"
    assert uid_of(out / "b.dcm") == derive_uid("1.2.1", ring.uid_key)
    assert references(out / "a.dcm") == {uid_of(out / "b.dcm"), "1.2.9"}


def test_a_report_follows_though_the_process_that_marked_its_image_has_ended(
    batch, tmp_path, image, codec_astray
):
    ring, mark = batch
    ds = pydicom.dcmread(image("1.2.5"))
    ds.compress(JPEGLSLossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "in" / "c.dcm")
    assert mark() == 3
    out = tmp_path / "out"
    assert not (out / "c.dcm").exists()
    assert references(out / "a.dcm") == {derive_uid("1.2.1", ring.uid_key), "1.2.9"}


def test_a_process_that_takes_a_batch_over_goes_on_from_what_was_said(tmp_path):
    ring = KeyRing.open(tmp_path / "keys", owner="TEST-HOSPITAL", create=True)
    first = BatchNames(ring.uid_key)
    new = first.own("1.2.3", marked=True)
    assert (first.news(), first.news()) == ({"1.2.3": new}, {})
    second = BatchNames(ring.uid_key, {"1.2.3": new})
    assert second.references(["1.2.3"], since=None) == {"1.2.3": new}
    second.own("1.2.4", marked=False)
    assert second.news() == {"1.2.4": "1.2.4"}
