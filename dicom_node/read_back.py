"""A marked file read back before it may leave: its marks hold, and the original comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dicom_node.errors import PixelError, ReadBackError, WatermarkError
from dicom_node.instance import derivation, seal
from dicom_node.instance.block import PrivateBlock, read_block, without_block
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.rewrite import changed_tags
from dicom_node.keys import KeyRing
from dicom_node.mark_work import MarkWork
from dicom_node.planes import bounds_of, split
from dicom_node.restoring import UNDO_CONTEXT, original_frame
from dicom_node.watermark import integrity


class ReadBack:
    """Checks what was marked with the current key of a ring.

    Parameters
    ----------
    max_pixels
        ``[watermark] max_pixels``.
    """

    def __init__(self, ring: KeyRing, max_pixels: int) -> None:
        self._ring = ring
        self._max_pixels = max_pixels

    def check(self, instance: Instance, uid: str, out: Path, work: MarkWork) -> None:
        """Check the written file: header and frames hold, and give the originals back.

        That its robust mark reads was seen before it was written, on the same samples.

        Parameters
        ----------
        instance
            The source.
        uid
            SOP Instance UID that it was written with.
        work
            What was done to each frame.

        Raises
        ------
        ReadBackError
            Seal or integrity mark do not hold, or do not give back the exact original.
        """
        opened = open_instance(out, max_pixels=self._max_pixels, scratch=out.parent)
        with closing(opened) as written:
            block = read_block(written.data)
            self._check_header(instance, written, block)
            blocks = block.frames if block and block.frames else ()
            for index, frame in enumerate(written.frames()):
                kept = work.kept[index] if work.kept else None
                planes = split(frame, written.host_index)
                check = integrity.check(
                    planes.host, planes.side, bounds_of(written), ring=self._ring,
                    sop_instance_uid=uid, frame_number=index + 1,
                    header_block=blocks[index] if blocks else b"",
                    known=kept.carried if kept else None,
                )  # fmt: skip
                where = f"frame {index + 1} of {instance.sop_instance_uid}"
                if check.status != "valid" or not check.bound:
                    raise ReadBackError(f"{where}: the integrity mark does not read back")
                restored = original_frame(written, frame, check, kept.residual if kept else None)
                if not work.is_original(index, restored, written.host_index):
                    raise ReadBackError(f"{where}: the original does not come back exactly")

    def _check_header(
        self, instance: Instance, written: Instance, block: PrivateBlock | None
    ) -> None:
        """Check that the header's seal holds and that its original comes back (ReadBackError)."""
        header, own = written.read_header(), instance.sop_instance_uid
        if block is None or not seal.check_header(header, written.data, self._ring).intact:
            raise ReadBackError(f"the header seal of {own} does not read back")
        key = self._ring.current.restore_key
        undo = seal.decrypt(key, block.undo, UNDO_CONTEXT, padded=True)
        back = without_block(derivation.undo(header, undo))
        changed = changed_tags(without_block(instance.read_header()), back)
        # Group lengths are counted anew by whoever writes.
        if any(tag & 0xFFFF for tag in changed):
            raise ReadBackError(f"the header of {own} does not come back exactly")


@contextmanager
def checked(out: Path) -> Iterator[None]:
    """Leave no file whose check failed, however; what we wrote and cannot read is our fault."""
    try:
        yield
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, PixelError | WatermarkError) and not isinstance(error, ReadBackError):
            raise ReadBackError(f"the file written cannot be read back: {error}") from error
        raise
