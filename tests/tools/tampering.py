"""Everything that is done to a marked object, and what a check has to say of it.

Used by tests/tampering, and by tampering_table.py beside it, which prints the table.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
import openjpeg.utils
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from tampering_subjects import LATER, WHEN, rewritten, samples, with_header

from dicom_node.config import WatermarkConfig
from dicom_node.instance.display import display_of
from dicom_node.instance.frames import open_instance
from dicom_node.instance.seal import seal_file
from dicom_node.keys import KeyRing, KeySet
from dicom_node.marking import Marker
from dicom_node.verify.study import checked_instance, study_check

FRAME = 0


@dataclass
class Made:
    """A tampered file: `where` in frame `FRAME` it was changed, or which `frames` were.

    `entries` is what the registry knows, where it takes the registry to tell: of this file that it
    is `superseded`, or of another one that it is `missing`.
    """

    path: object
    where: object = None
    frames: tuple = ()
    entries: tuple = ()
    superseded: tuple = ()
    missing: tuple = ()


@dataclass(frozen=True)
class Tampering:
    """One row of the table.

    Attributes
    ----------
    make
        Takes a Subject and a path to write to, returns `Made`.
    verdicts
        What the check may say; the first is what it should. Where that vouches for pixels there is
        nothing to be caught in them.
    changed
        Keywords it has to name; no others, unless `free_names`.
    says
        Words in the reason of the instance or of a frame.
    loops
        Only for objects of several frames.
    unsure
        Why the check may miss it. Authentic is never among what it may say.
    """

    words: str
    make: Callable
    verdicts: tuple = ("tampered",)
    changed: tuple = ()
    says: str = ""
    loops: bool = False
    free_names: bool = False
    unsure: str = ""


# -- pixels ---------------------------------------------------------------------------------------


def one_pixel(subject, out):
    values = subject.values.copy()
    row, column = subject.spot
    pixel = values[FRAME, row, column]
    first = pixel if np.ndim(pixel) == 0 else pixel[0]
    changed = first + 1 if first < np.iinfo(values.dtype).max else first - 1
    if np.ndim(pixel) == 0:
        values[FRAME, row, column] = changed
    else:
        values[FRAME, row, column, 0] = changed
    return _pixels(subject, out, values)


def lesion_pasted(subject, out):
    return _pixels(subject, out, _with_lesion(subject))


def lesion_removed(subject, out):
    values = subject.values.copy()
    mask = subject.ellipse().astype(np.uint8)
    frame = values[FRAME]
    if frame.ndim == 3:
        painted = cv2.inpaint(np.ascontiguousarray(frame), mask, 5, cv2.INPAINT_TELEA)
    else:
        low = int(frame.min())
        lifted = (frame.astype(np.int64) - low).astype(np.uint16)
        painted = cv2.inpaint(lifted, mask, 5, cv2.INPAINT_TELEA).astype(np.int64) + low
    values[FRAME] = painted.astype(values.dtype)
    return _pixels(subject, out, values)


def copied_from_another(subject, out):
    values, other = subject.values.copy(), samples(subject.twin)
    mask = subject.ellipse()
    values[FRAME][mask] = other[FRAME][mask]
    return _pixels(subject, out, values)


def frames_swapped(subject, out):
    values = subject.values.copy()
    values[[2, 5]] = values[[5, 2]]
    return Made(rewritten(subject.marked, out, values), frames=(3, 6))


def frame_dropped(subject, out):
    return Made(rewritten(subject.marked, out, np.delete(subject.values, 4, axis=0)))


def frame_repeated(subject, out):
    values = np.insert(subject.values, 4, subject.values[4], axis=0)
    return Made(rewritten(subject.marked, out, values))


def frame_replaced_by_its_neighbour(subject, out):
    values = subject.values.copy()
    values[6] = values[7]
    return Made(rewritten(subject.marked, out, values), frames=(7,))


def slices_exchanged(subject, out):
    every = tuple(range(1, len(subject.values) + 1))
    return Made(rewritten(subject.marked, out, samples(subject.twin)), frames=every)


def relabelled(subject, out):
    ours = pydicom.dcmread(subject.marked, stop_before_pixels=True)

    def change(ds):
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
                        "PatientName"):  # fmt: skip
            if keyword in ours:
                ds[keyword] = ours[keyword]

    every = tuple(range(1, len(subject.values) + 1))
    return Made(with_header(subject.twin, out, change), frames=every)


def slices_swapped(subject, out):
    every = tuple(range(1, len(subject.values) + 1))
    return Made(rewritten(subject.marked, out, samples(subject.sibling)), frames=every)


def slice_repeated(subject, out):
    """Give the next slice's place in the series to a second copy of this one."""
    uid = pydicom.dcmread(subject.sibling, stop_before_pixels=True).SOPInstanceUID

    def change(ds):
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid

    every = tuple(range(1, len(subject.values) + 1))
    return Made(with_header(subject.marked, out, change), frames=every)


def slice_dropped(subject, out):
    """Leave the next slice of the series out; the registry knows that it was delivered."""
    out.write_bytes(subject.marked.read_bytes())
    kept = subject.bench.entries[subject.marked]
    gone = subject.bench.entries[subject.sibling]
    return Made(out, entries=(kept, gone), missing=(gone.sop_instance_uid,))


# -- header ---------------------------------------------------------------------------------------


def _header(**values):
    def make(subject, out):
        def change(ds):
            for keyword, value in values.items():
                setattr(ds, keyword, value)

        return Made(with_header(subject.marked, out, change))

    return make


def window(subject, out):
    def change(ds):
        ds.WindowCenter, ds.WindowWidth = 77, 55

    return Made(with_header(subject.marked, out, change))


def stripped(subject, out):
    return Made(with_header(subject.marked, out, lambda ds: ds.remove_private_tags()))


def stripped_and_renamed(subject, out):
    def change(ds):
        ds.remove_private_tags()
        ds.PatientID = "SOMEBODY-ELSE"

    return Made(with_header(subject.marked, out, change))


def stripped_and_painted(subject, out):
    painted = lesion_pasted(subject, out)
    with_header(out, out, lambda ds: ds.remove_private_tags())
    return painted


# -- coding ---------------------------------------------------------------------------------------


def jpeg2000_lossy(subject, out):
    return Made(_jpeg2000(subject.marked, out, subject.values, 10))


def lesion_then_jpeg2000(subject, out):
    return _then_jpeg2000(lesion_pasted, subject, out)


def copied_then_jpeg2000(subject, out):
    return _then_jpeg2000(copied_from_another, subject, out)


def _then_jpeg2000(make, subject, out):
    made = make(subject, out)
    _jpeg2000(subject.marked, out, samples(out), 10)
    return made


def jpeg_baseline(subject, out):
    """Export every frame to 8 bit through its window, as a viewer does, into JPEG at quality 90."""
    instance = open_instance(subject.marked, max_pixels=1 << 28)
    display, codes, shape = display_of(instance), [], ()
    for index, frame in enumerate(instance.frames()):
        shown = display.export_8bit(frame, index)
        stream = io.BytesIO()
        Image.fromarray(shown).save(stream, "JPEG", quality=90, subsampling=0)
        codes.append(stream.getvalue())
        shape = shown.shape
    instance.close()

    def change(ds):
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.SamplesPerPixel = 3 if len(shape) == 3 else 1
        ds.PhotometricInterpretation = "YBR_FULL" if len(shape) == 3 else "MONOCHROME2"
        for keyword in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept",
                        "SmallestImagePixelValue", "LargestImagePixelValue",
                        "PixelPaddingValue"):  # fmt: skip
            if keyword in ds:
                del ds[keyword]
        _encapsulated(ds, codes, JPEGBaseline8Bit)

    return Made(with_header(subject.marked, out, change))


def lossless(syntax):
    def make(subject, out):
        rewritten(subject.marked, out)
        if syntax == JPEG2000Lossless:
            return Made(_jpeg2000(out, out, subject.values, None))
        ds = pydicom.dcmread(out)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(out)
        return Made(out)

    return make


def native(subject, out):
    return Made(rewritten(subject.marked, out))


# -- marks and keys -------------------------------------------------------------------------------


def robust_mark_pasted(subject, out):
    """Put the difference that marking made to the twin onto the source, which has no mark."""
    residual = samples(subject.twin).astype(np.int64) - samples(subject.twin_source)
    values = samples(subject.source)
    info = np.iinfo(values.dtype)
    bits = int(pydicom.dcmread(subject.source, stop_before_pixels=True).BitsStored)
    low, high = (info.min, info.max) if info.min else (0, (1 << bits) - 1)
    pasted = np.clip(values.astype(np.int64) + residual, low, high).astype(values.dtype)
    return Made(rewritten(subject.source, out, pasted))


def unmarked_copy(subject, out):
    """Paint a lesion into the picture as it was before it was marked; everything else stays."""
    values = _with_lesion(subject, samples(subject.source))
    return Made(rewritten(subject.source, out, values))


def sealed_with_another_key(subject, out):
    """Change the header and put a seal of one's own in the place of ours; the pixels stay."""

    def change(ds):
        ds.PatientID, ds.StudyDescription = "SOMEBODY-ELSE", "another study"

    changed = with_header(subject.marked, out.with_name("changed.dcm"), change)
    seal_file(changed, out, KeySet.from_master(bytes(32), "TEST-HOSPITAL", WHEN),
              marked_at=int(LATER.timestamp()))  # fmt: skip
    return Made(out)


def signed_with_another_key(subject, out):
    """Paint a lesion, take our block off, and mark the result with a key ring of one's own."""
    plain = stripped_and_painted(subject, out.with_name("plain.dcm")).path
    ring = KeyRing.open(out.parent / "their-keys", owner="TEST-HOSPITAL", create=True)
    marker = Marker(WatermarkConfig(), ring, subject.bench.engine)
    outcome = marker.mark(plain, out, marked_at=LATER)
    assert outcome.action == "marked", outcome.reason
    return Made(out)


def older_version(subject, out):
    """Correct the picture, mark it again under its UID; the archive then gives the older one."""
    values = samples(subject.source).copy()
    values[:, :20, :60] = values.min()
    corrected = rewritten(subject.source, out.with_name("corrected.dcm"), values)
    older = subject.bench.delivered(subject.source, out, WHEN)
    newer = subject.bench.delivered(corrected, out.with_name("newer.dcm"), LATER)
    return Made(out, entries=(older, newer), superseded=(newer.sop_instance_uid,))


_ONLY_F = "W2 is gone; the fingerprint is all that is left, and sees what is large and plain"

KINDS = {
    "one pixel": Tampering("one pixel by one step", one_pixel),
    "lesion": Tampering("a lesion pasted in", lesion_pasted),
    "inpainted": Tampering("a structure removed by inpainting", lesion_removed),
    "copied": Tampering("a region copied from another slice of ours", copied_from_another),
    "swapped": Tampering("two frames swapped", frames_swapped, says="were marked as frame",
                         loops=True),
    "dropped": Tampering("a frame dropped", frame_dropped, changed=("NumberOfFrames",),
                         says="speak of 10 frames", loops=True),
    "repeated": Tampering("a frame repeated", frame_repeated, changed=("NumberOfFrames",),
                          says="speak of 10 frames", loops=True),
    "neighbour": Tampering("a frame replaced by its neighbour", frame_replaced_by_its_neighbour,
                           loops=True, says="were marked as frame"),
    "exchanged": Tampering("slices exchanged between studies", slices_exchanged,
                           changed=("SOPInstanceUID",), says="another instance"),
    "relabelled": Tampering("another patient's instance under this one's UIDs and name",
                            relabelled, changed=("SOPInstanceUID", "StudyInstanceUID",
                                                 "SeriesInstanceUID", "PatientID", "PatientName"),
                            says="another instance", free_names=True),
    "slices swapped": Tampering("two slices of a series swapped", slices_swapped,
                                changed=("SOPInstanceUID",), says="another instance"),
    "slice repeated": Tampering("a slice repeated in the next one's place", slice_repeated,
                                changed=("SOPInstanceUID",), says="another instance"),
    "slice dropped": Tampering("a slice of a series dropped, with the registry", slice_dropped,
                               ("authentic",)),
    "patient": Tampering("patient ID changed", _header(PatientID="SOMEBODY-ELSE"),
                         ("authentic",), ("PatientID",)),
    "laterality": Tampering("laterality changed", _header(Laterality="L", ImageLaterality="L"),
                            ("authentic",), ("ImageLaterality", "Laterality")),
    "spacing": Tampering("pixel spacing changed", _header(PixelSpacing=[0.25, 0.25]),
                         ("authentic",), ("PixelSpacing",)),
    "window": Tampering("window changed", window, ("authentic",), ("WindowCenter", "WindowWidth")),
    "coerced": Tampering("patient name coerced by a PACS", _header(PatientName="DOE^JANE"),
                         ("authentic",), ("PatientName",)),
    "jpeg 2000": Tampering("re-compressed, JPEG 2000 10:1", jpeg2000_lossy,
                           ("content-preserved", "unmarked")),
    "jpeg": Tampering("re-compressed, JPEG baseline through the window", jpeg_baseline,
                      ("content-preserved", "unmarked"), free_names=True),
    "lesion, jpeg 2000": Tampering("a lesion pasted in, then JPEG 2000 10:1", lesion_then_jpeg2000,
                                   ("tampered", "foreign", "unmarked"), unsure=_ONLY_F),
    "copied, jpeg 2000": Tampering("a region copied from another slice, then JPEG 2000 10:1",
                                   copied_then_jpeg2000, ("tampered", "foreign", "unmarked"),
                                   unsure=_ONLY_F),
    "pasted mark": Tampering("W1 pasted from another image", robust_mark_pasted,
                             ("foreign", "tampered", "unmarked")),
    "unmarked copy": Tampering("a lesion pasted in, both marks removed", unmarked_copy,
                               ("unmarked",)),
    "another key": Tampering("changed, and marked with another key", signed_with_another_key,
                             ("tampered", "unmarked", "foreign"), free_names=True,
                             says="signed by a key this ring does not have"),
    "another seal": Tampering("header changed, and sealed with another key",
                              sealed_with_another_key, ("authentic",), ("PatientID",),
                              says="signed by a key this ring does not have"),
    "older": Tampering("a replayed older version, with the registry", older_version,
                       ("authentic",)),
    "stripped": Tampering("every private tag stripped", stripped, ("authentic",)),
    "stripped, patient": Tampering("the same, and patient ID changed", stripped_and_renamed,
                                   ("authentic",), ("PatientID",)),
    "stripped, lesion": Tampering("the same, and a lesion pasted in", stripped_and_painted),
    "native": Tampering("transfer syntax changed: Explicit VR Little Endian", native,
                        ("authentic",)),
    "rle": Tampering("transfer syntax changed: RLE", lossless(RLELossless), ("authentic",)),
    "jpeg-ls": Tampering("transfer syntax changed: JPEG-LS", lossless(JPEGLSLossless),
                         ("authentic",)),
    "jpeg 2000 lossless": Tampering("transfer syntax changed: JPEG 2000 lossless",
                                    lossless(JPEG2000Lossless), ("authentic",)),
}  # fmt: skip


@dataclass
class Outcome:
    """What the check said, held against what was done.

    Attributes
    ----------
    caught
        Whether the verdict is one of those it may be and, where pixels were tampered with, somebody
        who reads it is told: it is tampered or foreign; or unmarked, and either the file itself
        says why or the registry that we had marked it. Unmarked alone is what every strange picture
        is.
    stripped
        Whether the registry has to say that.
    contains, overlap, share
        Whether the boxes hold every changed pixel; intersection over union with these; how much of
        the frame the boxes take.
    named
        Whether attributes, frames and words are those expected.
    """

    verdict: str
    caught: bool
    stripped: bool = False
    contains: bool | None = None
    overlap: float | None = None
    share: float | None = None
    named: bool = True
    changed: tuple = ()
    words: list = field(default_factory=list)


def judged(kind, made, verdict, entry=None):
    """Compare a verdict with what was done; `entry` is the registry's of the object, if asked."""
    reasons = [verdict.reason, *(frame.reason for frame in verdict.frames)]
    changed = set(verdict.changed)
    named = set(kind.changed) <= changed if kind.free_names else set(kind.changed) == changed
    if kind.says:
        named = named and any(kind.says in reason for reason in reasons)
    if made.frames:
        bad = tuple(f.frame for f in verdict.frames if f.verdict != "authentic")
        named = named and bad == made.frames
    entries = made.entries or ((entry,) if entry is not None else ())
    check = study_check("", [checked_instance(made.path, verdict)], entries)
    if made.entries:
        named = named and check.superseded == made.superseded and check.missing == made.missing
        named = named and not check.sound
    expected = verdict.verdict in kind.verdicts
    tampered = kind.verdicts[0] not in ("authentic", "content-preserved")
    alone = tampered and verdict.verdict == "unmarked" and not (kind.says and named)
    outcome = Outcome(
        verdict.verdict, expected and (not alone or bool(check.stripped)),
        stripped=alone and bool(check.stripped), named=named, changed=verdict.changed,
        words=[each for each in reasons if each],
    )  # fmt: skip
    if made.where is not None and verdict.verdict == "tampered":
        covered = np.zeros(made.where.shape, bool)
        for box in verdict.frames[FRAME].tampered:
            covered[box.row : box.row + box.rows, box.column : box.column + box.columns] = True
        outcome.contains = bool(covered[made.where].all())
        outcome.share = float(covered.mean())
        outcome.overlap = float((covered & made.where).sum() / max((covered | made.where).sum(), 1))
    return outcome


# -- helpers --------------------------------------------------------------------------------------


def _pixels(subject, out, values):
    return Made(rewritten(subject.marked, out, values), _differs(values, subject.values))


def _differs(values, before):
    differs = values[FRAME] != before[FRAME]
    return differs if differs.ndim == 2 else differs.any(axis=2)


def _with_lesion(subject, values=None):
    """Add a soft bright mass: a tenth of the range in the picture."""
    values = (subject.values if values is None else values).copy()
    mask = subject.ellipse()
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(mask.sum() ** 0.5 / 8, 1))
    frame = values[FRAME].astype(np.float64)
    low, high = np.percentile(frame, (1, 99))
    added = np.rint(soft * mask * (high - low) / 10)
    if frame.ndim == 3:
        added = added[..., None]
    info = np.iinfo(values.dtype)
    ceiling = min(info.max, int(values.max()))
    values[FRAME] = np.clip(frame + added, info.min, ceiling).astype(values.dtype)
    return values


def _jpeg2000(path, out, values, ratio):
    ds = pydicom.dcmread(path)
    bits = int(ds.BitsStored)
    ratios = None if ratio is None else [ratio]
    codes = [
        openjpeg.utils.encode_array(np.ascontiguousarray(frame), bits_stored=bits, use_mct=False,
                                    compression_ratios=ratios)
        for frame in values
    ]  # fmt: skip
    if values.ndim == 4 and "422" in ds.PhotometricInterpretation:
        ds.PhotometricInterpretation = "YBR_FULL"
    _encapsulated(ds, codes, JPEG2000Lossless if ratio is None else JPEG2000)
    ds.save_as(out)
    return out


def _encapsulated(ds, codes, syntax):
    ds.PixelData = encapsulate(codes)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    if ds.SamplesPerPixel > 1:
        ds.PlanarConfiguration = 0
    ds.file_meta.TransferSyntaxUID = syntax
