"""The re-check of one instance: both marks of every frame, the header, the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dicom_node.errors import PixelError
from dicom_node.inference.base import RobustEngine
from dicom_node.instance import seal
from dicom_node.instance.block import PrivateBlock, read_block
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.display import Display, display_of
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.model import StoredFrame
from dicom_node.instance.seal import SealCheck
from dicom_node.keys import KeyRing, KeySet
from dicom_node.planes import bounds_of, split
from dicom_node.verify.content import LIKELIHOOD, Content, Known, compare_content
from dicom_node.verify.verdict import (
    FrameVerdict,
    InstanceVerdict,
    RobustReading,
    Verdict,
    worst,
)
from dicom_node.watermark import integrity, perceptual
from dicom_node.watermark.box import Box
from dicom_node.watermark.integrity import IntegrityCheck, OpenedRecord
from dicom_node.watermark.robust import Pose, RobustWatermark

# Of a frame: what announces more was never marked, and would not fit into memory.
MAX_PIXELS = 400_000_000
# Frames without any mark in which a weak W1 is looked for, 0.2 s each: the rest of a loop is alike.
MOST_IN_VAIN = 16
_NOT_OURS = "the header seal is damaged, or signed by a key this ring does not have"


@dataclass
class _Findings:
    """What the frames say together."""

    record: OpenedRecord | None = None
    changed: set[str] = field(default_factory=set)
    frames: list[FrameVerdict] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)
    likely: set[int] = field(default_factory=set)
    compared: bool = False
    in_vain: int = 0

    @property
    def by_likelihood(self) -> bool:
        """Whether the worst frames were judged by the robust mark and the fingerprint alone."""
        bad = worst([frame.verdict for frame in self.frames])
        return all(each.frame in self.likely for each in self.frames if each.verdict == bad)


def check_instance(
    path: Path, ring: KeyRing, engine: RobustEngine, *, known: Known | None = None
) -> InstanceVerdict:
    """Return the verdict on the instance in a file.

    Parameters
    ----------
    ring
        Keys to check with; public ones verify signatures but do not localise, nor read W1.
    engine
        W1's networks.
    known
        Where fingerprints are looked up (`content.fingerprints_in`) once W2 is gone; None: nowhere,
        and the verdict says that the content was not compared.
    """
    try:
        instance = open_instance(path, max_pixels=MAX_PIXELS)
    except PixelError as error:
        return _sealed_only(path, ring, str(error))
    with closing(instance):
        try:
            return _check(instance, ring, engine, known)
        except PixelError as error:
            return _sealed_only(path, ring, str(error))


def _check(
    instance: Instance, ring: KeyRing, engine: RobustEngine, known: Known | None
) -> InstanceVerdict:
    block = _block_of(instance)
    sealed = seal.check_header(instance.read_header(), instance.data, ring)
    display = display_of(instance)
    watermark = RobustWatermark(engine)
    secret = [keys for keys in ring.all() if keys.has_secrets]
    found = _Findings(changed=set(sealed.changed if sealed.signature_valid else ()))
    blocks = block.frames if block else ()
    for index, frame in enumerate(instance.frames()):
        planes = split(frame, instance.host_index)
        check = integrity.check(
            planes.host, planes.side, bounds_of(instance), ring=ring,
            sop_instance_uid=instance.sop_instance_uid, frame_number=index + 1,
            header_block=blocks[index] if index < len(blocks) else b"",
        )  # fmt: skip
        robust, pose = _read_robust(
            watermark, display, frame, index, secret, upright=check.status == "valid",
            weak=_carries_robust(check, found),
        )  # fmt: skip
        found.in_vain += check.status == "absent" and not robust.decoded
        content = None
        if check.status == "absent" and robust.same_picture:
            picture = display.image(frame, index)
            content = compare_content(picture, pose, bytes.fromhex(robust.message), known)
        own = index < len(blocks) and blocks[index] != b""
        if check.status == "absent" and own and _is_undeclared(instance, sealed):
            found.frames.append(_destroyed(index + 1, frame, robust))
        else:
            found.frames.append(_frame_verdict(index + 1, check, robust, content))
            found.likely |= {index + 1} if content is not None else set()
        _take_record(found, check, instance, ring, sealed)
    return _verdict(instance, found, sealed)


def _is_undeclared(instance: Instance, sealed: SealCheck) -> bool:
    """Whether our header says that nothing was coded with loss since we sealed it."""
    declared = instance.syntax.loss != "never" or "LossyImageCompression" in sealed.changed
    return sealed.signature_valid and not declared


def _destroyed(number: int, frame: StoredFrame, robust: RobustReading) -> FrameVerdict:
    """Judge a frame whose record we have, under a seal that holds, and whose pixels hold nothing.

    In a frame of one tile a single changed pixel can do that.
    """
    rows, columns = frame.values.shape[:2]
    return FrameVerdict(number, "tampered", "absent", robust, (Box(0, 0, rows, columns),),
                        "the pixels are not those that were marked, and the header declares no "
                        "lossy compression since")  # fmt: skip


def _frame_verdict(
    number: int, check: IntegrityCheck, robust: RobustReading, content: Content | None
) -> FrameVerdict:
    if check.status != "absent" and not check.bound:
        said = check.record
        whose = "another instance"
        if said is not None and said.frame_number != number:
            whose = f"frame {said.frame_number} of this or another instance"
        return FrameVerdict(number, "tampered", "other", robust, check.tampered,
                            f"these pixels were marked as {whose}")  # fmt: skip
    if check.status == "valid":
        return FrameVerdict(number, "authentic", "valid", robust)
    if check.status == "partial" and check.profile in ("compact", "noted") and not check.tampered:
        return FrameVerdict(number, "authentic", "partial", robust,
                            reason="the frame's keyed digest holds; its signed record is gone "
                            "with our private block")  # fmt: skip
    if check.status == "partial":
        return FrameVerdict(number, "tampered", "partial", robust, check.tampered)
    if not robust.decoded or robust.phash_distance is None:
        return FrameVerdict(number, "unmarked", "absent", robust)
    if content is not None:
        verdict: Verdict = "tampered" if content.changed else "content-preserved"
        return FrameVerdict(number, verdict, "absent", robust, content.changed, content.reason)
    return FrameVerdict(number, "foreign", "absent", robust,
                        reason="the mark was made for a picture that looks different")  # fmt: skip


def _carries_robust(check: IntegrityCheck, found: _Findings) -> bool:
    """Whether a W1 that is too weak to be decoded is worth looking for."""
    if check.status == "absent":
        return found.in_vain < MOST_IN_VAIN
    return check.record is not None and bool(check.record.restoration)


def _read_robust(
    watermark: RobustWatermark, display: Display, frame: StoredFrame, index: int,
    keys: Sequence[KeySet], *, upright: bool, weak: bool,
) -> tuple[RobustReading, Pose]:  # fmt: skip
    """Read W1 and how the frame lies; other poses only where W2 does not say it is upright."""
    if not keys or min(frame.values.shape[:2]) < 8:
        return RobustReading(False), Pose()
    picture = display.image(frame, index)
    found = watermark.detect(picture, keys, dihedral=not upright, weak=weak)
    if not found.decoded:
        return RobustReading(False), Pose()
    now = perceptual.perceptual_hash(found.pose.upright(picture))
    return RobustReading(
        True, found.message.hex(), found.bit_accuracy,
        perceptual.distance(found.perceptual_hash, now),
    ), found.pose  # fmt: skip


def _take_record(
    found: _Findings, check: IntegrityCheck, instance: Instance, ring: KeyRing, sealed: SealCheck
) -> None:
    """Compare the signed attribute digests with the header, once, where there is no seal to ask.

    The seal names every attribute; the digests in the pixels only the first of a few.
    """
    record = check.record
    if record is None or not check.signature_valid:
        return
    found.counts.add(record.frame_count)
    if not record.belongs_to(instance.sop_instance_uid, record.frame_number):
        found.changed.add("SOPInstanceUID")
    keys = ring.get(record.key_id)
    asked = found.record is not None or sealed.signature_valid
    if not asked and keys is not None and keys.has_secrets:
        found.compared = True
        found.changed |= set(
            seal.changed_attributes(instance.read_header(), record.attribute_digests, keys.mac_key)
        )
    found.record = found.record or record


def _verdict(instance: Instance, found: _Findings, sealed: SealCheck) -> InstanceVerdict:
    verdict: Verdict = worst([frame.verdict for frame in found.frames])
    reason = ""
    if found.counts and found.counts != {instance.frame_count}:
        said = max(found.counts)
        reason = f"the marks speak of {said} frames, there are {instance.frame_count}"
        verdict = worst([verdict, "tampered"])
    elif verdict in ("content-preserved", "tampered") and found.by_likelihood:
        reason = f"the integrity mark is gone, as after a lossy copy; judged by {LIKELIHOOD}"
        # Whoever marks a copy again does not always remove W1.
        reason += f"; {_NOT_OURS}" if sealed.present and not sealed.signature_valid else ""
    elif verdict == "unmarked" and any(frame.integrity != "absent" for frame in found.frames):
        verdict, reason = "tampered", "some frames carry our marks, others none"
    elif verdict == "unmarked" and sealed.signature_valid:
        # Too small to carry marks: the seal covers the pixels instead.
        if sealed.covers_pixels:
            verdict, reason = "authentic" if sealed.intact else "tampered", "sealed as a whole"
        else:
            reason = "the header is sealed as a marked image's, but the pixels carry no marks"
    elif verdict == "unmarked" and sealed.present and not sealed.signature_valid:
        reason = _NOT_OURS
    record = found.record
    when = sealed.marked_at if sealed.signature_valid else None
    return InstanceVerdict(
        str(instance.path), instance.sop_instance_uid, verdict,
        owner=record.owner if record else (sealed.owner if sealed.signature_valid else ""),
        signed_by=record.key_id if record else (sealed.key_id if sealed.signature_valid else b""),
        marked_at=record.marked_at if record else when,
        changed=tuple(sorted(found.changed)), frames=tuple(found.frames),
        reason=reason or _unsealed(verdict, found, sealed), header_seal=_state_of(sealed),
    )  # fmt: skip


def _state_of(sealed: SealCheck) -> Literal["valid", "absent", "invalid"]:
    if not sealed.present:
        return "absent"
    return "valid" if sealed.signature_valid else "invalid"


def _unsealed(verdict: Verdict, found: _Findings, sealed: SealCheck) -> str:
    """Say of authentic pixels what of their header nobody vouches for; "" where the seal holds."""
    if verdict != "authentic" or sealed.signature_valid:
        return ""
    what = _NOT_OURS if sealed.present else "the header seal is gone"
    left = "only what the pixels' record names" if found.compared else "nothing"
    return f"{what}; of the header {left} was checked"


def _sealed_only(path: Path, ring: KeyRing, why: str) -> InstanceVerdict:
    """Judge what cannot carry marks by its header seal, which covers the pixel data, too."""
    try:
        with closing(open_data_file(path)) as data:
            header = data.read_header()
            sealed = seal.check_header(header, data, ring)
            uid = str(header.get("SOPInstanceUID") or "")
    except PixelError as error:
        return InstanceVerdict(str(path), "", "unreadable", reason=str(error))
    if not sealed.present:
        return InstanceVerdict(
            str(path), uid, "unmarked", reason=f"no seal; {why}", header_seal="absent"
        )
    if not sealed.signature_valid:
        return InstanceVerdict(
            str(path), uid, "tampered", reason=_NOT_OURS, header_seal="invalid"
        )
    covered = sealed.covers_pixels
    verdict: Verdict = "authentic" if sealed.intact and covered else "tampered"
    return InstanceVerdict(
        str(path), uid, verdict, sealed.owner, sealed.key_id, sealed.marked_at, sealed.changed,
        reason="" if covered else f"sealed as a marked image, but {why}", header_seal="valid",
    )  # fmt: skip


def _block_of(instance: Instance) -> PrivateBlock | None:
    try:
        return read_block(instance.header)
    except PixelError:
        return None
