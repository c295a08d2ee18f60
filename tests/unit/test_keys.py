"""The key ring: permissions, rotation, public export."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dicom_node.errors import KeyRingError
from dicom_node.keys import KeyRing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_new_ring_is_for_its_owner_alone(folder: Path) -> None:
    ring = KeyRing.open(folder, owner="HOSPITAL", create=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ring.current.owner == "HOSPITAL"
    assert ring.current.has_secrets


def test_the_ring_reads_back_what_it_wrote(folder: Path) -> None:
    first = KeyRing.open(folder, owner="HOSPITAL", create=True).current
    again = KeyRing.open(folder, owner="OTHER", create=True)
    assert again.all() == (first,)
    assert again.current.mac_key == first.mac_key
    assert len({first.mac_key, first.restore_key, first.robust_key}) == 3
    assert all(len(key) == 32 for key in (first.mac_key, first.restore_key, first.robust_key))


def test_rotation_keeps_older_keys_for_verification(folder: Path) -> None:
    ring = KeyRing.open(folder, owner="A", create=True)
    old = ring.current
    new = ring.rotate("B")
    assert ring.current == new
    assert ring.all() == (new, old)
    assert KeyRing.open(folder).all() == (new, old)
    found = KeyRing.open(folder).get(old.key_id)
    assert found is not None
    assert found.verify(b"m", old.sign(b"m"))
    assert ring.get(b"12345678") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_open_to_others_is_refused_with_the_fix(folder: Path, mode: int) -> None:
    KeyRing.open(folder, create=True)
    [file] = folder.iterdir()
    file.chmod(mode)
    with pytest.raises(KeyRingError, match=f"chmod 600 {file}"):
        KeyRing.open(folder)


def test_a_folder_open_to_others_is_refused_with_the_fix(folder: Path) -> None:
    KeyRing.open(folder, create=True)
    folder.chmod(0o750)
    with pytest.raises(KeyRingError, match=f"chmod 700 {folder}"):
        KeyRing.open(folder, create=True)


def test_a_missing_or_empty_ring_says_what_to_run(folder: Path) -> None:
    with pytest.raises(KeyRingError, match=str(folder)):
        KeyRing.open(folder)
    folder.mkdir(mode=0o700)
    with pytest.raises(KeyRingError, match="keys init"):
        KeyRing.open(folder)


def test_a_damaged_key_file_is_refused(folder: Path) -> None:
    KeyRing.open(folder, create=True)
    [file] = folder.iterdir()
    table = json.loads(file.read_text())
    for damaged in (
        "{",
        "[]",
        json.dumps(table | {"master": "00" * 32}),
        json.dumps(table | {"format": "other"}),
        json.dumps({k: v for k, v in table.items() if k != "owner"}),
    ):
        file.write_text(damaged)
        with pytest.raises(KeyRingError, match=str(file)):
            KeyRing.open(folder)


def test_signatures_hold_for_their_message_only(folder: Path) -> None:
    keys = KeyRing.open(folder, create=True).current
    signature = keys.sign(b"message")
    assert len(signature) == 64
    assert keys.verify(b"message", signature)
    assert not keys.verify(b"massage", signature)
    assert not keys.verify(b"message", signature[:-1])
    assert not keys.verify(b"message", bytes(64))


def test_secrets_do_not_show(folder: Path) -> None:
    ring = KeyRing.open(folder, create=True)
    [file] = folder.iterdir()
    master = json.loads(file.read_text())["master"]
    assert master not in repr(ring.current)
    assert repr(bytes.fromhex(master)) not in repr(ring.current)
    assert master not in ring.export_public()


def test_the_public_ring_verifies_and_nothing_else(folder: Path) -> None:
    ring = KeyRing.open(folder, owner="HOSPITAL", create=True)
    public = KeyRing.from_public_pem(ring.export_public())
    keys = public.current
    assert (keys.key_id, keys.owner, keys.has_secrets) == (ring.current.key_id, "HOSPITAL", False)
    assert keys.verify(b"m", ring.current.sign(b"m"))
    for secret in ("mac_key", "restore_key", "robust_key"):
        with pytest.raises(KeyRingError, match="public only"):
            getattr(keys, secret)
    with pytest.raises(KeyRingError, match="public only"):
        keys.sign(b"m")
    with pytest.raises(KeyRingError, match="rotated"):
        public.rotate("X")


def test_several_public_keys_may_stand_in_one_text(folder: Path) -> None:
    ring = KeyRing.open(folder, owner="A", create=True)
    text = ring.export_public()
    ring.rotate("B")
    both = KeyRing.from_public_pem(text + ring.export_public())
    assert [keys.owner for keys in both.all()] == ["B", "A"]


@pytest.mark.parametrize(
    "text", ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
)
def test_text_without_a_key_is_refused(text: str) -> None:
    with pytest.raises(KeyRingError):
        KeyRing.from_public_pem(text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_exported_key(folder: Path) -> None:
    ring = KeyRing.open(folder, create=True)
    result = subprocess.run(
        ["openssl", "pkey", "-pubin", "-text", "-noout"],
        input=ring.export_public(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "ED25519" in result.stdout.upper()
    shown = "".join(c for c in result.stdout.split("pub:")[1] if c in "0123456789abcdef")
    assert shown == ring.current.public_key.hex()


def _open(folder: Path) -> bytes:
    return KeyRing.open(folder, create=True).current.key_id


def test_two_first_starts_make_one_key(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_open, [folder] * 6))) == 1
    assert len(list(folder.iterdir())) == 1
