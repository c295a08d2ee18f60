"""Check the signed header of a DICOM instance with its owner's public key, and name what changed.

    python check_signature.py public.pem instance.dcm      # 0: it holds; 1: it does not

Shares no code with dicom-node: pydicom and openssl. What a seal is: docs/VERIFYING.md.
"""

import struct
import subprocess
import sys
import tempfile
from hashlib import sha3_256
from io import BytesIO

from pydicom import datadict, dcmread, encaps, values

CREATOR, TEXT = "DICOM-NODE WATERMARK 1.0", "AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT"
STORED_ELSEWHERE = {0x00080001, 0x7FE00001, 0x7FE00002, 0xFFFCFFFC}  # lengths, offsets, padding


def elements(ds):
    return [(t, ds.get_item(t)) for t in sorted(ds.keys()) if t.elem and t not in STORED_ELSEWHERE]


def canonical(tag, element):
    vr, value = element.VR or "UN", element.value or b""
    if vr == "UN" and not tag.is_private and datadict.dictionary_has_tag(tag):
        vr = datadict.dictionary_VR(tag)
    if vr == "SQ" or (vr == "UN" and value[:4] == b"\xfe\xff\x00\xe0"):
        implicit = vr == "UN" or element.VR in (None, "UN") or element.is_implicit_VR
        items = values.convert_SQ(value, implicit, True) if isinstance(value, bytes) else value
        inside = [b"".join(canonical(*each) for each in elements(item)) for item in items]
        if inside:
            body = b"".join(struct.pack("<I", len(item)) + item for item in inside)
            return struct.pack("<IcI", tag, b"S", len(inside)) + body
    plain = vr in TEXT.split() and not tag.is_private
    value = value.rstrip(b" \0") if plain else bytes(value) + bytes(len(value) % 2)
    return struct.pack("<IcI", tag, b"V", len(value)) + value


def bulk(element):  # pixel data, and whatever is longer than 1 MiB
    if element.tag != 0x7FE00010 or element.value[:4] != b"\xfe\xff\x00\xe0":
        return sha3_256(element.value + bytes(len(element.value) % 2)).digest()
    stream = BytesIO(element.value)
    encaps.parse_basic_offsets(stream)
    parts = (struct.pack("<Q", len(f)) + f for f in encaps.generate_fragments(stream))
    return sha3_256(b"".join(parts)).digest()


def main(public_key, path):
    ds = dcmread(path)
    seal = ds.private_block(0x0071, CREATOR)[2]  # KeyError: this instance carries no seal of ours
    magic, pixels, key_id, when, salt, total, count, owner = struct.unpack_from("<4sB8sQ16s32sIB",
                                                                                seal.value)
    end = 74 + owner + 12 * count
    with tempfile.NamedTemporaryFile() as message, tempfile.NamedTemporaryFile() as signature:
        message.write(seal.value[:end])
        signature.write(seal.value[end : end + 64])
        message.flush(), signature.flush()
        subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public_key, "-rawin",
                        "-in", message.name, "-sigfile", signature.name], check=True)
    signed = dict(struct.iter_unpack("<I8s", seal.value[74 + owner : end]))
