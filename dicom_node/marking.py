"""Both marks on one instance, read back and checked before it may leave.

    frame ──both marks──▶ frame, W1 reads ──encode──▶ file ──read back──▶ W2 holds, original exact

A frame that can carry no robust mark says so. A frame whose integrity mark does not restore the
original is never sent as marked.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydicom.dataset import Dataset

from dicom_node import read_back
from dicom_node.compiled import one_at_a_time
from dicom_node.config import WatermarkConfig
from dicom_node.errors import PixelError, ReadBackError, WatermarkError
from dicom_node.facts import InstanceFacts
from dicom_node.frame_marking import FrameMarker, timed
from dicom_node.inference.base import RobustEngine
from dicom_node.instance import derivation, seal
from dicom_node.instance.block import PrivateBlock, without_block, write_block
from dicom_node.instance.datafile import DataFile, open_data_file
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.particulars import facts_of
from dicom_node.instance.rewrite import changed_tags, write_header
from dicom_node.instance.texture import write_texture
from dicom_node.instance.uids import referenced_uids
from dicom_node.instance.writer import FrameWriter
from dicom_node.keys import KeyRing, KeySet
from dicom_node.mark_work import MarkWork
from dicom_node.naming import Names, Naming
from dicom_node.own_marks import marks_of_ours, seal_of_ours
from dicom_node.restoring import UNDO_CONTEXT, RestoreOutcome, restore

__all__ = ["MarkOutcome", "Marker", "RestoreOutcome", "restore"]

Action = Literal["marked", "sealed", "untouched", "held", "rejected"]
_SOP_INSTANCE = 0x00080018
# Of an instance with up to so many pixels (24 MiB), the frames are kept until read back.
_KEPT_PIXELS = 2 << 20


@dataclass(frozen=True)
class MarkOutcome:
    """What became of one instance.

    Attributes
    ----------
    action
        ``marked``; ``sealed`` (header seal only); ``untouched``; ``held`` and ``rejected`` (no
        file was written).
    reason
        Why, where it is not simply marked.
    sop_instance_uid
        Of the file written, else of the source.
    transfer_syntax_uid
        Of the file written, else of the source.
    facts
        What the registry remembers.
    message
        W1's message of each frame, hex; "" for a frame that carries no W1.
    psnr_db, ssim
        Display-window quality of the worst frame, where measured.
    max_change
        Largest absolute change of a stored value.
    stage_s
        CPU seconds by stage: decode, fingerprint, w1, w2, encode, readback.
    """

    action: Action
    reason: str = ""
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    frames: int = 0
    message: tuple[str, ...] = ()
    psnr_db: float | None = None
    ssim: float | None = None
    max_change: int | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    facts: InstanceFacts = field(default_factory=InstanceFacts)


class Marker:
    """Marks instances with the current key of a ring.

    Parameters
    ----------
    settings
        ``[watermark]``.
    ring
        The newest key set marks; the others recognise what was marked before.
    engine
        W1's networks.
    measure
        Measure PSNR and SSIM of every frame, too.
    names
        Who says under which UIDs instances are sent; None: under those they came with.
    """

    def __init__(
        self,
        settings: WatermarkConfig,
        ring: KeyRing,
        engine: RobustEngine,
        *,
        measure: bool = False,
        names: Names | None = None,
    ) -> None:
        self._settings = settings
        self._ring = ring
        self._keys: KeySet = ring.current
        self._frames = FrameMarker(engine, settings.profile, ring.current)
        self._measure = measure
        self._names = names
        self._station = socket.gethostname()
        self._read_back = read_back.ReadBack(ring, settings.max_pixels)

    def warm_up(self) -> None:
        """Mark a picture made here, so that the first instance need not wait for compilers.

        Raises
        ------
        WatermarkError
            If even that cannot be marked: better known before the first instance comes.
        """
        with one_at_a_time(), tempfile.TemporaryDirectory(prefix="dicom-node-") as name:
            source = Path(name) / "texture.dcm"
            write_texture(source)
            done = self.mark(source, source.with_suffix(".out"), marked_at=datetime.now(UTC))
        if done.action != "marked" or not all(done.message):
            raise WatermarkError(f"a picture to try it on was not marked: {done.reason}")

    def mark(
        self, source: Path, out: Path, *, marked_at: datetime, released: bool = False
    ) -> MarkOutcome:
        """Mark the instance at `source` and write it to `out`.

        The same source, time and keys give the same bytes.

        Parameters
        ----------
        marked_at
            Time zone aware; seconds count.
        released
            An administrator lets it go: ``on_unmarkable`` neither holds nor rejects it.

        Raises
        ------
        ReferencesPending
            When it refers to instances of which nobody knows yet under which UID they are sent.
        NodeError
            When the fault is the node's (keys, networks, disk), not the instance's.
        """
        try:
            instance = open_instance(
                source, max_pixels=self._settings.max_pixels, scratch=out.parent
            )
        except PixelError as error:
            return self._unmarkable(source, out, str(error), marked_at, released=released)
        with closing(instance):
            try:
                known = marks_of_ours(instance, self._ring)
                if known:
                    self._own_name(instance.sop_instance_uid, marked=False)
                    _copy(source, out)
                    return self._outcome(instance, "untouched", known)
                return self._mark(instance, out, marked_at)
            except ReadBackError as error:
                out.unlink(missing_ok=True)
                return self._outcome(instance, "held", str(error))
            except (PixelError, WatermarkError) as error:
                out.unlink(missing_ok=True)
                return self._unmarkable(source, out, str(error), marked_at, released=released)

    def _mark(self, instance: Instance, out: Path, marked_at: datetime) -> MarkOutcome:
        """Embed, write, read back."""
        stages: dict[str, float] = {}
        naming = self._naming(instance.data, instance.sop_instance_uid, marked_at, marked=True)
        work, syntax = self._write(instance, naming, out, marked_at, stages)
        with timed(stages, "readback"), read_back.checked(out):
            self._read_back.check(instance, naming.uid, out, work)
        return self._outcome(
            instance, "marked", _without(work), sop_instance_uid=naming.uid,
            transfer_syntax_uid=syntax, message=tuple(work.messages), psnr_db=work.psnr_db,
            ssim=work.ssim, max_change=work.largest_change, stage_s=stages,
            facts=facts_of(instance.data, instance.frame_count, work.facts),
        )  # fmt: skip

    def _write(
        self, instance: Instance, naming: Naming, out: Path, marked_at: datetime,
        stages: dict[str, float],
    ) -> tuple[MarkWork, str]:  # fmt: skip
        work = MarkWork()
        display = display_of(instance)
        # A header nobody has looked at yet: pydicom rewrites the values it parses.
        header = instance.read_header()
        if naming.uid != instance.sop_instance_uid:
            header.SOPInstanceUID = naming.uid
        digests = seal.attribute_digests(header, self._keys.mac_key)
        keep = instance.frame_count * instance.rows * instance.columns <= _KEPT_PIXELS
        with FrameWriter(out.parent, instance) as writer:
            for index in range(instance.frame_count):
                with timed(stages, "decode"):
                    frame = instance.frame(index)
                marks = self._frames.mark(
                    instance, display, frame, index, digests, marked_at, stages,
                    sop_instance_uid=naming.uid,
                )  # fmt: skip
                with timed(stages, "encode"):
                    work.add(frame, marks, keep=keep)
                    writer.append(marks.after)
                if self._measure:
                    work.compare(marks)
            with timed(stages, "encode"):
                syntax = self._finish(instance, naming, writer, work, marked_at, out)
        return work, syntax

    def _finish(
        self, instance: Instance, naming: Naming, writer: FrameWriter, work: MarkWork,
        marked_at: datetime, out: Path,
    ) -> str:  # fmt: skip
        """Describe the work in the header, seal it, write the file."""
        derived = derivation.describe(
            instance, writer.format,
            derivation.Work(
                marked_at=marked_at, owner=self._keys.owner, key_id=self._keys.key_id,
                station_name=self._station, largest_change=work.largest_change,
                smallest=work.smallest, largest=work.largest,
                image_type=self._settings.image_type, sop_instance_uid=naming.uid,
                references=naming.references,
            ),
        )  # fmt: skip
        undo = seal.encrypt(self._keys.restore_key, derived.undo, UNDO_CONTEXT)
        blocks = tuple(work.blocks) if any(work.blocks) else ()
        digests = tuple(frame.marked_digest for frame in work.facts)
        write_block(derived.header, PrivateBlock(undo=undo, frames=blocks, digests=digests))
        seal.seal(derived.header, instance.data, self._keys,
                  marked_at=int(marked_at.timestamp()), cover_pixels=False)  # fmt: skip
        return writer.finish(derived.header, out)

    def _unmarkable(
        self, source: Path, out: Path, why: str, marked_at: datetime, *, released: bool
    ) -> MarkOutcome:
        """Follow ``on_unmarkable``; what cannot be sealed either is held."""
        policy = self._settings.on_unmarkable
        if policy in ("hold", "reject") and not released:
            return MarkOutcome("held" if policy == "hold" else "rejected", why)
        uids, facts = ("", "", "", "", ""), InstanceFacts()
        try:
            with closing(open_data_file(source, scratch=out.parent)) as data:
                uids = (*_uids_of(data.read_header()), data.transfer_syntax_uid)
                facts = facts_of(data)
                known = seal_of_ours(seal.check_header(data.read_header(), data, self._ring))
                if known or policy == "forward-untouched":
                    self._own_name(uids[1], marked=False)
                    _copy(source, out)
                    also = f"{why}; {known}" if known else why
                    return MarkOutcome("untouched", also, *uids, facts=facts)
                naming = self._naming(data, uids[1], marked_at, marked=False)
                uids = (uids[0], naming.uid, *uids[2:])
                self._seal(data, naming, out, marked_at)
            with read_back.checked(out):
                checked = seal.check_seal(out, self._ring)
        except (PixelError, WatermarkError) as error:
            out.unlink(missing_ok=True)
            if policy == "forward-untouched":
                _copy(source, out)
                return MarkOutcome("untouched", why, *uids, facts=facts)
            also = "" if str(error) == why else f": {error}"
            return MarkOutcome("held", f"{why}; and its header cannot be sealed{also}", *uids)
        if not checked.intact:
            out.unlink(missing_ok=True)
            return MarkOutcome("held", f"{why}; and the header seal does not read back", *uids)
        return MarkOutcome("sealed", why, *uids, facts=facts)

    def _seal(self, data: DataFile, naming: Naming, out: Path, marked_at: datetime) -> None:
        """Seal what cannot be marked; its UID and references become the new ones.

        Raises
        ------
        ReadBackError
            The header that was received cannot be had back.
        """
        own = data.text(_SOP_INSTANCE).strip(" \0")
        when = int(marked_at.timestamp())
        header = data.read_header()
        if naming.references or naming.uid != own:
            derived = derivation.describe_sealed(
                data,
                derivation.SealedWork(
                    marked_at=marked_at, owner=self._keys.owner, key_id=self._keys.key_id,
                    station_name=self._station, references=naming.references,
                    sop_instance_uid="" if naming.uid == own else naming.uid,
                ),
            )  # fmt: skip
            back = derivation.undo(derived.header, derived.undo)
            if any(changed_tags(without_block(data.read_header()), back)):
                raise ReadBackError(f"the header of {own} does not come back exactly")
            header = derived.header
            undo = seal.encrypt(self._keys.restore_key, derived.undo, UNDO_CONTEXT)
            write_block(header, PrivateBlock(undo=undo))
        seal.seal(header, data, self._keys, marked_at=when, cover_pixels=True)
        write_header(data, header, out)

    def _naming(
        self, data: DataFile, uid: str, marked_at: datetime, *, marked: bool
    ) -> Naming:
        """Return the UIDs it is sent with (ReferencesPending, PixelError)."""
        if self._names is None:
            return Naming(uid)
        # First its own: those that refer to each other must not wait for each other.
        own = self._names.own(uid, marked=marked)
        return Naming(own, self._names.references(referenced_uids(data.read_header()), marked_at))

    def _own_name(self, uid: str, *, marked: bool) -> None:
        """Say under which UID an instance is sent that is not changed."""
        if self._names is not None:
            self._names.own(uid, marked=marked)

    def _outcome(
        self, instance: Instance, action: Action, reason: str, **figures: object
    ) -> MarkOutcome:
        named = {"transfer_syntax_uid": instance.transfer_syntax_uid,
                 "sop_instance_uid": instance.sop_instance_uid,
                 "facts": facts_of(instance.data, instance.frame_count), **figures}  # fmt: skip
        return MarkOutcome(
            action, reason, sop_class_uid=instance.sop_class_uid,
            study_instance_uid=instance.study_instance_uid,
            series_instance_uid=instance.series_instance_uid,
            frames=instance.frame_count, **named,  # type: ignore[arg-type]
        )  # fmt: skip


def _without(work: MarkWork) -> str:
    """Return what the frames had no room for, "" if for all."""
    counts = {
        "robust mark": sum(not message for message in work.messages),
        "fingerprint": sum(not signed for signed in work.features_signed),
    }
    return ", ".join(f"{count} frames carry no {what}" for what, count in counts.items() if count)


def _uids_of(header: Dataset) -> tuple[str, str, str, str]:
    """Return SOP class, SOP instance, study and series UID, "" for what cannot be read."""

    def uid(tag: int) -> str:
        value = header.get_item(tag).value if tag in header else None
        return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else ""

    return uid(0x00080016), uid(0x00080018), uid(0x0020000D), uid(0x0020000E)


def _copy(source: Path, out: Path) -> None:
    """Copy a file durably: temporary file, fsync, rename."""
    part = out.with_name(f"{out.name}.part")
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    part.replace(out)
