from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dicom_node import config
from dicom_node.config import Config, DestinationConfig, load, parse
from dicom_node.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"


def defaults_of(section: type[BaseModel]) -> dict[str, Any]:
    return {
        name: field.get_default()
        for name, field in section.model_fields.items()
        if not field.is_required()
    }


def test_the_default_file_states_every_default_as_it_is() -> None:
    stated = tomllib.loads((CONF / "node.toml").read_text("utf-8"))
    for name, section in Config().model_dump(mode="json").items():
        if isinstance(section, dict):
            # Of tables that may come any number of times none is a default.
            once = {key: value for key, value in section.items() if value != []}
            assert stated[name] == once, name
    [destination] = stated["destination"]
    assert set(destination) == set(DestinationConfig.model_fields)
    assert defaults_of(DestinationConfig).items() <= destination.items()


@pytest.mark.parametrize("path", sorted(CONF.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_file_can_be_used(path: Path) -> None:
    assert load(path).destination


def test_the_default_is_conf_in_the_working_folder_else_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().node.ae_title == "DICOMNODE"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "node.toml").write_text('[node]\nae_title = "HERE"\n')
    assert load().node.ae_title == "HERE"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[node]\nae_titel = 'X'", ["node.ae_titel", "unknown key", "did you mean ae_title"]),
        ("[nodes]\n", ["nodes", "unknown key", "did you mean node"]),
        ("[node]\nport = 99999", ["node.port = 99999", "65535"]),
        ("[node]\nae_title = 'SEVENTEEN-LETTERS'", ["node.ae_title", "1 to 16"]),
        ("[node]\nbind = 'everywhere'", ["node.bind", "everywhere"]),
        ("[watermark]\non_unmarkable = 'ignore'", ["watermark.on_unmarkable", "forward-sealed"]),
        (
            "[watermark]\nuid_policy = 'derive'\non_unmarkable = 'forward-untouched'",
            ["watermark.uid_policy = 'derive'", "use on_unmarkable = 'forward-sealed'"],
        ),
        ("[watermark]\nreference_wait_s = -1", ["watermark.reference_wait_s = -1"]),
        ("[watermark]\nowner = ''", ["watermark.owner"]),
        ("[[destination]]\nname = 'a/b'\nae_title='A'\nhost='h'\nport=1", ["destination.0.name"]),
        ("[[destination]]\nname = 'p'", ["destination.0.ae_title", "is missing; add it"]),
        ("[spool", ["not valid TOML"]),
    ],
)
def test_a_mistake_is_answered_with_the_key_and_the_fix(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "node.toml")
    for word in ["node.toml", *words]:
        assert word in str(caught.value)


def test_two_destinations_with_one_name_are_refused() -> None:
    one = "[[destination]]\nname = 'pacs'\nae_title = 'A'\nhost = 'h'\nport = 104\n"
    with pytest.raises(ConfigError, match="'pacs'"):
        parse(one + one, "node.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load(tmp_path / "nothing.toml")


def test_workers_get_one_thread_each() -> None:
    assert config.environment()["OMP_NUM_THREADS"] == "1"


def test_the_verification_service_runs_only_where_the_file_asks_for_it() -> None:
    assert not parse("", "node.toml").verifies
    assert parse("[verify]", "node.toml").verifies


def test_registry_and_audit_trail_lie_in_the_spool_unless_told_otherwise() -> None:
    config = parse('[spool]\ndirectory = "/data/spool"', "node.toml")
    assert config.registry_url == "sqlite:////data/spool/registry.sqlite"
    assert config.audit_directory == Path("/data/spool/audit")
    told = parse('[registry]\nurl = "postgresql+psycopg:///n"\n[audit]\ndirectory = "/a"', "n")
    assert (told.registry_url, told.audit_directory) == ("postgresql+psycopg:///n", Path("/a"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[verify]\npacs = "archive"', "no [[destination]] has this name"),
        ("[verify]\nport = 4000\nfetch_port = 4000", "are both 4000"),
        ('[verify]\nnightly_at = "25:00"', "verify.nightly_at"),
        ('[audit]\nsyslog = "host:514"', "audit.syslog"),
        ('[[verify.client]]\nae_title = "A"\npolicy = "originals"', "verify.client.0.policy"),
        ('[[verify.client]]\nae_title = "A"\naddress = "10.1.2"', "verify.client.0.address"),
        ('[verify]\nfetch_from = "pacs"', "verify.fetch_from"),
        ('[verify]\nadmit = "listed"', "add a [[verify.client]]"),
        ('[verify]\nadmit = "nobody"', "verify.admit"),
    ],
)
def test_mistakes_in_the_verification_settings_name_the_key(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "node.toml")
    assert named in str(caught.value)


def test_two_move_destinations_of_one_ae_title_are_refused() -> None:
    one = '[[move_destination]]\nname = "{}"\nae_title = "W"\nhost = "h"\nport = 104\n'
    with pytest.raises(ConfigError, match="remove one"):
        parse(one.format("a") + one.format("b"), "node.toml")
