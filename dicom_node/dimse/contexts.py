"""Transfer syntaxes and the presentation contexts we accept and propose.

References
----------
DICOM PS3.8 9.3.2.2 (presentation contexts); PS3.6 Table A-1 (transfer syntax UIDs).
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import uid
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

MAX_CONTEXTS = 128
"""Presentation contexts in one association: odd context ids from 1 to 255 (PS3.8 9.3.2.2)."""

Pair = tuple[str, str]
"""``(SOP Class UID, Transfer Syntax UID)``: one presentation context each."""

LOSSLESS_FALLBACKS = (
    str(uid.ExplicitVRLittleEndian),
    str(uid.ImplicitVRLittleEndian),
)
"""What a refused instance may be transcoded to, proposed beside its own transfer syntax, the
preferred one first. Implicit VR Little Endian every acceptor has to take (PS3.5 10.1)."""

NATIVE = (
    str(uid.ImplicitVRLittleEndian),
    str(uid.ExplicitVRLittleEndian),
    str(uid.ExplicitVRBigEndian),
    str(uid.DeflatedExplicitVRLittleEndian),
)


def verification_contexts() -> list[PresentationContext]:
    """Return what the acceptor supports by name; storage is accepted unrestricted beside it."""
    return [build_context(Verification, list(NATIVE[:3]))]


def proposed_contexts(
    pairs: Iterable[Pair], *, fallbacks: Iterable[str] = ()
) -> list[PresentationContext]:
    """Return one context per pair, then the fallbacks of each SOP class, 128 at most.

    A context is accepted with one transfer syntax only, so each syntax needs a context of its own
    or the destination would choose for us.
    """
    wanted = list(dict.fromkeys(pairs))
    classes = dict.fromkeys(sop_class for sop_class, _ in wanted)
    spare = [(sop_class, syntax) for sop_class in classes for syntax in fallbacks]
    chosen = list(dict.fromkeys([*wanted, *spare]))[:MAX_CONTEXTS]
    return [build_context(sop_class, syntax) for sop_class, syntax in chosen]
