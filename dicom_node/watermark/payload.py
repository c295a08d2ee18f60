"""What one frame says about itself: the signed record that W2 carries, and its bytes.

Layout, version 1 (integers little-endian, *n* = unsigned LEB128, ``x[n]`` = n bytes)::

    core   version[1] flags[1] key_id[8] uid_tag[16] n(frame_number) n(frame_count) n(marked_at)
           original_digest[32] i1_digest[32 if flags & 1] n(len) owner  n(len) tile_states
    body   n(count) attribute_digest[4] * count  n(len) features  n(len) ciphertext
    sign   Ed25519[64] over SHA3-256(context | core | SHA3-256(body) | i1_digest)

    tiled    pixels: core body sign
    header   pixels: core SHA3-256(body) sign      header block: "DNW2" 1 1 body
    compact  pixels: only a digest                 header block: "DNW2" 1 2 core body sign
    noted    pixels: a digest over 128 lowest bits header block: "DNW2" 1 3 noted[16] core body sign

The restoration block is AES-256-SIV (RFC 5297) under the restore key, the core as associated data.
The same frame must give the same bytes whenever it is marked again, so there is no room for a
random nonce; with a derived one, GCM would leak as soon as a later release wrote the block
differently for a frame marked before. SIV has no nonce to repeat: equal ciphertexts mean equal
frames, nothing more.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from hashlib import sha3_256, sha3_512
from typing import Literal

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from numpy.typing import NDArray

from dicom_node.errors import WatermarkError
from dicom_node.keys import KeySet

Profile = Literal["tiled", "header", "compact", "noted"]
VERSION = 1
_CONTEXT = b"dicom-node W2 record 1"
_MAGIC = b"DNW2"
_HAS_I1, _BODY_OUTSIDE = 1, 2
_TAG_BYTES = 16
_SIGNATURE_BYTES = 64
DIGEST_BYTES = 4
MAC_BYTES = 8
_NOTED_BYTES = 16


@dataclass(frozen=True)
class FrameRecord:
    """What a frame is to say.

    Attributes
    ----------
    owner
        Up to 255 bytes of UTF-8.
    sop_instance_uid
        Travels as a 16-byte tag, see `uid_tag`.
    frame_number, frame_count
        Counted from 1.
    marked_at
        Seconds since 1970 UTC.
    original_digest
        `frame_digest` of the frame before any mark, 32 bytes.
    attribute_digests
        4 bytes each.
    restoration
        What taking W1 off needs; opaque here, encrypted on the way.
    features
        The content fingerprint; opaque here, signed, readable by all.
    """

    owner: str
    sop_instance_uid: str
    frame_number: int
    frame_count: int
    marked_at: int
    original_digest: bytes
    attribute_digests: tuple[bytes, ...] = ()
    restoration: bytes = b""
    features: bytes = b""

    def __post_init__(self) -> None:
        numbers_ok = 1 <= self.frame_number <= self.frame_count and self.marked_at >= 0
        digests_ok = all(len(d) == DIGEST_BYTES for d in self.attribute_digests)
        if not numbers_ok or not digests_ok or len(self.original_digest) != 32:
            raise WatermarkError(
                "a frame record needs frame 1..count, a time, 32- and 4-byte digests"
            )
        if len(self.owner.encode()) > 255:
            raise WatermarkError("an owner has at most 255 bytes")


@dataclass(frozen=True)
class OpenedRecord:
    """A record as read: `restoration` is None without the restore key or the header block.

    `attribute_digests` and `features` are empty, and `complete` is False, where they stood in a
    header block that is gone.
    """

    key_id: bytes
    owner: str
    uid_tag: bytes
    frame_number: int
    frame_count: int
    marked_at: int
    original_digest: bytes
    attribute_digests: tuple[bytes, ...]
    restoration: bytes | None
    features: bytes
    complete: bool

    def belongs_to(self, sop_instance_uid: str, frame_number: int) -> bool:
        """Whether this record was made for that frame."""
        return self.uid_tag == uid_tag(sop_instance_uid) and self.frame_number == frame_number


@dataclass
class TileStates:
    """Tiles that carry nothing.

    Attributes
    ----------
    inert
        ``(tiles,)``: every pixel is `inert_value` (padding, or what surrounds the patient) and
        every side sample 0.
    mute
        Tiles that cannot hold a digest of their own, with that digest.
    """

    inert: NDArray[np.bool_]
    inert_value: int = 0
    mute: dict[int, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the states as bytes, b"" when every tile carries."""
        if not self.inert.any() and not self.mute:
            return b""
        plain = np.packbits(self.inert).tobytes()
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        small = packer.compress(plain) + packer.flush()
        form, bits = (1, plain) if len(plain) <= len(small) else (2, small)
        if not self.inert.any():
            form, bits = 0, b""
        out = bytes([form]) + self.inert_value.to_bytes(4, "little", signed=True)
        out += _number(len(bits)) + bits + _number(len(self.mute))
        return out + b"".join(_number(tile) + self.mute[tile] for tile in sorted(self.mute))

    @classmethod
    def unpack(cls, data: bytes, count: int) -> TileStates:
        """Return the states of `count` tiles from `pack` (ValueError)."""
        states = cls(np.zeros(count, np.bool_))
        if not data:
            return states
        reader = _Reader(data)
        form = reader.take(1)[0]
        states.inert_value = int.from_bytes(reader.take(4), "little", signed=True)
        bits = reader.sized()
        if form == 2:
            unpacker = zlib.decompressobj(-15)
            try:
                bits = unpacker.decompress(bits, count // 8 + 2)
            except zlib.error as error:
                raise ValueError("tile states do not decompress") from error
        if form in (1, 2):
            if len(bits) != -(-count // 8):
                raise ValueError("tile states of another number of tiles")
            states.inert = np.unpackbits(np.frombuffer(bits, np.uint8), count=count).astype(
                np.bool_
            )
        for _ in range(reader.number()):
            tile = reader.number()
            if tile >= count:
                raise ValueError("tile states name a tile that is not there")
            states.mute[tile] = reader.take(MAC_BYTES)
        return states


@dataclass(frozen=True)
class Parsed:
    """A payload taken apart; nothing in it is believed before `authentic`."""

    core: bytes
    body: bytes | None
    body_digest: bytes
    signature: bytes
    key_id: bytes
    uid_tag: bytes
    frame_number: int
    frame_count: int
    marked_at: int
    original_digest: bytes
    i1_digest: bytes | None
    owner: str
    tile_states: bytes

    @property
    def outside(self) -> bool:
        """Whether the body stands (or stood) in the header block."""
        return bool(self.core[1] & _BODY_OUTSIDE)

    def authentic(self, keys: KeySet, i1_digest: bytes) -> bool:
        """Whether `keys` signed this record together with `i1_digest`."""
        return keys.verify(_signed(self.core, self.body_digest, i1_digest), self.signature)

    def open(self, keys: KeySet) -> OpenedRecord:
        """Return the record, once it is known to be authentic."""
        attributes: tuple[bytes, ...] = ()
        restoration: bytes | None = None
        features = b""
        if self.body is not None:
            reader = _Reader(self.body)
            attributes = tuple(reader.take(DIGEST_BYTES) for _ in range(reader.number()))
            features = reader.sized()
            ciphertext = reader.sized()
            if keys.has_secrets:
                restoration = _decrypt(ciphertext, keys, self.core)
        return OpenedRecord(
            self.key_id, self.owner, self.uid_tag, self.frame_number, self.frame_count,
            self.marked_at, self.original_digest, attributes, restoration, features,
            self.body is not None,
        )  # fmt: skip


def uid_tag(sop_instance_uid: str) -> bytes:
    """Return the 16-byte tag a SOP Instance UID travels as."""
    return sha3_256(b"dicom-node uid" + sop_instance_uid.encode()).digest()[:16]


def size(record: FrameRecord, profile: Profile, states: TileStates, *, keep_i1: bool) -> int:
    """Return the bytes that `pack` will put into the pixels."""
    core = _core(record, bytes(8), states, bytes(32) if keep_i1 else None, profile)
    inside = 32 if profile == "header" else len(_body(record, b"")) + _cipher_growth(record)
    return len(core) + inside + _SIGNATURE_BYTES


def pack(
    record: FrameRecord, profile: Profile, states: TileStates, keys: KeySet, i1_digest: bytes,
    *, keep_i1: bool, noted: bytes = b"",
) -> tuple[bytes, bytes]:  # fmt: skip
    """Return what goes into the pixels and what goes into the header block.

    Parameters
    ----------
    i1_digest
        `frame_digest` of the frame W2 goes into.
    keep_i1
        Store that digest, so that the signature can still be checked when some tile is destroyed.
    noted
        Of the profile "noted": the lowest bits that were written over, 16 bytes.
    """
    core = _core(record, keys.key_id, states, i1_digest if keep_i1 else None, profile)
    body = _body(record, _encrypt(record.restoration, keys, core))
    digest = sha3_256(body).digest()
    signature = keys.sign(_signed(core, digest, i1_digest))
    if profile == "tiled":
        return core + body + signature, b""
    if profile == "header":
        return core + digest + signature, _MAGIC + bytes([VERSION, 1]) + body
    if profile == "noted":
        return b"", _MAGIC + bytes([VERSION, 3]) + noted + core + body + signature
    return b"", _MAGIC + bytes([VERSION, 2]) + core + body + signature


def parse(pixels: bytes, header_block: bytes) -> Parsed:
    """Take a payload from the pixels apart; zeros may follow it (ValueError)."""
    reader = _Reader(pixels)
    parsed = _parse(reader, header_block)
    if any(reader.rest()):
        raise ValueError("bytes after the record")
    return parsed


def parse_compact(header_block: bytes) -> Parsed | None:
    """Return the record of a compact frame from its header block, or None if it is another's."""
    if header_block[:6] != _MAGIC + bytes([VERSION, 2]):
        return None
    reader = _Reader(header_block[6:])
    parsed = _parse(reader, b"")
    if reader.rest():
        raise ValueError("bytes after the record")
    return parsed


def parse_noted(header_block: bytes) -> tuple[Parsed, bytes] | None:
    """Return the record of a frame whose lowest bits were written over, and those bits.

    None if the block is another's (ValueError where it is damaged).
    """
    if header_block[:6] != _MAGIC + bytes([VERSION, 3]):
        return None
    reader = _Reader(header_block[6:])
    bits = reader.take(_NOTED_BYTES)
    inner = _Reader(reader.rest())
    parsed = _parse(inner, b"")
    if inner.rest():
        raise ValueError("bytes after the record")
    return parsed, bits


def _parse(reader: _Reader, header_block: bytes) -> Parsed:
    version, flags = reader.take(2)
    if version != VERSION or flags & ~(_HAS_I1 | _BODY_OUTSIDE):
        raise ValueError(f"payload version {version} is not known")
    key_id, tag = reader.take(8), reader.take(16)
    number, count, marked_at = reader.number(), reader.number(), reader.number()
    original = reader.take(32)
    i1_digest = reader.take(32) if flags & _HAS_I1 else None
    owner = reader.sized().decode("utf-8")
    states = reader.sized()
    core = reader.seen()
    body: bytes | None = None
    if flags & _BODY_OUTSIDE:
        digest = reader.take(32)
        if header_block[:6] == _MAGIC + bytes([VERSION, 1]):
            found = header_block[6:]
            # Another frame's or a damaged block counts as gone: the pixels speak for themselves.
            body = found if sha3_256(found).digest() == digest else None
    else:
        start = reader.position
        for _ in range(reader.number()):
            reader.take(DIGEST_BYTES)
        reader.sized()
        reader.sized()
        body = reader.data[start : reader.position]
        digest = sha3_256(body).digest()
    return Parsed(core, body, digest, reader.take(_SIGNATURE_BYTES), key_id, tag, number, count,
                  marked_at, original, i1_digest, owner, states)  # fmt: skip


def _core(
    record: FrameRecord, key_id: bytes, states: TileStates, i1_digest: bytes | None,
    profile: Profile,
) -> bytes:  # fmt: skip
    flags = (_HAS_I1 if i1_digest else 0) | (_BODY_OUTSIDE if profile == "header" else 0)
    owner, tiles = record.owner.encode(), states.pack()
    return b"".join((
        bytes([VERSION, flags]), key_id, uid_tag(record.sop_instance_uid),
        _number(record.frame_number), _number(record.frame_count), _number(record.marked_at),
        record.original_digest, i1_digest or b"",
        _number(len(owner)), owner, _number(len(tiles)), tiles,
    ))  # fmt: skip


def _body(record: FrameRecord, ciphertext: bytes) -> bytes:
    head = _number(len(record.attribute_digests)) + b"".join(record.attribute_digests)
    head += _number(len(record.features)) + record.features
    return head + _number(len(ciphertext)) + ciphertext


def _cipher_growth(record: FrameRecord) -> int:
    if not record.restoration:
        return 0
    length = len(record.restoration) + _TAG_BYTES
    return length + len(_number(length)) - 1


def _signed(core: bytes, body_digest: bytes, i1_digest: bytes) -> bytes:
    return sha3_256(_CONTEXT + core + body_digest + i1_digest).digest()


def _cipher(keys: KeySet) -> AESSIV:
    return AESSIV(sha3_512(b"dicom-node W2 restoration 1" + keys.restore_key).digest())


def _encrypt(plain: bytes, keys: KeySet, core: bytes) -> bytes:
    """Return tag (16 bytes) and ciphertext; nothing of nothing."""
    return _cipher(keys).encrypt(plain, [core]) if plain else b""


def _decrypt(data: bytes, keys: KeySet, core: bytes) -> bytes | None:
    if not data:
        return b""
    try:
        return _cipher(keys).decrypt(data, [core])
    except InvalidTag:
        return None


def _number(value: int) -> bytes:
    """Return `value` as unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Reads the pieces of a payload; every shortage is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            raise ValueError("the payload ends early")
        self.position += count
        return piece

    def number(self) -> int:
        value = shift = 0
        while shift < 63:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number of more than 63 bits")

    def sized(self) -> bytes:
        return self.take(self.number())

    def seen(self) -> bytes:
        return self.data[: self.position]

    def rest(self) -> bytes:
        return self.data[self.position :]
