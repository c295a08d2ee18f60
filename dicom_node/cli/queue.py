"""``dicom-node queue``: jobs, their reasons, and the quarantine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from dicom_node.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    Subparsers,
    add_action,
    add_command,
    add_json,
    config_of,
    print_json,
)
from dicom_node.errors import ConfigError, SpoolError
from dicom_node.spool import JOB_STATES, Delivery, Job, Spool


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "queue",
        run,
        summary="see what waits, why, and decide about what is held",
        exit_codes={0: "done", 3: "the spool cannot be read, or a job is not in a state for this"},
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    states = "\n".join(f"  {state:<10}{sentence}" for state, sentence in JOB_STATES.items())
    listing = add_action(
        actions,
        "list",
        help="list jobs with their states and reasons",
        epilog=f"a job that is\n{states}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_filters(listing)
    listing.add_argument("--limit", type=int, default=-1, metavar="N", help="at most N jobs")
    add_json(listing, "job")
    show = add_action(actions, "show", help="show everything known about jobs")
    show.add_argument("ids", nargs="+", type=int, metavar="ID")
    add_json(show, "job")
    for name, text in (
        ("retry", "send or mark waiting jobs now instead of at their due time"),
        ("release", "bring held or rejected jobs back"),
        ("drop", "give jobs up: their files are removed"),
    ):
        action = add_action(actions, name, help=text)
        action.add_argument("ids", nargs="*", type=int, metavar="ID", help="jobs, as listed")
        action.add_argument("--all", action="store_true", help="every job the filters select")
        _add_filters(action)
        add_json(action, "job")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=list(JOB_STATES), help="only jobs in this state")
    parser.add_argument("--destination", metavar="NAME", help="only jobs for this destination")


def run(arguments: argparse.Namespace) -> int:
    """Run one action on the spool."""
    config = config_of(arguments)
    settings = config.spool
    if not (settings.directory / "journal.sqlite").is_file():
        raise SpoolError(
            f"{settings.directory}: no spool here; start the node, or name its --config"
        )
    with Spool(settings) as spool:
        if arguments.action == "list":
            return _list(spool, arguments)
        if arguments.action == "show":
            return _show(spool, arguments)
        return _change(spool, arguments, [each.name for each in config.destination])


def _list(spool: Spool, arguments: argparse.Namespace) -> int:
    jobs = spool.jobs(
        state=arguments.state, destination=arguments.destination, limit=arguments.limit
    )
    if arguments.json:
        for job in jobs:
            print_json(to_json(job, spool.deliveries(job.id)))
        return EXIT_OK
    header = ("id", "state", "received", "from", "waits for", "reason")
    _print_rows(header, (_row(job, spool.deliveries(job.id)) for job in jobs))
    counts = {state: n for state, n in spool.tally().items() if n}
    print(", ".join(f"{n} {state}" for state, n in counts.items()) or "no jobs", file=sys.stderr)
    untold, since = spool.outbox_depth()
    if since is not None:
        print(f"{untold} events not yet registered, the oldest of {_time(since)}", file=sys.stderr)
    return EXIT_OK


def _row(job: Job, deliveries: list[Delivery]) -> tuple[str, ...]:
    still = [d for d in deliveries if d.state not in ("delivered", "dropped")]
    reasons = [job.reason] if job.reason else []
    reasons += [f"{d.destination}: {d.reason}" for d in still if d.reason and d.state != "held"]
    waits = ", ".join(d.destination for d in still)
    received = _time(job.received_at) or ""
    return str(job.id), job.state, received, job.calling_ae, waits, "; ".join(reasons)


def _print_rows(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table on a terminal, tab-separated lines in a pipe."""
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    table = Table(*header, box=None, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _show(spool: Spool, arguments: argparse.Namespace) -> int:
    for job_id in arguments.ids:
        job = _known(spool, job_id)
        values = to_json(job, spool.deliveries(job_id))
        if arguments.json:
            print_json(values)
            continue
        deliveries = values.pop("deliveries")
        for key, value in values.items():
            print(f"{key:22}{'' if value is None else value}")
        for delivery in deliveries:
            print("delivery              " + "  ".join(f"{k}={v}" for k, v in delivery.items()))
        print()
    return EXIT_OK


def _change(spool: Spool, arguments: argparse.Namespace, destinations: list[str]) -> int:
    filtered = arguments.all or arguments.state or arguments.destination
    if bool(arguments.ids) == bool(filtered):
        raise ConfigError(
            f"queue {arguments.action}: name job ids, or select with --all/--state/..."
        )
    if arguments.ids:
        ids = [_known(spool, job_id).id for job_id in arguments.ids]
    else:
        jobs = spool.jobs(state=arguments.state, destination=arguments.destination)
        ids = [job.id for job in jobs if job.state in _CHANGES[arguments.action][1]]
    change = _CHANGES[arguments.action][0]
    code = EXIT_OK
    for job_id in ids:
        newer = spool.newer_version(job_id) if arguments.action == "release" else None
        kept = newer is not None and not arguments.ids
        done = not kept and change(spool, job_id, destinations)
        if not done and not kept and not arguments.ids:
            continue
        job = _known(spool, job_id)
        if arguments.json:
            said = {} if newer is None else {"newer_version": newer}
            print_json(
                {"id": job_id, "action": arguments.action, "done": done, "state": job.state} | said
            )
        else:
            print(f"job {job_id} is {job.state}{_said(arguments.action, job, newer, done)}")
        if not done:
            code = EXIT_FAILED
    return code


def _said(action: str, job: Job, newer: int | None, done: bool) -> str:
    """Return what there is to say of a change beside the new state."""
    if newer is not None and done:
        return f", it takes the place of job {newer}, a later version that was delivered"
    if newer is not None:
        return (
            f", kept: job {newer}, a later version under its UID, was delivered;"
            f" `queue release {job.id}` puts this one in its place"
        )
    return "" if done else f", cannot {action} it: {job.reason or 'nothing waits'}"


_Change = Callable[[Spool, int, list[str]], bool]
_CHANGES: dict[str, tuple[_Change, tuple[str, ...]]] = {
    "retry": (lambda spool, job, _: spool.retry_now(job), ("received", "marked")),
    "release": (
        lambda spool, job, names: spool.release(job, destinations=names),
        ("held", "rejected", "marked"),
    ),
    "drop": (
        lambda spool, job, _: spool.drop(job),
        ("received", "marking", "marked", "held", "rejected"),
    ),
}


def _known(spool: Spool, job_id: int) -> Job:
    job = spool.job(job_id)
    if job is None:
        raise ConfigError(f"there is no job {job_id}; see `dicom-node queue list`")
    return job


def to_json(job: Job, deliveries: list[Delivery]) -> dict[str, Any]:
    """Return a job with its deliveries as JSON values."""
    return {
        "id": job.id,
        "state": job.state,
        "reason": job.reason,
        "action": job.action,
        "calling_ae": job.calling_ae,
        "sop_class_uid": job.sop_class_uid,
        "sop_instance_uid": job.sop_instance_uid,
        "sent_instance_uid": job.sent_instance_uid if job.action else None,
        "study_instance_uid": job.study_instance_uid,
        "series_instance_uid": job.series_instance_uid,
        "transfer_syntax_uid": job.transfer_syntax_uid,
        "size": job.size,
        "digest": job.digest.hex(),
        "received_at": _time(job.received_at),
        "due_at": _time(job.due_at) if job.state == "received" else None,
        "marked_at": _time(job.marked_at) if job.action in ("marked", "sealed") else None,
        "key_id": job.key_id.hex() if job.key_id else None,
        "attempts": job.attempts,
        "crashes": job.crashes,
        "coalesced": job.coalesced,
        "repeat_of": job.repeat_of,
        "differs_from_repeat": job.differs_from_repeat,
        "conflicts_with": job.conflicts_with,
        "deliveries": [
            {
                "destination": delivery.destination,
                "state": delivery.state,
                "attempts": delivery.attempts,
                "due_at": _time(delivery.due_at) if delivery.state == "waiting" else None,
                "status": None if delivery.status is None else f"0x{delivery.status:04X}",
                "reason": delivery.reason,
            }
            for delivery in deliveries
        ],
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
