"""What happens to an exported picture before somebody tries to read its mark: a module a family.

`SUITE` is everything, with the parameters of both papers' tables; `ATTACKS` is the short list that
``bench fidelity`` has always measured, with the goals of the first version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dicom_node.bench.attacks.base import PLAIN, Attack, Pair, Picture, Scene, Shape
from dicom_node.bench.attacks.combined import COMBINED
from dicom_node.bench.attacks.compression import COMPRESSION, jpeg
from dicom_node.bench.attacks.cropping import CROPPING
from dicom_node.bench.attacks.export import EXPORT
from dicom_node.bench.attacks.filters import FILTERS
from dicom_node.bench.attacks.geometry import GEOMETRY, half
from dicom_node.bench.attacks.hostile import HOSTILE, transplanted
from dicom_node.bench.attacks.noise import NOISE
from dicom_node.bench.attacks.tone import TONE, gamma
from dicom_node.bench.attacks.video import VIDEO
from dicom_node.errors import ConfigError

__all__ = [
    "ATTACKS", "PLAIN", "SUITE", "Attack", "Pair", "Picture", "Scene", "Shape", "choose", "gamma",
    "half", "jpeg", "transplanted",
]  # fmt: skip

SUITE: tuple[Attack, ...] = (
    *COMPRESSION, *EXPORT, *NOISE, *FILTERS, *TONE, *GEOMETRY, *CROPPING, *COMBINED, *VIDEO,
    *HOSTILE,
)  # fmt: skip
_BY_NAME = {attack.name: attack for attack in SUITE}

ATTACKS: tuple[Attack, ...] = tuple(
    replace(_BY_NAME[name], target=target)
    for name, target in (
        (PLAIN, 0.97), ("JPEG 70", 0.93), ("blur 7 x 7", 0.93), ("mean 3 x 3", 0.93),
        ("median 3 x 3", 0.93), ("half size", 0.93), ("gamma 0.5", 0.93),
        ("hist. equalised", 0.93), ("rotated 90", 0.93), ("rotated 180", 0.93),
        ("rotated 270", 0.93), ("flip horiz.", 0.93), ("flip vert.", 0.93),
    )
)  # fmt: skip


def choose(names: Sequence[str]) -> tuple[Attack, ...]:
    """Return the attacks of those names or families, in the order of the suite; all for none.

    Raises
    ------
    ConfigError
        If a name is neither an attack's nor a family's.
    """
    families = dict.fromkeys(attack.family for attack in SUITE)
    unknown = [name for name in names if name not in _BY_NAME and name not in families]
    if unknown:
        raise ConfigError(
            f"--attacks {unknown[0]}: no such attack; families: {', '.join(families)}; "
            f"attacks: {', '.join(_BY_NAME)}"
        )
    return tuple(a for a in SUITE if not names or a.name in names or a.family in names)
