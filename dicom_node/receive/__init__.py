"""Receiving: the Storage SCP that modalities send to. Bytes in, spool out; touches no pixel."""

from dicom_node.receive.storage import handle_store, run_receiver

__all__ = ["handle_store", "run_receiver"]
