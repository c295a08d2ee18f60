"""Print the table of docs/BENCHMARKS.md on tampering, from the cases that the tests use.

python tests/tools/tampering_table.py [DATA]       (DATA: the folder with MANIFEST.csv)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tampering import KINDS, judged
from tampering_subjects import OBJECTS, Bench, subject

ROOT = Path(__file__).resolve().parents[2]
LEGEND = """\
**Caught** is what was done to pixels if the verdict vouches for nothing (neither authentic nor
content-preserved) *and* says why: *tampered* and *foreign* do; *unmarked* does where the file
itself names the reason. Unmarked alone is what every strange picture is: such a cell counts as
caught only because the registry knows that we had marked this instance, and says "registry:
stripped". Whoever has the file and no registry sees *unmarked* there, and no more. Of rows about
the header, the coding, or what is missing or old, where pixels are as they were marked, the verdict
is to be authentic (content-preserved after a lossy copy) and the second column to be named.
"""


def cell(outcome):
    """Say in a cell: verdict, what the registry adds, place, names; what failed is bold."""
    said = [outcome.verdict if outcome.caught else f"**{outcome.verdict}**"]
    if outcome.stripped:
        said.append("registry: stripped")
    if outcome.contains is not None:
        place = f"{100 * outcome.share:.1f} % outlined"
        if outcome.overlap >= 0.005:
            place += f", IoU {outcome.overlap:.2f}"
        said.append(place if outcome.contains else f"**{place}, not all of it**")
    if not outcome.named:
        said.append("**not named**")
    return ", ".join(said)


def named(kind):
    """Say what has to be named."""
    if kind.says.startswith("speak of"):
        return "the number of frames"
    if kind.words.endswith("with the registry"):
        return "missing" if "dropped" in kind.words else "superseded"
    words = {
        "signed by a key this ring does not have": "a stranger's key",
        "were marked as frame": "the frames", "another instance": "another instance's pixels",
    }  # fmt: skip
    return ", ".join([*([words[kind.says]] if kind.says else []), *kind.changed])


def main():
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        subjects = [subject(each, bench, data) for each in OBJECTS]
        print(LEGEND)
        print("| done to the marked object | to be named | " + " | ".join(OBJECTS) + " |")
        print("|---|---|" + "---|" * len(OBJECTS))
        for kind in KINDS.values():
            cells = []
            for each in subjects:
                if kind.loops and not each.loop:
                    cells.append("-")
                    continue
                out = each.folder / "tampered.dcm"
                made = kind.make(each, out)
                entry = bench.entries[each.marked]
                cells.append(cell(judged(kind, made, bench.verdict(made.path), entry)))
            print(f"| {kind.words} | {named(kind)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
