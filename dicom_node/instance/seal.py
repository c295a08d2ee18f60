"""The header seal: an Ed25519 signature over the canonical data set, naming what changed.

Every top-level attribute has a salted 8-byte digest in the seal, so that a changed, added or
removed one can be named; one digest over all of them at full length is what the signature rests
on. Of an instance that cannot be marked the seal covers the pixel data, too.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

from dicom_node.errors import PixelError, WatermarkError
from dicom_node.instance.block import PrivateBlock, read_block, seal_tag, write_block, write_seal
from dicom_node.instance.canonical import (
    bulk_digest,
    canonical_element,
    contents,
    is_content,
)
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.elements import PIXEL_DATA, tag_text
from dicom_node.instance.parsing import text_in
from dicom_node.instance.rewrite import Item, write_header
from dicom_node.instance.values import tag_of

_MAGIC = b"DNS1"
_HEAD = struct.Struct("<4sB8sQ16s32sIB")
_ENTRY = struct.Struct("<I8s")
_TAG = struct.Struct("<I")
_SIGNATURE_BYTES = 64
_NONCE_BYTES, _TAG_BYTES = 12, 16
_ATTRIBUTE_DIGEST_BYTES = 4

# What says whose image this is, and how it is to be read. Attributes of a line are digested
# together; an enhanced object has some of them in its shared functional groups.
IDENTIFYING_KEYWORDS: tuple[tuple[str, ...], ...] = (
    ("PatientID", "IssuerOfPatientID"),
    ("PatientName",),
    ("PatientBirthDate",),
    ("PatientSex",),
    ("AccessionNumber",),
    ("StudyInstanceUID",),
    ("SeriesInstanceUID",),
    ("SOPInstanceUID",),
    ("StudyDate", "StudyTime"),
    ("Modality",),
    ("Laterality", "ImageLaterality", "FrameLaterality"),
    ("BodyPartExamined", "ViewPosition"),
    ("PixelSpacing", "ImagerPixelSpacing"),
    ("ImagePositionPatient", "ImageOrientationPatient"),
    ("WindowCenter", "WindowWidth"),
    ("RescaleSlope", "RescaleIntercept"),
)


class _Line(NamedTuple):
    """A line of `IDENTIFYING_KEYWORDS`, looked up."""

    name: bytes
    tags: tuple[int, ...]


_LINES = tuple(
    _Line(line[0].encode(), tuple(tag_for_keyword(keyword) or 0 for keyword in line))
    for line in IDENTIFYING_KEYWORDS
)
_SHARED_GROUPS = tag_of(0x52009229)


class Signer(Protocol):
    """What of a key set a seal is made with (`dicom_node.keys.KeySet`)."""

    @property
    def key_id(self) -> bytes:
        """8 bytes."""

    @property
    def owner(self) -> str:
        """Whose key it is."""

    def sign(self, message: bytes) -> bytes:
        """Return an Ed25519 signature, 64 bytes."""


class Verifier(Protocol):
    """What of a key set a seal is checked with."""

    @property
    def owner(self) -> str:
        """Whose key it is."""

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's over the message."""


class Ring(Protocol):
    """What of a key ring a seal is checked with (`dicom_node.keys.KeyRing`)."""

    def get(self, key_id: bytes) -> Verifier | None:
        """Return the key set of that id, or None."""


@dataclass(frozen=True, slots=True)
class SealCheck:
    """What became of a sealed header.

    Attributes
    ----------
    present
        There is a seal.
    signature_valid
        It is intact and signed by a key of the ring; all below is only then to be trusted.
    changed
        Keyword, or ``(gggg,eeee)``, of every attribute changed, added or removed since.
    covers_pixels
        The pixel data is under the seal.
    marked_at
        Unix seconds.
    """

    present: bool
    signature_valid: bool = False
    changed: tuple[str, ...] = ()
    key_id: bytes = b""
    marked_at: int = 0
    owner: str = ""
    covers_pixels: bool = False

    @property
    def intact(self) -> bool:
        """Whether nothing under the seal changed."""
        return self.present and self.signature_valid and not self.changed


def seal(
    header: Dataset, data: DataFile, keys: Signer, *, marked_at: int, cover_pixels: bool
) -> None:
    """Seal `header`: put the seal into our private block, which must be complete otherwise.

    Parameters
    ----------
    header
        As it will be written.
    data
        The source: values over 1 MiB, and pixel data where covered, are read from it.
    marked_at
        Unix seconds.
    cover_pixels
        True for an instance whose pixel data is copied as it is.

    Raises
    ------
    PixelError
        If an attribute cannot be parsed.
    """
    if seal_tag(header) is None:
        write_block(header, PrivateBlock())
    instance = text_in(header, 0x00080018).encode()
    fresh = hashlib.sha3_256(_MAGIC + keys.key_id + marked_at.to_bytes(8, "little") + instance)
    salt = fresh.digest()[:16]
    total, entries = _digests(header, data, salt, cover_pixels)
    owner = keys.owner.encode()
    message = _HEAD.pack(
        _MAGIC, cover_pixels, keys.key_id, marked_at, salt, total, len(entries), len(owner)
    )
    message += owner + b"".join(_ENTRY.pack(tag, short) for tag, short in entries.items())
    write_seal(header, message + keys.sign(message))


def seal_file(source: Path, out: Path, keys: Signer, *, marked_at: int) -> str:
    """Seal an instance that cannot be marked; its pixel data is copied byte for byte.

    Returns
    -------
    str
        The transfer syntax UID, which is the source's.

    Raises
    ------
    PixelError
        If the source cannot be parsed.
    """
    data = open_data_file(source, scratch=out.parent)
    try:
        header = data.read_header()
        seal(header, data, keys, marked_at=marked_at, cover_pixels=True)
        write_header(data, header, out)
    finally:
        data.close()
    return data.transfer_syntax_uid


def check_seal(path: Path, ring: Ring) -> SealCheck:
    """Check the header seal of a file.

    Raises
    ------
    PixelError
        If the file cannot be parsed.
    """
    data = open_data_file(path)
    try:
        return check_header(data.read_header(), data, ring)
    finally:
        data.close()


def check_header(header: Dataset, data: DataFile, ring: Ring) -> SealCheck:
    """Check the seal in `header`, which was read from `data` (PixelError)."""
    block = read_block(header)
    if block is None or not block.seal:
        return SealCheck(present=False)
    try:
        magic, covered, key_id, marked_at, salt, total, count, length = _HEAD.unpack_from(
            block.seal
        )
        end = _HEAD.size + length + count * _ENTRY.size
        owner = block.seal[_HEAD.size : _HEAD.size + length].decode()
        raw = block.seal[_HEAD.size + length : end]
        message, signature = block.seal[:end], block.seal[end : end + _SIGNATURE_BYTES]
        before = dict(_ENTRY.iter_unpack(raw))
    except (struct.error, UnicodeDecodeError):
        return SealCheck(present=True)
    keys = ring.get(key_id)
    known = magic == _MAGIC and keys is not None and len(before) == count
    valid = known and keys is not None and keys.verify(message, signature)
    if not valid:
        return SealCheck(True, False, (), key_id, marked_at, owner, bool(covered))
    now_total, now = _digests(header, data, salt, bool(covered))
    changed = [tag for tag in sorted({*before, *now}) if before.get(tag) != now.get(tag)]
    names = [keyword_for_tag(tag) or tag_text(tag) for tag in changed]
    if not names and now_total != total:
        names = ["(unknown)"]
    return SealCheck(True, True, tuple(names), key_id, marked_at, owner, bool(covered))


def covers_pixels(sealed: bytes) -> bool:
    """Whether a header seal says that the pixel data is under it, as it is coded."""
    return len(sealed) >= _HEAD.size and bool(_HEAD.unpack_from(sealed)[1])


def attribute_digests(header: Dataset, mac_key: bytes) -> tuple[bytes, ...]:
    """Return a 4-byte keyed digest for each line of `IDENTIFYING_KEYWORDS` (PixelError)."""
    own = {int(tag): item for tag, item in header.items()}
    groups = _shared_groups(header)
    return tuple(_keyed(header, own, groups, line, mac_key) for line in _LINES)


def changed_attributes(header: Dataset, digests: tuple[bytes, ...], mac_key: bytes) -> list[str]:
    """Return the first keyword of each line whose digest is another now (PixelError)."""
    now = attribute_digests(header, mac_key)
    lines = zip(IDENTIFYING_KEYWORDS, digests, now, strict=False)
    return [line[0] for line, before, after in lines if before != after]


def encrypt(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypt with AES-256-GCM: nonce (12 bytes), ciphertext, tag (16 bytes).

    The nonce is derived from key, context and plaintext, so that the same work gives the same
    bytes, and two plaintexts never share one.

    Parameters
    ----------
    key
        32 bytes: `KeySet.restore_key`.
    context
        What it belongs to; needed again to decrypt, and authenticated.
    """
    nonce = hmac.digest(key, b"nonce" + hashlib.sha3_256(context).digest() + plaintext, "sha3_256")
    return nonce[:_NONCE_BYTES] + AESGCM(key).encrypt(nonce[:_NONCE_BYTES], plaintext, context)


def decrypt(key: bytes, sealed: bytes, context: bytes, *, padded: bool = False) -> bytes:
    """Return the plaintext of `encrypt`.

    Parameters
    ----------
    padded
        A padding byte may follow, as in a DICOM value of odd length.

    Raises
    ------
    WatermarkError
        If it was altered, or made with another key or context.
    """
    for end in (len(sealed), len(sealed) - 1)[: 1 + padded]:
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:end]
        if len(body) < _TAG_BYTES:
            break
        try:
            return AESGCM(key).decrypt(nonce, body, context)
        except InvalidTag:
            continue
    raise WatermarkError("the encrypted block was altered, or belongs to another key")


def _digests(
    header: Dataset, data: DataFile, salt: bytes, cover_pixels: bool
) -> tuple[bytes, dict[int, bytes]]:
    """Return the digest over everything, and the short one of each attribute by tag."""
    parts, entries = [salt], {}
    salted = hashlib.sha3_256(salt).copy
    for tag, content in _contents(header, data, cover_pixels):
        digest = salted()
        digest.update(content)
        full = digest.digest()
        parts += (_TAG.pack(tag), full)
        entries[tag] = full[:8]
    return hashlib.sha3_256(b"".join(parts)).digest(), entries


def _contents(header: Dataset, data: DataFile, cover_pixels: bool) -> Iterator[tuple[int, bytes]]:
    """Yield tag and canonical bytes of everything under a seal, in tag order."""
    own = seal_tag(header)
    found = contents(header)
    bulk = {tag: place for tag, place in data.bulk.items() if is_content(tag)}
    if not cover_pixels:
        bulk.pop(PIXEL_DATA, None)
    if bulk:
        here = dict(found)
        here = {tag: bulk_digest(data, place) for tag, place in bulk.items()} | here
        found = ((tag, here[tag]) for tag in sorted(here))
    for tag, content in found:
        if tag != own:
            yield tag, content


def _keyed(
    header: Dataset, own: dict[int, Item], groups: list[Dataset], line: _Line, mac_key: bytes
) -> bytes:
    parts = [line.name]
    for tag in line.tags:
        found = b""
        if tag in own:
            found = canonical_element(header, own[tag])
        elif groups:
            level = next((group for group in groups if tag_of(tag) in group), None)
            if level is not None:
                found = canonical_element(level, level.get_item(tag_of(tag)))
        parts += (_TAG.pack(len(found)), found)
    return hmac.digest(mac_key, b"".join(parts), "sha3_256")[:_ATTRIBUTE_DIGEST_BYTES]


def _shared_groups(header: Dataset) -> list[Dataset]:
    """Return the data sets in the shared functional groups, in order."""
    if _SHARED_GROUPS not in header:
        return []
    try:
        return [
            group.value[0]
            for item in header[_SHARED_GROUPS].value or ()
            for group in item
            if group.VR == "SQ" and group.value
        ]
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises nearly anything on malformed sequences
        raise PixelError(f"the functional groups cannot be read: {error}") from error
