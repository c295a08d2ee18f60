"""Text out of a DICOM file made fit to be printed: hostile until it has been through here.

What escapes a format (HTML, PDF, JSON) is that format's business; this is about what no format
stops: control characters, characters that turn the reading order round, values without end.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

LONGEST = 160  # characters of one value; what is longer is cut, visibly
_MOST_VALUES = 16
_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
# Cc control, Cf format (bidirectional overrides among them), Cs lone surrogates, Co private use,
# Cn not assigned; separators of lines and paragraphs.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def printable(text: object, longest: int = LONGEST) -> str:
    """Return `text` as one line in which every character can be seen.

    What cannot be seen is named: ``<U+202E>``. Longer than `longest`, it ends in an ellipsis and
    its length.
    """
    whole = str(text)
    shown = "".join(map(_visible, whole[:longest]))
    return shown if len(whole) <= longest else f"{shown}\u2026 ({len(whole)} characters)"


def _visible(character: str) -> str:
    if unicodedata.category(character) in _HIDDEN:
        return f"<U+{ord(character):04X}>"
    return character


def value_text(header: Dataset, tag: int) -> str:
    """Return an attribute's value in words, whatever state it is in; "" where it is absent."""
    if BaseTag(tag) not in header:
        return ""
    try:
        element = header[BaseTag(tag)]
        return _text(element)
    except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on such values
        return f"(cannot be read: {printable(error, 80)})"


def _text(element: DataElement) -> str:
    value = element.value
    if element.VR == "SQ":
        return f"(sequence, {len(value or ())} items)"
    if element.VR in _BINARY or isinstance(value, bytes):
        return f"({len(value or b'')} bytes)"
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = f"\\\u2026 ({len(value)} values)" if len(value) > _MOST_VALUES else ""
        return printable("\\".join(map(str, value[:_MOST_VALUES]))) + more
    return printable(value)
