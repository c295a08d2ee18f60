"""Digital signatures as they arrive: whether they hold, before a pixel change breaks them.

Held means: made over these very bytes with the key of the certificate that comes along. Whether
that certificate deserves trust is not judged here.

References
----------
DICOM PS3.3 C.12.1.1.3 (Digital Signatures Macro, what goes into the MAC), PS3.15 C.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from Crypto.Hash import MD5, RIPEMD160, SHA1, SHA256, SHA384, SHA512
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15

from dicom_node.errors import PixelError
from dicom_node.instance.datafile import DataFile
from dicom_node.instance.elements import PIXEL_DATA, UNDEFINED, Element, Scanner
from dicom_node.instance.syntaxes import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, name_of

MAC_PARAMETERS, SIGNATURES = 0x4FFE0001, 0xFFFAFFFA

_MAC_ID, _UID = 0x04000005, 0x04000100
_SYNTAX, _ALGORITHM, _SIGNED = 0x04000010, 0x04000015, 0x04000020
_CERTIFICATE, _SIGNATURE = 0x04000115, 0x04000120
_NOT_SIGNED = frozenset((_CERTIFICATE, _SIGNATURE, 0x04000305, 0x04000310))
_HASHES: dict[str, ModuleType] = {
    "RIPEMD160": RIPEMD160,
    "MD5": MD5,
    "SHA1": SHA1,
    "SHA256": SHA256,
    "SHA384": SHA384,
    "SHA512": SHA512,
}
_NATIVE = {(True, True): IMPLICIT_LE, (False, True): EXPLICIT_LE, (False, False): EXPLICIT_BE}
_ITEM = {True: b"\xfe\xff\x00\xe0", False: b"\xff\xfe\xe0\x00"}
_SEQUENCE_END = {True: b"\xfe\xff\xdd\xe0", False: b"\xff\xfe\xe0\xdd"}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """One digital signature over the data set.

    Attributes
    ----------
    holds
        Whether it does; None where that could not be found out.
    reason
        Why it could not.
    """

    uid: str
    holds: bool | None
    reason: str = ""

    def __str__(self) -> str:
        """Return what is recorded about it."""
        if self.holds is None:
            return f"{self.uid} not checked ({self.reason})"
        return f"{self.uid} {'held' if self.holds else 'did not hold'} when received"


def check_signatures(data: DataFile) -> list[Signature]:
    """Check every signature over the data set; those in sequence items are left alone.

    Returns
    -------
    list of Signature
        In order; not checked is what was calculated in another encoding than the data set has, or
        with something other than RSA.
    """
    place = data.elements.get(SIGNATURES)
    if place is None:
        return []
    scanner = Scanner(data.source, implicit=data.implicit, little=data.little)
    try:
        parameters = dict(_parameters(data, scanner))
        return [_checked(data, scanner, item, parameters) for item in scanner.items(place)]
    except PixelError as error:
        return [Signature("of malformed items", None, str(error))]


Item = dict[int, Element]


def _parameters(data: DataFile, scanner: Scanner) -> Iterator[tuple[bytes, Item]]:
    """Yield MAC ID Number, as encoded, and item of the MAC Parameters Sequence."""
    place = data.elements.get(MAC_PARAMETERS)
    for members in scanner.items(place) if place is not None else ():
        item = {element.tag: element for element in members}
        yield _value(data, item, _MAC_ID), item


def _checked(
    data: DataFile, scanner: Scanner, members: list[Element], parameters: dict[bytes, Item]
) -> Signature:
    item = {element.tag: element for element in members}
    uid = _text(data, item, _UID) or "without UID"
    how = parameters.get(_value(data, item, _MAC_ID))
    if how is None:
        return Signature(uid, None, "its MAC parameters are missing")
    syntax, algorithm = _text(data, how, _SYNTAX), _text(data, how, _ALGORITHM)
    if syntax not in (data.transfer_syntax_uid, _NATIVE[data.implicit, data.little]):
        return Signature(uid, None, f"calculated in {name_of(syntax)}")
    if algorithm not in _HASHES:
        return Signature(uid, None, f"calculated with {algorithm or 'no algorithm'}")
    signed = _value(data, how, _SIGNED)
    order = "<" if data.little else ">"
    numbers = struct.unpack(f"{order}{len(signed) // 4 * 2}H", signed[: len(signed) // 4 * 4])
    tags = [group << 16 | number for group, number in zip(*[iter(numbers)] * 2, strict=True)]
    digest = _HASHES[algorithm].new()
    for tag in tags:
        if tag not in data.elements:
            return Signature(uid, False)
        for part in _stream(data, scanner, data.elements[tag]):
            digest.update(part)
    for element in members:
        if element.tag not in _NOT_SIGNED:
            for part in _stream(data, scanner, element):
                digest.update(part)
    certificate, signature = (_value(data, item, tag) for tag in (_CERTIFICATE, _SIGNATURE))
    try:
        key = RSA.import_key(_unpadded(certificate))
    except (ValueError, IndexError, TypeError):
        return Signature(uid, None, "its certificate is of no RSA key")
    try:
        pkcs1_15.new(key).verify(digest, signature[: key.size_in_bytes()])
    except (ValueError, TypeError):
        return Signature(uid, False)
    return Signature(uid, True)


def _stream(data: DataFile, scanner: Scanner, element: Element) -> Iterator[bytes]:
    """Yield what of an element goes into the MAC: all but lengths of sequences and items."""
    encapsulated = element.tag == PIXEL_DATA and element.length == UNDEFINED
    nested = encapsulated or scanner.is_sequence(element)
    head = element.value - element.start
    if nested:
        # The reserved bytes of explicit VR stay, the length behind them goes.
        head -= 4
    yield data.source.read(element.start, head)
    if encapsulated:
        for offset, length in scanner.fragments(element):
            yield _ITEM[data.little]
            yield from _blocks(data, offset, length)
    elif nested:
        for members in scanner.items(element):
            yield _ITEM[data.little]
            for member in members:
                if member.tag & 0xFFFF:  # group lengths are no part of what is said
                    yield from _stream(data, scanner, member)
    else:
        yield from _blocks(data, element.value, element.value_length)
    if nested:
        yield _SEQUENCE_END[data.little]


def _blocks(data: DataFile, offset: int, length: int) -> Iterator[bytes]:
    for at in range(offset, offset + length, _CHUNK):
        yield data.source.read(at, min(_CHUNK, offset + length - at))


def _value(data: DataFile, item: Item, tag: int) -> bytes:
    element = item.get(tag)
    return b"" if element is None else data.source.read(element.value, element.value_length)


def _text(data: DataFile, item: Item, tag: int) -> str:
    return _value(data, item, tag).decode("ascii", "replace").strip(" \0")


def _unpadded(der: bytes) -> bytes:
    """Return a DER object without the byte that makes its value's length even."""
    if len(der) < 4 or not 0x81 <= der[1] <= 0x84:
        return der
    count = der[1] & 0x7F
    return der[: 2 + count + int.from_bytes(der[2 : 2 + count], "big")]
