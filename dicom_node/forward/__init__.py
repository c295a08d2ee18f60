"""Forwarding: one process per destination, so that a dead one never blocks another."""

from dicom_node.forward.forwarder import Transcode, run_forwarder
from dicom_node.forward.rules import Backoff, Verdict, verdict_of

__all__ = ["Backoff", "Transcode", "Verdict", "run_forwarder", "verdict_of"]
