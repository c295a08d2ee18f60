"""``audit-log``, and the commands that write into the trail."""

import json

import pytest

from dicom_node.audit.checking import check_log
from dicom_node.audit.reading import entries
from dicom_node.cli.main import main
from dicom_node.keys import KeyRing


@pytest.fixture
def conf(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(
        f'[spool]\ndirectory = "{tmp_path}/spool"\n[keys]\ndirectory = "{tmp_path}/keys"\n'
    )
    (tmp_path / "spool").mkdir()
    return path


@pytest.fixture
def trail(conf, tmp_path):
    """The trail of a node whose keys were made, rotated and exported."""
    for action in ("init", "rotate", "export-public"):
        assert main(["keys", action, "--config", str(conf)]) == 0
    return tmp_path / "spool" / "audit"


def told(folder):
    return [entry.event for entry, _ in entries(folder)
            if entry.kind not in ("segment", "checkpoint")]  # fmt: skip


def test_every_use_of_the_key_ring_is_in_the_trail(conf, trail, tmp_path):
    assert [event["use"] for event in told(trail)] == ["init", "rotate", "export-public"]
    ring = KeyRing.open(tmp_path / "keys")
    assert told(trail)[1]["key_id"] == ring.current.key_id.hex()
    assert all("@" in event["by"] for event in told(trail))
    main(["keys", "init", "--config", str(conf)])
    assert len(told(trail)) == 3, "nothing was made"


def test_a_restoration_is_in_the_trail_before_it_is_done(conf, trail, tmp_path, capsys):
    (tmp_path / "DOE^JANE.dcm").write_bytes(b"no DICOM at all")
    code = main(["restore", str(tmp_path / "DOE^JANE.dcm"), "--out", str(tmp_path / "out"),
                 "--config", str(conf)])  # fmt: skip
    assert code == 3
    used, restored = told(trail)[3:]
    assert (used["kind"], used["use"]) == ("key-used", "restore")
    assert (restored["kind"], restored["exact"]) == ("restored", False)
    assert "DOE" not in json.dumps(restored)
    assert check_log(trail, KeyRing.open(tmp_path / "keys")).broken is None


def test_a_check_its_verdict_and_the_signing_of_its_report_are_in_the_trail(
    conf, trail, tmp_path, shared, capsys
):
    source = shared / "dicom/ct_series_generated_headers"
    source = min(source.rglob("*.dcm"))
    assert main(["mark", str(source), "--out", str(tmp_path / "out"), "--config", str(conf)]) == 0
    assert [event["use"] for event in told(trail)][-1] == "sign", "by mark"
    [marked] = (tmp_path / "out").iterdir()
    before = len(told(trail))
    assert main(["verify", str(marked), "--config", str(conf)]) == 0
    checked, given = told(trail)[before:]
    assert (checked["kind"], checked["verdict"], checked["checked_by"]) == (
        "verified", "authentic", "cli")  # fmt: skip
    assert (given["kind"], given["verdict"], given["how"]) == (
        "verdict-given", "authentic", "command")  # fmt: skip
    assert given["study_instance_uid"] == checked["study_instance_uid"] != ""
    assert "@" in given["given_to"]
    report = ["--report", str(tmp_path / "report")]
    assert main(["verify", str(marked), *report, "--config", str(conf)]) == 0
    assert [event.get("use") or event.get("how") for event in told(trail)[before + 3 :]] == [
        "report", "sign"]  # fmt: skip
    known = len(told(trail))
    public = tmp_path / "public.pem"
    public.write_text(KeyRing.open(tmp_path / "keys").export_public())
    assert main(["verify", str(marked), "--public-key", str(public), "--config", str(conf)]) == 0
    assert len(told(trail)) == known, "whoever has a public key only is not at the node"
    assert check_log(trail, KeyRing.open(tmp_path / "keys")).broken is None


def test_without_a_trail_to_write_into_nothing_is_restored(conf, trail, tmp_path, capsys):
    trail.rename(tmp_path / "away")
    trail.write_text("in the way")
    source = tmp_path / "a.dcm"
    source.write_bytes(b"x")
    code = main(["restore", str(source), "--out", str(tmp_path / "out"), "--config", str(conf)])
    assert code == 3
    assert not (tmp_path / "out").exists()
    assert "audit" in capsys.readouterr().err


def test_where_no_node_runs_nothing_is_recorded(tmp_path, capsys):
    path = tmp_path / "node.toml"
    path.write_text(
        f'[spool]\ndirectory = "{tmp_path}/none"\n[keys]\ndirectory = "{tmp_path}/keys"\n'
    )
    assert main(["keys", "init", "--config", str(path)]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["keys", "node.toml"]
    path.write_text(path.read_text() + f'[audit]\ndirectory = "{tmp_path}/trail"\n')
    assert main(["keys", "rotate", "--config", str(path)]) == 0
    assert [event["use"] for event in told(tmp_path / "trail")] == ["rotate"]


@pytest.mark.parametrize(("every", "signed"), [(1000, 1), (4, 4)])
def test_the_trail_is_signed_again_after_checkpoint_every_entries(
    conf, trail, tmp_path, every, signed
):
    def checkpoints():
        return sum(entry.kind == "checkpoint" for entry, _ in entries(trail))

    conf.write_text(f"{conf.read_text()}[audit]\ncheckpoint_every = {every}\n")
    (tmp_path / "files").mkdir()
    for number in range(12):
        (tmp_path / f"files/{number}").write_bytes(b"no DICOM at all")
    before = checkpoints()
    assert main(["verify", str(tmp_path / "files"), "--config", str(conf)]) == 3
    # The last one is of the end of the command.
    assert checkpoints() - before == signed
    assert check_log(trail, KeyRing.open(tmp_path / "keys")).broken is None


def test_verify_says_whole_or_names_the_first_broken_entry(conf, trail, tmp_path, capsys):
    command = ["audit-log", "verify", "--config", str(conf)]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("whole\n")
    segment = trail / "00000001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"use":"rotate"', b'"use":"export"'))
    assert main(command) == 1
    assert "BROKEN at entry 4, changed (00000001.jsonl, line 4)" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["broken"]["entry"] == 4
    assert (said["whole"], said["path"]) == (False, str(trail))


def test_verify_needs_no_secret_but_the_public_key(conf, trail, tmp_path, capsys):
    pem = tmp_path / "public.pem"
    assert main(["keys", "export-public", "--out", str(pem), "--config", str(conf)]) == 0
    (tmp_path / "keys").rename(tmp_path / "away")
    copy = tmp_path / "copy"
    trail.rename(copy)
    assert main(["audit-log", "verify", str(copy), "--public-key", str(pem),
                 "--config", str(conf)]) == 0  # fmt: skip
    assert "checkpoints of keys that are not here" in capsys.readouterr().out


def test_verify_holds_the_trail_against_checkpoints_kept_elsewhere(conf, trail, tmp_path, capsys):
    kept = tmp_path / "kept.jsonl"
    kept.write_bytes((trail / "checkpoints.jsonl").read_bytes())
    command = ["audit-log", "verify", "--checkpoints", str(kept), "--config", str(conf)]
    assert main(command) == 0
    lines = (trail / "00000001.jsonl").read_bytes().splitlines(keepends=True)
    (trail / "00000001.jsonl").write_bytes(b"".join(lines[:5]))
    rest = (trail / "checkpoints.jsonl").read_bytes().splitlines(keepends=True)
    (trail / "checkpoints.jsonl").write_bytes(b"".join(rest[:2]))
    assert main(command) == 1
    assert "truncated" in capsys.readouterr().out


def test_show_prints_what_was_asked_for(conf, trail, capsys):
    main(["keys", "rotate", "--config", str(conf)])
    capsys.readouterr()
    show = ["audit-log", "show", "--config", str(conf)]
    assert main(show) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main([*show, "--json", "--kind", "key-used"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["use"] for line in lines] == ["init", "rotate", "export-public", "rotate"]
    assert main([*show, "--since", lines[3]["at"]]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main([*show, "--kind", "marked"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "--since", "soon"], 2, "--since 'soon'"),
        (["show", "--kind", "danced"], 2, "--kind danced"),
        (["verify", "/nowhere"], 2, "/nowhere: no such folder"),
        (["verify", "--public-key", "/nowhere.pem"], 2, "/nowhere.pem"),
        (["verify", "{empty}"], 3, "no audit trail"),
    ],
)
def test_mistakes_are_explained(conf, trail, tmp_path, capsys, arguments, code, said):
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty") for word in arguments]
    assert main(["audit-log", *words, "--config", str(conf)]) == code
    assert said in capsys.readouterr().err
