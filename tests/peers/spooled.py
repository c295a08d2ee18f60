"""Instances put into a spool past the receiver, and what became of them."""

import hashlib

from dicom_node.dimse import encode_file_meta, read_file_meta

CT = "1.2.840.10008.5.1.4.1.1.2"


def data_set(path):
    with path.open("rb") as file:
        file.seek(read_file_meta(file).data_set_offset)
        return file.read()


def put(one, path, destinations=("pacs",)):
    """Spool a file as the receiver does, for these destinations."""
    with path.open("rb") as file:
        meta = read_file_meta(file)
    with one.spool() as spool:
        spool.receive(
            encode_file_meta(
                meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, "MODALITY"
            ),
            data_set(path),
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
            transfer_syntax_uid=meta.transfer_syntax_uid,
            deliver_to=destinations,
        )
    return meta.sop_instance_uid


def sha(path):
    return hashlib.sha256(data_set(path)).hexdigest()


def settled(one):
    deliveries = one.deliveries()
    return deliveries if all(d.state in ("delivered", "held") for d in deliveries) else None
