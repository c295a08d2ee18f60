"""What an instance that arrives carries of ours already: such are passed on as they are."""

from __future__ import annotations

from dicom_node.errors import PixelError
from dicom_node.instance import seal
from dicom_node.instance.block import read_block
from dicom_node.instance.frames import Instance
from dicom_node.instance.seal import SealCheck
from dicom_node.keys import KeyRing
from dicom_node.planes import bounds_of, split
from dicom_node.watermark import integrity

_AS_RECEIVED = "passed on as received"


def marks_of_ours(instance: Instance, ring: KeyRing) -> str:
    """Return why the instance is passed on as it is: it is ours already. Else ""."""
    try:
        block = read_block(instance.data)
        sealed = seal.check_header(instance.read_header(), instance.data, ring)
    except PixelError:
        block, sealed = None, SealCheck(present=False)
    blocks = block.frames if block and block.frames else ()
    valid = absent = 0
    # Without our block, a frame at each end tells: every frame of ours carries the mark.
    last = instance.frame_count - 1
    for index in range(last + 1) if block else sorted({0, last}):
        planes = split(instance.frame(index), instance.host_index)
        check = integrity.check(
            planes.host, planes.side, bounds_of(instance), ring=ring,
            sop_instance_uid=instance.sop_instance_uid, frame_number=index + 1,
            header_block=blocks[index] if index < len(blocks) else b"",
        )  # fmt: skip
        if check.status == "absent":
            absent += 1
        elif check.status == "valid" and check.bound:
            valid += 1
        else:
            return f"carries our marks, which do not hold in frame {index + 1}; {_AS_RECEIVED}"
        if valid and absent:
            return f"carries our marks in some frames only; {_AS_RECEIVED}"
    return "carries our valid marks already" if valid else seal_of_ours(sealed)


def seal_of_ours(sealed: SealCheck) -> str:
    """Return what is said of an instance that came with a seal of ours; "" if it did not.

    Sealed anew, what was changed in between would pass for what we received first.
    """
    if not sealed.signature_valid or "SOPInstanceUID" in sealed.changed:
        return ""
    if sealed.intact and sealed.covers_pixels:
        return "carries our valid seal already"
    return f"carries our seal, which does not hold; {_AS_RECEIVED}"
