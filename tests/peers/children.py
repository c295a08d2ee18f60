"""Child processes of the peer tests: our own processes, and a PACS that misbehaves.

``receive CONFIG`` and ``forward CONFIG NAME`` run the node's processes by themselves. ``pacs PORT
MODE LOG`` is pynetdicom's own Storage SCP, untouched by `dicom_node`, with these modes:

================  ===================================================================
``ok``            stores
``A700`` ...      answers this status
``hang``          takes the data set and never answers
``abort``         aborts in the middle of the second data set of each association
``crash``         closes the connection instead of answering
``crash-second``  the same, but for the second instance of each association
``reject``        rejects every association
``native``        accepts Implicit VR Little Endian only
``poison:UID``    aborts for this instance, stores the others
================  ===================================================================

Each instance answered with success or a warning is a line ``UID SYNTAX SHA256-of-data-set`` in LOG.
"""

import hashlib
import itertools
import os
import sys
import time
from pathlib import Path


def receive(config: str) -> None:
    from dicom_node.config import load
    from dicom_node.receive import run_receiver

    run_receiver(load(Path(config)), on_ready=lambda port: print(f"ready {port}", flush=True))


def forward(config: str, name: str) -> None:
    from dicom_node.config import load
    from dicom_node.forward import run_forwarder

    run_forwarder(load(Path(config)), name)


def pacs(port: str, mode: str, log: str) -> None:
    from pydicom.uid import AllTransferSyntaxes, ImplicitVRLittleEndian
    from pynetdicom import AE, _config, evt
    from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification

    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE("PACS")
    ae.maximum_pdu_size = 16384
    # Private storage classes and JPEG XL too, as an archive would.
    _config.UNRESTRICTED_STORAGE_SERVICE = mode != "native"
    syntaxes = [ImplicitVRLittleEndian] if mode == "native" else AllTransferSyntaxes
    for sop_class in (CTImageStorage, MRImageStorage, "1.3.6.1.4.1.9999.1.1"):
        ae.add_supported_context(sop_class, syntaxes)
    ae.add_supported_context(Verification)
    fragments: dict[object, itertools.count[int]] = {}

    def on_data(event):
        count = next(fragments.setdefault(event.assoc, itertools.count()))
        if count == 60:
            event.assoc.dul.socket.socket.close() if count % 2 else event.assoc.abort(block=False)

    def on_store(event):
        if mode == "hang":
            time.sleep(3600)
        if mode == "crash" or (mode == "crash-second" and event.request.MessageID == 2):
            event.assoc.dul.socket.socket.close()
            return 0xC000
        uid = event.request.AffectedSOPInstanceUID
        if mode.startswith("poison:") and uid == mode.partition(":")[2]:
            event.assoc.abort()
            return 0xC000
        status = int(mode, 16) if len(mode) == 4 and mode != "hang" else 0x0000
        if status in (0, 0xB000, 0xB006, 0xB007):
            digest = hashlib.sha256(event.encoded_dataset(include_meta=False)).hexdigest()
            with open(log, "a") as file:
                file.write(f"{uid} {event.context.transfer_syntax} {digest}\n")
                file.flush()
                os.fsync(file.fileno())
        return status

    handlers = [(evt.EVT_C_STORE, on_store)]
    if mode == "abort":
        handlers.append((evt.EVT_DATA_RECV, on_data))
    if mode == "reject":
        ae.require_calling_aet = ["NOBODY"]
    server = ae.start_server(("127.0.0.1", int(port)), block=False, evt_handlers=handlers)
    print(f"ready {port}", flush=True)
    try:
        while True:
            time.sleep(60)
    finally:
        server.shutdown()


if __name__ == "__main__":
    {"receive": receive, "forward": forward, "pacs": pacs}[sys.argv[1]](*sys.argv[2:])
