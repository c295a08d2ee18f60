"""Reports of a verdict: pictures of an instance; of a study a page, a document, JSON and an SR."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import NodeError, PixelError
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.keys import KeyRing
from dicom_node.verify.check import MAX_PIXELS
from dicom_node.verify.study import StudyCheck
from dicom_node.verify.verdict import InstanceVerdict
from dicom_node.watermark.box import Box

Picture = NDArray[np.uint8]  # (rows, columns, 3), blue green red
Format = Literal["html", "pdf", "json", "sr"]
FORMATS: tuple[Format, ...] = ("html", "pdf", "json", "sr")

_RED = (40, 40, 235)
_MOST_FRAMES = 64  # pictures of one instance; changed frames come first


class ReportError(NodeError):
    """A picture or a report could not be written."""


def report_stem(study_instance_uid: str) -> str:
    """Return how the files of a study's report are named: nothing of the patient, nor a UID.

    A UID from the network is no file name, and in many places it leads to the patient.
    """
    digest = hashlib.sha256(study_instance_uid.encode("utf-8", "surrogatepass")).hexdigest()
    return f"study-{digest[:16]}"


def write_reports(
    check: StudyCheck,
    folder: Path,
    *,
    formats: Collection[Format] = FORMATS,
    ring: KeyRing | None = None,
    checked_by: str = "",
) -> tuple[Path, ...]:
    """Write the reports on a study.

    Parameters
    ----------
    check
        Pictures, changed values and the patient are taken from the files it names, which must
        still be there; without them the reports say less, and there is no structured report.
    folder
        Made if missing. Files are named by `report_stem`: a report replaces the one before.
    formats
        Some of ``html``, ``pdf``, ``json`` and ``sr`` (a DICOM file, ``.dcm``).
    ring
        The keys it was checked with. If they can sign, the JSON file gets a signature beside it
        (Ed25519 over the file's bytes, ``.json.sig``), and the structured report a seal.
    checked_by
        AE title of whoever asked, or the name of a command.

    Returns
    -------
    tuple of Path
        What was written, in the order of `FORMATS`.

    Raises
    ------
    ReportError
        A file cannot be written.
    """
    # Page, document and SR each bring a library, which only a report needs.
    from dicom_node.verify.report_evidence import has_evidence
    from dicom_node.verify.report_facts import facts_of
    from dicom_node.verify.report_json import report_json

    facts = facts_of(check, ring, checked_by=checked_by)
    stem = report_stem(check.study_instance_uid)
    signer = ring.current if ring is not None and ring.current.has_secrets else None
    signed = "json" in formats and signer is not None
    made: dict[str, Callable[[], bytes]] = {}
    if "html" in formats:
        from dicom_node.verify.report_html import how_to, html_page

        made[".html"] = lambda: html_page(facts, how_to(stem, signed=signed)).encode("utf-8")
    if "pdf" in formats:
        from dicom_node.verify.report_html import how_to
        from dicom_node.verify.report_pdf import pdf_document

        made[".pdf"] = lambda: pdf_document(facts, how_to(stem, signed=signed))
    if "json" in formats:
        text = json.dumps(report_json(check, facts), indent=1).encode("ascii") + b"\n"
        made[".json"] = lambda: text
        if signer is not None:
            made[".json.sig"] = lambda: signer.sign(text)
    if "sr" in formats and has_evidence(check):
        from dicom_node.verify.structured_report import structured_report

        made[".dcm"] = lambda: structured_report(check, facts, signer)
    return tuple(_write(folder / f"{stem}{suffix}", make) for suffix, make in made.items())


def _write(target: Path, make: Callable[[], bytes]) -> Path:
    """Write a file whole or not at all."""
    content = make()
    partial = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise ReportError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def outlined(grey_or_rgb: NDArray[np.uint8], boxes: Iterable[Box]) -> Picture:
    """Return a colour copy of an 8-bit picture with `boxes` drawn in red."""
    code = cv2.COLOR_GRAY2BGR if grey_or_rgb.ndim == 2 else cv2.COLOR_RGB2BGR
    drawn = np.ascontiguousarray(cv2.cvtColor(grey_or_rgb, code))
    width_px = max(1, min(drawn.shape[:2]) // 256)
    for box in boxes:
        corner = (int(box.column + box.columns) - 1, int(box.row + box.rows) - 1)
        cv2.rectangle(drawn, (int(box.column), int(box.row)), corner, _RED, width_px)
    return np.asarray(drawn, np.uint8)


def write_pictures(path: Path, verdict: InstanceVerdict, folder: Path, stem: str) -> list[Path]:
    """Write a PNG of every frame that is not authentic; of the first one when all are.

    Parameters
    ----------
    path
        The instance the verdict is on.
    folder
        Made if missing; pictures are ``<stem>-frame<n>-<verdict>.png``.

    Returns
    -------
    list of Path
        What was written: [] for an instance without frames, at most 64 pictures.

    Raises
    ------
    ReportError
        A picture cannot be written.
    PixelError
        The instance cannot be read any more.
    """
    chosen: Sequence[int] = [f.frame for f in verdict.frames if f.verdict != "authentic"]
    chosen = (chosen or [f.frame for f in verdict.frames[:1]])[:_MOST_FRAMES]
    if not chosen:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with closing(open_instance(path, max_pixels=MAX_PIXELS)) as instance:
        display = display_of(instance)
        for number in chosen:
            said = verdict.frames[number - 1]
            try:
                shown = display.export_8bit(instance.frame(number - 1), number - 1)
            except PixelError as error:
                raise PixelError(f"{path}: {error}") from error
            target = folder / f"{stem}-frame{number}-{said.verdict}.png"
            if not cv2.imwrite(str(target), outlined(shown, said.tampered)):
                raise ReportError(f"{target}: cannot be written; is the disk full?")
            written.append(target)
    return written
