"""The documents say what the code does: tables in them are compared with the tables in it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node import implementation
from dicom_node.cli.main import COMMANDS, build_parser, main
from dicom_node.config import Config
from dicom_node.dimse import contexts
from dicom_node.forward.rules import DELIVERED_STATUSES
from dicom_node.instance import block, derivation, frames, seal
from dicom_node.instance.syntaxes import SYNTAXES, name_of

ROOT = Path(__file__).resolve().parents[2]
CONFORMANCE = (ROOT / "docs" / "CONFORMANCE.md").read_text("utf-8")


def _rows(text: str, head: str) -> list[list[str]]:
    """Return the rows of the table whose first line starts with `head`, code marks removed."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(head):
            break
    else:
        pytest.fail(f"no table starts with {head!r}")
    assert next(lines).startswith("|--")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def _settings() -> Iterator[tuple[str, str, str]]:
    for name, section in Config.model_fields.items():
        yield from _settings_of(name, section.annotation)


def _settings_of(name: str, kind: Any) -> Iterator[tuple[str, str, str]]:
    model = kind if hasattr(kind, "model_fields") else kind.__args__[0]
    tables = []
    for key, setting in model.model_fields.items():
        if setting.default == ():
            tables.append((f"{name}.{key}", setting.annotation))
            continue
        default = "" if setting.is_required() else str(setting.default)
        if isinstance(setting.default, bool):
            default = default.lower()
        yield f"{name}.{key}", default, setting.description or ""
    for table, inside in tables:
        yield from _settings_of(table, inside)


def test_every_setting_is_documented_with_its_default_and_sentence() -> None:
    documented = [tuple(row) for row in _rows(CONFORMANCE, "| setting |")]
    assert documented == list(_settings())


def test_the_commented_configuration_has_every_setting_that_has_a_default() -> None:
    text = (ROOT / "conf" / "node.toml").read_text("utf-8")
    # Optional tables are there as comments.
    optional = r"^# (\[\[|(?:name|ae_title|host|port|address|policy) =)"
    shown = tomllib.loads(re.sub(optional, r"\1", text, flags=re.MULTILINE))
    for name, _, sentence in _settings():
        table: Any = shown
        *sections, key = name.split(".")
        for section in sections:
            table = table[section]
            table = table[0] if isinstance(table, list) else table
        assert key in table, f"conf/node.toml lacks {name}: {sentence}"


def test_the_transfer_syntaxes_are_those_of_the_code() -> None:
    documented = _rows(CONFORMANCE, "| received in |")
    assert documented == [
        [row.name, row.uid, name_of(row.marked_as), row.marked_as] for row in SYNTAXES.values()
    ]


def test_the_fallbacks_are_those_of_the_code() -> None:
    documented = [row[1] for row in _rows(CONFORMANCE, "| fallback |")]
    assert documented == list(contexts.LOSSLESS_FALLBACKS)


def test_the_verification_contexts_are_those_of_the_code() -> None:
    [context] = contexts.verification_contexts()
    name, uid, syntaxes, role = _rows(CONFORMANCE, "| SOP class | UID | transfer syntaxes |")[0]
    assert (name, uid, role) == ("Verification", str(context.abstract_syntax), "SCP")
    assert syntaxes == ", ".join(name_of(str(s)) for s in context.transfer_syntax)


def test_the_classes_never_changed_are_those_of_the_code() -> None:
    documented = {row[1]: row[2] for row in _rows(CONFORMANCE, "| SOP class | UID | because")}
    assert documented == frames._NO_IMAGE


def test_delivered_means_the_documented_statuses() -> None:
    first = _rows(CONFORMANCE, "| status | the instance is |")[0]
    assert first[1] == "delivered"
    named = {int(code, 16) for code in re.findall(r"`?\b([0B]0[0-9]{2})\b`?", first[0])}
    assert named == DELIVERED_STATUSES


def test_the_private_elements_are_those_of_the_code() -> None:
    assert f"Creator `{block.CREATOR}` in group {block.GROUP:04X}" in CONFORMANCE
    documented = [(row[0], row[2]) for row in _rows(CONFORMANCE, "| tag | name | VR | contents |")]
    numbers = [block._VERSION, block._SEAL, block._UNDO, block._FRAMES, block._DIGESTS]
    kinds = ["US", "OB", "OB", "OB", "OB"]
    assert documented == [
        (f"({block.GROUP:04X},xx{number:02X})", kind)
        for number, kind in zip(numbers, kinds, strict=True)
    ]


def test_the_coded_terms_are_those_of_the_code() -> None:
    assert _rows(CONFORMANCE, "| code | scheme |")[0][:3] == list(derivation.DERIVATION_CODE)


def test_the_identifying_attributes_are_those_of_the_code() -> None:
    documented = [tuple(row[1].split(", ")) for row in _rows(CONFORMANCE, "| line | attributes |")]
    assert documented == list(seal.IDENTIFYING_KEYWORDS)


def test_the_implementation_identity_is_that_of_the_code() -> None:
    assert f"`{implementation.IMPLEMENTATION_CLASS_UID}`" in CONFORMANCE
    assert f"`{implementation.IMPLEMENTATION_VERSION_NAME}`" in CONFORMANCE


def test_the_readme_names_every_command_and_no_other() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    there = {c for c in COMMANDS if importlib.util.find_spec(f"dicom_node.cli.{c}") is not None}
    named = set(re.findall(r"`(?:dicom-node )?([a-z]+)(?: [^`]*)?`", text)) & set(COMMANDS)
    assert named == there


def _readme_commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^dicom-node (.*)$", blocks, re.MULTILINE)
    # An ellipsis stands for the rest of a UID.
    return [shlex.split(line.replace("\u2026", "1"), comments=True) for line in lines]


@pytest.mark.parametrize("words", _readme_commands(), ids=" ".join)
def test_every_command_line_of_the_readme_is_taken(words: list[str]) -> None:
    assert build_parser().parse_args(words).command == words[0]


def test_the_audits_of_the_readme_say_which_studies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audits = [words for words in _readme_commands() if words[0] == "audit"]
    assert len(audits) == 2
    # There is no key ring: what was said well is not done (3), what was not is wrong usage (2).
    (tmp_path / "node.toml").write_text(
        f'[spool]\ndirectory = "{tmp_path}/spool"\n[keys]\ndirectory = "{tmp_path}/keys"\n'
        '[[destination]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
        "[verify]\n"
    )
    for words in audits:
        assert main([*words, "--config", str(tmp_path / "node.toml")]) == 3
        assert str(tmp_path / "keys") in capsys.readouterr().err


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_model_card_names_the_files_of_the_machine_read_one() -> None:
    card = tomllib.loads((ROOT / "engines" / "card.toml").read_text("utf-8"))
    text = (ROOT / "engines" / "MODEL_CARD.md").read_text("utf-8")
    for file in card["files"]:
        assert f"`{file}`" in text
    side = card["model"]["side"]
    assert f"{card['model']['code_bits']} carrier patterns, {side} \u00d7 {side}" in text
    design = (ROOT / "docs" / "DESIGN.md").read_text("utf-8")
    assert f"n = {side}?" in design
    assert f"BCH({card['model']['code_bits']}, 96)" in design
