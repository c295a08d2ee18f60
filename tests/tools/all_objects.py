"""Send every object of a folder through a real node into a real Orthanc, and account for each.

    python tests/tools/all_objects.py ../shared/data/dicom --out all-objects.md [--per-kind N]

An object is sent by storescu in its own transfer syntax; by pynetdicom where DCMTK does not send
it; where it is no message anybody could send (no meta header, no UIDs), ``dicom-node mark`` takes
it as a file. Every one must end delivered, held or rejected with a reason; every marked one must be
authentic as the PACS stores it, and restore bit for bit. Exit code 0 only if all of that held.
"""

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import harness
import pydicom

from dicom_node.inference import open_engine
from dicom_node.marking import restore
from dicom_node.verify.check import check_instance

STORESCU_OPTIONS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
_FORBIDDEN = ("(0001", "(0003", "(0005", "(0007")
_PADDING = "(FFFC,FFFC)"  # Data Set Trailing Padding, which storescu leaves out
ENDS = ("marked", "sealed", "untouched", "held", "rejected", "waiting")


@dataclass
class Item:
    """One object and what became of it."""

    path: Path
    kind: str
    meta: object = None
    sender: str = ""
    refused: str = ""
    action: str = ""
    reason: str = ""
    frames: int = 0
    robust: int = 0
    authentic: bool = False
    restored: bool = False
    problems: list = field(default_factory=list)


def inspect(root, path):
    """Return an `Item`; without `meta` where nobody could send the file."""
    item = Item(path, path.relative_to(root).parts[0])
    with path.open("rb") as file:
        try:
            item.meta = harness.read_file_meta(file)
        except ValueError as error:
            item.refused = str(error)
            return item
    item.sender = "storescu"
    if item.meta.transfer_syntax_uid not in STORESCU_OPTIONS:
        item.sender = "pynetdicom"
    return item


def rounds(items):
    """Group so that no SOP Instance UID occurs twice in a group: a PACS keeps one of each."""
    left = list(items)
    while left:
        taken, group, rest = set(), [], []
        for item in left:
            uids = {item.meta.sop_instance_uid, _uid_inside(item.path)} - {""}
            if uids & taken:
                rest.append(item)
            else:
                taken |= uids
                group.append(item)
        yield group
        left = rest


def send(node, items):
    """Send a group; what storescu cannot read goes by pynetdicom."""
    by_option = {}
    for item in items:
        if item.sender == "storescu":
            option = STORESCU_OPTIONS[item.meta.transfer_syntax_uid]
            by_option.setdefault(option, []).append(item)
    for option, group in by_option.items():
        for start in range(0, len(group), 40):
            _storescu(node, option, group[start : start + 40])
    for item in items:
        if item.sender == "pynetdicom":
            meta = item.meta
            try:
                status = harness.send_bytes(
                    node, harness.data_set_bytes(item.path), sop_class=meta.sop_class_uid,
                    sop_instance_uid=meta.sop_instance_uid, syntax=meta.transfer_syntax_uid,
                )  # fmt: skip
            except (AssertionError, ValueError) as error:
                item.sender, item.refused = "mark", f"pynetdicom does not send it: {error}"
                continue
            if status != 0x0000:
                item.problems.append(f"answered {status}")


def _storescu(node, option, group):
    by_path = {str(item.path): item for item in group}
    done = harness.storescu(node, *by_path, options=("-v", "-nh", "-R", option), timeout_s=600)
    current, stored = None, set()
    for line in (done.stdout + done.stderr).splitlines():
        if "Sending file:" in line:
            current = line.partition("Sending file:")[2].strip()
        elif "Received Store Response (Success)" in line:
            stored.add(current)
    for path, item in by_path.items():
        if path not in stored:
            item.sender = "pynetdicom"
            item.refused = "storescu does not send it"


def account(node, orthanc, items, jobs, folder):
    """Fill in what became of each item, and check it as the PACS stores it."""
    ring, engine = node.ring(), open_engine("onnx")
    stored = harness.orthanc_instances(orthanc)
    by_uid = {}
    for job in jobs:
        by_uid.setdefault(job.sop_instance_uid, []).append(job)
    for item in items:
        # storescu asks by the UID in the data set, whatever the meta header says.
        inside = _uid_inside(item.path) or item.meta.sop_instance_uid
        found = by_uid.get(item.meta.sop_instance_uid) or by_uid.get(inside, [])
        if len(found) != 1:
            item.problems.append(f"{len(found)} jobs in the journal")
            continue
        [job] = found
        item.action = job.action if job.state == "delivered" else job.state
        item.reason = job.reason
        if job.state == "marked":
            with node.spool() as spool:
                [delivery] = spool.deliveries(job.id)
            item.action, item.reason = "waiting", _general(delivery.reason)
            continue
        if job.state == "delivered":
            known = stored.get(item.meta.sop_instance_uid) or stored.get(inside)
            if known is None:
                item.problems.append("delivered, but the PACS does not have it")
                continue
            check(item, harness.fetch(orthanc, known, folder / "fetched.dcm"), ring, engine)
        elif not job.reason:
            item.problems.append(f"{job.state} without a reason")
        elif not job.path.exists():
            item.problems.append(f"{job.state}, but its bytes are gone")


def check(item, path, ring, engine):
    """Verify what was delivered and restore it."""
    verdict = check_instance(path, ring, engine)
    # DCMTK, Orthanc's too, drops elements of groups that no attribute may be in (PS3.5 7.1).
    changed = [name for name in verdict.changed if not name.startswith(_FORBIDDEN)]
    item.authentic = verdict.verdict == "authentic" and not changed
    if not item.authentic and item.action != "untouched":
        item.problems.append(f"{verdict.verdict} {verdict.reason} {verdict.changed}")
    if item.action != "marked":
        if not item.reason:
            item.problems.append(f"{item.action} without a reason")
        return
    item.frames = len(verdict.frames)
    item.robust = sum(frame.robust.decoded for frame in verdict.frames)
    back = path.with_name("restored.dcm")
    outcome = restore(path, back, ring)
    different = harness.differences(item.path, back) if outcome.exact else [outcome.reason]
    different = [line for line in different if not line.startswith((*_FORBIDDEN, _PADDING))]
    item.restored = not different
    item.problems += different


def _uid_inside(path):
    ds = pydicom.dcmread(path, force=True, specific_tags=["SOPInstanceUID"])
    return str(ds.get("SOPInstanceUID") or "")


def offline(node, items, folder):
    """Mark as files what cannot be sent."""
    ring, engine = node.ring(), open_engine("onnx")
    for number, item in enumerate(items):
        item.sender = "mark"
        out = folder / f"offline{number}"
        done = node.cli("mark", item.path, "--out", out, "--json")
        line = json.loads(done.stdout.splitlines()[-1])
        item.action, item.reason = line["action"], line["reason"]
        if line["out"]:
            check(item, Path(line["out"]), ring, engine)
        elif not item.reason:
            item.problems.append(f"{item.action} without a reason")


def run(root, paths, folder, progress=lambda _: None):
    """Send `paths` (below `root`, whose folders are the kinds) through a node; return the items."""
    items = [inspect(root, path) for path in paths]
    sendable = [item for item in items if item.meta is not None]
    orthanc = harness.Orthanc(folder)
    node = harness.RunningNode(
        folder / "node", [{"port": orthanc.port, "ae_title": "ORTHANC", "timeout_s": 60}],
        watermark={"workers": 2},
    )  # fmt: skip
    try:
        node.start(timeout_s=120)
        for number, group in enumerate(rounds(sendable), 1):
            progress(f"round {number}: {len(group)} objects")
            before = {job.id for job in node.jobs()}
            send(node, group)
            jobs = [job for job in node.settled(1800, refusals=4) if job.id not in before]
            sent = [item for item in group if item.sender != "mark"]
            account(node, orthanc, sent, jobs, folder)
            for job in jobs:
                if job.state == "marked":  # never taken: out of the next round's way
                    node.cli("queue", "drop", job.id)
            for identifier in orthanc.get("/patients"):
                harness.delete(orthanc, f"/patients/{identifier}")
        progress("files that cannot be sent")
        offline(node, [item for item in items if item.sender in ("", "mark")], folder)
    finally:
        node.kill_all()
        orthanc.child.kill()
    return items


def table(items):
    """Return the summary per kind as Markdown."""
    head = "| kind | objects | marked | sealed | held | PACS refuses | frames marked"
    head += " | with robust mark | authentic | restored exactly |"
    lines = [head, "|---|" + "---:|" * 9]
    kinds = sorted({item.kind for item in items})
    groups = [(kind, [item for item in items if item.kind == kind]) for kind in kinds]
    for kind, group in [*groups, ("**all**", items)]:
        ends = Counter(item.action for item in group)
        marked = [item for item in group if item.action == "marked"]
        sent = [item for item in group if item.action in ("marked", "sealed")]
        cells = [
            kind, len(group), ends["marked"], ends["sealed"], ends["held"], ends["waiting"],
            sum(item.frames for item in marked), sum(item.robust for item in marked),
            f"{sum(item.authentic for item in sent)} of {len(sent)}",
            f"{sum(item.restored for item in marked)} of {len(marked)}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def reasons(items):
    """Return why objects were not marked, and how many, as a Markdown list."""
    counts = Counter((item.action, _general(item.reason)) for item in items
                     if item.action != "marked")  # fmt: skip
    return "\n".join(
        f"- {count} {action}: {reason}" for (action, reason), count in counts.most_common()
    )


def undelivered(root, items):
    """Return each object that is held or that the PACS refuses, as a Markdown list."""
    return "\n".join(
        f"- `{item.path.relative_to(root)}` {item.action}: {_general(item.reason)}"
        for item in items if item.action in ("held", "rejected", "waiting")
    )  # fmt: skip


def _general(reason):
    """Leave out what differs from instance to instance."""
    return re.sub(r" [0-9.]{20,}", " it", reason.partition("; and its header")[0])


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder whose folders are the kinds of objects")
    parser.add_argument("--out", type=Path, help="write the summary here, too")
    parser.add_argument("--per-kind", type=int, metavar="N", help="only N objects of each kind")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="pydicom")
    paths = sorted(path for path in arguments.data.rglob("*") if path.is_file())
    if arguments.per_kind:
        seen = Counter()
        paths = [
            path for path in paths
            if seen.update([path.relative_to(arguments.data).parts[0]])
            or seen[path.relative_to(arguments.data).parts[0]] <= arguments.per_kind
        ]  # fmt: skip
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        items = run(arguments.data, paths, Path(folder), lambda what: print(what, file=sys.stderr))
    wrong = [item for item in items if item.problems or item.action not in ENDS]
    senders = Counter(item.sender for item in items)
    text = "\n\n".join(
        [
            table(items),
            f"{len(items)} objects in {time.monotonic() - started:.0f} s; sent by "
            + ", ".join(f"{sender} {count}" for sender, count in senders.items()),
            "Not marked:\n\n" + reasons(items),
            "Not delivered:\n\n" + undelivered(arguments.data, items),
            "\n".join(f"PROBLEM {item.path}: {'; '.join(item.problems)}" for item in wrong),
        ]
    )
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
