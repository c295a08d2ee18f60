"""Fonts of the PDF report, and texts of any script set in them; all are embedded in the document.

What no font at hand can draw is named by its code point, so that nothing is left out unseen.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFError, TTFont

from dicom_node.verify.report_bidi import as_seen

PLAIN, BOLD, MONO = "Report", "Report-Bold", "Report-Mono"
_EAST_ASIAN = "Report-EastAsian"
# Of the system, with Greek, Cyrillic and much else; reportlab's own knows Latin.
_SYSTEM_FONTS = Path("/usr/share/fonts/truetype/dejavu")
_FACES = {
    PLAIN: ("DejaVuSans.ttf", "Vera.ttf"),
    BOLD: ("DejaVuSans-Bold.ttf", "VeraBd.ttf"),
    MONO: ("DejaVuSansMono.ttf", "Vera.ttf"),
}
_EAST_ASIAN_FILE = Path(__file__).with_name("fonts") / "DroidSansFallback.ttf"


@cache
def register_fonts() -> None:
    """Make the fonts known to reportlab, once."""
    for name, files in _FACES.items():
        system = _SYSTEM_FONTS / files[0]
        try:
            face = TTFont(name, str(system)) if system.is_file() else TTFont(name, files[1])
        except TTFError:
            face = TTFont(name, files[1])  # reportlab's own, always there
        pdfmetrics.registerFont(face)


def markup(text: str) -> str:
    """Return text as it stands in a reportlab paragraph: escaped, each letter in a font it has."""
    register_fonts()
    # Letters written in parts (a Hangul syllable as jamo) are drawn as one.
    whole = unicodedata.normalize("NFC", text)
    seen = as_seen(whole)
    if all(map(_font_of, seen)):
        whole = seen  # else code points are named, and those of the text itself
    return "".join(_set_in(font, "".join(run)) for font, run in groupby(whole, _font_of))


def _set_in(font: str, run: str) -> str:
    if font == PLAIN:
        return escape(run)
    if font == _EAST_ASIAN:
        return f'<font name="{font}">{escape(run)}</font>'
    return escape("".join(f"<U+{ord(character):04X}>" for character in run))


def _font_of(character: str) -> str:
    code = ord(character)
    if code in pdfmetrics.getFont(PLAIN).face.charToGlyph:
        return PLAIN
    return _EAST_ASIAN if code in _east_asian() else ""


@cache
def _east_asian() -> frozenset[int]:
    """Return what the font of 33,000 letters has; it is read where a report needs it only."""
    face = TTFont(_EAST_ASIAN, str(_EAST_ASIAN_FILE))
    pdfmetrics.registerFont(face)
    return frozenset(face.face.charToGlyph)
