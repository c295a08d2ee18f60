"""The form of a line: what is written is read back, what is changed does not hold."""

import json
import subprocess
from datetime import UTC, datetime
from hashlib import sha3_256

import harness
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.audit.entries import FIRST, Signed, format_line, parse, signed_text
from dicom_node.audit.events import format_time

TIME = format_time(datetime(2026, 11, 22, 3, 0, tzinfo=UTC))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
)  # fmt: skip


@given(
    seq=st.integers(1, 10**18), reference=st.text(), more=st.dictionaries(st.text(), VALUES),
    kind=st.from_regex(r"[a-z-]{1,40}", fullmatch=True),
)  # fmt: skip
def test_a_line_is_read_back_as_it_was_written(seq, reference, more, kind):
    event = {"kind": kind} | {key: value for key, value in more.items() if key != "kind"}
    line, digest = format_line(seq, TIME, FIRST, event, reference)
    assert b"\n" not in line
    entry = parse(line)
    assert (entry.seq, entry.time, entry.prev, entry.kind) == (seq, TIME, FIRST, kind)
    assert (entry.reference, entry.event, entry.hash) == (reference, event, digest)
    assert entry.holds
    assert json.loads(line)["hash"] == digest


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), reference=st.text(max_size=9))
def test_a_changed_bit_is_no_entry_or_does_not_hold(at, bit, reference):
    line, _ = format_line(7, TIME, FIRST, {"kind": "verified", "verdict": "authentic"}, reference)
    changed = bytearray(line)
    changed[at % len(line)] ^= 1 << bit
    entry = parse(bytes(changed))
    assert entry is None or not entry.holds


@given(junk=st.binary(max_size=300))
def test_junk_is_no_entry(junk):
    assert parse(junk) is None


def test_openssl_and_nothing_of_ours_checks_a_checkpoint(trail, tmp_path):
    trail.fill(3)
    said = json.loads(trail.lines()[-1])
    signed = said["event"]
    text = "\n".join(["dicom-node audit checkpoint 1", signed["log"], str(said["seq"]),
                      said["prev"], said["time"], str(signed["every"]), ""])  # fmt: skip
    (tmp_path / "text").write_text(text)
    (tmp_path / "signature").write_bytes(bytes.fromhex(signed["signature"]))
    (tmp_path / "key.pem").write_text(trail.ring.export_public())
    command = [harness.tool("openssl"), "pkeyutl", "-verify", "-pubin", "-inkey",
               tmp_path / "key.pem", "-rawin", "-in", tmp_path / "text", "-sigfile",
               tmp_path / "signature"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout, done.stderr
    previous = trail.lines()[-2]
    assert sha3_256(previous[: previous.rindex(b',"hash"')]).hexdigest() == said["prev"]
    assert text.encode() == signed_text(
        signed["log"], said["seq"], said["prev"], said["time"], signed["every"]
    )
    assert Signed.of(signed).verified_by(trail.ring, parse(trail.lines()[-1]))
