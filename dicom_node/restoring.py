"""Taking both marks off: the original, bit for bit, proven by the signed digest."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import EngineError, NodeError, WatermarkError
from dicom_node.inference.catalogue import patterns_for
from dicom_node.instance import derivation, seal
from dicom_node.instance.block import PrivateBlock, read_block
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.instance.rewrite import write_header
from dicom_node.instance.writer import FrameWriter
from dicom_node.keys import KeyRing, KeySet
from dicom_node.planes import (
    KnownResidual,
    bounds_of,
    robust_part,
    split,
    with_host,
    with_robust_part,
)
from dicom_node.watermark import integrity, robust, synthesis
from dicom_node.watermark.integrity import IntegrityCheck
from dicom_node.watermark.synthesis import RobustRecord

UNDO_CONTEXT = b"dicom-node undo block 1"
MAX_PIXELS = 1 << 32


@dataclass(frozen=True)
class RestoreOutcome:
    """`exact`: every frame's signed digest of the original holds, and so does the header."""

    exact: bool
    reason: str = ""


def original_frame(
    instance: Instance, frame: StoredFrame, check: IntegrityCheck,
    known: KnownResidual | None = None,
) -> StoredFrame:  # fmt: skip
    """Return the frame as it was before both marks.

    Parameters
    ----------
    known
        Only saves time.

    Raises
    ------
    WatermarkError
        The restoration record is out of reach (another key, a stripped header block) or damaged.
    """
    if check.record is None or check.record.restoration is None:
        raise WatermarkError(
            "what restoration needs cannot be read: the restore key is missing,"
            " or it was in our private block, which is gone"
        )
    inner = with_host(frame, instance.host_index, check.recovered)
    if not check.record.restoration:
        return inner
    bounds, record = bounds_of(instance), RobustRecord.from_bytes(check.record.restoration)
    marked, span = robust_part(inner, instance), (bounds.low, bounds.high, bounds.padding)
    delta = known.of(record) if known is not None else None
    if delta is not None:
        part = synthesis.remove(marked, delta, *span, record.exceptions)
    else:
        part = robust.remove(marked, record, _patterns_of(record), record.model_id, *span)
    return with_robust_part(inner, instance, part)


def _patterns_of(record: RobustRecord) -> NDArray[np.int8]:
    """Return the carrier patterns a record was made with, of this model or of one before it."""
    try:
        return patterns_for(record.model_id)
    except EngineError as error:
        raise WatermarkError(str(error)) from error


def restore(source: Path, out: Path, ring: KeyRing) -> RestoreOutcome:
    """Write the original of the marked instance at `source` to `out`.

    Nothing is written unless every frame restores exactly.

    Raises
    ------
    NodeError
        The source cannot be read.
    """
    sealed = _restore_sealed(source, out, ring)
    if sealed is not None:
        return sealed
    opened = open_instance(source, max_pixels=MAX_PIXELS, scratch=out.parent)
    with closing(opened) as instance:
        block = read_block(instance.header)
        header, reason = _original_header(instance, block, ring)
        with FrameWriter(out.parent, instance) as writer:
            for index, frame in enumerate(instance.frames()):
                try:
                    writer.append(_restored(instance, frame, index, block, ring))
                except WatermarkError as error:
                    return RestoreOutcome(False, f"frame {index + 1}: {error}")
            writer.finish(header, out)
    return RestoreOutcome(not reason, reason)


def _restore_sealed(source: Path, out: Path, ring: KeyRing) -> RestoreOutcome | None:
    """Take back what was changed in the header of a sealed instance; None if it is no such one."""
    with closing(open_data_file(source, scratch=out.parent)) as data:
        block = read_block(data)
        if block is None or not block.undo or not block.seal:
            return None
        sealed = seal.check_header(data.read_header(), data, ring)
        if not sealed.covers_pixels:
            return None
        if not sealed.intact:
            return RestoreOutcome(False, "was changed after it was sealed, or by another key")
        header, reason = _original_header(data, block, ring)
        if not reason:
            write_header(data, header, out)
        return RestoreOutcome(not reason, reason)


def _restored(
    instance: Instance, frame: StoredFrame, index: int, block: PrivateBlock | None, ring: KeyRing
) -> StoredFrame:
    planes = split(frame, instance.host_index)
    blocks = block.frames if block else ()
    check = integrity.check(
        planes.host, planes.side, bounds_of(instance), ring=ring,
        sop_instance_uid=instance.sop_instance_uid, frame_number=index + 1,
        header_block=blocks[index] if index < len(blocks) else b"",
    )  # fmt: skip
    if check.record is None or check.status != "valid":
        raise WatermarkError(
            "carries no mark of ours" if check.status == "absent"
            else "was changed after it was marked; only an untouched frame restores exactly"
        )  # fmt: skip
    original = original_frame(instance, frame, check)
    again = split(original, instance.host_index)
    if integrity.frame_digest(again.host, again.side) != check.record.original_digest:
        raise WatermarkError("does not restore to the digest that was signed")
    return original


def _original_header(
    data: Instance | DataFile, block: PrivateBlock | None, ring: KeyRing
) -> tuple[Dataset, str]:
    """Return the header without our changes, and why that was not possible ("" if it was)."""
    header = data.read_header()
    if block is None or not block.undo:
        return header, "pixels exact; our private block is gone, so header changes stay"
    for keys in ring.all():
        undo = _opened(keys, block.undo)
        if undo is not None:
            return derivation.undo(header, undo), ""
    return header, "pixels exact; no key of the ring opens the header's undo block"


def _opened(keys: KeySet, sealed: bytes) -> bytes | None:
    try:
        return seal.decrypt(keys.restore_key, sealed, UNDO_CONTEXT, padded=True)
    except NodeError:
        return None
