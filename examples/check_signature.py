"""Check header and pixels of a DICOM instance with its owner's public key; say what changed.

    python check_signature.py public.pem instance.dcm        # exit 0: all as signed; 1: it is not

Shares no code with dicom-node; needs pydicom and openssl. The format: docs/VERIFYING.md.
"""
# ruff: noqa: T201

import struct
import subprocess
import sys
import tempfile
from hashlib import blake2b, sha3_256
from io import BytesIO
from pathlib import Path

from pydicom import datadict, dcmread, encaps, pixels, values

TEXT = "AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT"
PIXELS, ITEM, HEAD = 0x7FE00010, b"\xfe\xff\x00\xe0", struct.Struct("<4sB8sQ16s32sIB")
STORAGE = {0x00080001, 0x7FE00001, 0x7FE00002, 0xFFFCFFFC}  # lengths, offsets, padding


def _elements(ds):
    return [(tag, ds.get_item(tag)) for tag in sorted(ds.keys()) if tag.elem and tag not in STORAGE]


def _canonical(tag, element):
    vr, value = element.VR or "UN", element.value or b""
    if vr == "UN" and not tag.is_private and datadict.dictionary_has_tag(tag):
        vr = datadict.dictionary_VR(tag)
    if vr == "SQ" or (vr == "UN" and value[:4] == ITEM):
        if value and isinstance(value, bytes):
            implicit = element.VR == "UN" or element.is_implicit_VR
            value = values.convert_SQ(value, implicit, True)
        items = [b"".join(_canonical(*each) for each in _elements(item)) for item in value]
        sized = b"".join(struct.pack("<I", len(item)) + item for item in items)
        return struct.pack("<IcI", tag, b"S" if items else b"V", len(items)) + sized
    if not isinstance(value, bytes):  # a character set: pydicom has read that already
        value = "\\".join([value] if isinstance(value, str) else value).encode("ascii")
    text = vr in TEXT and not tag.is_private
    value = value.rstrip(b" \0") if text else value + bytes(len(value) % 2)
    return struct.pack("<IcI", tag, b"V", len(value)) + value


def _content(tag, element):
    value = element.value or b""
    if tag == PIXELS and value[:4] == ITEM:  # compressed: every fragment behind its length
        stream = BytesIO(value)
        encaps.parse_basic_offsets(stream)
        value = b"".join(struct.pack("<Q", len(f)) + f for f in encaps.generate_fragments(stream))
    elif tag >> 16 != 0x7FE0 and not (isinstance(value, bytes) and len(value) > 1 << 20):
        return _canonical(tag, element)
    return sha3_256(value + bytes(len(value) % 2)).digest()


def _changed_frames(ds, digests):
    told = [digests[k : k + 32] for k in range(0, len(digests), 32)]
    found, unused = [], 16 - ds.BitsStored  # bits above the value, where overlays may lie
    for frame in pixels.iter_pixels(ds, raw=True):
        stored = (frame.astype("<u2") << unused).view("<i2" if ds.PixelRepresentation else "<u2")
        message = struct.pack(f"<{frame.ndim}I", *frame.shape) + (stored >> unused).tobytes()
        found.append(blake2b(message, digest_size=32).digest())
    most = range(max(len(told), len(found)))
    return [k + 1 for k in most if told[k : k + 1] != found[k : k + 1]]


def _signed_by(public_key, message, signature):
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "message"), Path(folder, "signature")
        files[0].write_bytes(message)
        files[1].write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public_key, "-rawin"]
        command += ["-in", files[0], "-sigfile", files[1]]
        done = subprocess.run(command, check=False, capture_output=True)
    return done.returncode == 0


public_key, path = sys.argv[1:]
try:
    block = dcmread(path).private_block(0x0071, "DICOM-NODE WATERMARK 1.0")
    own, frames = block[2].tag, block[5].value if 5 in block else b""
except KeyError:
    sys.exit("not signed, or stripped: no seal in its header")
instance = dcmread(path)  # afresh: what is looked at is no longer as it was stored
if not instance.original_encoding[1]:
    sys.exit("big endian: convert it first (dcmconv +te)")
seal = bytes(instance.get_item(own).value)
magic, with_pixels, key_id, marked_at, salt, total, count, owner = HEAD.unpack_from(seal)
end = HEAD.size + owner + 12 * count
if magic != b"DNS1" or not _signed_by(public_key, seal[:end], seal[end : end + 64]):
    sys.exit("the seal is not signed with this key")
signed = dict(struct.iter_unpack("<I8s", seal[HEAD.size + owner : end]))
found = {
    tag: sha3_256(salt + _content(tag, element)).digest()
    for tag, element in _elements(instance)
    if tag != own and (tag != PIXELS or with_pixels)
}
changed = [t for t in {*signed, *found} if signed.get(t) != found.get(t, b"")[:8]]
for tag in sorted(changed):
    print(f"changed: ({tag >> 16:04X},{tag & 0xFFFF:04X}) {datadict.keyword_for_tag(tag)}")
everything = salt + b"".join(struct.pack("<I", tag) + full for tag, full in found.items())
if changed or sha3_256(everything).digest() != total:
    sys.exit("the header is not what was signed")
bad = _changed_frames(instance, frames) if frames else []
if bad:
    sys.exit(f"changed: pixels of frame {', '.join(map(str, bad))}")
seen = bool(frames or with_pixels)
print(f"{count} attributes {'and all pixels ' * seen}as signed by key {key_id.hex()}")
