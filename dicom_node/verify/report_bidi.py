"""Right-to-left scripts as a page shows them, for a library that draws letters as they come.

Arabic letters take the form that their neighbours ask for; right-to-left runs are put in the order
of the eye. One line whose own direction is left to right, without embeddings: `report_text` has
named their control characters before.

References
----------
Unicode Standard Annex 9, rules W2, W4, W7, N0, N1, N2, I1, I2, L2, L4; The Unicode
Standard 9.2 (Arabic joining, lam-alef).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

_LAM = "\u0644"
_LAM_ALEF = frozenset(_LAM + alef for alef in "\u0622\u0623\u0625\u0627")
_JOINED = ("isolated", "final", "initial", "medial")
_PRESENTATION = (*range(0xFB50, 0xFDFC), *range(0xFE70, 0xFEFD))
_MIRRORED = dict(zip("()[]{}<>\u00ab\u00bb", ")(][}{><\u00bb\u00ab", strict=True))


def as_seen(text: str) -> str:
    """Return a line of text with its letters in the order in which they stand on the page."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    if not {"R", "AL", "AN"}.intersection(kinds):
        return text
    shaped = _shaped(text)
    levels = _levels(_with_brackets(shaped, _kinds(shaped)))
    pairs = zip(shaped, levels, strict=True)
    seen = [_MIRRORED.get(letter, letter) if level == 1 else letter for letter, level in pairs]
    for least in (2, 1):
        start = 0
        while start < len(seen):
            end = start
            while end < len(seen) and levels[end] >= least:
                end += 1
            seen[start:end] = seen[start:end][::-1]
            levels[start:end] = levels[start:end][::-1]
            start = end + 1
    return "".join(seen)


def _kinds(text: str) -> list[str]:
    """Return each character's kind.

    A separator inside a number is a part of it, and a number in left-to-right text is such text.
    """
    kinds = [unicodedata.bidirectional(character) for character in text]
    strong = ""
    for index, kind in enumerate(kinds):
        if kind in ("L", "R", "AL"):
            strong = kind
        elif kind == "EN" and strong == "AL":
            kinds[index] = "AN"
    for index in range(1, len(kinds) - 1):
        before, kind, after = kinds[index - 1 : index + 2]
        if before == after and (kind, after) in (("ES", "EN"), ("CS", "EN"), ("CS", "AN")):
            kinds[index] = after
    strong = "L"
    for index, kind in enumerate(kinds):
        strong = kind if kind in ("L", "R", "AL") else strong
        if kind == "EN" and strong == "L":
            kinds[index] = "L"
    return kinds


def _with_brackets(text: str, kinds: list[str]) -> list[str]:
    """Return kinds in which a pair of brackets goes with what is inside and before it (N0)."""
    kinds, opened = list(kinds), list[int]()
    for index, character in enumerate(text):
        if character in "([{":
            opened.append(index)
        elif character in ")]}" and opened:
            start = opened.pop()
            inside = {_direction(kind) for kind in kinds[start + 1 : index]}
            before = next(filter(None, map(_direction, reversed(kinds[:start]))), "L")
            if inside & {"L", "R"}:
                kinds[start] = kinds[index] = "R" if "L" not in inside and before == "R" else "L"
    return kinds


def _direction(kind: str) -> str:
    """Return the direction a kind stands for among neutrals; "" for none."""
    return {"L": "L", "R": "R", "AL": "R", "EN": "R", "AN": "R"}.get(kind, "")


def _levels(kinds: Sequence[str]) -> list[int]:
    """Return each character's level: 0 left to right, 1 right to left, 2 a number in such a run."""
    found: list[int | None] = []
    strong = 0
    for kind in kinds:
        if kind == "L":
            strong = 0
        elif kind in ("R", "AL"):
            strong = 1
        if kind == "NSM" and found:
            found.append(found[-1])
        elif kind in ("L", "R", "AL"):
            found.append(strong)
        elif kind in ("EN", "AN"):
            found.append(2)
        else:
            found.append(None)
    # What has no direction takes that of both its neighbours, or the line's.
    places = [-1, *(i for i, level in enumerate(found) if level is not None), len(found)]
    for before, after in pairwise(places):
        inside = before >= 0 and after < len(found) and bool(found[before]) and bool(found[after])
        found[before + 1 : after] = [int(inside)] * (after - before - 1)
    return [level or 0 for level in found]


def _shaped(text: str) -> str:
    """Return text with Arabic letters in their joined forms."""
    forms = _forms()
    made: list[str] = []
    joins = False  # the letter before reaches out to this one
    index = 0
    while index < len(text):
        letter = text[index]
        if unicodedata.category(letter) == "Mn":
            made.append(letter)
            index += 1
            continue
        pair = text[index : index + 2] if letter == _LAM else ""
        whole = pair if pair in forms else letter
        own = forms.get(whole, {})
        after = _next_letter(text, index + len(whole))
        reaches = "initial" in own and "final" in forms.get(after, {})
        back = joins and "final" in own
        form = {(True, True): "medial", (True, False): "final", (False, True): "initial"}.get(
            (back, reaches), "isolated"
        )
        made.append(own.get(form, whole))
        joins = reaches
        index += len(whole)
    return "".join(made)


def _next_letter(text: str, start: int) -> str:
    return next((c for c in text[start:] if unicodedata.category(c) != "Mn"), "")


@cache
def _forms() -> dict[str, dict[str, str]]:
    """Return the presentation forms of Arabic letters and of lam with alef, by letter and form."""
    forms: dict[str, dict[str, str]] = {}
    for code in _PRESENTATION:
        how, *letters = unicodedata.decomposition(chr(code)).split() or [""]
        base = "".join(chr(int(letter, 16)) for letter in letters)
        form = how.strip("<>")
        if form in _JOINED and (len(base) == 1 or base in _LAM_ALEF):
            forms.setdefault(base, {}).setdefault(form, chr(code))
    return forms
