"""The report as a PDF document, A4."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    Flowable,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
    TableStyle,
)

from dicom_node.verify.report_chain import Step
from dicom_node.verify.report_facts import (
    HeaderLine,
    KeyFacts,
    StudyFacts,
    findings_first,
)
from dicom_node.verify.report_fonts import BOLD, MONO, PLAIN, markup, register_fonts
from dicom_node.verify.report_html import MOST_ROWS, HowTo
from dicom_node.verify.report_pictures import Picture

_INK, _SOFT, _LINE = (colors.HexColor(code) for code in ("#1d2329", "#5b6670", "#d9dee3"))
_SHADE, _MARK = colors.HexColor("#f5f7f8"), colors.HexColor("#e02a20")
_GOOD, _FAIR, _OPEN, _BAD = (
    colors.HexColor(code) for code in ("#1f6f43", "#1d5f8a", "#7a5b12", "#a3211c")
)
_TONES = {
    "authentic": _GOOD, "content-preserved": _FAIR, "unmarked": _OPEN, "incomplete": _OPEN,
    "superseded": _BAD, "foreign": _BAD, "tampered": _BAD, "unreadable": _BAD,
}  # fmt: skip
_MARGIN = 18 * mm
# Cells without text, too, or reportlab names Helvetica, which is not in the document.
_FACE = ("FONTNAME", (0, 0), (-1, -1), PLAIN)
_WIDTH = A4[0] - 2 * _MARGIN - 12  # reportlab pads a frame by 6 points on each side


def pdf_document(facts: StudyFacts, how: tuple[HowTo, ...]) -> bytes:
    """Return the document; every value in it is escaped."""
    register_fonts()
    out = io.BytesIO()
    document = SimpleDocTemplate(
        out, pagesize=A4, leftMargin=_MARGIN, rightMargin=_MARGIN, topMargin=16 * mm,
        bottomMargin=18 * mm, title=f"{facts.headline}: integrity report of a study",
        author=f"dicom-node {facts.version}", subject="integrity of a DICOM study", lang="en",
        # Else Helvetica would stand in the document, unused and not embedded.
        initialFontName=PLAIN,
    )  # fmt: skip
    story = [
        *_opening(facts), *_findings(facts), *_lists(facts),
        _heading("Chain"), _chain(facts.chain), *_samples(facts), *_instances(facts),
        *_keys(facts.keys, how),
        _text(f"Written by dicom-node {facts.version}. Not a medical device. The marks prove what "
              "left the node; what happened to an image before it arrived, they cannot know.",
              _style("note")),
    ]  # fmt: skip
    document.build(story, canvasmaker=_numbered(f"Integrity report, checked {facts.checked_at}"))
    return out.getvalue()


def _opening(facts: StudyFacts) -> Iterable[Flowable]:
    yield _text(f"Integrity report of a study \u00b7 checked {facts.checked_at}", _style("over"))
    tone = _TONES[facts.level]
    said = [_text(facts.headline, _style("headline", tone))]
    said += [_text(sentence, _style("body")) for sentence in facts.sentences]
    yield _barred(said, tone, wide=2.5 * mm)
    for caveat in facts.caveats:
        yield _text(caveat, _style("note"))
    yield _heading("Study")
    yield _pairs([
        ("Study Instance UID", facts.study_instance_uid), ("Instances", str(len(facts.instances))),
    ])  # fmt: skip
    if facts.patient:
        note = ("Patient data, as one instance of the study has it. This box, the pictures and the "
                "values of changed attributes are what must not be passed on.")  # fmt: skip
        box = Table([[[_text(note, _style("note")), _pairs(facts.patient, _WIDTH - 8 * mm)]]],
                    colWidths=[_WIDTH], hAlign="LEFT")  # fmt: skip
        box.setStyle(TableStyle([
        _FACE,
            ("BOX", (0, 0), (-1, -1), 0.5, _LINE), ("BACKGROUND", (0, 0), (-1, -1), _SHADE),
            ("LEFTPADDING", (0, 0), (-1, -1), 4 * mm), ("TOPPADDING", (0, 0), (-1, -1), 2 * mm),
        ]))  # fmt: skip
        yield Spacer(1, 2 * mm)
        yield box


def _findings(facts: StudyFacts) -> Iterable[Flowable]:
    if not facts.findings:
        return
    yield _heading("What was found")
    for each in facts.findings:
        tone = _TONES[each.verdict]
        head = Paragraph(
            f'<font name="{BOLD}">{markup(each.label)}</font>&nbsp;&nbsp;&nbsp;'
            f'<font name="{BOLD}" color="{tone.hexval().replace("0x", "#")}">{markup(each.finding)}'
            "</font>",
            _style("body"),
        )
        about: list[Flowable] = [head, _text(each.sop_instance_uid, _style("id"))]
        about += [_text(remark, _style("body")) for remark in each.remarks]
        yield KeepTogether([Spacer(1, 3 * mm), _barred(about, tone)])
        if each.header:
            yield _header_table(each.header)
        yield from _gallery(
            [(f"{each.label}, frame {shown.frame}", shown) for shown in each.pictures], 2
        )
        if each.chain:
            yield _chain(each.chain)
    if facts.unshown:
        yield _text(f"{facts.unshown} more are in the table below, without details.")


def _lists(facts: StudyFacts) -> Iterable[Flowable]:
    for title, uids in (
        ("Missing: delivered by this node, and not given back", facts.missing),
        ("Not delivered by this node", facts.extra),
    ):
        if uids:
            yield _heading(title)
            yield from (_text(uid, _style("id")) for uid in uids[:MOST_ROWS])
            if len(uids) > MOST_ROWS:
                yield _text(f"and {len(uids) - MOST_ROWS} more.")


def _samples(facts: StudyFacts) -> Iterable[Flowable]:
    if facts.samples:
        yield _heading("For recognition")
        yield from _gallery(facts.samples, 4)


def _instances(facts: StudyFacts) -> Iterable[Flowable]:
    yield _heading("Every instance")
    listed = findings_first(facts.instances)
    rows: list[list[Any]] = [[_text(name, _style("th")) for name in (
        "instance", "verdict", "frames", "SOP Instance UID")]]  # fmt: skip
    rows += [
        [_text(each.label), _text(each.word, _style("word", _TONES[each.verdict])),
         _text(str(each.frames or "")), _text(each.sop_instance_uid, _style("id"))]
        for each in listed[:MOST_ROWS]
    ]  # fmt: skip
    yield _ruled(rows, [24 * mm, 33 * mm, 16 * mm, _WIDTH - 73 * mm])
    if len(listed) > MOST_ROWS:
        yield _text(f"{len(listed) - MOST_ROWS} more instances are in the JSON file.")


def _keys(keys: Sequence[KeyFacts], how: tuple[HowTo, ...]) -> Iterable[Flowable]:
    yield _heading("Keys, and how to check this yourself")
    for key in keys:
        fingerprint = key.fingerprint or "not in the key ring this was checked with"
        rows = [("Key id", key.key_id), ("Owner", key.owner), ("Made", key.created),
                ("SHA-256 of the public key", fingerprint)]  # fmt: skip
        yield _pairs([(label, value) for label, value in rows if value])
        if key.pem:
            yield _code(key.pem)
    if not keys:
        yield _text("No mark in this study names a key.")
    yield _text("A key printed on a page proves nothing about whose it is: get the public key from "
                "its owner, and compare.")  # fmt: skip
    for number, step in enumerate(how, 1):
        parts: list[Flowable] = [_text(f"{number}. {step.text}")]
        if step.command:
            parts.append(_code(step.command))
        yield KeepTogether(parts)


def _header_table(lines: Sequence[HeaderLine]) -> Flowable:
    names = ("changed attribute", "digest signed", "digest now", "value now (patient data)")
    rows: list[list[Any]] = [[_text(name, _style("th")) for name in names]]
    for line in lines:
        value: list[Flowable] = [_text(line.value)]
        if line.original:
            value += [_text("signed value, on record in the file and proven by its digest:",
                            _style("note")), _text(line.original)]  # fmt: skip
        absent = "not there" if line.tag else ""
        rows.append([
            [_text(line.name), _text(line.tag, _style("note"))],
            _text(line.before or absent, _style("id")), _text(line.now or absent, _style("id")),
            value,
        ])  # fmt: skip
    return _ruled(rows, [46 * mm, 33 * mm, 33 * mm, _WIDTH - 112 * mm])


def _chain(steps: Sequence[Step]) -> Flowable:
    rows = [
        [_text(step.what, _style("th")),
         [_text(step.when), *(_text(detail, _style("note")) for detail in step.details)]]
        for step in steps
    ]  # fmt: skip
    return _ruled(rows, [28 * mm, _WIDTH - 28 * mm], head=False)


class _Shown(Flowable):  # type: ignore[misc]
    """A picture with the lines round what changed, drawn as lines."""

    def __init__(self, picture: Picture, width: float, tallest: float) -> None:
        super().__init__()
        self._picture = picture
        scale = min(width / picture.columns, tallest / picture.rows)
        self._scale = scale
        self.width, self.height = picture.columns * scale, picture.rows * scale

    def wrap(self, *_: float) -> tuple[float, float]:
        return self.width, self.height

    def draw(self) -> None:
        canvas: Canvas = self.canv
        canvas.drawImage(ImageReader(io.BytesIO(self._picture.jpeg)), 0, 0, self.width, self.height)
        canvas.setLineCap(2)
        for colour, points in ((colors.white, 2.2), (_MARK, 1.0)):
            canvas.setStrokeColor(colour)
            canvas.setLineWidth(points)
            for x0, y0, x1, y1 in self._picture.outline:
                canvas.line(x0 * self._scale, self.height - y0 * self._scale,
                            x1 * self._scale, self.height - y1 * self._scale)  # fmt: skip


def _gallery(shown: Sequence[tuple[str, Picture]], across: int) -> Iterable[Flowable]:
    width = _WIDTH / across
    for first in range(0, len(shown), across):
        cells = []
        for caption, picture in shown[first : first + across]:
            places = "; ".join(picture.places[:4])
            more = len(picture.places) - 4
            text = caption + (f": changed at {places}" if places else "")
            text += f" and {more} more places" if more > 0 else ""
            cells.append([_Shown(picture, width - 4 * mm, 95 * mm), _text(text, _style("note"))])
        cells += [[] for _ in range(across - len(cells))]
        row = Table([cells], colWidths=[width] * across, hAlign="LEFT")
        row.setStyle(TableStyle([_FACE, ("VALIGN", (0, 0), (-1, -1), "TOP"),
                                 ("LEFTPADDING", (0, 0), (-1, -1), 0)]))  # fmt: skip
        yield row


def _pairs(rows: Iterable[tuple[str, str]], width: float = _WIDTH) -> Flowable:
    first = 46 * mm
    cells = [[_text(label, _style("th")), _text(value)] for label, value in rows]
    table = Table(cells, colWidths=[first, width - first], hAlign="LEFT")
    table.setStyle(TableStyle([
        _FACE,
        ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 1),
    ]))  # fmt: skip
    return table


def _ruled(rows: list[list[Any]], widths: list[float], *, head: bool = True) -> Flowable:
    table = Table(rows, colWidths=widths, repeatRows=1 if head else 0, hAlign="LEFT")
    table.setStyle(TableStyle([
        _FACE,
        ("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("LINEBELOW", (0, 0), (-1, -1), 0.4, _LINE),
        ("TOPPADDING", (0, 0), (-1, -1), 3), ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
    ]))  # fmt: skip
    return table


def _barred(content: list[Flowable], tone: colors.Color, wide: float = 1 * mm) -> Flowable:
    table = Table([[content]], colWidths=[_WIDTH], hAlign="LEFT")
    table.setStyle(TableStyle([
        _FACE,
        ("LINEBEFORE", (0, 0), (0, -1), wide, tone), ("LEFTPADDING", (0, 0), (-1, -1), 5 * mm),
        ("TOPPADDING", (0, 0), (-1, -1), 1), ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
    ]))  # fmt: skip
    return table


def _heading(text: str) -> Flowable:
    return _text(text, _style("heading"))


def _code(text: str) -> Flowable:
    lines = "<br/>".join(markup(line) for line in text.splitlines())
    return Paragraph(lines, _style("code"))


def _text(text: str, style: ParagraphStyle | None = None) -> Paragraph:
    return Paragraph(markup(text), style or _style("body"))


@cache
def _style(name: str, tone: colors.Color = _INK) -> ParagraphStyle:
    base: dict[str, Any] = {"fontName": PLAIN, "fontSize": 9, "leading": 12.5, "textColor": tone,
                            "splitLongWords": True, "wordWrap": "CJK"}  # fmt: skip
    ways: dict[str, dict[str, Any]] = {
        "body": {"wordWrap": None},
        "over": {"textColor": _SOFT, "spaceAfter": 8, "fontName": BOLD},
        "headline": {"fontName": BOLD, "fontSize": 19, "leading": 24, "spaceAfter": 3},
        "heading": {"fontName": BOLD, "fontSize": 11.5, "leading": 15, "spaceBefore": 14,
                    "spaceAfter": 5, "keepWithNext": True},
        "note": {"fontSize": 8, "leading": 11, "textColor": _SOFT, "wordWrap": None},
        "th": {"textColor": _SOFT},
        "word": {"fontName": BOLD},
        "id": {"fontName": MONO, "fontSize": 7, "leading": 11},
        "code": {"fontName": MONO, "fontSize": 7.5, "leading": 10.5, "backColor": _SHADE,
                 "borderPadding": 4, "spaceBefore": 5, "spaceAfter": 8},
    }  # fmt: skip
    return ParagraphStyle(name, **(base | ways[name]))


def _numbered(footer: str) -> Callable[..., Canvas]:
    """Return a canvas that writes a footer with page numbers, known once the last page is."""

    class _Numbered(Canvas):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802 - reportlab's name
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, 1):
                self.__dict__.update(page)
                self.setFont(PLAIN, 7.5)
                self.setFillColor(_SOFT)
                self.drawString(_MARGIN + 6, 10 * mm, footer)
                self.drawRightString(
                    A4[0] - _MARGIN - 6, 10 * mm, f"page {number} of {len(self._pages)}"
                )
                super().showPage()
            super().save()

    return _Numbered
