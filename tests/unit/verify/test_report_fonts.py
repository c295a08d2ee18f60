"""Names in every script of the real data, printed into the PDF, extracted and rendered again."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from peer_tools import needed

from dicom_node.verify.report_facts import facts_of
from dicom_node.verify.report_fonts import markup
from dicom_node.verify.report_pdf import pdf_document
from dicom_node.verify.study import checked_instance, study_check
from dicom_node.verify.verdict import InstanceVerdict

_WHEN = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
_DPI = 150


def document(path: Path, out: Path) -> Path:
    """Write the PDF report on one file."""
    uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
    found = checked_instance(path, InstanceVerdict(str(path), uid, "unmarked"))
    check = study_check(found.study_instance_uid, [found], checked_at=_WHEN)
    out.write_bytes(pdf_document(facts_of(check, None), ()))
    return out


def run(*arguments: object) -> str:
    command = [needed(str(arguments[0])), *map(str, arguments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def text_of(path: Path) -> str:
    return run("pdftotext", "-enc", "UTF-8", "-layout", path, "-")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("chrX2", "Wang^XiaoDong=王^小东"),
        ("chrH31", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("chrI2", "Hong^Gildong=洪^吉洞=홍^길동"),
        ("chrKoreanMulti", "김희중"),
        ("chrRuss", "Люкceмбypг"),  # noqa: RUF001 - Latin and Cyrillic letters, as in the file
        ("chrGerm", "Äneas^Rüdiger"),
        ("chrArab", "\u0642\u0628\u0627\u0646\u064a^\u0644\u0646\u0632\u0627\u0631"),
    ],
)
def test_the_name_in_a_real_file_is_printed_as_it_is_written(
    file: str, name: str, shared: Path, tmp_path: Path
) -> None:
    path = shared / f"dicom/charset/pydicom__{file}.dcm"
    # poppler puts right-to-left runs back into the order of speech, and marks them.
    written = unicodedata.normalize("NFKC", text_of(document(path, tmp_path / "x.pdf")))
    written = "".join(c for c in written if unicodedata.category(c) != "Cf")
    assert name in written
    assert "<U+" not in written


@pytest.fixture
def mixed(shared: Path, tmp_path: Path) -> Path:
    """A PDF on a file whose institution is named in four scripts, in one line with Latin."""
    ds = pydicom.dcmread(shared / "dicom/charset/pydicom__chrX2.dcm")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = "Kim^Minjun=金^民俊=김^민준"
    ds.InstitutionName = "Klinik <3> 東京病院 & 서울대학교병원 北京协和医院 ひらがな カナ 3"
    ds.save_as(tmp_path / "mixed.dcm")
    return document(tmp_path / "mixed.dcm", tmp_path / "mixed.pdf")


def test_scripts_are_mixed_in_one_line(mixed: Path) -> None:
    written = text_of(mixed)
    assert "Klinik <3> 東京病院 & 서울대학교병원 北京协和医院 ひらがな カナ 3" in written
    assert "Kim^Minjun=金^民俊=김^민준" in written


def test_every_font_is_in_the_document(mixed: Path) -> None:
    _, _, *rows = run("pdffonts", mixed).splitlines()
    assert any("DroidSansFallback" in row for row in rows)
    embedded = [re.search(r" (yes|no) +(yes|no) +(yes|no) ", row) for row in rows]
    assert all(found is not None and found[1] == found[3] == "yes" for found in embedded), rows


def test_letters_are_drawn_and_not_boxes_in_their_place(mixed: Path, tmp_path: Path) -> None:
    run("pdftoppm", "-r", _DPI, "-gray", "-f", 1, "-l", 1, "-singlefile", mixed, tmp_path / "page")
    page = cv2.imread(str(tmp_path / "page.pgm"), cv2.IMREAD_GRAYSCALE)
    boxes = re.findall(
        r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>',
        run("pdftotext", "-bbox", "-f", 1, "-l", 1, mixed, "-"),
    )
    seen = {}
    for *corners, word in boxes:
        if word in ("東京病院", "서울대학교병원", "北京协和医院", "ひらがな"):
            x0, y0, x1, y1 = (round(float(each) * _DPI / 72) for each in corners)
            seen[word] = _letters(page[y0:y1, x0:x1], len(word))
    assert len(seen) == 4
    drawn = [letter for letters in seen.values() for letter in letters]
    # A box for a missing glyph is the same everywhere; letters differ from one another.
    assert len({letter.tobytes() for letter in drawn}) >= len({c for word in seen for c in word})
    for letter in drawn:
        assert 0.03 < (letter < 128).mean() < 0.6


def _letters(word: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """Cut a word of letters of one width into them, to the ink of each."""
    letters = []
    for index in range(count):
        start, end = (round(word.shape[1] * n / count) for n in (index, index + 1))
        letter = word[:, start:end]
        rows, columns = np.nonzero(letter < 128)
        letters.append(letter[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    return letters


def test_what_no_font_has_is_named_and_markup_is_text() -> None:
    assert markup("a\U00020bb7b") == "a&lt;U+20BB7&gt;b"
    assert markup("<b>山</b>") == '&lt;b&gt;<font name="Report-EastAsian">山</font>&lt;/b&gt;'


def test_code_points_named_are_those_of_the_text_not_of_the_forms_drawn() -> None:
    assert markup("\u0628\u0628\U00020bb7").startswith("\u0628\u0628")


def test_a_syllable_written_in_parts_is_one_letter() -> None:
    assert markup("\u1112\u1169\u11bc") == markup("홍")
