"""``dicom-node keys``: the key ring."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dicom_node.audit.events import KeyUse
from dicom_node.audit.recording import key_used, recorded
from dicom_node.cli.common import Subparsers, add_action, add_command, config_of
from dicom_node.config import Config
from dicom_node.errors import ConfigError
from dicom_node.keys import KeyRing, KeySet


def register(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "keys",
        run,
        summary="make, rotate and export the keys that mark, verify and restore",
        exit_codes={0: "done", 3: "the key ring is missing, unreadable or readable by others"},
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = add_action(actions, "init", help="make the key ring if there is none")
    rotate = add_action(
        actions,
        "rotate",
        help="make a new current key; old ones stay for verification and restoration",
    )
    for each in (init, rotate):
        each.add_argument("--owner", help="owner named by the marks (default: watermark.owner)")
    export = add_action(actions, "export-public", help="print the public key for auditors (PEM)")
    export.add_argument("--out", type=Path, metavar="FILE", help="write it to a new file instead")


def run(arguments: argparse.Namespace) -> int:
    """Run one action."""
    config = config_of(arguments)
    directory = config.keys.directory
    if arguments.action == "init":
        is_new = not any(directory.glob("*.json"))
        ring = KeyRing.open(directory, owner=arguments.owner or config.watermark.owner, create=True)
        if is_new:
            _record(config, ring, "init")
        print(_described(ring.current, directory))
        print("back this folder up: without it nothing can be restored")
    elif arguments.action == "rotate":
        ring = KeyRing.open(directory)
        keys = ring.rotate(arguments.owner or config.watermark.owner)
        _record(config, ring, "rotate")
        print(_described(keys, directory))
        print("restart the node to sign with it; the old keys still verify and restore")
    else:
        ring = KeyRing.open(directory)
        _record(config, ring, "export-public")
        _export(ring.export_public(), arguments.out)
    return 0


def _record(config: Config, ring: KeyRing, use: KeyUse) -> None:
    """Enter into the audit trail who did what with the ring."""
    with recorded(config, ring) as record:
        record(key_used(ring, use))


def _described(keys: KeySet, directory: Path) -> str:
    created = keys.created.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"current key {keys.key_id.hex()} of {keys.owner}, created {created}, in {directory}"


def _export(pem: str, out: Path | None) -> None:
    if out is None:
        print(pem, end="" if pem.endswith("\n") else "\n")
        return
    try:
        # Never replaces a file: it might be the only copy of an older key.
        handle = os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with open(handle, "w", encoding="ascii") as stream:
            stream.write(pem)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
