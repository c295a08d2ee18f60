"""A lossless copy without compression, for a destination that refuses what we have."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node.errors import PixelError
from dicom_node.instance.block import read_block
from dicom_node.instance.datafile import open_data_file
from dicom_node.instance.elements import UNDEFINED
from dicom_node.instance.recoding import recode
from dicom_node.instance.seal import covers_pixels
from dicom_node.instance.syntaxes import EXPLICIT_LE, IMPLICIT_LE

if TYPE_CHECKING:
    from dicom_node.instance.frames import Instance

__all__ = ["TARGETS", "transcode"]

TARGETS = (EXPLICIT_LE, IMPLICIT_LE)
"""Transfer syntaxes a copy may be written in, the preferred one first."""


def transcode(
    source: Path,
    out: Path,
    accepted: tuple[str, ...],
    *,
    max_pixels: int,
) -> None:
    """Write `source` in one of the `accepted` transfer syntaxes, all it says unchanged.

    Raises
    ------
    PixelError
        Why it was not done; then `out` is not there. It is not done where the copy would say
        anything else than the source: marks and header seal must still hold.
    """
    target = next((uid for uid in TARGETS if uid in accepted), None)
    if target is None:
        raise PixelError("no uncompressed transfer syntax is accepted")
    with closing(open_data_file(source, max_pixels=max_pixels, scratch=out.parent)) as data:
        compressed = data.pixel is not None and data.pixel.length == UNDEFINED
    if not compressed:
        recode(source, out, target, max_pixels=max_pixels)
    elif target == EXPLICIT_LE:
        _decompress(source, out, max_pixels)
    else:
        native = out.with_suffix(".native")
        try:
            _decompress(source, native, max_pixels)
            recode(native, out, target, max_pixels=max_pixels)
        finally:
            native.unlink(missing_ok=True)


def _decompress(source: Path, out: Path, max_pixels: int) -> None:
    """Write `source` in Explicit VR Little Endian with native pixel data (PixelError)."""
    # Compiled loops are loaded only where frames are decoded.
    from dicom_node.instance.frames import open_instance
    from dicom_node.instance.writer import FrameWriter, OutputFormat

    with closing(open_instance(source, max_pixels=max_pixels, scratch=out.parent)) as instance:
        reason = _objection(instance)
        if reason:
            raise PixelError(reason)
        target = OutputFormat(EXPLICIT_LE, instance.form.photometric, instance.form.planar)
        with FrameWriter(out.parent, instance, target) as writer:
            for frame in instance.frames():
                writer.append(frame)
            writer.finish(instance.header, out)


def _objection(instance: Instance) -> str:
    """Return what speaks against decompressing it, or ""."""
    said, decoded = instance.form.photometric, instance.photometric_interpretation
    if said != decoded:
        return f"its colours are {said} in the compressed pixel data, and {decoded} decompressed"
    if instance.syntax.loss == "always" and instance.header.get("LossyImageCompression") != "01":
        return "the header does not say that it was lossy compressed"
    block = read_block(instance.header)
    if block is not None and covers_pixels(block.seal):
        return "the header seal covers the pixel data as it is coded"
    return ""
