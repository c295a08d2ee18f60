"""GDCM in a process of its own, run as a script: its decoder aborts the process on some bad frames.

Reads requests from standard input and writes answers to standard output until end of file. A
request is `REQUEST` and the code stream; an answer is the length of the samples (0: not decodable)
and the samples.
Imports nothing of this package, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import signal
import struct
import sys

# Transfer syntax (last arc), rows, columns, samples, precision, signed, bytes of code stream.
REQUEST = struct.Struct("<BIIBB?I")
ANSWER = struct.Struct("<I")


def decode(code: bytes, arc: int, rows: int, columns: int, form: tuple[int, int, int]) -> bytes:
    """Return one frame's samples, interleaved, in the colour space as coded; empty if undecodable.

    Parameters
    ----------
    form
        Samples per pixel, bits per sample, 1 where signed.
    """
    samples, bits, sign = form
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(code)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    # Whatever the header says: named RGB, GDCM converts no colour.
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2" if samples == 1 else "RGB")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if samples == 3:
        image.SetPlanarConfiguration(0)
    syntax = gdcm.TransferSyntax.GetTSType(f"1.2.840.10008.1.2.4.{arc}")
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    allocated = 16 if bits > 8 else 8
    image.SetPixelFormat(gdcm.PixelFormat(samples, allocated, bits, bits - 1, sign))
    # GDCM hands its char buffer over as text, or None.
    text = image.GetBuffer()
    return text.encode("utf-8", "surrogateescape") if text else b""


def main() -> None:
    """Answer requests until standard input ends."""
    # The worker finishes its frame and then ends us; a signal to the group must not come first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        arc, rows, columns, samples, bits, sign, length = REQUEST.unpack(head)
        plain = decode(requests.read(length), arc, rows, columns, (samples, bits, int(sign)))
        answers.write(ANSWER.pack(len(plain)) + plain)
        answers.flush()


if __name__ == "__main__":
    main()
