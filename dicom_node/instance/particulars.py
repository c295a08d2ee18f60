"""What the registry keeps of an instance's header; what is malformed counts as not said."""

from __future__ import annotations

from collections.abc import Sequence

from dicom_node.facts import InstanceFacts, MarkedFrame
from dicom_node.instance.datafile import DataFile

_MODALITY = 0x00080060
_INSTANCE_NUMBER = 0x00200013
_LARGEST = 1 << 62  # what both databases hold, and no scanner counts to


def facts_of(
    data: DataFile, frame_count: int = 0, frames: Sequence[MarkedFrame] = ()
) -> InstanceFacts:
    """Return modality and instance number beside what is known of the frames."""
    return InstanceFacts(_modality(data), _number(data), frame_count, tuple(frames))


def _modality(data: DataFile) -> str:
    try:
        return data.text(_MODALITY).strip(" \0")
    except Exception:  # noqa: BLE001 - pydicom raises by the element's VR
        return ""


def _number(data: DataFile) -> int | None:
    try:
        number = data.whole(_INSTANCE_NUMBER)
    except Exception:  # noqa: BLE001 - pydicom raises by the element's VR
        return None
    return number if number is not None and abs(number) < _LARGEST else None
