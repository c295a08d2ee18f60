"""Check pixels and identity of a marked instance with its owner's public key, in thirty lines.

    python check_pixels.py public.pem instance.dcm        # exit 0: all as signed; 1: it is not

Shares no code with dicom-node; needs pydicom and openssl. check_signature.py checks the whole
header as well. The format: docs/VERIFYING.md.
"""
# ruff: noqa: SIM905, T201

import struct
import subprocess
import sys
import tempfile
from hashlib import blake2b, sha3_256
from pathlib import Path

from pydicom import dcmread, pixels

public_key, path = (Path(each).resolve() for each in sys.argv[1:])
block = dcmread(path).private_block(0x0071, "DICOM-NODE WATERMARK 1.0", create=True)
if 2 not in block or 5 not in block:
    sys.exit("not signed, or stripped: no seal or no digests of frames in its header")
own, seal, frames = block.get_tag(5), block[2].value, block[5].value
salt, _, attributes, owner = struct.unpack_from("<16s32sIB", seal, 21)
start, end = 74 + owner, 74 + owner + 12 * attributes
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "signed").write_bytes(seal[:end])
    Path(folder, "signature").write_bytes(seal[end : end + 64])
    command = "openssl pkeyutl -verify -pubin -rawin -in signed -sigfile signature -inkey".split()
    if subprocess.run([*command, public_key], cwd=folder, capture_output=True).returncode:
        sys.exit("the seal is not signed with this key")
signed, ds = dict(struct.iter_unpack("<I8s", seal[start:end])), dcmread(path)
for tag in (0x00080018, 0x0020000D, 0x0020000E, 0x00100020, own):  # SOP, study, series; patient
    value = bytes(ds.get_item(tag).value or b"") if tag in ds else b""
    value = value if tag == own else value.rstrip(b" \0")
    element = struct.pack("<IcI", tag, b"V", len(value)) + value
    if signed.get(tag) != (sha3_256(salt + element).digest()[:8] if tag in ds else None):
        sys.exit(f"changed: ({tag >> 16:04X},{tag & 0xFFFF:04X})")
for number, frame in enumerate(pixels.iter_pixels(ds, raw=True)):
    unused = 16 - ds.BitsStored  # bits above the value, where overlays may lie
    stored = (frame.astype("<u2") << unused).view("<i2" if ds.PixelRepresentation else "<u2")
    message = struct.pack(f"<{frame.ndim}I", *frame.shape) + (stored >> unused).tobytes()
    if frames[32 * number : 32 * number + 32] != blake2b(message, digest_size=32).digest():
        sys.exit(f"changed: pixels of frame {number + 1}")
if len(frames) != 32 * int(ds.get("NumberOfFrames") or 1):
    sys.exit("frames are missing")
print("identity and all pixels as signed")
