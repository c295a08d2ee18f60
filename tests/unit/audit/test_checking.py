"""Whoever changes the trail is found out, and the first broken entry is named."""

import json
from datetime import UTC, datetime
from hashlib import sha3_256
from pathlib import Path

import pytest

from dicom_node.audit.checking import check_log
from dicom_node.audit.entries import CHECKPOINT
from dicom_node.audit.reading import entries
from dicom_node.audit.segments import segment_numbers
from dicom_node.errors import AuditError
from dicom_node.keys import KeyRing, KeySet

AT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
GOLDEN = Path(__file__).parents[2] / "golden" / "audit"


def rehashed(line):
    """Give a changed line a hash of its own, as somebody who knows the format would."""
    body = line.rpartition(b',"hash":')[0]
    return body + b',"hash":"' + sha3_256(body).hexdigest().encode() + b'"}'


def rechained(lines):
    """Chain and number lines anew from the first to the last."""
    made, previous = [], "0" * 64
    for seq, line in enumerate(lines, 1):
        said = json.loads(line)
        old = f'{{"seq":{said["seq"]},"time":"{said["time"]}","prev":"{said["prev"]}"'.encode()
        new = f'{{"seq":{seq},"time":"{said["time"]}","prev":"{previous}"'.encode()
        assert line.startswith(old)
        made.append(rehashed(new + line[len(old) :]))
        previous = json.loads(made[-1])["hash"]
    return made


def forged(line, **changes):
    for old, new in changes.values():
        assert old in line
        line = line.replace(old, new)
    return line


TAMPERED = (b'"verdict":"authentic"', b'"verdict":"tampered!"')


def changed(lines):
    lines[5] = lines[5].replace(*TAMPERED)


def changed_and_hashed_anew(lines):
    lines[5] = rehashed(lines[5].replace(*TAMPERED))


def no_json(lines):
    lines[5] = b"what?"


def removed(lines):
    del lines[5]


def several_removed(lines):
    del lines[5:8]


def copied(lines):
    lines.insert(5, lines[2])


def copied_ahead(lines):
    lines.insert(5, lines[9])


def forged_beside(lines):
    twin = lines[5].replace(*TAMPERED)
    lines.insert(5, rehashed(twin))


def forged_without_place(lines):
    lines.insert(5, rehashed(lines[8].replace(b'"seq":9,', b'"seq":6,')))


def neighbours_swapped(lines):
    lines[5], lines[6] = lines[6], lines[5]


def moved_back(lines):
    lines.insert(5, lines.pop(9))


def moved_forward(lines):
    lines.insert(9, lines.pop(5))


@pytest.mark.parametrize(
    ("change", "kind", "entry"),
    [
        (changed, "changed", 6),
        (changed_and_hashed_anew, "changed", 6),
        (no_json, "changed", 6),
        (removed, "removed", 6),
        (several_removed, "removed", 6),
        (copied, "inserted", 3),
        (copied_ahead, "inserted", 10),
        (forged_beside, "inserted", 6),
        (forged_without_place, "inserted", 6),
        (neighbours_swapped, "re-ordered", 6),
        (moved_back, "re-ordered", 6),
        (moved_forward, "re-ordered", 6),
    ],
)
def test_the_first_broken_entry_is_named_with_what_was_done_to_it(trail, change, kind, entry):
    trail.fill(12)
    assert trail.check().broken is None
    lines = trail.lines()
    change(lines)
    trail.write(lines)
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == (kind, entry), broken
    assert broken.segment == "00000001.jsonl"


@pytest.mark.parametrize("kind", ["segment", "checkpoint", "verified"])
@pytest.mark.parametrize(
    "content",
    [b'{"kind":"%b"}x{}', b'{"kind":"%b"},"event":[{}',
     b'{"kind":"%b","a":' + b"[" * 99999 + b"]" * 99999 + b"}",
     b'{"kind":"%b","log":5,"every":{},"key":[]}'],
)  # fmt: skip
def test_a_line_made_to_hurt_its_reader_is_a_break_not_a_crash(trail, kind, content):
    trail.fill(12)
    lines = trail.lines()
    head = lines[5].partition(b'"event":')[0] + b'"event":'
    lines[5] = rehashed(head + content % kind.encode() + b',"hash":"')
    trail.write(lines)
    assert trail.check().broken.entry in (6, 7)
    first = lines[0].partition(b'"event":')[0] + b'"event":'
    trail.write([rehashed(first + content % kind.encode() + b',"hash":"'), *lines[1:]])
    assert trail.check().broken is not None


@pytest.mark.parametrize("position", range(1, 12))
def test_any_changed_byte_is_found_in_its_entry(trail, position):
    trail.fill(9, checkpoint_every=4)
    lines = trail.lines()
    line = bytearray(lines[position])
    for at in range(0, len(line), 41):
        line[at] ^= 2
        trail.write([*lines[:position], bytes(line), *lines[position + 1 :]])
        broken = trail.check().broken
        line[at] ^= 2
        # A changed number may make it look like another entry; the place is the same.
        assert broken is not None, at
        assert broken.line in (position + 1, position + 2)


def is_checkpoint(line):
    return b'"kind":"checkpoint"' in line


def without_checkpoints(lines):
    return [each for each in lines if not is_checkpoint(each)]


def without_checkpoints_and_one_more(lines):
    return [*without_checkpoints(lines), lines[2], lines[3], lines[4], lines[6]]


def without_later_checkpoints(lines):
    return [*lines[:6], *without_checkpoints(lines[6:])]


def one_forged_between(lines):
    return [*lines[:10], lines[9].replace(*TAMPERED), *lines[10:]]


def one_changed(lines):
    return [*lines[:8], lines[8].replace(*TAMPERED), *lines[9:]]


@pytest.mark.parametrize(
    ("change", "kind", "entry"),
    [
        (without_checkpoints, "rewritten", 1),
        (without_checkpoints_and_one_more, "rewritten", 1),
        (without_later_checkpoints, "unsigned", 7),
        (one_forged_between, "unsigned", 7),
        (one_changed, "rewritten", 7),
    ],
)
def test_a_trail_computed_anew_breaks_behind_the_last_signature_that_holds(
    trail, change, kind, entry
):
    trail.fill(23, checkpoint_every=5)
    lines = trail.lines()
    assert [n for n, line in enumerate(lines, 1) if is_checkpoint(line)][:2] == [6, 12]
    trail.write(rechained(change(lines)))
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == (kind, entry), broken


def test_checkpoints_taken_out_of_the_end_alone_are_missed_by_the_list(trail):
    trail.fill(8, checkpoint_every=5)
    lines = trail.lines()
    assert is_checkpoint(lines[-1])
    trail.write(rechained([*lines[:-1], lines[-2]]))
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == ("rewritten", 7), broken


def no_checkpoint(listed):
    listed[1] = b"what?"


def an_event(listed):
    listed[1] = listed[1].replace(b"checkpoint", b"verified")


def one_digit(listed):
    listed[1] = listed[1].replace(b'"every":5', b'"every":9')


def blank_before(listed):
    listed.insert(1, b"")


def out_of_order(listed):
    listed[1], listed[2] = listed[2], listed[1]


def repeated(listed):
    listed.insert(1, listed[0])


@pytest.mark.parametrize(
    "damage", [no_checkpoint, an_event, one_digit, blank_before, out_of_order, repeated]
)
@pytest.mark.parametrize("position", [None, 2, 9, 20])
def test_damage_to_the_list_of_checkpoints_hides_no_break_of_the_trail(trail, damage, position):
    trail.fill(23, checkpoint_every=5)
    kept = trail.folder / "checkpoints.jsonl"
    listed = kept.read_bytes().splitlines()
    damage(listed)
    kept.write_bytes(b"".join(line + b"\n" for line in listed))
    if position is not None:
        lines = trail.lines()
        lines[position] = lines[position].replace(*TAMPERED)
        trail.write(lines)
    broken = trail.check().broken
    if position is None:
        assert (broken.kind, broken.segment) == ("changed", "checkpoints.jsonl")
        assert broken.line == (3 if damage is out_of_order else 2)
        assert broken.to_json()["words"].endswith("the trail itself is whole")
    else:
        assert (broken.kind, broken.entry) == ("changed", position + 1)


def test_a_checkpoint_gone_from_the_list_hides_no_later_break_of_the_trail(trail):
    trail.fill(23, checkpoint_every=5)
    kept = trail.folder / "checkpoints.jsonl"
    listed = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join(listed[1:]))
    assert (trail.check().broken.kind, trail.check().broken.entry) == ("removed", 6)
    lines = trail.lines()
    lines[20] = lines[20].replace(*TAMPERED)
    trail.write(lines)
    assert (trail.check().broken.kind, trail.check().broken.entry) == ("changed", 21)


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_a_last_line_of_the_list_that_a_crash_cut_short_is_no_break(trail, left):
    trail.fill(9, checkpoint_every=5)
    kept = trail.folder / "checkpoints.jsonl"
    first, last = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(first + last[:left])
    found = trail.check()
    assert (found.broken, found.unsigned) == (None, 0)
    # The next writer puts it back.
    trail.open(checkpoint_every=5).append(trail.event(99))
    assert kept.read_bytes() == first + last


def test_only_a_copy_that_was_given_is_an_error_if_it_is_no_checkpoint(trail):
    trail.fill(9, checkpoint_every=5)
    with pytest.raises(AuditError, match="elsewhere"):
        trail.check(elsewhere=[b"what?"])


def test_a_trail_rewritten_to_its_end_breaks_at_the_signature(trail):
    trail.fill(12, checkpoint_every=5)
    lines = trail.lines()
    lines[8] = lines[8].replace(*TAMPERED)
    trail.write(rechained(lines))
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == ("rewritten", 7)


def test_a_trail_rewritten_and_signed_with_another_key_is_not_believed(trail, tmp_path):
    trail.fill(12)
    trail.folder.rename(tmp_path / "before")
    stranger = KeySet.from_master(bytes([1]) * 32, "STRANGER", AT)
    ours, trail.ring = trail.ring, KeyRing((stranger,))
    trail.fill(12)
    trail.ring = ours
    found = trail.check()
    assert found.broken.kind == "unsigned"
    assert found.unknown_keys == {stranger.key_id.hex()}


def test_checkpoints_of_an_older_key_are_covered_by_a_later_one(trail):
    trail.fill(5)
    new = KeySet.from_master(bytes([2]) * 32, "TESTS", datetime(2027, 1, 1, tzinfo=UTC))
    old = trail.ring
    trail.ring = KeyRing((new, *old.all()))
    trail.fill(5)
    assert trail.check().broken is None
    public = KeyRing.from_public_pem(trail.ring.export_public())
    found = check_log(trail.folder, public)
    assert (found.broken, found.unsigned) == (None, 0)
    assert found.unknown_keys == {old.current.key_id.hex()}
    assert check_log(trail.folder, old).broken.kind == "unsigned"


@pytest.mark.parametrize("left", range(1, 13))
def test_truncation_behind_a_checkpoint_shows(trail, left):
    trail.fill(12, checkpoint_every=5)
    lines = trail.lines()
    assert len(lines) == 16
    trail.write(lines[:left])
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == ("truncated", left + 1)
    half = b"".join(line + b"\n" for line in lines[:left]) + lines[left][:30]
    trail.segment().write_bytes(half)
    assert trail.check().broken.kind == "truncated"


def test_a_segment_that_is_gone_shows(trail):
    trail.fill(60, segment_bytes=5000)
    numbers = segment_numbers(trail.folder)
    assert len(numbers) >= 4
    for number in numbers:
        kept = trail.segment(number).read_bytes()
        trail.segment(number).unlink()
        broken = trail.check().broken
        assert broken.kind == ("truncated" if number == numbers[-1] else "removed"), number
        trail.segment(number).write_bytes(kept)
    assert trail.check().broken is None


def test_a_trail_cut_back_with_its_list_shows_by_a_copy_kept_elsewhere(trail):
    trail.fill(12, checkpoint_every=5)
    kept = trail.folder / "checkpoints.jsonl"
    elsewhere = kept.read_bytes().splitlines()
    trail.write(trail.lines()[:7])
    kept.write_bytes(elsewhere[0] + b"\n")
    assert trail.check().broken is None
    broken = trail.check(elsewhere=elsewhere).broken
    assert (broken.kind, broken.entry) == ("truncated", 8)


def test_a_list_of_checkpoints_that_was_emptied_shows(trail):
    trail.fill(12, checkpoint_every=5)
    (trail.folder / "checkpoints.jsonl").write_bytes(b"")
    assert trail.check().broken.kind == "removed"


def test_a_copy_of_another_trails_checkpoint_is_not_ours(trail, tmp_path):
    trail.fill(12)
    lines = trail.lines()
    trail.folder.rename(tmp_path / "other")
    trail.fill(12)
    broken = trail.check(elsewhere=[lines[-1]]).broken
    assert broken.kind == "rewritten"


def test_a_checkpoint_moved_into_another_trail_does_not_hold(trail, tmp_path):
    trail.fill(3)
    theirs = json.loads(trail.lines()[-1])["event"]
    trail.folder.rename(tmp_path / "other")
    trail.fill(3)
    lines = trail.lines()
    said = json.loads(lines[-1])
    body = json.dumps(said | {"event": theirs}, separators=(",", ":")).encode()
    lines[-1] = rehashed(body)
    trail.write(lines)
    (trail.folder / "checkpoints.jsonl").write_bytes(lines[-1] + b"\n")
    assert trail.check().broken.kind == "rewritten"


def test_a_missing_checkpoint_breaks_the_promise_of_the_one_before(trail):
    trail.fill(11, checkpoint_every=5)
    lines = trail.lines()
    without = rechained([*lines[:7], *[each for each in lines[7:] if b"checkpoint" not in each]])
    more = rechained([*without, *without[-3:]])
    trail.write([*lines[:7], *more[7:]])
    kept = trail.folder / "checkpoints.jsonl"
    kept.write_bytes(kept.read_bytes().splitlines(keepends=True)[0])
    broken = trail.check().broken
    assert (broken.kind, broken.entry) == ("unsigned", 7)


def test_the_end_that_no_signature_covers_is_counted(trail):
    log = trail.open(checkpoint_every=5)
    log.append_many([(trail.event(k), "") for k in range(7)])
    found = trail.check()
    assert found.broken is None
    assert (found.signed_up_to, found.unsigned) == (6, 3)


def test_a_folder_without_a_trail_is_an_error(tmp_path, trail):
    with pytest.raises(AuditError, match="no audit trail"):
        check_log(tmp_path, trail.ring)
    with pytest.raises(AuditError, match="No such file"):
        check_log(tmp_path / "nowhere", trail.ring)


def test_the_golden_trail_is_whole_and_readable():
    keys = KeySet.from_master(bytes(range(32)), "GOLDEN", datetime(2026, 1, 1, tzinfo=UTC))
    for ring in (KeyRing((keys,)), KeyRing.from_public_pem(KeyRing((keys,)).export_public())):
        found = check_log(GOLDEN, ring)
        assert found.broken is None
        assert (found.entries, found.segments, found.unsigned) == (18, 2, 0)
        assert found.recovered == [16]
    told = [entry for entry, _ in entries(GOLDEN) if entry.reference]
    assert [entry.reference for entry in told] == [f"golden:{k}" for k in range(12)]
    assert sum(entry.kind == CHECKPOINT for entry, _ in entries(GOLDEN)) == 4


def test_the_golden_events_are_what_they_were():
    import importlib.util

    from dicom_node.audit.events import event_of

    spec = importlib.util.spec_from_file_location("audit_make", GOLDEN.parent / "audit_make.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    told = [event_of(entry.event) for entry, _ in entries(GOLDEN) if entry.reference]
    assert told == list(made.EVENTS)
