"""What the registry promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import psycopg
import pytest
from postgresql import Cluster
from registry_rows import delivery, frame, instance
from sqlalchemy import inspect, text

from dicom_node.errors import ConfigError, RegistryError
from dicom_node.registry import Added, Registry, SeriesManifest, VerdictEntry
from dicom_node.registry.database import Database
from dicom_node.registry.schema import SCHEMA_VERSION, metadata

GOLDEN = Path(__file__).parents[2] / "golden"
Open = Callable[[], Registry]


def verdict(number: int, word: str, at: float = 1.0) -> VerdictEntry:
    one = instance(number)
    return VerdictEntry(
        one.sop_instance_uid, one.series_instance_uid, one.study_instance_uid, word, at, "AUDITOR"
    )


def test_what_was_registered_comes_back_unchanged_after_opening_again(
    registry: Registry, opened: Open
) -> None:
    recoded = replace(delivery("s:3", "third"), transfer_syntax_uid="1.2.840.10008.1.2.4.80")
    sent = delivery("s:1"), delivery("s:2", "second", 0xB000), recoded
    one = instance(1, frames=3, deliveries=sent)
    registry.add(one)
    again = opened()
    assert again.instances(sop_instance_uid=one.sop_instance_uid) == (one,)
    assert again.instances(series_instance_uid=one.series_instance_uid) == (one,)
    assert again.instances(study_instance_uid=one.study_instance_uid) == (one,)
    [without] = again.instances(sop_instance_uid=one.sop_instance_uid, frames=False)
    assert without == replace(one, frames=())
    assert again.instances(sop_instance_uid="1.2.3.4") == ()


def test_the_same_file_twice_is_one_record_and_another_version_is_another(
    registry: Registry,
) -> None:
    first, second = instance(1), instance(1, version=2)
    assert registry.add_all([first, first]) == Added(1, 1, 0)
    assert registry.add_all([first, second]) == Added(1, 1, 0)
    assert registry.instances(sop_instance_uid=first.sop_instance_uid) == (first, second)


def test_a_delivery_told_twice_is_kept_once_and_one_sent_again_is_kept_too(
    registry: Registry,
) -> None:
    one = instance(1)
    bare = replace(one, frames=(), deliveries=(delivery("s:1"),))
    assert registry.add_all([one, bare, bare]).deliveries == 1
    assert registry.add_all([bare]) == Added(0, 0, 0)
    again = replace(bare, deliveries=(delivery("s:7", at=1_790_000_999.0),))
    assert registry.add_all([again]) == Added(0, 0, 1)
    [found] = registry.instances(sop_instance_uid=one.sop_instance_uid)
    assert [entry.reference for entry in found.deliveries] == ["s:1", "s:7"]
    assert found.frames == one.frames


def test_a_delivery_alone_makes_a_record_that_gains_its_frames_later(registry: Registry) -> None:
    one = instance(1, frames=2)
    registry.add(replace(one, frames=(), deliveries=(delivery("s:1"),)))
    assert registry.instances(sop_instance_uid=one.sop_instance_uid)[0].frames == ()
    assert registry.add_all([one]) == Added(0, 2, 0)
    assert registry.add_all([one]) == Added(0, 0, 0)
    [found] = registry.instances(sop_instance_uid=one.sop_instance_uid)
    assert found == replace(one, deliveries=(delivery("s:1"),))


def test_a_batch_is_written_whole_or_not_at_all(registry: Registry) -> None:
    bad = replace(instance(2), sop_class_uid=None)
    with pytest.raises(RegistryError):
        registry.add_all([instance(1), bad])
    assert registry.instances(study_instance_uid=instance(1).study_instance_uid) == ()


def test_thousands_of_instances_and_a_cine_run_go_into_one_batch(registry: Registry) -> None:
    batch = [instance(number, series=number % 7) for number in range(1200)]
    cine = instance(5000, frames=6000)
    assert registry.add_all([*batch, cine]) == Added(1201, 7200, 0)
    assert registry.add_all([*batch, cine]) == Added(0, 0, 0)
    found = registry.instances(study_instance_uid=cine.study_instance_uid)
    assert [len(each.frames) for each in found] == [1] * 1200 + [6000]
    [match] = registry.by_message(cine.frames[4321].message)
    assert (match.instance.sop_instance_uid, match.frame) == (cine.sop_instance_uid, 4322)


def test_a_series_names_what_we_sent_so_that_a_missing_slice_shows(registry: Registry) -> None:
    registry.add_all(instance(n, deliveries=(delivery(f"s:{n}"),)) for n in (3, 1, 2))
    registry.add(replace(instance(9, deliveries=()), instance_number=None))
    registry.add(instance(1, version=1, deliveries=(delivery("s:9", "second"),)))
    manifest = registry.series(instance(1).series_instance_uid)
    assert manifest.study_instance_uid == instance(1).study_instance_uid
    assert [entry.instance_number for entry in manifest.entries] == [1, 2, 3, None]
    assert manifest.entries[0].delivered_to == ("pacs", "second")
    present = [instance(n).sop_instance_uid for n in (1, 3)]
    # What no destination has taken yet is not missed.
    assert [entry.instance_number for entry in manifest.missing(present)] == [2]
    assert manifest.missing(present, "second") == ()
    assert registry.series("1.2.3") == SeriesManifest("1.2.3", "")
    assert registry.series_of(manifest.study_instance_uid) == (manifest,)


def test_the_last_verdict_of_each_instance_is_told_and_the_others_are_kept(
    registry: Registry,
) -> None:
    entries = [verdict(1, "authentic", 1.0), verdict(2, "authentic", 2.0),
               verdict(1, "tampered", 3.0)]  # fmt: skip
    registry.add_verdicts(entries)
    study = instance(1).study_instance_uid
    assert registry.verdicts(study_instance_uid=study) == (entries[1], entries[2])
    assert registry.verdicts(study_instance_uid=study, last=False) == tuple(entries)
    one = instance(1).sop_instance_uid
    assert registry.verdicts(sop_instance_uid=one) == (entries[2],)
    registry.add_verdict(replace(entries[2], verdict="authentic", details='{"path": "ü"}'))
    assert registry.verdicts(sop_instance_uid=one)[0].details == '{"path": "ü"}'


def test_studies_of_a_time_and_a_modality_are_found(registry: Registry) -> None:
    registry.add_all([instance(10, study=1), instance(20, study=2, modality="MR"),
                      instance(30, study=3)])  # fmt: skip
    assert registry.studies() == ("1.2.826.1", "1.2.826.2", "1.2.826.3")
    at = instance(20).marked_at
    assert registry.studies(since=at, until=at + 10) == ("1.2.826.2",)
    assert registry.studies(modality="CT") == ("1.2.826.1", "1.2.826.3")


def test_what_was_asked_without_a_uid_is_refused(registry: Registry) -> None:
    with pytest.raises(ValueError, match="name a study"):
        registry.instances()


def test_a_frame_without_features_has_none(registry: Registry) -> None:
    plain = replace(frame("x"), perceptual_hash=b"", message=b"", fingerprint=b"")
    one = instance(1, frames=1, action="marked")
    registry.add(replace(one, frames=(plain,)))
    assert registry.instances(sop_instance_uid=one.sop_instance_uid)[0].frames == (plain,)
    assert registry.by_message(b"") == ()
    assert registry.similar(bytes(8), within=64) == ()


def test_the_hashes_of_the_frames_marked_last_are_remembered_each_once(registry: Registry) -> None:
    registry.add_all(instance(number, frames=2) for number in range(5))
    registry.add(replace(instance(6, frames=1), frames=(instance(4).frames[0],)))

    def of(*numbers: int) -> set[bytes]:
        return {f.perceptual_hash for n in numbers for f in instance(n, frames=2).frames}

    remembered = registry.hashes(most=100)
    assert remembered.shape == (len(of(0, 1, 2, 3, 4)), 8)
    assert {row.tobytes() for row in remembered} == of(0, 1, 2, 3, 4)
    assert {row.tobytes() for row in registry.hashes(most=3)} == of(4)


@pytest.mark.parametrize("bits", [0, 1, 5])
def test_the_nearest_look_is_found_at_its_distance(registry: Registry, bits: int) -> None:
    registry.add_all(instance(number, frames=2) for number in range(50))
    sought = instance(17).frames[0].perceptual_hash
    changed = (int.from_bytes(sought, "big") ^ ((1 << bits) - 1)).to_bytes(8, "big")
    match = registry.similar(changed, within=8, limit=3)[0]
    assert (match.distance, match.frame) == (bits, 1)
    assert match.instance.sop_instance_uid == instance(17).sop_instance_uid
    assert match.facts.perceptual_hash == sought
    # Of one picture in several poses, the pose that fits is named.
    far = bytes(b ^ 0xFF for b in sought)
    assert registry.similar([far, changed], within=bits)[0].query == 1


def test_what_another_process_registered_is_found_at_once(
    registry: Registry, opened: Open
) -> None:
    registry.add(instance(1))
    other = opened()
    assert len(other.similar(instance(1).frames[0].perceptual_hash, within=0)) == 1
    registry.add(instance(2))
    assert len(other.similar(instance(2).frames[0].perceptual_hash, within=0)) == 1


def test_several_processes_register_at_once_and_nothing_is_lost_or_doubled(
    url: str, opened: Open
) -> None:
    script = (
        "import sys\nfrom registry_rows import instance\nfrom dicom_node.registry import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    for start in range(0, 200, 10):\n"
        "        registry.add_all(instance(n, series=int(sys.argv[2]) if n % 2 else 0)\n"
        "                         for n in range(start, start + 10))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, url, str(series)],
                         env=_environment()) for series in (1, 2, 3)
    ]  # fmt: skip
    assert [child.wait(60) for child in running] == [0, 0, 0]
    registry = opened()
    found = registry.instances(study_instance_uid=instance(1).study_instance_uid)
    assert len(found) == 100 + 3 * 100
    assert len({each.sop_instance_uid for each in found}) == len(found)
    assert all(len(each.frames) == 1 for each in found)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def test_a_registry_of_a_newer_release_is_refused(
    url: str, registry: Registry, opened: Open
) -> None:
    database = Database(url)
    with database.writing() as connection:
        connection.execute(text("UPDATE registry_meta SET value = '99' WHERE key = 'schema'"))
    database.close()
    with pytest.raises(RegistryError, match="schema 99"):
        opened()


def test_no_column_is_named_after_a_patient() -> None:
    names = {column.name for table in metadata.tables.values() for column in table.columns}
    assert not {n for n in names if any(word in n for word in ("patient", "birth", "accession"))}
    assert {each.name for each in fields(VerdictEntry)} <= names


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://host/db", "use sqlite"),
        ("no url", "registry.url"),
        ("sqlite://", "use sqlite"),
        ("oracle://u:secret@host/db", "use sqlite"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_no_password_told(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Registry.open(url)
    assert "secret" not in str(refused.value)


def test_an_unreachable_server_is_a_registry_error_that_hides_the_password() -> None:
    with pytest.raises(RegistryError, match="registry postgresql") as failed:
        Registry.open("postgresql://me:secret@127.0.0.1:1/registry")
    assert "secret" not in str(failed.value)


@pytest.mark.peer
def test_a_server_that_was_restarted_is_used_again() -> None:
    server = Cluster()
    try:
        with Registry.open(server.new_database()) as registry:
            registry.add(instance(1))
            server.stop()
            with pytest.raises(RegistryError):
                registry.add(instance(2))
            server.start()
            registry.add(instance(2))
            assert len(registry.instances(study_instance_uid=instance(1).study_instance_uid)) == 2
    finally:
        server.close()


@pytest.fixture
def first_release(url: str, tmp_path: Path) -> str:
    """The URL of a registry as the first release made it."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(tmp_path / "registry.sqlite")
        connection.executescript((GOLDEN / "registry_1.sql").read_text("utf-8"))
        connection.close()
        return url
    with psycopg.connect(url) as server:
        server.execute((GOLDEN / "registry_1_postgresql.sql").read_bytes())
    return url


def test_a_registry_of_the_first_release_gets_the_tables_of_this_one(first_release: str) -> None:
    def opened(_: int) -> int:
        with Registry.open(first_release) as registry:
            return len(registry.instances(study_instance_uid="1.2.826.1"))

    with ThreadPoolExecutor(4) as processes:  # of a node that was updated, all at once
        assert list(processes.map(opened, range(4))) == [2] * 4
    database = Database(first_release)
    with database.reading() as connection:
        tables = inspect(connection)
        for name, table in metadata.tables.items():
            assert [column["name"] for column in tables.get_columns(name)] == table.columns.keys()
            assert {index["name"] for index in tables.get_indexes(name)} >= {
                index.name for index in table.indexes
            }
        version = text("SELECT value FROM registry_meta WHERE key = 'schema'")
        assert connection.scalar(version) == str(SCHEMA_VERSION)
    database.close()


def test_a_registry_of_the_first_release_is_read_for_ever(
    first_release: str, tmp_path: Path
) -> None:
    with Registry.open(first_release, cache=tmp_path) as registry:
        first, second = registry.instances(study_instance_uid="1.2.826.1")
        assert first == instance(1, frames=2, deliveries=(delivery("8f50b66d0f36b28a:3"),))
        assert second == instance(2, action="sealed", frames=0, instance_number=None)
        [told] = registry.verdicts(study_instance_uid="1.2.826.1")
        assert (told.verdict, told.details) == ("tampered", '{"verdict": "tampered"}')
        [match] = registry.similar(first.frames[1].perceptual_hash, within=0)
        assert match.frame == 2
        recoded = replace(delivery("s:9"), transfer_syntax_uid="1.2.840.10008.1.2")
        registry.add(instance(3, deliveries=(recoded,)))
        [third] = registry.instances(sop_instance_uid=instance(3).sop_instance_uid)
        assert third.deliveries == (recoded,)


def test_asking_makes_no_registry(tmp_path: Path) -> None:
    assert Registry.existing(f"sqlite:///{tmp_path}/registry.sqlite") is None
    assert list(tmp_path.iterdir()) == []
