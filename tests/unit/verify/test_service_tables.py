"""What the conformance statement says of the verification service is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from dicom_node.dimse.query_scp import query_contexts
from dicom_node.verify import identifiers

TEXT = (Path(__file__).parents[3] / "docs" / "CONFORMANCE.md").read_text("utf-8")


def test_the_private_elements_of_answers_are_those_of_the_code():
    documented = {
        int(number, 16): vr
        for number, vr in re.findall(r"\| \(0071,xx([12][0-9A-F])\) \| [^|]+ \| (\w\w) \|", TEXT)
    }
    known = {
        identifiers.VERDICT: "LO", identifiers.VERIFIED_AT: "DT", identifiers.AGE_S: "UL",
        identifiers.VERIFIED: "UL", identifiers.TAMPERED: "UL", identifiers.UNMARKED: "UL",
        identifiers.MISSING: "UL", identifiers.DETAILS: "UT", identifiers.VERIFY_NOW: "CS",
        identifiers.SUPERSEDED: "UL", identifiers.PROGRESS: "LO",
        identifiers.HEADERS_CHANGED: "UL", identifiers.HEADERS_UNSEALED: "UL",
    }  # fmt: skip
    assert documented == known


def test_every_query_retrieve_class_that_is_accepted_is_documented():
    documented = set(re.findall(r"\| (1\.2\.840\.10008\.5\.1\.4\.1\.2\.[12]\.[123]) \|", TEXT))
    accepted = {str(each.abstract_syntax) for each in query_contexts()}
    assert documented == accepted - {"1.2.840.10008.1.1"}
