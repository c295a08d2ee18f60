"""Is the content still what it was? Asked where W2 is gone and W1 still says which frame it was.

The robust mark names the frame, the registry (or whoever asks) has its fingerprint, and the picture
is compared with that, cell by cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.errors import RegistryError, WatermarkError
from dicom_node.inference.base import Float32
from dicom_node.inference.fingerprinter import open_fingerprinter
from dicom_node.watermark import fingerprint
from dicom_node.watermark.box import Box
from dicom_node.watermark.robust import Pose

if TYPE_CHECKING:
    from dicom_node.registry.access import RegistryAccess
    from dicom_node.registry.registry import Registry

Known = Callable[[bytes], Sequence[bytes]]
"""Gives the fingerprints of all frames that carry a robust message of 12 bytes; none: ``()``."""

LIKELIHOOD = "likelihood, not proof"
"""Said wherever a verdict rests on the robust mark and the fingerprint."""

# The size is a cautious one: docs/BENCHMARKS.md has what is found of which kind and size.
_SAME = (
    f"no cell of its fingerprint differs: {LIKELIHOOD}; a spot below a sixth of the picture's"
    " width, or a faint one, may hide"
)
# Frames that look alike carry the same message: slices of a phantom, a loop at rest.
_NEAREST = 4


@dataclass(frozen=True)
class Content:
    """What the fingerprint says.

    Attributes
    ----------
    compared
        False where there was nothing to compare with.
    changed
        Changed regions in pixels of the picture, largest first.
    reason
        In words: what was changed, or what may hide, or why nothing was compared.
    """

    compared: bool
    changed: tuple[Box, ...] = ()
    reason: str = ""


def fingerprints_in(registry: Registry) -> Known:
    """Return the lookup that `check_instance` takes, in a registry."""

    def known(message: bytes) -> Sequence[bytes]:
        found = (match.facts.fingerprint for match in registry.by_message(message))
        return [features for features in found if features]

    return known


def fingerprints_at(url: str) -> Known:
    """Return the lookup in the registry at `url`, which is opened when it is first asked."""
    opened: list[RegistryAccess] = []

    def known(message: bytes) -> Sequence[bytes]:
        from dicom_node.registry.access import RegistryAccess

        if not opened:
            opened.append(RegistryAccess(url))
        return opened[0].ask(lambda registry: fingerprints_in(registry)(message))

    return known


def compare_content(picture: Float32, pose: Pose, message: bytes, known: Known | None) -> Content:
    """Compare a picture with the fingerprints of the frames its robust mark names.

    Of several such frames it is enough to be one.

    Parameters
    ----------
    picture
        Display values 0..1, ``(rows, columns)``, as they came.
    pose
        How the marked frame lies in it.
    message
        Of the robust mark, 12 bytes.
    known
        None where nobody can be asked.
    """
    try:
        candidates = list(dict.fromkeys(known(message))) if known is not None else []
    except RegistryError as error:
        return _not_compared(str(error))
    if not candidates:
        why = "no registry was asked" if known is None else "the registry has no fingerprint of it"
        return _not_compared(why)
    network = open_fingerprinter()
    try:
        nearest = fingerprint.nearest(candidates, picture, network, pose)[:_NEAREST]
        made = [fingerprint.compare(each, picture, network, pose) for each in nearest]
    except WatermarkError as error:
        return _not_compared(str(error))
    best = min(made, key=lambda comparison: float(comparison.scores.max()))
    if best.same:
        return Content(True, reason=_SAME)
    count, total = int(best.changed.sum()), int(best.compared.sum())
    return Content(
        True, best.boxes(picture.shape, pose),
        f"the content differs from its fingerprint in {count} of {total} cells: {LIKELIHOOD}",
    )  # fmt: skip


def _not_compared(why: str) -> Content:
    return Content(False, reason=f"content not compared: {why}; any local change may hide")
