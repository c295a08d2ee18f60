"""The report as one HTML page: nothing to load, nothing that runs, fit to be printed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dicom_node.verify.report_facts import StudyFacts, findings_first

MOST_ROWS = 2000
_TEMPLATES = Path(__file__).with_name("templates")


class HowTo(NamedTuple):
    """One step of an independent check; the command may be ""."""

    text: str
    command: str = ""


def how_to(stem: str, *, signed: bool) -> tuple[HowTo, ...]:
    """Return how a reader checks without us what a report says; see docs/VERIFYING.md.

    Parameters
    ----------
    stem
        Name of the report's files without suffix.
    signed
        There is a signature of the JSON file beside it.
    """
    steps = [
        HowTo("The fingerprint of the public key in your hands:",
              "openssl pkey -pubin -in public.pem -outform DER | openssl dgst -sha256"),
        HowTo("Every instance, with that key alone, on a machine without secrets:",
              "dicom-node verify --public-key public.pem FOLDER"),
        HowTo("Header and pixels of one instance, with eighty lines of Python that share no code "
              "with dicom-node:", "python examples/check_signature.py public.pem INSTANCE.dcm"),
    ]  # fmt: skip
    if signed:
        steps.append(HowTo(
            "That the JSON file beside this report was written by the holder of the key:",
            "openssl pkeyutl -verify -pubin -inkey public.pem -rawin"
            f" -in {stem}.json -sigfile {stem}.json.sig",
        ))  # fmt: skip
    return tuple(steps)


def html_page(facts: StudyFacts, how: tuple[HowTo, ...]) -> str:
    """Return the page; every value in it is escaped."""
    style = Markup((_TEMPLATES / "report.css").read_text("utf-8"))  # noqa: S704 - our own file
    page = _environment().get_template("report.html")
    listed = findings_first(facts.instances)
    return page.render(facts=facts, how=how, style=style, listed=listed, most=MOST_ROWS)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
