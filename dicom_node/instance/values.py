"""Values of plain attributes straight from their bytes.

pydicom converts a value when it is asked for it; for the forty that are needed of every instance
that takes longer than marking a small frame. What is not plain here is left to pydicom.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.datadict import dictionary_VR
from pydicom.tag import BaseTag

# Characters that every character set of PS3.3 C.12.1.1.2 codes as ASCII does.
_PLAIN_TEXT = re.compile(rb"[A-Za-z0-9 ,;:=_/.()+\-^&<>#*'!?@]*[ \0]*")
_PLAIN_NUMBER = re.compile(rb" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *")
_TEXT_VR = frozenset(("AE", "CS", "LO", "SH", "ST", "LT", "UI"))
_MOST_TAGS = 1 << 14
_TAGS: dict[int, BaseTag] = {}


def tag_of(tag: int) -> BaseTag:
    """Return a tag as pydicom keys its data sets with; a known one is made once.

    Equal tags being one object is what makes looking one up fast: pydicom compares them in Python.
    """
    known = _TAGS.get(tag)
    if known is None:
        known = BaseTag(tag)
        if len(_TAGS) < _MOST_TAGS:
            _TAGS[tag] = known
    return known


@lru_cache(maxsize=1 << 13)
def known_vr(tag: int) -> str:
    """Return the VR of PS3.6 (``US or SS`` where it depends); ``UN`` of an unknown attribute."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def plain_text(value: bytes, vr: str) -> str | None:
    """Return a single-valued ASCII text without its padding; None where it is not that."""
    if vr not in _TEXT_VR or not _PLAIN_TEXT.fullmatch(value):
        return None
    text = value.decode("ascii").rstrip(" \0")
    return text.strip() if vr == "UI" else text


def plain_whole(value: bytes, vr: str, *, little: bool) -> int | None:
    """Return a single US, SS or IS value; None where it is not that."""
    if len(value) == 2 and vr in ("US", "SS", "US or SS"):
        # One that may be either is for the caller to read as it stands.
        signed = vr == "SS"
        return int.from_bytes(value, "little" if little else "big", signed=signed)
    if vr == "IS" and value.strip(b" ").isdigit():
        return int(value)
    return None


def plain_first(value: bytes, vr: str) -> float | None:
    """Return the first number of a DS value; None where it is not that."""
    numbers = value.rstrip(b" \0").split(b"\\")
    # One that is none, and pydicom converts none of them.
    plain = vr == "DS" and all(map(_PLAIN_NUMBER.fullmatch, numbers))
    return float(numbers[0]) if plain else None


def encoded_text(text: str, vr: str) -> bytes | None:
    """Return a text as every character set codes it, padded; None where they differ on it."""
    value = text.encode("ascii", "replace")
    if not text.isascii() or not _PLAIN_TEXT.fullmatch(value):
        return None
    return value + (b"\0" if vr == "UI" else b" ") if len(value) % 2 else value
