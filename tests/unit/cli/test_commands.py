"""Every command: its help, its exit codes, its JSON lines. No network, no DICOM."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.cli import verify
from dicom_node.cli.common import Input, refuse_overwriting, walk
from dicom_node.cli.config import to_toml
from dicom_node.cli.main import build_parser, main
from dicom_node.config import Config, SpoolConfig, parse
from dicom_node.errors import ConfigError
from dicom_node.spool import Spool


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(
        f'[spool]\ndirectory = "{tmp_path}/spool"\nmin_free_mib = 0\n'
        f'[keys]\ndirectory = "{tmp_path}/keys"\n'
    )
    return path


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(SpoolConfig(directory=tmp_path / "spool", min_free_mib=0)) as opened:
        for n in range(3):
            opened.receive(
                b"header",
                str(n).encode(),
                sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                sop_instance_uid=f"1.2.{n}",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                calling_ae="CT1",
            )
        yield opened


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def commands() -> dict[str, argparse.ArgumentParser]:
    [action] = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


@pytest.mark.parametrize(
    "name", ["serve", "mark", "verify", "restore", "queue", "keys", "config", "engines"]
)
def test_help_of_every_command_says_what_the_exit_codes_mean(name: str) -> None:
    text = commands()[name].format_help()
    assert "--config FILE" in text
    assert "exit codes:" in text
    assert "\n  0  " in text
    assert "\n  2  wrong usage or configuration" in text


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["mark"])
    assert caught.value.code == 2


def test_a_wrong_configuration_exits_with_2_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[node]\nprot = 1\n")
    assert main(["config", "check", "--config", str(path)]) == 2
    assert "did you mean port?" in capsys.readouterr().err


@pytest.mark.parametrize("order", [["--config", "FILE", "show"], ["show", "--config", "FILE"]])
def test_config_may_stand_before_or_after_the_action(
    conf: Path, order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *(str(conf) if word == "FILE" else word for word in order)]) == 0
    assert str(conf.parent / "spool") in capsys.readouterr().out


def test_config_show_prints_what_can_be_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        '[[destination]]\nname = "a"\nae_title = "A"\nhost = "h"\nport = 104\n'
        '[watermark]\nowner = "SAY \\"AH\\""\n'
    )
    config = parse(text, "test")
    assert parse(to_toml(config.model_dump(mode="json")), "again") == config
    assert parse(to_toml(Config().model_dump(mode="json")), "again") == Config()


def test_queue_list_shows_states_and_reasons(
    conf: Path, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    job = spool.claim()
    assert job is not None
    spool.hold(job, "cannot be decoded")
    assert main(["queue", "list", "--config", str(conf)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert "held" in out[0]
    assert "cannot be decoded" in out[0]
    assert main(["queue", "list", "--json", "--state", "held", "--config", str(conf)]) == 0
    [line] = json_lines(capsys)
    assert (line["id"], line["state"], line["reason"]) == (job.id, "held", "cannot be decoded")
    assert line["calling_ae"] == "CT1"


def test_queue_list_filters_by_destination(
    conf: Path, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    job = spool.claim()
    assert job is not None
    spool.finish(job, None, action="untouched", deliver_to=["pacs"])
    delivery = spool.claim_delivery("pacs")[0]
    spool.retry_delivery(delivery, "connection refused", 4e9, status=0xA700)
    assert main(["queue", "list", "--json", "--destination", "pacs", "--config", str(conf)]) == 0
    [line] = json_lines(capsys)
    [sent] = line["deliveries"]
    assert sent["status"] == "0xA700"
    assert sent["reason"] == "connection refused"
    assert main(["queue", "retry", str(job.id), "--config", str(conf)]) == 0
    assert spool.claim_delivery("pacs")


def test_release_brings_a_held_job_back_and_refuses_another(
    conf: Path, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    job = spool.claim()
    assert job is not None
    spool.hold(job, "why")
    assert main(["queue", "release", str(job.id), "--config", str(conf)]) == 0
    assert main(["queue", "release", str(job.id), "--config", str(conf)]) == 3
    assert "cannot release" in capsys.readouterr().out


def test_drop_by_filter_takes_only_what_the_filter_selects(
    conf: Path, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    job = spool.claim()
    assert job is not None
    spool.hold(job, "why")
    assert main(["queue", "drop", "--state", "held", "--json", "--config", str(conf)]) == 0
    assert json_lines(capsys) == [
        {"id": job.id, "action": "drop", "done": True, "state": "dropped"}
    ]
    assert spool.tally()["received"] == 2
    assert not job.path.exists()


@pytest.mark.parametrize("words", [["drop"], ["drop", "1", "--all"], ["show", "99"]])
def test_queue_never_guesses_which_jobs_are_meant(
    conf: Path, spool: Spool, words: list[str]
) -> None:
    assert main(["queue", *words, "--config", str(conf)]) == 2
    assert spool.tally()["received"] == 3


def test_queue_show_tells_everything(
    conf: Path, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queue", "show", "1", "--json", "--config", str(conf)]) == 0
    [line] = json_lines(capsys)
    assert (line["sop_instance_uid"], line["sent_instance_uid"]) == ("1.2.0", None)
    assert main(["queue", "show", "1", "--config", str(conf)]) == 0
    assert "1.2.0" in capsys.readouterr().out


def test_queue_without_a_spool_makes_none(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "list", "--config", str(conf)]) == 3
    assert not (conf.parent / "spool").exists()
    assert "no spool here" in capsys.readouterr().err


def test_keys_init_rotate_and_export(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "export-public", "--config", str(conf)]) == 3
    assert main(["keys", "init", "--owner", "CLINIC", "--config", str(conf)]) == 0
    first = capsys.readouterr().out.split()[2]
    assert main(["keys", "init", "--config", str(conf)]) == 0
    assert capsys.readouterr().out.split()[2] == first, "init never replaces a key"
    assert main(["keys", "rotate", "--config", str(conf)]) == 0
    assert capsys.readouterr().out.split()[2] != first
    assert main(["keys", "export-public", "--config", str(conf)]) == 0
    assert "BEGIN PUBLIC KEY" in capsys.readouterr().out
    out = conf.parent / "public.pem"
    assert main(["keys", "export-public", "--out", str(out), "--config", str(conf)]) == 0
    assert "BEGIN PUBLIC KEY" in out.read_text()
    assert main(["keys", "export-public", "--out", str(out), "--config", str(conf)]) == 2


def test_walk_keeps_relative_paths_and_leaves_hidden_files_out(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "a/1.dcm", ".cache/x", "a/.hidden"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert [str(item.relative) for item in walk([tmp_path / "in"])] == ["a/1.dcm", "b/2.dcm"]
    assert walk([tmp_path / "in/a/1.dcm"])[0].relative == Path("1.dcm")


def test_two_inputs_never_become_one_result(tmp_path: Path) -> None:
    for name in ("a/1.dcm", "b/1.dcm"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"would both become 1\.dcm"):
        walk([tmp_path / "a", tmp_path / "b"])
    assert len(walk([tmp_path / "a", tmp_path / "a/1.dcm"])) == 1


def test_a_result_never_replaces_its_source(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").touch()
    with pytest.raises(ConfigError, match="would overwrite"):
        refuse_overwriting([Input(tmp_path / "1.dcm", Path("1.dcm"))], tmp_path)


def test_a_missing_path_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        walk([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (set(), 0),
        ({"authentic"}, 0),
        ({"authentic", "unreadable"}, 3),
        ({"authentic", "tampered"}, 1),
        ({"unmarked", "unreadable"}, 1),
        ({"content-preserved"}, 1),
    ],
)
def test_exit_code_of_verify(verdicts: set[str], code: int) -> None:
    assert verify.exit_code(verdicts) == code


def test_no_progress_bar_in_a_pipe(
    conf: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    assert main(["queue", "list", "--json", "--config", str(conf)]) == 0
    assert text.getvalue() == ""
