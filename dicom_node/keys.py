"""The key ring: one master secret per key set, everything else derived from it.

A key set is one file, ``<created>-<key id>.json``, mode 0600 in a folder of mode 0700. The newest
signs; older ones stay so that what they signed can still be verified and restored.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha3_256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA3_256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from dicom_node.errors import KeyRingError

_FORMAT = "dicom-node key set 1"
_SALT = b"dicom-node key ring 1"
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_NOTE = re.compile(r"^(owner|created): (.*)$", re.MULTILINE)
DEFAULT_OWNER = "GENERAL-HOSPITAL"


@dataclass(frozen=True)
class KeySet:
    """The keys of one owner from one date on; public only when it came from a PEM.

    Attributes
    ----------
    key_id
        First 8 bytes of SHA3-256 of `public_key`; marks name their key by it.
    owner, created
        Whose keys these are and since when (UTC); informative, not secret.
    public_key
        Raw Ed25519 public key, 32 bytes.
    """

    key_id: bytes
    owner: str
    created: datetime
    public_key: bytes
    _master: bytes | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_master(cls, master: bytes, owner: str, created: datetime) -> KeySet:
        """Derive the whole set from 32 secret bytes (`master`)."""
        seed = _derive(master, b"ed25519 seed")
        public_key = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        return cls(_key_id(public_key), owner, created, public_key, master)

    @property
    def has_secrets(self) -> bool:
        """Whether this set can sign, localise and restore, or only verify."""
        return self._master is not None

    @cached_property
    def mac_key(self) -> bytes:
        """Key of the tile and attribute digests, 32 bytes (KeyRingError if public only)."""
        return _derive(self._secret(), b"w2 mac")

    @cached_property
    def restore_key(self) -> bytes:
        """Key that encrypts what restoration needs, 32 bytes (KeyRingError if public only)."""
        return _derive(self._secret(), b"w2 restore")

    @cached_property
    def robust_key(self) -> bytes:
        """Key that whitens W1's code words, 32 bytes (KeyRingError if public only)."""
        return _derive(self._secret(), b"w1 robust")

    @cached_property
    def uid_key(self) -> bytes:
        """Key of new SOP Instance UIDs, 32 bytes (KeyRingError if public only)."""
        return _derive(self._secret(), b"sop instance uids")

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `message` (KeyRingError if public only)."""
        self._secret()
        return self._signer.sign(message)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's Ed25519 signature of `message`."""
        try:
            self._verifier.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def _secret(self) -> bytes:
        if self._master is None:
            raise KeyRingError(
                f"key {self.key_id.hex()} is public only: it verifies, but cannot mark or restore; "
                "use the key ring of the node that marked"
            )
        return self._master

    # The parsed keys are kept: building one costs more than a signature.
    @cached_property
    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(_derive(self._secret(), b"ed25519 seed"))

    @cached_property
    def _verifier(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.public_key)


class KeyRing:
    """Key sets, newest first; the newest one signs."""

    def __init__(self, sets: tuple[KeySet, ...], directory: Path | None = None) -> None:
        if not sets:
            raise KeyRingError("a key ring without keys; run 'dicom-node keys init'")
        self._sets = tuple(sorted(sets, key=lambda keys: keys.created, reverse=True))
        self._directory = directory

    @classmethod
    def open(cls, directory: Path, *, owner: str | None = None, create: bool = False) -> KeyRing:
        """Read the ring in `directory`; with `create`, make a first key set where there is none.

        Raises
        ------
        KeyRingError
            If it is missing, unreadable, damaged, or open to group or others (the message has the
            chmod to run).
        """
        try:
            if create:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_shared(directory, "700")
            if create:
                with _locked(directory):
                    if not _files(directory):
                        _write(directory, _generate(owner or DEFAULT_OWNER, None))
            sets = tuple(_read(path) for path in _files(directory))
        except OSError as error:
            raise KeyRingError(f"key ring {directory}: {error.strerror or error}") from error
        if not sets:
            raise KeyRingError(f"key ring {directory} holds no key; run 'dicom-node keys init'")
        return cls(sets, directory)

    @classmethod
    def from_public_pem(cls, text: str) -> KeyRing:
        """Return a ring that can only verify, from what `export_public` wrote (KeyRingError)."""
        sets: list[KeySet] = []
        position = 0
        for match in _PEM.finditer(text):
            notes = dict(_NOTE.findall(text[position : match.start()]))
            position = match.end()
            try:
                key = load_pem_public_key(match.group().encode())
                created = datetime.fromisoformat(notes.get("created", "1970-01-01T00:00:00+00:00"))
            except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise KeyRingError(f"not a public key in PEM: {error}") from error
            if not isinstance(key, Ed25519PublicKey):
                raise KeyRingError(f"{_kind(key)}; the marks use Ed25519")
            raw = key.public_bytes_raw()
            if created.tzinfo is None:
                created = created.replace(tzinfo=UTC)
            sets.append(KeySet(_key_id(raw), notes.get("owner", ""), created, raw))
        if not sets:
            raise KeyRingError("no public key found; expected '-----BEGIN PUBLIC KEY-----'")
        return cls(tuple(sets))

    @property
    def current(self) -> KeySet:
        """The newest key set: the one that marks."""
        return self._sets[0]

    @property
    def uid_key(self) -> bytes:
        """Key of new SOP Instance UIDs: the oldest set's, so that a rotation changes none."""
        return self._sets[-1].uid_key

    def get(self, key_id: bytes) -> KeySet | None:
        """Return the key set named `key_id`, or None."""
        return next((keys for keys in self._sets if keys.key_id == key_id), None)

    def all(self) -> tuple[KeySet, ...]:
        """Return every key set, newest first."""
        return self._sets

    def rotate(self, owner: str) -> KeySet:
        """Make and store a new current key set; old ones stay for verification (KeyRingError)."""
        if self._directory is None:
            raise KeyRingError("a public key ring cannot be rotated; open the node's key folder")
        try:
            with _locked(self._directory):
                newest = max(_read(path).created for path in _files(self._directory))
                _write(self._directory, _generate(owner, newest))
                sets = tuple(_read(path) for path in _files(self._directory))
        except (OSError, ValueError) as error:
            raise KeyRingError(f"key ring {self._directory}: cannot rotate: {error}") from error
        self._sets = tuple(sorted(sets, key=lambda keys: keys.created, reverse=True))
        return self.current

    def export_public(self) -> str:
        """Return the current public key as PEM, with owner and date as comments before it."""
        keys = self.current
        key = Ed25519PublicKey.from_public_bytes(keys.public_key)
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
        return f"owner: {keys.owner}\ncreated: {keys.created.isoformat()}\n{pem}"


def _derive(master: bytes, context: bytes) -> bytes:
    """HKDF-SHA3-256 (RFC 5869) of `master`; a distinct `context` per key, 32 bytes."""
    return HKDF(SHA3_256(), 32, _SALT, context).derive(master)


def _kind(key: object) -> str:
    """Return what key was given instead of ours, in words."""
    curve = getattr(key, "curve", None)
    return f"a public key on {curve.name}" if curve is not None else f"a {type(key).__name__}"


def _key_id(public_key: bytes) -> bytes:
    return sha3_256(public_key).digest()[:8]


def _generate(owner: str, newest: datetime | None) -> KeySet:
    now = datetime.now(UTC)
    # A clock set back must not make the new key older than the one it replaces.
    if newest is not None and now <= newest:
        now = newest + timedelta(microseconds=1)
    return KeySet.from_master(secrets.token_bytes(32), owner, now)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.json"))


def _refuse_shared(path: Path, mode: str) -> None:
    """Refuse `path` if group or others have any right on it (KeyRingError with the fix)."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyRingError(f"{path} is open to group or others; run: chmod {mode} {path}")


def _read(path: Path) -> KeySet:
    _refuse_shared(path, "600")
    try:
        table = json.loads(path.read_text("utf-8"))
        if table["format"] != _FORMAT:
            raise KeyRingError(f"{path}: format {table['format']!r} is not {_FORMAT!r}")
        master = bytes.fromhex(table["master"])
        created = datetime.fromisoformat(table["created"])
        keys = KeySet.from_master(master, str(table["owner"]), created)
        stored = bytes.fromhex(table["public_key"])
    except (ValueError, KeyError, TypeError) as error:
        raise KeyRingError(f"{path}: damaged key file ({error}); restore it from backup") from error
    # A flipped bit in the master would silently sign with an unknown key.
    if stored != keys.public_key or len(master) != 32 or created.tzinfo is None:
        raise KeyRingError(f"{path}: damaged key file (keys do not match); restore it from backup")
    return keys


def _write(directory: Path, keys: KeySet) -> None:
    """Store `keys` so that a crash leaves either the whole file or none."""
    master = keys._secret()
    table = {
        "format": _FORMAT,
        "owner": keys.owner,
        "created": keys.created.isoformat(),
        "public_key": keys.public_key.hex(),
        "master": master.hex(),
    }
    name = f"{keys.created:%Y%m%dT%H%M%S.%f}-{keys.key_id.hex()}"
    temporary = directory / f".{name}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / f"{name}.json")
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time add keys: two first starts must not make two keys."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
