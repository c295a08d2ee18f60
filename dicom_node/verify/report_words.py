"""A verdict in words: what it is called, what it means, what it says of a study."""

from __future__ import annotations

from dicom_node.verify.report_text import printable
from dicom_node.verify.study import StudyCheck
from dicom_node.verify.verdict import ORDER, Verdict

WORDS: dict[Verdict, tuple[str, str]] = {
    "authentic": ("Authentic", "pixel for pixel what was marked"),
    "content-preserved": (
        "Content preserved", "by likelihood, not proof, the picture that was marked, recoded"
    ),
    "unmarked": ("Unmarked", "no mark of ours is in it, and nothing can be said about it"),
    "foreign": ("Foreign", "it carries a mark of ours that was made for another picture"),
    "tampered": ("Tampered", "changed after it was marked"),
    "unreadable": ("Unreadable", "no DICOM instance that can be read"),
}
"""What a verdict is called, and what it means."""

OF_LIKELIHOOD = (
    "Where the integrity mark is gone, as after a lossy copy, only the robust mark and the content "
    "fingerprint are left, and a verdict is a matter of likelihood and no proof. They see the "
    "picture at 128 x 128 in 16 x 16 cells. A change made before the copy may hide if it is "
    "smaller than about a sixth of the picture's width, or faint, or an area filled in from its "
    "surroundings; strong changes of contrast alone may look like one. Which changes are found "
    "how often is measured in docs/BENCHMARKS.md of dicom-node. Where a frame says that its "
    "content was not compared, any local change may hide. Pixel for pixel only \"authentic\" "
    "vouches."
)
"""Said in a report that rests on the robust mark and the fingerprint anywhere."""


def verdict_in_words(check: StudyCheck) -> tuple[str, str, tuple[str, ...]]:
    """Return the level, a headline, and what there is to say about the study as a whole."""
    total = len(check.instances)
    back = " that came back" if check.missing else ""
    sentences = [
        f"{_of(check.counts[verdict], total, back)} {WORDS[verdict][0].lower()}:"
        f" {WORDS[verdict][1]}."
        for verdict in reversed(ORDER) if check.counts.get(verdict)
    ]  # fmt: skip
    retold = check.headers.changed
    if retold:
        where = "this one instance" if total == 1 else f"{retold} of {total} instances"
        sentences.append(f"In {where} attributes of the header are not what was signed; they are "
                         "named below.")  # fmt: skip
    unsealed = check.headers.unsealed
    if unsealed:
        where = "this one instance" if total == 1 else f"{unsealed} of {total} instances"
        sentences.append(f"In {where} the seal of the header is gone or not ours: pixels are "
                         "vouched for, most of the header is not.")  # fmt: skip
    for uids, what in (
        (check.absent, "that this node delivered did not come back"),
        (check.stripped, "came back without the marks they were delivered with"),
        (check.superseded, "came back in an older version than the one that was delivered last"),
        (check.extra, "came back that this node never delivered"),
        (check.transcoded, "came back in another transfer syntax, which need not change a pixel"),
    ):
        if uids:
            sentences.append(f"{_instances(len(uids))} {what}.")
    if check.unsent:
        sentences.append(f"{_instances(len(check.unsent))} that the archive has did not come: "
                         f"{printable(check.failure)}.")  # fmt: skip
    if not check.verdict:
        return "unmarked", "Nothing to judge", (*sentences, "No instance came back.")
    if check.verdict == "authentic" and check.superseded:
        return "superseded", "An older version", tuple(sentences)
    if check.verdict == "authentic" and check.missing:
        return "incomplete", "Incomplete", tuple(sentences)
    headline = WORDS[check.verdict][0]
    if check.verdict == "authentic" and retold:
        headline = "Authentic pixels, changed header"
    elif check.verdict == "authentic" and unsealed:
        headline = "Authentic pixels, header not sealed"
    return check.verdict, headline, tuple(sentences)


def _of(count: int, total: int, back: str) -> str:
    if total == 1:
        return f"The one instance{back} is"
    some = f"{count} of {total}" if count != total else f"All {total}"
    return f"{some} instances{back} {'is' if count == 1 else 'are'}"


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
