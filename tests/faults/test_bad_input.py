"""Bad input through the real Storage SCP and mark worker: a clear reason, and nothing lost."""

import contextlib
import json
import struct
import zlib
from pathlib import Path

import harness
import pydicom
import pytest
from harness import CT, ct, encoded
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from dicom_node.inference import open_engine
from dicom_node.verify.check import check_instance

pytestmark = [pytest.mark.fault, pytest.mark.peer, pytest.mark.xdist_group("bad_input")]

PRIVATE_CLASS = "1.2.826.0.1.3680043.8.498.77.1"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One node for the module: what one bad instance does must not hurt the next."""
    folder = tmp_path_factory.mktemp("bad")
    scp = harness.StoreSCP(folder)
    one = harness.RunningNode(folder / "node", [{"port": scp.port, "ae_title": "STORESCP"}])
    try:
        one.start()
        one.scp = scp
        yield one
        assert "fault in the node" not in one.output
        assert all(job.crashes == 0 for job in one.jobs())
    finally:
        one.kill_all()
        scp.child.kill()


def send(node, data_set, uid, *, sop_class=CT, syntax=ExplicitVRLittleEndian):
    """Send; it must be answered with success; return the one job it became, settled."""
    before = {job.id for job in node.jobs()}
    status = harness.send_bytes(
        node, data_set, sop_class=sop_class, sop_instance_uid=uid, syntax=syntax
    )
    assert status == 0x0000
    [job] = [job for job in node.settled() if job.id not in before]
    assert job.sop_instance_uid == uid
    return job


def kept(job, data_set):
    """Whether the bytes as received are still in the spool."""
    return harness.data_set_bytes(job.path) == data_set


def delivered(node, uid):
    """Return the one file the PACS has under this UID."""
    stored = node.scp.stored()
    assert uid in stored, f"{uid!r} is not among {list(stored)}"
    [path] = stored[uid]
    return path


def verdict(node, path):
    return check_instance(path, node.ring(), open_engine("onnx"))


def test_a_truncated_data_set_is_held_with_its_bytes_and_comes_back_on_release(node):
    uid = generate_uid()
    data_set = encoded(ct(uid))[:-1500]
    job = send(node, data_set, uid)
    assert job.state == "held"
    assert "cut short" in job.reason
    assert kept(job, data_set)
    listed = node.cli("queue", "list", "--state", "held", "--json").stdout.splitlines()
    assert job.reason in [json.loads(line)["reason"] for line in listed]
    assert node.cli("queue", "release", job.id).returncode == 0
    [again] = [one for one in node.settled() if one.id == job.id]
    assert (again.state, again.reason) == ("held", job.reason)
    assert kept(again, data_set)


def test_pixel_data_shorter_than_announced_is_sealed_and_delivered(node):
    uid = generate_uid()
    ds = ct(uid)
    ds.Rows = 80
    job = send(node, encoded(ds), uid)
    assert (job.state, job.action) == ("delivered", "sealed")
    assert "the pixel data has 8192 bytes" in job.reason
    path = delivered(node, uid)
    assert pydicom.dcmread(path).PixelData == ds.PixelData
    assert verdict(node, path).verdict == "authentic"


@pytest.mark.parametrize(
    ("implicit", "little", "syntax", "found"),
    [
        (True, True, ExplicitVRLittleEndian, "Implicit VR Little Endian"),
        (False, True, ImplicitVRLittleEndian, "Explicit VR Little Endian"),
        (False, False, ExplicitVRLittleEndian, "Explicit VR Big Endian"),
        (False, True, ExplicitVRBigEndian, "Explicit VR Little Endian"),
        (True, True, JPEG2000Lossless, "Implicit VR Little Endian"),
    ],
)
def test_a_data_set_in_another_encoding_than_its_context_is_held_and_both_are_named(
    node, implicit, little, syntax, found
):
    uid = generate_uid()
    data_set = encoded(ct(uid), implicit=implicit, little=little)
    job = send(node, data_set, uid, syntax=syntax)
    assert job.state == "held"
    assert found in job.reason
    assert syntax.name in job.reason
    assert kept(job, data_set)


def test_native_pixels_in_a_compressed_context_are_sealed_and_the_reason_says_so(node):
    uid = generate_uid()
    job = send(node, encoded(ct(uid)), uid, syntax=JPEG2000Lossless)
    assert (job.state, job.action) == ("delivered", "sealed")
    assert "the pixel data is native" in job.reason


def test_a_wrong_transfer_syntax_in_the_meta_header_is_named_by_mark(node, tmp_path):
    path = tmp_path / "in" / "wrong.dcm"
    path.parent.mkdir()
    harness.save(ct(), path)
    raw = path.read_bytes()
    right, wrong = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"
    path.write_bytes(raw.replace(right, wrong, 1))
    done = node.cli("mark", path.parent, "--out", tmp_path / "out", "--json")
    assert done.returncode == 3
    [line] = map(json.loads, done.stdout.splitlines())
    assert (line["action"], line["out"]) == ("held", None)
    assert "Implicit VR Little Endian" in line["reason"]
    assert "Explicit VR Little Endian" in line["reason"]


@pytest.mark.parametrize("missing", ["SOPInstanceUID", "SOPClassUID", "StudyInstanceUID"])
def test_a_missing_uid_loses_nothing(node, missing):
    uid = generate_uid()
    ds = ct(uid)
    del ds[missing]
    job = send(node, encoded(ds), uid)
    assert (job.state, job.action) == ("delivered", "marked")  # the request has its UIDs
    assert verdict(node, delivered(node, uid)).verdict == "authentic"


def test_a_request_without_uid_is_refused_not_crashed(node):
    before = len(node.jobs())
    with harness.association(node) as send_one:
        assert send_one(ct(), sop_instance_uid="") != 0x0000
        assert send_one(ct()) == 0x0000
    assert len(node.settled()) == before + 1


def test_a_data_set_of_odd_length_is_held_because_no_peer_takes_it(node):
    uid = generate_uid()
    odd = struct.pack("<HH2sH3s", 0x7FF1, 0x0010, b"LO", 3, b"odd")
    data_set = encoded(ct(uid)) + odd
    job = send(node, data_set, uid)
    assert job.state == "held"
    assert "odd number of bytes" in job.reason
    assert job.result.exists()


@pytest.mark.parametrize("uid", ["../../x", "/etc/x"])
def test_a_uid_that_is_none_builds_no_path(node, uid):
    outside = {path for path in node.folder.parent.rglob("*") if "storescp" not in path.parts}
    data_set = encoded(ct("1.2.3.4")).replace(b"1.2.3.4\0", uid.encode().ljust(8, b"\0"))
    job = send(node, data_set, uid)
    assert job.state in ("delivered", "held")
    assert job.path.resolve().is_relative_to(node.config.spool.directory.resolve())
    now = {path for path in node.folder.parent.rglob("*") if "storescp" not in path.parts}
    assert all(path.is_relative_to(node.folder / "spool") for path in now - outside)
    if job.state == "delivered":
        assert verdict(node, delivered(node, uid)).verdict == "authentic"


def test_the_same_instance_twice_gives_the_pacs_the_same_bytes(node):
    uid = generate_uid()
    data_set = encoded(ct(uid))
    first = send(node, data_set, uid)
    second = send(node, data_set, uid)
    assert second.repeat_of == first.id
    assert not second.differs_from_repeat
    a, b = node.scp.stored()[uid]
    assert harness.data_set_bytes(a) == harness.data_set_bytes(b)


def test_other_content_under_a_known_uid_is_a_job_of_its_own_and_reported(node):
    uid = generate_uid()
    first = send(node, encoded(ct(uid)), uid)
    second = send(node, encoded(ct(uid, seed=1)), uid)
    assert second.conflicts_with == first.id
    assert "other content under a known SOP Instance UID" in node.output
    a, b = node.scp.stored()[uid]
    assert {verdict(node, path).verdict for path in (a, b)} == {"authentic"}
    assert harness.data_set_bytes(a) != harness.data_set_bytes(b)


def test_two_series_that_share_a_uid_both_arrive(node):
    uid = generate_uid()
    for series in ("1.2.3.1.1", "1.2.3.1.2"):
        assert send(node, encoded(ct(uid, SeriesInstanceUID=series)), uid).state == "delivered"
    stored = node.scp.stored()[uid]
    series = {pydicom.dcmread(path).SeriesInstanceUID for path in stored}
    assert series == {"1.2.3.1.1", "1.2.3.1.2"}


def test_an_unknown_private_class_is_marked_and_delivered(node):
    uid = generate_uid()
    ds = ct(uid, SOPClassUID=PRIVATE_CLASS)
    job = send(node, encoded(ds), uid, sop_class=PRIVATE_CLASS)
    assert (job.state, job.action) == ("delivered", "marked")
    assert verdict(node, delivered(node, uid)).verdict == "authentic"


@pytest.mark.parametrize("compressed", [False, True])
def test_zero_length_pixel_data_is_sealed(node, compressed):
    uid = generate_uid()
    ds = ct(uid)
    ds.PixelData = b""
    syntax = ExplicitVRLittleEndian
    if compressed:
        ds.PixelData = bytes.fromhex("feff00e000000000") * 2  # no offset table, an empty fragment
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        syntax = JPEGLSLossless
    job = send(node, encoded(ds), uid, syntax=syntax)
    assert (job.state, job.action) == ("delivered", "sealed")
    assert "no pixel data" in job.reason or "pixel data is empty" in job.reason
    assert verdict(node, delivered(node, uid)).verdict == "authentic"


def jpeg_ls(rows, columns):
    """Return a JPEG-LS code stream that announces a size and has next to no data."""
    frame = struct.pack(">2sHBHHB3B", b"\xff\xf7", 11, 8, rows, columns, 1, 1, 0x11, 0)
    scan = struct.pack(">2sHB2B3B", b"\xff\xda", 8, 1, 1, 0, 0, 0, 0)
    return b"\xff\xd8" + frame + scan + bytes(64) + b"\xff\xd9"


def jpeg_2000(rows, columns):
    size = struct.pack(">HIIIIIIIIH3B", 0, columns, rows, 0, 0, columns, rows, 0, 0, 1, 7, 1, 1)
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + bytes(64) + b"\xff\xd9"


def rle(rows, columns):
    runs = b"\x81\x00" * 4096
    return struct.pack("<16I", 1, 64, *[0] * 14) + runs


BOMBS = {
    "native": (ExplicitVRLittleEndian, None),
    "JPEG-LS": (JPEGLSLossless, jpeg_ls),
    "JPEG 2000": (JPEG2000Lossless, jpeg_2000),
    "RLE": (RLELossless, rle),
}


@pytest.mark.parametrize("announced", ["in the header", "in the code stream only"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_decompression_bomb_costs_no_memory(node, kind, announced):
    syntax, build = BOMBS[kind]
    uid = generate_uid()
    ds = ct(uid, BitsAllocated=8, BitsStored=8, HighBit=7)
    if announced == "in the header":
        ds.Rows = ds.Columns = 60000
    if build is not None:
        ds.PixelData = encapsulate([build(60000, 60000)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    job = send(node, encoded(ds), uid, syntax=syntax)
    marked = kind in ("native", "RLE") and announced != "in the header"
    assert job.state == "delivered", job.reason
    if not marked:  # else nothing is announced that is not there
        assert job.action == "sealed"
        assert "60000" in job.reason
    assert peak_mib(node.processes()["mark-0"]) < 700
    assert verdict(node, delivered(node, uid)).verdict == "authentic"


def test_a_deflated_bomb_is_held_in_bounded_memory(node):
    uid = generate_uid()
    ds = ct(uid)
    del ds.PixelData
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 0xFFFFFFF0)
    parts = [engine.compress(encoded(ds) + pixels)]
    parts += [engine.compress(bytes(1 << 24)) for _ in range(16)]  # 256 MiB of announced 4 GiB
    data_set = b"".join([*parts, engine.flush()])
    assert len(data_set) < 1 << 20
    job = send(node, data_set, uid, syntax=DeflatedExplicitVRLittleEndian)
    assert job.state == "held"
    assert "cut short" in job.reason
    assert kept(job, data_set)
    assert peak_mib(node.processes()["mark-0"]) < 700


def peak_mib(pid):
    """Return the peak resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has ended")


def test_everything_malformed_ends_with_a_reason_and_its_bytes(node, shared):
    paths = sorted((shared / "dicom" / "malformed").iterdir())
    assert paths
    for path in paths:
        uid, syntax, sop_class, data_set = as_sent(path)
        before = set(node.scp.folder.iterdir())
        job = send(node, data_set, uid, syntax=syntax, sop_class=sop_class)
        assert job.state in ("delivered", "held"), (path.name, job)
        if job.state == "held":
            assert job.reason, path.name
            assert kept(job, data_set), path.name
        else:
            [arrived] = set(node.scp.folder.iterdir()) - before
            assert verdict(node, arrived).verdict == "authentic", path.name
            assert job.action == "marked" or job.reason, path.name


def as_sent(path):
    """Return what a sender makes of a file whose meta header may be missing or wrong."""
    raw = path.read_bytes()
    with path.open("rb") as file, contextlib.suppress(ValueError):
        meta = harness.read_file_meta(file)
        return (meta.sop_instance_uid, meta.transfer_syntax_uid, meta.sop_class_uid,
                raw[meta.data_set_offset :])  # fmt: skip
    at = 132 if raw[128:132] == b"DICM" else 0
    while raw[at : at + 2] == b"\x02\x00":
        long = raw[at + 4 : at + 6] in (b"OB", b"UN")
        length = struct.unpack_from("<I" if long else "<H", raw, at + (8 if long else 6))[0]
        at += (12 if long else 8) + length
    explicit = raw[at + 4 : at + 6].isalpha()
    syntax = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    ds = pydicom.dcmread(path, force=True, specific_tags=["SOPInstanceUID"])
    return str(ds.get("SOPInstanceUID") or generate_uid()), syntax, CT, raw[at:]
