"""Who may ask the verification service: AE titles, and the addresses they call from.

An AE title is a name and no proof: whoever knows one can use it. Without TLS the address is the
only other thing that a listener can look at.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from dicom_node.audit.events import Event, Refused
from dicom_node.config import Policy, VerifyConfig
from dicom_node.dimse import CALLING_AE_NOT_RECOGNIZED, Admits, Refusal

log = structlog.get_logger(__name__)


class Admission:
    """The rules of ``[verify] admit`` and ``[[verify.client]]``.

    Parameters
    ----------
    record
        Tells the audit trail.
    """

    def __init__(self, config: VerifyConfig, record: Callable[[Event], None]) -> None:
        self._clients = {client.ae_title: client for client in config.client}
        self._listed_only = config.admit == "listed"
        self._policy = config.policy
        self._record = record

    def __call__(self, calling_ae: str, address: str) -> Refusal | None:
        """Return how an association is rejected, None if it is not; a rejection is recorded."""
        client = self._clients.get(calling_ae)
        if client is None and self._listed_only:
            reason = "the calling AE title is not among [[verify.client]]"
        elif client is not None and not comes_from(client.address, address):
            reason = "the AE title is called from another address than [[verify.client]] has"
        else:
            return None
        return refused(self._record, calling_ae, address, reason)

    def policy(self, calling_ae: str) -> Policy:
        """Return what a client is given that was admitted."""
        client = self._clients.get(calling_ae)
        return self._policy if client is None or not client.policy else client.policy


def pacs_only(config: VerifyConfig, record: Callable[[Event], None]) -> Admits:
    """Return the rule of the inner Storage SCP: whoever sends there answers for the PACS."""

    def admits(calling_ae: str, address: str) -> Refusal | None:
        if comes_from(config.fetch_from, address):
            return None
        reason = "somebody else than [verify] fetch_from sends to the fetch port"
        return refused(record, calling_ae, address, reason)

    return admits


def refused(
    record: Callable[[Event], None], calling_ae: str, address: str, reason: str
) -> Refusal:
    """Log and record that an association is rejected, and return how."""
    log.warning("association refused", calling_ae=calling_ae, peer=address, reason=reason)
    record(
        Refused(at=datetime.now(UTC), stage="associate", outcome="rejected", reason=reason,
                peer_ae=calling_ae, peer_address=address)
    )  # fmt: skip
    return CALLING_AE_NOT_RECOGNIZED


def comes_from(network: str, address: str) -> bool:
    """Say whether an address is in a network, or the one; "" is every network."""
    if not network:
        return True
    try:
        caller = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(caller, "ipv4_mapped", None)  # a listener on "::" sees IPv4 so
    return (mapped or caller) in ipaddress.ip_network(network, strict=False)
