"""Right-to-left text in the order of the eye, as Unicode says it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.verify.report_bidi import as_seen

_DAVID, _LEVI, _DAN = "\u05d3\u05d5\u05d3", "\u05dc\u05d5\u05d9", "\u05d3\u05df"


@given(st.text(st.characters(max_codepoint=0x58F), max_size=60))
def test_text_without_such_letters_stays_as_it_is(text):
    assert as_seen(text) == text


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (_DAVID, _DAVID[::-1]),
        (f"Levi^Dan={_LEVI}^{_DAN}", f"Levi^Dan={_DAN[::-1]}^{_LEVI[::-1]}"),
        (f"Ward 3 {_DAN} 12 b", f"Ward 3 12 {_DAN[::-1]} b"),
        (f"{_DAN} 12 {_LEVI}", f"{_LEVI[::-1]} 12 {_DAN[::-1]}"),
        (f"{_DAN} ({_LEVI}) a", f"({_LEVI[::-1]}) {_DAN[::-1]} a"),
        (f"a (3) {_DAN}", f"a (3) {_DAN[::-1]}"),
        (f"{_DAN} 2026-11-21 {_LEVI}", f"{_LEVI[::-1]} 2026-11-21 {_DAN[::-1]}"),
    ],
)
def test_runs_are_turned_and_numbers_in_them_are_not(text, seen):
    assert as_seen(text) == seen


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("\u0628", "\ufe8f"),  # beh alone
        ("\u0628\u0628\u0628", "\ufe90\ufe92\ufe91"),  # turned: final, medial, initial
        ("\u062f\u0628", "\ufe8f\ufea9"),  # dal joins nothing after it
        ("\u0633\u0644\u0627\u0645", "\ufee1\ufefc\ufeb3"),  # salam: lam and alef are one
        ("\u0644\u0627", "\ufefb"),
        ("\u0628\u064e\u0628", "\ufe90\u064e\ufe91"),  # a vowel sign is no neighbour
    ],
)
def test_arabic_letters_join(word, forms):
    assert as_seen(word) == forms


@given(st.text("ab\u05d0\u05d1\u05d2\u062f\u0628\u0644\u0627 123()^=-.", max_size=40))
def test_nothing_is_lost(text):
    again = unicodedata.normalize("NFKC", as_seen(text))
    letters = [c for c in text if c.isalnum()]
    assert sorted(c for c in again if c.isalnum()) == sorted(letters)
