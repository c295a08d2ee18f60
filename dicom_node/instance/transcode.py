"""A lossless copy in Explicit VR Little Endian, for a destination that refuses what we have."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from dicom_node.errors import PixelError
from dicom_node.instance.block import read_block
from dicom_node.instance.frames import Instance, open_instance
from dicom_node.instance.seal import covers_pixels
from dicom_node.instance.syntaxes import EXPLICIT_LE
from dicom_node.instance.writer import FrameWriter, OutputFormat

__all__ = ["EXPLICIT_LE", "decompress"]


def decompress(source: Path, out: Path, *, max_pixels: int) -> str:
    """Write `source` with native pixel data, every stored value and attribute as it is.

    Returns
    -------
    str
        Why it was not done; empty when `out` was written. It is not done where the copy would say
        anything else than the source: marks and header seal must still hold.
    """
    try:
        opened = open_instance(source, max_pixels=max_pixels, scratch=out.parent)
        with closing(opened) as instance:
            reason = _objection(instance)
            if reason:
                return reason
            form = instance.form
            target = OutputFormat(EXPLICIT_LE, form.photometric, form.planar)
            with FrameWriter(out.parent, instance, target) as writer:
                for frame in instance.frames():
                    writer.append(frame)
                writer.finish(instance.header, out)
    except PixelError as error:
        return str(error)
    return ""


def _objection(instance: Instance) -> str:
    """Return what speaks against it, or ""."""
    if instance.syntax.implicit or not instance.syntax.little:
        return "the data set itself would have to be re-encoded"
    if instance.form.photometric != instance.photometric_interpretation:
        return "its colours are coded in the compressed pixel data"
    if instance.syntax.loss == "always" and instance.header.get("LossyImageCompression") != "01":
        return "the header does not say that it was lossy compressed"
    block = read_block(instance.header)
    if block is not None and covers_pixels(block.seal):
        return "the header seal covers the pixel data as it is coded"
    return ""
